//go:build cgo

package pkcs11

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/google/uuid"
	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// The self-test's object in the token. Its CKA_ID has the time, so that the self-test destroys what a crash left behind, but not
// the object of another process whose self-test is running.
const (
	selfTestLabel  = "keyconvoy:self-test"
	selfTestMaxAge = time.Hour
)

// selfTestLock serializes the self-tests of a process that use a token object.
var selfTestLock = uuid.NewSHA1(uuid.NameSpaceURL, []byte("https://keyconvoy.io/self-test"))

// selfTestID returns the CKA_ID of the self-test's object.
func selfTestID(now time.Time) []byte {
	id := uuid.New()
	binary.BigEndian.PutUint64(id[:8], uint64(now.Unix())) //nolint:gosec // after 1970
	return id[:]
}

// testHardening finds the largest set that the token accepts for a master key. It finds none if it cannot create a token object
// yet, because the token does not accept a key's value and there is no wrapping key pair so far.
func (t *selfTest) testHardening() error {
	if t.can.derivation == 0 {
		return nil
	}
	unlock, err := t.s.LockID(selfTestLock)
	if err != nil {
		return err
	}
	defer unlock()
	if t.s.cfg.ReadOnly {
		return t.findHardening() // with session objects, which may accept more
	}
	if cleaned, err := t.try("destroy the keys of earlier self-tests", (*session).destroyOldSelfTests); err != nil || !cleaned {
		return err // if the token does not destroy its objects, add no more
	}
	return t.findHardening()
}

func (t *selfTest) findHardening() error {
	for set := fullyHardened; set > 0; set-- {
		undestroyed := false
		passed, err := t.try("create a master key"+set.suffix(), func(s *session) (err error) {
			undestroyed, err = t.tryHardening(s, set)
			return err
		})
		if err != nil || undestroyed {
			return err
		}
		if passed {
			t.can.hardened = set
			return nil
		}
	}
	return nil
}

// tryHardening creates a key and uses it. The key is in the token unless that must not change. undestroyed means that the token did not destroy the key.
func (t *selfTest) tryHardening(s *session, set hardening) (undestroyed bool, err error) {
	template := t.can.derivation.masterTemplate(t.id, hsm.AES256, hsm.Owner{}, !t.s.cfg.ReadOnly, set)
	for _, a := range template {
		switch a.Type {
		case p11.CKA_LABEL:
			a.Value = []byte(selfTestLabel)
		case p11.CKA_ID:
			a.Value = selfTestID(time.Now())
		}
	}
	h, err := t.store(s, hsm.AES256, template)
	if err != nil {
		return false, err
	}
	err = s.checkHardened(h, set, t.can.derivation.mechanisms())
	if err == nil {
		err = t.checkFingerprint(s, h, hsm.AES256)
	}
	if destroyErr := s.DestroyObject(h); destroyErr != nil {
		return true, destroyErr
	}
	return false, err
}

// testUnwrapped reduces the set to what the token also accepts for a key that it unwraps.
func (t *selfTest) testUnwrapped() error {
	for _, algorithm := range []wrapping.Algorithm{wrapping.RSAESOAEPSHA256, wrapping.RSAESOAEPSHA1} {
		works, err := t.tryUnwrapped(algorithm, 0)
		if err != nil {
			return err
		}
		if !works {
			continue
		}
		for all := t.can.hardened; t.can.hardened > 0; t.can.hardened-- {
			if all&t.can.hardened != t.can.hardened {
				continue
			}
			if passed, err := t.tryUnwrapped(algorithm, t.can.hardened); err != nil || passed {
				return err
			}
		}
		return nil
	}
	return nil
}

// tryUnwrapped returns whether a key that is unwrapped with that set works.
func (t *selfTest) tryUnwrapped(algorithm wrapping.Algorithm, set hardening) (bool, error) {
	return t.try(fmt.Sprintf("unwrap a master key with %s%s", algorithm, set.suffix()), func(s *session) error {
		in, err := t.wrap(hsm.AES256, algorithm, t.material[hsm.AES256])
		if err != nil {
			return err
		}
		h, err := s.storeKey(in, t.can.derivation.masterTemplate(t.id, hsm.AES256, hsm.Owner{}, false, set))
		if err != nil {
			return err
		}
		s.DestroyOnRelease(h)
		if err := s.checkHardened(h, set, t.can.derivation.mechanisms()); err != nil {
			return err
		}
		return t.checkFingerprint(s, h, hsm.AES256)
	})
}

// destroyOldSelfTests destroys what the self-test of a process that crashed left in the token.
func (s *session) destroyOldSelfTests() error {
	handles, err := s.FindObjects([]*p11.Attribute{
		p11.NewAttribute(p11.CKA_CLASS, p11.CKO_SECRET_KEY),
		p11.NewAttribute(p11.CKA_TOKEN, true),
		p11.NewAttribute(p11.CKA_LABEL, selfTestLabel),
	})
	if err != nil {
		return err
	}
	for _, h := range handles {
		values, err := s.GetAttributes(h, p11.CKA_ID)
		if err != nil {
			return err
		}
		if id := values[0]; len(id) == 16 {
			created := time.Unix(int64(binary.BigEndian.Uint64(id[:8])), 0) //nolint:gosec // as selfTestID writes it
			if time.Since(created) < selfTestMaxAge {
				continue
			}
		}
		if err := s.DestroyObject(h); err != nil {
			return err
		}
	}
	return nil
}

// testMAC finds out whether the token accepts the hardening of master keys for the MAC key of import tokens, too.
func (t *selfTest) testMAC() error {
	passed, err := t.try("sign with CKM_SHA256_HMAC and a key"+t.can.hardened.suffix(), func(s *session) error {
		template := append(macTemplate(false), t.can.hardened.attributes(macMechanisms)...)
		h, err := s.GenerateSessionKey(p11.CKM_GENERIC_SECRET_KEY_GEN, template)
		if err != nil {
			return err
		}
		if err := s.checkHardened(h, t.can.hardened, macMechanisms); err != nil {
			return err
		}
		_, err = s.Sign(p11.CKM_SHA256_HMAC, h, []byte(selfTestLabel))
		return err
	})
	if passed {
		t.can.hardenedMAC = t.can.hardened
	}
	if err != nil {
		return err
	}
	return t.mustBeRight("sign with CKM_SHA256_HMAC and a key of known value", (*selfTest).tryMAC)
}

// tryMAC compares a signature with that of the host.
func (t *selfTest) tryMAC(s *session) error {
	key := t.material[hsm.AES256]
	h, err := s.CreateSessionObject(append(sessionKey(p11.CKK_GENERIC_SECRET, false),
		p11.NewAttribute(p11.CKA_SIGN, true), p11.NewAttribute(p11.CKA_VALUE, []byte(key))))
	if err != nil {
		return err
	}
	got, err := s.Sign(p11.CKM_SHA256_HMAC, h, []byte(selfTestLabel))
	if err != nil {
		return err
	}
	want := hmac.New(sha256.New, key)
	want.Write([]byte(selfTestLabel))
	if !hmac.Equal(got, want.Sum(nil)) {
		return errWrongResult
	}
	return nil
}
