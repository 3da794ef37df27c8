//go:build cgo

package pkcs11

import (
	"cmp"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"sync"

	"github.com/google/uuid"
	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/ciphertext"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/pkcs11/token"
	"github.com/keyconvoy/keyconvoy/internal/redact"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// selfTestRecipient is the recipient of the self-test's exports. Generating an RSA key takes longer than all other steps, so a
// process does it once.
var selfTestRecipient = sync.OnceValues(func() (*wrapping.PrivateKey, error) {
	return wrapping.GeneratePrivateKey(rand.Reader, wrapping.RSA2048)
})

// errNotDone means that the token returned CKR_OK and did nothing.
var errNotDone = errors.New("the token returned CKR_OK and did nothing")

// errWrongResult means that the token returned CKR_OK and a wrong result.
var errWrongResult = errors.New("the result differs from that of independent code")

// selfTest is one run of the self-test. It runs the module's operations on session objects with key values that the host
// knows, and opens the results with internal/ciphertext and internal/wrapping, which do not use the token.
type selfTest struct {
	s         *session
	can       *capabilities // what the test has found so far, also for the operations under test
	material  map[hsm.KeySpec]redact.Bytes
	master    p11.ObjectHandle // an AES_256 master key
	block     cipher.Block     // the same key on the host; nil if its value is not known
	id        uuid.UUID
	binding   ciphertext.Binding
	canCreate bool             // the token has created a key of known value
	private   p11.ObjectHandle // half of an RSA-2048 key pair
	public    *wrapping.PublicKey
	failure   error // of the last call of try
	probes    probeLog
	rejected  []error // of the derivations, by findDerivation
}

// runSelfTest finds out what the token can do. It fails if the connection is lost, and with NotSupported if the token lacks what
// every master key requires.
func runSelfTest(s *token.Session, cfg *Config, publish func([]hsm.Probe)) (capabilities, error) {
	go func() { _, _ = selfTestRecipient() }() // takes a while
	t := newSelfTest(&session{Session: s, cfg: cfg, can: &capabilities{
		specs:     map[hsm.KeySpec]bool{},
		generates: map[hsm.KeySpec]bool{},
		imports:   map[wrapping.Algorithm]hsm.Custody{},
		exports:   map[wrapping.Algorithm]hsm.Custody{},
	}})
	t.probes.publish = publish
	defer t.wipe()
	for _, step := range []func() error{
		t.findDerivation, t.testHardening, t.testPair, t.testMasterKeys, t.testMAC, t.testDerivation, t.testObjects, t.testDataKeys,
		t.testReencryption, t.testGenerated, t.testImports, t.testExports, t.testProtection,
	} {
		if err := step(); err != nil {
			return capabilities{}, err
		}
	}
	// A device that fails during the test must not count as one that supports little.
	if passed, err := t.try("check the token's health", (*session).checkHealth); !passed {
		return capabilities{}, errors.Join(err, t.failure)
	}
	t.can.probes = t.probes.all
	return *t.can, nil
}

func newSelfTest(s *session) *selfTest {
	t := &selfTest{s: s, can: s.can, id: uuid.New(), material: map[hsm.KeySpec]redact.Bytes{}}
	t.binding = ciphertext.Bind(t.id, map[string]string{"self": "test"})
	t.probes.publish = func([]hsm.Probe) {}
	for _, spec := range aesSpecs {
		t.material[spec] = make(redact.Bytes, spec.Len())
		_, _ = rand.Read(t.material[spec]) // it never fails (Go 1.24)
	}
	return t
}

func (t *selfTest) wipe() {
	for _, material := range t.material {
		material.Wipe()
	}
}

// try runs a probe in a new session, because a failed call may leave a session unusable. It returns whether the probe passed; an
// error ends the self-test.
//
// A probe that may have failed because of the device runs again: a single failure must not make a token count as one that supports
// or protects less. p11-kit returns CKR_DEVICE_ERROR for what its protocol cannot carry, so a probe that loses the connection
// twice, while a health check succeeds each time, did not pass.
func (t *selfTest) try(name string, probe func(*session) error) (passed bool, err error) {
	return t.tryProbe(hsm.Probe{Name: name}, probe)
}

func (t *selfTest) tryProbe(p hsm.Probe, probe func(*session) error) (passed bool, err error) {
	t.probes.begin(p)
	defer func() { t.probes.end(cmp.Or(err, t.failure)) }()
	for range 2 {
		if err = t.inNewSession(probe); err != nil || !mayBeDevice(t.failure) {
			return err == nil && t.failure == nil, err
		}
		failure := t.failure
		if token.ClassOf(failure) == token.ConnectionLost {
			if err := t.inNewSession((*session).checkHealth); err != nil || t.failure != nil {
				return false, failure
			}
		}
		t.failure = failure
	}
	if token.HasCode(t.failure, p11.CKR_HOST_MEMORY) { // CKR_DEVICE_MEMORY may mean that the key is too long
		return false, t.failure
	}
	return false, nil
}

// inNewSession runs a probe in a new session and sets failure to its result. It returns an error of C_OpenSession.
func (t *selfTest) inNewSession(probe func(*session) error) error {
	return t.s.InNewSession(func(s *token.Session) error {
		t.failure = probe(&session{Session: s, cfg: t.s.cfg, can: t.can})
		return nil
	})
}

// endsTest returns whether a failure outside of a probe ends the self-test, because otherwise the token would count as one that
// supports less.
func endsTest(err error) bool {
	return token.ClassOf(err) == token.ConnectionLost || token.HasCode(err, p11.CKR_HOST_MEMORY)
}

// mayBeDevice returns whether a failure may be that of the device, or of this moment.
func mayBeDevice(err error) bool {
	switch token.ClassOf(err) {
	case token.ConnectionLost, token.Ambiguous, token.Exhausted:
		return true
	}
	return false
}

func (s *session) checkHealth() error { return s.HealthCheck() }

// testPair generates the key pair under which material is imported. Without one, the module imports nothing.
func (t *selfTest) testPair() error {
	t.can.hardenedPair = t.can.hardened
	generated, err := t.tryPair()
	if err == nil && !generated && t.can.hardened != 0 {
		t.can.hardenedPair = 0
		generated, err = t.tryPair()
	}
	if err != nil || !generated {
		return err
	}
	if t.canCreate {
		return t.testUnwrapped()
	}
	// The token accepts only wrapped keys, so the first calls of findDerivation and testHardening found nothing.
	if err := t.findDerivation(); err != nil {
		return err
	}
	if err := t.testHardening(); err != nil || t.can.hardened == 0 {
		return err
	}
	t.can.hardenedPair = t.can.hardened
	if generated, err = t.tryPair(); err == nil && !generated {
		t.can.hardenedPair = 0
	}
	return err
}

// tryPair generates a pair that exists until the end of the self-test, and sets public and private.
func (t *selfTest) tryPair() (generated bool, err error) {
	t.probes.begin(hsm.Probe{Name: "generate an RSA_2048 key pair" + t.can.hardenedPair.suffix()})
	mechanisms := pairMechanisms(true, true)
	publicTemplate, privateTemplate := pairTemplates(2048, t.id, selfTestLabel, false, true)
	public, private, err := t.s.GenerateKeyPair(publicTemplate, append(privateTemplate, t.can.hardenedPair.attributes(mechanisms)...))
	if err == nil {
		t.s.DestroyOnRelease(public, private)
		err = t.s.checkHardened(private, t.can.hardenedPair, mechanisms)
	}
	t.probes.end(err)
	if endsTest(err) {
		return false, err
	}
	if err != nil {
		return false, nil //nolint:nilerr // the token does not support it
	}
	key, err := t.s.publicKey(public)
	if err != nil {
		return false, err
	}
	t.public, t.private = key, private
	return true, nil
}

// testMasterKeys creates a key of known value for each type and compares fingerprints.
func (t *selfTest) testMasterKeys() error {
	if t.can.derivation == 0 {
		return t.errMissing()
	}
	for _, spec := range aesSpecs {
		passed, err := t.try("create a master key "+string(spec)+" and derive from it", func(s *session) error {
			h, err := t.createMaster(s, spec)
			if err != nil {
				return err
			}
			s.DestroyOnRelease(h)
			return t.checkFingerprint(s, h, spec)
		})
		if err != nil {
			return err
		}
		t.can.specs[spec] = passed
	}
	if !t.can.specs[hsm.AES256] {
		if mayBeDevice(t.failure) {
			return t.failure // the device may have failed
		}
		return hsm.Wrap(hsm.NotSupported, t.failure,
			"the token does not accept an AES_256 master key as a session object: use another token or a software key store")
	}
	return t.useMaster()
}

// useMaster creates the master key of the following probes.
func (t *selfTest) useMaster() (err error) {
	if t.master, err = t.createMaster(t.s, hsm.AES256); err != nil {
		return err
	}
	t.s.DestroyOnRelease(t.master)
	t.block, err = hsm.NewCipher(hsm.AES256, t.material[hsm.AES256])
	return err
}

// createMaster creates a session key like a master key, of known value.
func (t *selfTest) createMaster(s *session, spec hsm.KeySpec) (p11.ObjectHandle, error) {
	return t.store(s, spec, t.can.derivation.masterTemplate(t.id, spec, hsm.Owner{}, false, t.can.hardened))
}

// store creates a key of known value, by its value, or wrapped if the token does not accept values.
func (t *selfTest) store(s *session, spec hsm.KeySpec, template []*p11.Attribute) (p11.ObjectHandle, error) {
	in := incoming{request: hsm.ImportRequest{Spec: spec}, material: t.material[spec]}
	h, err := s.storeKey(in, template)
	if err == nil && !t.can.takesValues {
		t.can.takesValues = true
	}
	for _, algorithm := range []wrapping.Algorithm{wrapping.RSAESOAEPSHA256, wrapping.RSAESOAEPSHA1} {
		if err == nil || t.public == nil {
			break
		}
		if in, err = t.wrap(spec, algorithm, t.material[spec]); err == nil {
			h, err = s.storeKey(in, template)
		}
	}
	t.canCreate = t.canCreate || err == nil
	return h, err
}

// wrap wraps material outside the token, as users do.
func (t *selfTest) wrap(spec hsm.KeySpec, algorithm wrapping.Algorithm, material []byte) (incoming, error) {
	wrapped, err := wrapping.Wrap(rand.Reader, t.public, algorithm, "", material)
	req := hsm.ImportRequest{KeyVersionID: t.id, Spec: spec, Algorithm: algorithm, EncryptedMaterial: wrapped}
	return incoming{request: req, private: t.private}, err
}

func (t *selfTest) checkFingerprint(s *session, h p11.ObjectHandle, spec hsm.KeySpec) error {
	want, err := hsm.FingerprintOf(spec, t.material[spec])
	if err != nil {
		return err
	}
	if err := s.checkMaster(h); err != nil {
		return err
	}
	got, err := s.fingerprint(h)
	if err == nil && got != want {
		err = errWrongResult
	}
	return err
}
