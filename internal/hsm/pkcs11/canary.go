//go:build cgo

package pkcs11

import (
	"bytes"
	"fmt"

	"github.com/google/uuid"
	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/pkcs11/token"
)

// A canaryProbe is a probe of the self-test that passed, and that a canary repeats.
type canaryProbe struct {
	name string
	run  func(*selfTest, *session) error
}

// tryRepeatable is try for a probe that canaries repeat if it passes.
func (t *selfTest) tryRepeatable(name string, probe func(*selfTest, *session) error) (passed bool, err error) {
	passed, err = t.try(name, func(s *session) error { return probe(t, s) })
	if passed {
		t.can.canary = append(t.can.canary, canaryProbe{name, probe})
	}
	return passed, err
}

// mustBeRight is tryRepeatable for what every key store needs. A token may not support the probe, but its result must not be wrong.
func (t *selfTest) mustBeRight(name string, probe func(*selfTest, *session) error) error {
	passed, err := t.tryRepeatable(name, probe)
	if err != nil || passed || token.DescribeCode(t.failure) != "" {
		return err
	}
	return hsm.Wrap(hsm.NotSupported, t.failure, fmt.Sprintf(
		"the token returns wrong results in the step %q of the self-test: use another token or a software key store", name))
}

// runCanary proves that the token works, and that its results are still right: a library that returned right ones during the
// self-test may return CKR_OK and garbage later. It repeats probes of the self-test on session objects with new keys, in the
// session of an operation.
//
// A wrong result is reported at once. A call that fails is treated like any other, but if the token is healthy, it rejects what it
// did during the self-test: its keys are not what the calls before asked for, or it has changed.
func (s *session) runCanary() error {
	t := newSelfTest(s)
	defer t.wipe()
	for _, probe := range append([]canaryProbe{{"create a master key and derive from it", (*selfTest).tryCanaryMaster}}, s.can.canary...) {
		err := probe.run(t, s)
		if err == nil {
			continue
		}
		return blameToken(probe.name, err)
	}
	return nil
}

// blameToken returns the error of a canary's probe that failed.
func blameToken(probe string, err error) error {
	wrong := hsm.Errorf(hsm.WrongResult, "the token's results are not right any more: the step %q, which succeeded when the token was opened, fails in a check", probe)
	if token.DescribeCode(err) == "" && hsm.KindOf(err) != hsm.Unavailable { // the host found it
		return hsm.Wrap(wrong.Kind, err, wrong.Detail)
	}
	class := token.ClassOf(err)
	if token.InputBlamed(err) || class == token.Rejected || class == token.InvalidInput {
		return token.BlameInput(wrong, err)
	}
	return err
}

// tryCanaryMaster creates the master key of a canary: of known value if the token accepts one, and otherwise in the token, because
// a key pair, under which a value could be wrapped, takes too long to generate.
func (t *selfTest) tryCanaryMaster(s *session) error {
	if t.can.takesValues {
		if err := t.useMaster(); err != nil {
			return err
		}
		return t.checkFingerprint(s, t.master, hsm.AES256)
	}
	template := t.can.derivation.masterTemplate(t.id, hsm.AES256, hsm.Owner{}, false, t.can.hardened)
	var err error
	t.master, err = s.GenerateSessionKey(p11.CKM_AES_KEY_GEN, append(template, p11.NewAttribute(p11.CKA_VALUE_LEN, hsm.AES256.Len())))
	return err
}

// testObjects finds out whether the token finds session objects, so that canaries can search.
func (t *selfTest) testObjects() error {
	return t.mustBeRight("find and destroy a session object", (*selfTest).tryObjects)
}

// tryObjects finds an object, destroys it, and does not find it again.
func (t *selfTest) tryObjects(s *session) error {
	id := uuid.New()
	h, err := s.GenerateKey(p11.CKM_GENERIC_SECRET_KEY_GEN, append(sessionKey(p11.CKK_GENERIC_SECRET, false),
		p11.NewAttribute(p11.CKA_VALUE_LEN, 32), p11.NewAttribute(p11.CKA_ID, id[:])))
	if err != nil {
		return err
	}
	find := []*p11.Attribute{p11.NewAttribute(p11.CKA_CLASS, p11.CKO_SECRET_KEY), p11.NewAttribute(p11.CKA_ID, id[:])}
	found, err := s.FindObjects(find)
	if err != nil {
		return err
	}
	if len(found) != 1 {
		s.DestroyOnRelease(h)
		return fmt.Errorf("a search finds %d objects instead of one: %w", len(found), errWrongResult)
	}
	values, err := s.GetAttributes(found[0], p11.CKA_ID)
	if err != nil {
		return err
	}
	if !bytes.Equal(values[0], id[:]) {
		s.DestroyOnRelease(h)
		return fmt.Errorf("a search finds another object: %w", errWrongResult)
	}
	if err := s.DestroyObject(found[0]); err != nil { // which has the identifier, unlike a wrong handle
		return err
	}
	if found, err = s.FindObjects(find); err == nil && len(found) > 0 {
		err = fmt.Errorf("a destroyed object exists: %w", errWrongResult)
	}
	return err
}
