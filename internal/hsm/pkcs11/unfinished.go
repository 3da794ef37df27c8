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
// token, under the identifier of the key that was to be created. Every operation with it fails. It is destroyed when one has failed,
// so that the next attempt creates the key.

// creationTime is how long a key has to be unfinished before it is destroyed: another process may be creating it.
const creationTime = 2 * time.Second

var errUnfinished = hsm.Errorf(hsm.Unavailable, "a key in the token cannot be used yet: another process is creating it, or its creation was interrupted and is repeated")

// suspect is a key that may be unfinished.
type suspect struct {
	name token.ObjectName
	// use is an operation that every finished key permits.
	use func(p11.ObjectHandle) error
	// likeIt creates a session key from the same template, which is used to show that the token is not to blame.
	likeIt func() (p11.ObjectHandle, error)
	// generated is whether the token generates the key, and says so in CKA_LOCAL when that has ended.
	generated bool
}

// destroyUnfinished destroys a key whose creation did not end, because of which an operation failed. It returns errUnfinished if the
// operation can be repeated, and otherwise the cause: nothing that was made with a finished key may be lost. The caller holds the lock
// of the identifier.
func (s *session) destroyUnfinished(k suspect, cause error) error {
	if !meansNoValue(cause) {
		return cause
	}
	s.Forget(k.name)
	found, err := s.FindObjects(k.name.Template())
	if err != nil {
		return err
	}
	if len(found) == 0 {
		return errUnfinished // another caller has destroyed it
	}
	if len(found) > 1 {
		return cause
	}
	switch err := k.use(found[0]); {
	case err == nil: // it has been finished meanwhile
		s.unfinished.forget(k.name)
		return errUnfinished
	case !meansNoValue(err):
		return err
	}
	if err := s.checkUnfinished(k, found[0], cause); err != nil {
		return err
	}
	if s.unfinished.isOld(k.name, s.Now()) {
		if err := s.DestroyObject(found[0]); err != nil {
			return err
		}
		s.unfinished.forget(k.name)
	}
	return errUnfinished
}

// checkUnfinished returns nil if the token permits the operation with a key like the one that does not work, and says that it did not
// generate the latter. Otherwise it returns the cause, or that the connection was lost.
func (s *session) checkUnfinished(k suspect, h p11.ObjectHandle, cause error) error {
	working, err := k.likeIt()
	if err == nil {
		err = k.use(working)
	}
	if token.ClassOf(err) == token.ConnectionLost {
		return err
	}
	if err != nil || !s.hasLocal(h, isFalse) || k.generated && !s.hasLocal(working, isTrue) {
		return cause
	}
	return nil
}

// hasLocal returns whether the token tells CKA_LOCAL of a key, and it is as expected.
func (s *session) hasLocal(h p11.ObjectHandle, expected func([]byte) bool) bool {
	values, err := s.GetAttributes(h, p11.CKA_LOCAL)
	return err == nil && expected(values[0])
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
	if first, seen := u.since[name]; seen {
		return now.Sub(first) >= creationTime
	}
	if u.since == nil {
		u.since = map[token.ObjectName]time.Time{}
	}
	u.since[name] = now
	return false
}

func (u *unfinishedKeys) forget(name token.ObjectName) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.since, name)
}
