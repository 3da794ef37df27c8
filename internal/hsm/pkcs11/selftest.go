//go:build cgo

package pkcs11

import (
	"bytes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"

	"github.com/google/uuid"
	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/ciphertext"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/redact"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// selfTestRecipient is the recipient of the self-test's exports. Making an RSA key takes longer than
// all the rest, so a process makes one.
var selfTestRecipient = sync.OnceValues(func() (*wrapping.PrivateKey, error) {
	return wrapping.GeneratePrivateKey(rand.Reader, wrapping.RSA2048)
})

// errWrongResult is a call that gave CKR_OK and something else than it should.
var errWrongResult = errors.New("the result is not what independent code computes")

// selfTest is one run: keys that the host knows, in the token as session objects, which go with the
// session. Everything that the token makes of them is opened by internal/ciphertext and
// internal/wrapping, which know nothing of tokens.
type selfTest struct {
	s        *session
	can      *abilities // s.m.can, so that the operations under test run as they will later
	material map[hsm.KeySpec]redact.Bytes
	master   p11.ObjectHandle // an AES_256 master key
	block    cipher.Block     // the same on the host
	id       uuid.UUID
	binding  ciphertext.Binding
	private  p11.ObjectHandle // half of an RSA-2048 pair
	public   *wrapping.PublicKey
	failure  error // of the last probe that did not pass
}

// selfTest finds out what the token can do. It fails when the module is lost, and with NotSupported
// where the token lacks what every master key here rests on.
func (s *session) selfTest() (abilities, error) {
	go func() { _, _ = selfTestRecipient() }() // meanwhile
	s.m.can = abilities{
		specs:   map[hsm.KeySpec]bool{},
		imports: map[wrapping.Algorithm]hsm.Custody{},
		exports: map[wrapping.Algorithm]hsm.Custody{},
	}
	t := &selfTest{s: s, can: &s.m.can, id: uuid.New(), material: map[hsm.KeySpec]redact.Bytes{}}
	defer t.wipe()
	t.binding = ciphertext.Bind(t.id, map[string]string{"self": "test"})
	for _, spec := range aesSpecs {
		t.material[spec] = make(redact.Bytes, spec.Len())
		_, _ = rand.Read(t.material[spec]) // it never fails (Go 1.24)
	}
	for _, step := range []func() error{t.testPair, t.testMasters, t.testDerivation, t.testDataKeys, t.testImports, t.testExports} {
		if err := step(); err != nil {
			return abilities{}, err
		}
	}
	s.m.can.tested = true
	return s.m.can, nil
}

func (t *selfTest) wipe() {
	for _, material := range t.material {
		material.Wipe()
	}
}

// try runs a probe in a session of its own, since one that failed may be latched. It says whether the
// probe passed; an error is one that ends the whole test.
func (t *selfTest) try(probe func(*session) error) (passed bool, err error) {
	s := &session{m: t.s.m, c: t.s.c, ctx: t.s.ctx, at: t.s.at, epoch: t.s.epoch}
	s.h, err = s.c.OpenSession(s.at.slot, sessionFlags)
	if err != nil {
		return false, called("C_OpenSession", err)
	}
	defer func() {
		s.cleanUp()
		_ = s.c.CloseSession(s.h)
	}()
	t.failure = probe(s)
	if classOf(t.failure) == lost {
		return false, t.failure
	}
	return t.failure == nil, nil
}

// testPair makes the pair under which material comes in. A token without one imports nothing.
func (t *selfTest) testPair() error {
	publicTemplate, privateTemplate := pairTemplates(2048, t.id, "keyconvoy:self-test", false, true)
	public, private, err := t.s.generatePair(publicTemplate, privateTemplate)
	if classOf(err) == lost {
		return err
	}
	if err != nil {
		return nil //nolint:nilerr // the token cannot, that is all
	}
	t.s.temps = append(t.s.temps, public, private)
	if t.public, err = t.s.publicKey(public); err != nil {
		return err
	}
	t.private = private
	return nil
}

// testMasters plants a known key of each type and compares fingerprints.
func (t *selfTest) testMasters() error {
	for _, spec := range aesSpecs {
		passed, err := t.try(func(s *session) error {
			h, err := t.plant(s, spec)
			if err != nil {
				return err
			}
			s.temps = append(s.temps, h)
			return t.checkFingerprint(s, h, spec)
		})
		if err != nil {
			return err
		}
		t.can.specs[spec] = passed
	}
	if !t.can.specs[hsm.AES256] {
		if classOf(t.failure) == ambiguous {
			return t.failure // it may be unwell, rather than unable
		}
		return hsm.Wrap(hsm.NotSupported, t.failure,
			"the token cannot hold an AES key that derives by CKM_AES_ECB_ENCRYPT_DATA, on which every master key rests: use another token or a software key store")
	}
	var err error
	if t.master, err = t.plant(t.s, hsm.AES256); err != nil {
		return err
	}
	t.s.temps = append(t.s.temps, t.master)
	t.block, err = hsm.NewCipher(hsm.AES256, t.material[hsm.AES256])
	return err
}

// plant puts known material into a session key with a master key's protection: by value, or wrapped
// where the token takes no values.
func (t *selfTest) plant(s *session, spec hsm.KeySpec) (p11.ObjectHandle, error) {
	in := incoming{request: hsm.ImportRequest{KeyVersionID: t.id, Spec: spec}, material: t.material[spec]}
	h, err := s.putMaster(in, false)
	for _, algorithm := range []wrapping.Algorithm{wrapping.RSAESOAEPSHA256, wrapping.RSAESOAEPSHA1} {
		if err == nil || t.public == nil {
			break
		}
		if in, err = t.wrapped(spec, algorithm, t.material[spec]); err == nil {
			h, err = s.putMaster(in, false)
		}
	}
	return h, err
}

// wrapped is material as a person wraps it.
func (t *selfTest) wrapped(spec hsm.KeySpec, algorithm wrapping.Algorithm, material []byte) (incoming, error) {
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

// testDerivation derives a key for the host, as DERIVED_GCM does.
func (t *selfTest) testDerivation() error {
	got, err := t.s.deriveOnHost(t.master, ciphertext.DerivedGCM, t.binding)
	if err != nil {
		return err
	}
	defer got.Wipe()
	want := ciphertext.DeriveKey(t.block, ciphertext.DerivedGCM, t.binding)
	defer clear(want)
	if !bytes.Equal(got, want) {
		return hsm.Errorf(hsm.NotSupported, "the token derives wrong keys: use another token or a software key store")
	}
	return nil
}

// testDataKeys finds the longest data key that stays inside. Whether the token wants lengths when it
// unwraps shows here too.
func (t *selfTest) testDataKeys() error {
	const shortest, step = 16, 8
	for _, sized := range []bool{false, true} {
		t.can.sizedUnwrap = sized
		passed, err := t.tryDataKey(shortest)
		if err != nil {
			return err
		}
		if passed {
			t.can.longest = shortest
			break
		}
	}
	if t.can.longest == 0 {
		t.can.sizedUnwrap = false
		return nil
	}
	// Lengths that work and do not work are taken to be apart: below is well, above is not.
	below, above := shortest/step, hsm.MaxDataKeyLen/step+1
	for try := above - 1; above-below > 1; try = (below + above) / 2 {
		passed, err := t.tryDataKey(try * step)
		if err != nil {
			return err
		}
		if passed {
			below = try
		} else {
			above = try
		}
	}
	t.can.longest = below * step
	return nil
}

// tryDataKey makes a data key, opens it on the host and in the token, and sees a changed blob refused.
func (t *selfTest) tryDataKey(length int) (bool, error) {
	return t.try(func(s *session) error {
		made, err := s.generateInside(t.master, hsm.GenerateRequest{KeyVersionID: t.id, Length: length, Binding: t.binding})
		if err != nil {
			return err
		}
		want, err := ciphertext.Open(made.Blob, t.block, t.binding)
		if err != nil {
			return err
		}
		defer clear(want)
		h, err := s.openInside(t.master, hsm.OpenRequest{Blob: made.Blob, Binding: t.binding}, length, readableUnwrapped())
		if err != nil {
			return err
		}
		got, err := s.value(h, length)
		if err != nil {
			return err
		}
		defer got.Wipe()
		if !bytes.Equal(got, want) {
			return errWrongResult
		}
		made.Blob.Payload[0] ^= 1
		return refusesBlob(s.openInside(t.master, hsm.OpenRequest{Blob: made.Blob, Binding: t.binding}, length, readableUnwrapped()))
	})
}

func refusesBlob(_ p11.ObjectHandle, err error) error {
	if err == nil {
		return fmt.Errorf("a changed blob opens: %w", errWrongResult)
	}
	if classOf(err) == lost {
		return err
	}
	return nil
}

// testImports tries each algorithm inside, then with its padding removed on the host.
func (t *selfTest) testImports() error {
	if t.public == nil {
		return nil
	}
	for _, algorithm := range []wrapping.Algorithm{wrapping.RSAESOAEPSHA256, wrapping.RSAESOAEPSHA1, wrapping.RSAESPKCS1V15} {
		for _, custody := range []hsm.Custody{hsm.CustodyModule, hsm.CustodyHost} {
			if custody == hsm.CustodyHost && algorithm == wrapping.RSAESPKCS1V15 {
				continue
			}
			passed, err := t.try(func(s *session) error { return t.tryImport(s, algorithm, custody) })
			if err != nil {
				return err
			}
			if passed {
				t.can.imports[algorithm] = custody
				break
			}
		}
	}
	return nil
}

// tryImport brings known material in, and material of other lengths, which must be refused.
func (t *selfTest) tryImport(s *session, algorithm wrapping.Algorithm, custody hsm.Custody) error {
	for _, spec := range aesSpecs {
		if !t.can.specs[spec] {
			continue
		}
		if err := t.tryImportSpec(s, spec, algorithm, custody); err != nil {
			return err
		}
	}
	for _, length := range []int{16, 24, 31} {
		in, err := t.wrapped(hsm.AES256, algorithm, t.material[hsm.AES256][:length])
		if err != nil {
			return err
		}
		if _, err := t.take(s, &in, custody); err == nil {
			return fmt.Errorf("%d bytes pass for AES_256: %w", length, errWrongResult)
		} else if classOf(err) == lost {
			return err
		}
	}
	return nil
}

func (t *selfTest) tryImportSpec(s *session, spec hsm.KeySpec, algorithm wrapping.Algorithm, custody hsm.Custody) error {
	in, err := t.wrapped(spec, algorithm, t.material[spec])
	if err != nil {
		return err
	}
	got, err := t.take(s, &in, custody)
	if err != nil {
		return err
	}
	defer in.material.Wipe()
	if want, err := hsm.FingerprintOf(spec, t.material[spec]); err != nil || got != want {
		return errWrongResult
	}
	h, err := s.putMaster(in, false)
	if err != nil {
		return err
	}
	s.temps = append(s.temps, h)
	return t.checkFingerprint(s, h, spec)
}

// take is the first half of an import. The caller wipes in.material.
func (t *selfTest) take(s *session, in *incoming, custody hsm.Custody) (hsm.Fingerprint, error) {
	if custody == hsm.CustodyHost {
		var err error
		if in.material, err = s.unwrapOnHost(in.request, in.private); err != nil {
			return hsm.Fingerprint{}, err
		}
	}
	return s.fingerprintIncoming(in)
}

// testExports tries each RSA algorithm inside. On the host all of them work, SM2 too.
func (t *selfTest) testExports() error {
	recipient, err := selfTestRecipient()
	if err != nil {
		return hsm.Wrap(hsm.Internal, err, "")
	}
	for _, algorithm := range []wrapping.Algorithm{wrapping.RSAESOAEPSHA256, wrapping.RSAESOAEPSHA1, wrapping.SM2PKE} {
		t.can.exports[algorithm] = hsm.CustodyHost
		if algorithm == wrapping.SM2PKE || t.can.longest == 0 {
			continue
		}
		passed, err := t.try(func(s *session) error { return t.tryExport(s, algorithm, recipient) })
		if err != nil {
			return err
		}
		if passed {
			t.can.exports[algorithm] = hsm.CustodyModule
		}
	}
	return nil
}

// tryExport exports a known data key that begins and ends with zeros, which are easily lost.
func (t *selfTest) tryExport(s *session, algorithm wrapping.Algorithm, recipient *wrapping.PrivateKey) error {
	dataKey := make(redact.Bytes, 32)
	defer dataKey.Wipe()
	_, _ = rand.Read(dataKey[1:31]) // it never fails (Go 1.24)
	blob, err := ciphertext.Seal(rand.Reader, ciphertext.DerivedKeyWrap, t.id, t.block, t.binding, dataKey)
	if err != nil {
		return err
	}
	out, err := s.exportInside(t.master, hsm.ExportRequest{
		OpenRequest: hsm.OpenRequest{Blob: blob, Binding: t.binding},
		Recipient:   recipient.Public(),
		Algorithm:   algorithm,
	}, len(dataKey))
	if err != nil {
		return err
	}
	got, err := recipient.Unwrap(algorithm, "", out)
	if err != nil {
		return err
	}
	defer got.Wipe()
	if !bytes.Equal(got, dataKey) {
		return errWrongResult
	}
	return nil
}

// needsRaw says whether new wrapping pairs must do the plain RSA operation, for algorithms whose padding
// is removed on the host.
func (m *Module) needsRaw() bool {
	if !m.allows(hsm.CustodyHost) {
		return false
	}
	for _, custody := range m.can.imports {
		if custody == hsm.CustodyHost {
			return true
		}
	}
	return false
}
