//go:build cgo

package pkcs11

import (
	"errors"
	"sync"
	"time"

	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/pkcs11/token"
)

// SoftHSM stores the attributes of a new key before its value. A process that ends in between leaves a key without a value in the
// token, under the identifier of the key that was to be created. Every operation with it fails, and a retry replaces it.

// creationTime is how long a key has to be unfinished before it is replaced: another process may be creating it.
const creationTime = 2 * time.Second

var errUnfinished = hsm.Errorf(hsm.Unavailable, "a key in the token cannot be used yet: either another process is creating it, or its creation was interrupted and it will be replaced")

// replacement is what decides whether a key is unfinished, and creates it again. All of it is called with the lock of the identifier.
type replacement struct {
	name token.ObjectName
	// works is an operation that a finished key permits.
	works func(p11.ObjectHandle) error
	// fresh creates a session key like the one that is to be created. works must succeed with it.
	fresh func() (p11.ObjectHandle, error)
	// generated is whether the token generates the key, so that CKA_LOCAL says whether that ended.
	generated bool
	// create creates the key again.
	create func() (p11.ObjectHandle, error)
}

// replaceUnfinished creates a key again whose creation did not end. It returns the cause, which is why the key does not work, if there
// may be any other reason for it, because nothing that was made with a finished key may be lost.
func (s *session) replaceUnfinished(r replacement, cause error) (p11.ObjectHandle, error) {
	s.Forget(r.name)
	found, err := s.FindObjects(r.name.Template())
	if err != nil {
		return 0, err
	}
	if len(found) != 1 || !meansNoValue(cause) {
		return 0, cause
	}
	old := found[0]
	if !s.canReplace(r, old) {
		return 0, cause
	}
	if !meansNoValue(r.works(old)) { // not any more
		return 0, errUnfinished
	}
	if !s.unfinished.isOld(r.name, s.Now()) {
		return 0, errUnfinished
	}
	if err := s.DestroyObject(old); err != nil {
		return 0, err
	}
	s.unfinished.forget(r.name)
	return r.create()
}

// canReplace returns whether the token says that it did not generate the key, and creates one like it that works.
func (s *session) canReplace(r replacement, old p11.ObjectHandle) bool {
	fresh, err := r.fresh()
	if err != nil || r.works(fresh) != nil {
		return false
	}
	return !s.isLocal(old, true) && (!r.generated || s.isLocal(fresh, false))
}

// isLocal returns CKA_LOCAL of a key, or otherwise if the token does not say.
func (s *session) isLocal(h p11.ObjectHandle, otherwise bool) bool {
	values, err := s.GetAttributes(h, p11.CKA_LOCAL)
	if err != nil || !isTrue(values[0]) && !isFalse(values[0]) {
		return otherwise
	}
	return isTrue(values[0])
}

// meansNoValue returns whether an operation failed as it does with a key without a value: SoftHSM finds that the mechanism is not for
// this key, or that the key is too short.
func meansNoValue(err error) bool {
	var code p11.Error
	return errors.As(err, &code) && (code == p11.CKR_MECHANISM_INVALID || code == p11.CKR_KEY_SIZE_RANGE)
}

// unfinishedKeys remembers when unfinished keys were first seen.
type unfinishedKeys struct {
	mu    sync.Mutex
	since map[token.ObjectName]time.Time
}

// isOld returns whether a key was first seen at least creationTime ago.
func (u *unfinishedKeys) isOld(name token.ObjectName, now time.Time) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	first, seen := u.since[name]
	if !seen {
		if u.since == nil {
			u.since = map[token.ObjectName]time.Time{}
		}
		u.since[name] = now
		return false
	}
	return now.Sub(first) >= creationTime
}

func (u *unfinishedKeys) forget(name token.ObjectName) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.since, name)
}

func (s *session) fingerprints(h p11.ObjectHandle) error {
	_, err := s.fingerprint(h)
	return err
}

// replaceUnfinishedMaster is replaceUnfinished for a generated master key.
func (s *session) replaceUnfinishedMaster(req hsm.GenerateKeyRequest, cause error) (p11.ObjectHandle, error) {
	return s.replaceUnfinished(replacement{
		name: masterName(req.KeyVersionID), works: s.fingerprints, generated: true,
		fresh: func() (p11.ObjectHandle, error) {
			template := s.can.derivation.masterTemplate(req.KeyVersionID, req.Spec, req.Owner, false, s.can.hardenedGenerated)
			return s.GenerateSessionKey(p11.CKM_AES_KEY_GEN, generatedTemplate(req.Spec, template))
		},
		create: func() (p11.ObjectHandle, error) { return s.generateMaster(req) },
	}, cause)
}

// replaceUnfinishedMAC is replaceUnfinished for the MAC key, with a message that it did not authenticate.
func (s *session) replaceUnfinishedMAC(message []byte, cause error) (p11.ObjectHandle, error) {
	unlock, err := s.LockID(macKeyID)
	if err != nil {
		return 0, err
	}
	defer unlock()
	return s.replaceUnfinished(replacement{
		name: macKeyName, works: func(key p11.ObjectHandle) error { _, err := s.hmac(key, message); return err }, generated: true,
		fresh: func() (p11.ObjectHandle, error) {
			return s.GenerateSessionKey(p11.CKM_GENERIC_SECRET_KEY_GEN, append(macTemplate(false), s.can.hardenedMAC.attributes(macMechanisms)...))
		},
		create: s.findOrGenerateMAC,
	}, cause)
}

// replaceUnfinishedImport is replaceUnfinished for an imported master key of the same owner. The fresh key is the material itself, so
// the key can be created again.
func (s *session) replaceUnfinishedImport(in incoming, existing p11.ObjectHandle, fingerprint hsm.Fingerprint, cause error) (hsm.Owner, error) {
	if _, owner, err := s.describe(existing); err != nil || owner != in.request.Owner {
		return hsm.Owner{}, cause
	}
	_, err := s.replaceUnfinished(replacement{
		name: masterName(in.request.KeyVersionID), works: s.fingerprints,
		fresh: func() (p11.ObjectHandle, error) {
			h, err := s.storeMaster(in, false)
			if err != nil {
				return 0, err
			}
			s.DestroyOnRelease(h)
			return h, s.checkCreated(h, in.last, fingerprint)
		},
		create: func() (p11.ObjectHandle, error) { return 0, s.createMaster(in, fingerprint) },
	}, cause)
	return in.request.Owner, err
}
