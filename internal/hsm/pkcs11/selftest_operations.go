//go:build cgo

package pkcs11

import (
	"bytes"
	"crypto/rand"
	"fmt"

	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/ciphertext"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/pkcs11/token"
	"github.com/keyconvoy/keyconvoy/internal/redact"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// testDerivation derives a key for the host, as for a data key that the host encrypts.
func (t *selfTest) testDerivation() error {
	_, scheme := t.can.derivation.schemes()
	t.probes.begin(hsm.Probe{Name: "derive a key for " + scheme.String()})
	got, err := t.s.deriveOnHost(t.master, scheme, t.binding)
	t.probes.end(err)
	if err != nil {
		return err
	}
	defer got.Wipe()
	want := ciphertext.DeriveKey(t.block, scheme, t.binding)
	defer clear(want)
	if !bytes.Equal(got, want) {
		t.probes.end(errWrongResult)
		return hsm.Errorf(hsm.NotSupported, "the token derives wrong keys: use another token or a software key store")
	}
	return t.mustBeRight("generate data keys for "+scheme.String(), (*selfTest).tryHostDataKeys)
}

// testDataKeys finds the longest data key that never leaves the token, and whether the token requires CKA_VALUE_LEN for
// C_UnwrapKey.
func (t *selfTest) testDataKeys() error {
	const shortest, step = 16, 8
	if inside, _ := t.can.derivation.schemes(); inside == 0 {
		return nil
	}
	for _, needsValueLen := range []bool{false, true} {
		t.can.needsValueLen = needsValueLen
		passed, err := t.tryDataKey(shortest)
		if err != nil {
			return err
		}
		if passed {
			t.can.maxDataKeyLen = shortest
			break
		}
	}
	if t.can.maxDataKeyLen == 0 {
		t.can.needsValueLen = false
		return nil
	}
	// This binary search assumes that all lengths up to a maximum work, and no longer ones.
	works, fails := shortest/step, hsm.MaxDataKeyLen/step+1
	for try := fails - 1; fails-works > 1; try = (works + fails) / 2 {
		passed, err := t.tryDataKey(try * step)
		if err != nil {
			return err
		}
		if passed {
			works = try
		} else {
			fails = try
		}
	}
	t.can.maxDataKeyLen = works * step
	t.can.canary = append(t.can.canary, canaryProbe{"wrap and unwrap a data key", func(t *selfTest, s *session) error {
		_, err := t.tryInside(s, min(hsm.AES256.Len(), t.can.maxDataKeyLen))
		return err
	}})
	return nil
}

// tryDataKey generates a data key inside the token, which must reject a changed blob.
func (t *selfTest) tryDataKey(length int) (bool, error) {
	name := fmt.Sprintf("wrap and unwrap a data key of %d bytes", length)
	if t.can.needsValueLen {
		name += ", with CKA_VALUE_LEN"
	}
	return t.try(name, func(s *session) error {
		blob, err := t.tryInside(s, length)
		if err != nil {
			return err
		}
		blob.Payload[0] ^= 1
		return checkBlobRejected(s.openInside(t.master, hsm.OpenRequest{Blob: blob, Binding: t.binding}, length, readableUnwrapped()))
	})
}

// tryInside generates a data key inside the token, and opens it on the host and in the token.
func (t *selfTest) tryInside(s *session, length int) (ciphertext.Blob, error) {
	generated, err := s.generateInside(t.master, hsm.GenerateRequest{KeyVersionID: t.id, Length: length, Binding: t.binding})
	if err != nil {
		return ciphertext.Blob{}, err
	}
	kek, err := t.hostKey(s, generated.Blob.Scheme)
	if err != nil {
		return ciphertext.Blob{}, err
	}
	defer kek.Wipe()
	want, err := ciphertext.OpenWithKey(generated.Blob, kek, t.binding)
	if err != nil {
		return ciphertext.Blob{}, err
	}
	defer clear(want)
	if bytes.Equal(want, kek) {
		return ciphertext.Blob{}, fmt.Errorf("the token wraps another key than the new one: %w", errWrongResult)
	}
	h, err := s.openInside(t.master, hsm.OpenRequest{Blob: generated.Blob, Binding: t.binding}, length, readableUnwrapped())
	if err != nil {
		return ciphertext.Blob{}, err
	}
	got, err := s.GetValue(h, length)
	if err != nil {
		return ciphertext.Blob{}, err
	}
	defer got.Wipe()
	if !bytes.Equal(got, want) {
		return ciphertext.Blob{}, errWrongResult
	}
	return generated.Blob, nil
}

// tryHostDataKeys generates two data keys that the host encrypts, and opens them.
func (t *selfTest) tryHostDataKeys(s *session) error {
	first, err := t.hostDataKey(s)
	if err != nil {
		return err
	}
	defer first.Wipe()
	second, err := t.hostDataKey(s)
	if err != nil {
		return err
	}
	defer second.Wipe()
	if bytes.Equal(first, second) {
		return errNotDone
	}
	return nil
}

// hostDataKey generates a data key that the host encrypts, and opens it. The caller wipes it.
func (t *selfTest) hostDataKey(s *session) (redact.Bytes, error) {
	generated, err := s.generateOnHost(t.master, hsm.GenerateRequest{KeyVersionID: t.id, Length: 32, Binding: t.binding})
	if err != nil {
		return nil, err
	}
	key, err := t.hostKey(s, generated.Blob.Scheme)
	if err != nil {
		return nil, err
	}
	defer key.Wipe()
	return ciphertext.OpenWithKey(generated.Blob, key, t.binding)
}

// hostKey returns the key of a scheme, which the host derives. If it does not know the value of the master key, the token derives
// the key for the host.
func (t *selfTest) hostKey(s *session, scheme ciphertext.Scheme) (redact.Bytes, error) {
	if t.block == nil {
		return s.deriveOnHost(t.master, scheme, t.binding)
	}
	return ciphertext.DeriveKey(t.block, scheme, t.binding), nil
}

// checkBlobRejected returns an error if a changed blob was opened.
func checkBlobRejected(_ p11.ObjectHandle, err error) error {
	if err == nil {
		return fmt.Errorf("a changed blob opens: %w", errWrongResult)
	}
	if token.ClassOf(err) == token.ConnectionLost {
		return err
	}
	return nil
}

// testImports finds out which algorithms import material. If none works with a hardened pair, it tries again with another pair.
func (t *selfTest) testImports() error {
	if t.public == nil {
		return nil
	}
	if err := t.testMeasuring(); err != nil {
		return err
	}
	if err := t.tryImports(); err != nil || len(t.can.imports) > 0 || t.can.hardenedPair == 0 {
		return err
	}
	t.can.hardenedPair = 0
	if made, err := t.tryPair(); err != nil || !made {
		return err
	}
	return t.tryImports()
}

// testMeasuring finds out whether the length of a key can be measured by wrapping it.
func (t *selfTest) testMeasuring() (err error) {
	t.can.measuresByWrapping = true
	t.can.measuresByWrapping, err = t.try("measure the length of a key by wrapping it", func(s *session) error {
		h, err := t.store(s, hsm.AES256, sessionKey(p11.CKK_AES, true))
		if err != nil {
			return err
		}
		s.DestroyOnRelease(h)
		length, err := s.keyLen(h)
		if err == nil && length != len(t.material[hsm.AES256]) {
			err = errWrongResult
		}
		return err
	})
	return err
}

// tryImports tries each algorithm inside the token, then with the padding removed on the host.
func (t *selfTest) tryImports() error {
	for _, algorithm := range []wrapping.Algorithm{wrapping.RSAESOAEPSHA256, wrapping.RSAESOAEPSHA1, wrapping.RSAESPKCS1V15} {
		for _, custody := range []hsm.Custody{hsm.CustodyModule, hsm.CustodyHost} {
			if custody == hsm.CustodyHost && algorithm == wrapping.RSAESPKCS1V15 {
				continue
			}
			name := fmt.Sprintf("import with %s, custody %s", algorithm, custody)
			passed, err := t.try(name, func(s *session) error { return t.tryImport(s, algorithm, custody) })
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

// tryImport imports known material, and material of other lengths, which must be rejected.
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
		in, err := t.wrap(hsm.AES256, algorithm, t.material[hsm.AES256][:length])
		if err != nil {
			return err
		}
		if _, err := t.inspect(s, &in, custody); err == nil {
			return fmt.Errorf("material of %d bytes is imported as AES_256: %w", length, errWrongResult)
		} else if token.ClassOf(err) == token.ConnectionLost {
			return err
		}
	}
	return nil
}

func (t *selfTest) tryImportSpec(s *session, spec hsm.KeySpec, algorithm wrapping.Algorithm, custody hsm.Custody) error {
	in, err := t.wrap(spec, algorithm, t.material[spec])
	if err != nil {
		return err
	}
	got, err := t.inspect(s, &in, custody)
	if err != nil {
		return err
	}
	defer in.material.Wipe()
	if want, err := hsm.FingerprintOf(spec, t.material[spec]); err != nil || got != want {
		return errWrongResult
	}
	h, err := s.storeMaster(in, false)
	if err != nil {
		return err
	}
	s.DestroyOnRelease(h)
	return t.checkFingerprint(s, h, spec)
}

// inspect is the first half of an import. The caller wipes in.material.
func (t *selfTest) inspect(s *session, in *incoming, custody hsm.Custody) (hsm.Fingerprint, error) {
	if custody == hsm.CustodyHost {
		var err error
		if in.material, err = s.unwrapOnHost(in.request, in.private); err != nil {
			return hsm.Fingerprint{}, err
		}
	}
	return s.fingerprintIncoming(in)
}

// testExports tries each RSA algorithm inside the token. On the host, all algorithms work.
func (t *selfTest) testExports() error {
	recipient, err := selfTestRecipient()
	if err != nil {
		return hsm.Wrap(hsm.Internal, err, "")
	}
	for _, algorithm := range []wrapping.Algorithm{wrapping.RSAESOAEPSHA256, wrapping.RSAESOAEPSHA1, wrapping.SM2PKE} {
		t.can.exports[algorithm] = hsm.CustodyHost
		if algorithm == wrapping.SM2PKE || t.can.maxDataKeyLen == 0 {
			continue
		}
		name := fmt.Sprintf("export with %s, custody %s", algorithm, hsm.CustodyModule)
		passed, err := t.tryRepeatable(name, func(t *selfTest, s *session) error { return t.tryExport(s, algorithm, recipient) })
		if err != nil {
			return err
		}
		if passed {
			t.can.exports[algorithm] = hsm.CustodyModule
		}
	}
	return nil
}

// tryExport exports a known data key. It begins and ends with zeros, which a faulty token might drop.
func (t *selfTest) tryExport(s *session, algorithm wrapping.Algorithm, recipient *wrapping.PrivateKey) error {
	dataKey := make(redact.Bytes, 32)
	defer dataKey.Wipe()
	_, _ = rand.Read(dataKey[1:31]) // it never fails (Go 1.24)
	inside, _ := t.can.derivation.schemes()
	key, err := t.hostKey(s, inside)
	if err != nil {
		return err
	}
	defer key.Wipe()
	blob, err := ciphertext.SealWithKey(rand.Reader, inside, t.id, key, t.binding, dataKey)
	if err != nil {
		return err
	}
	out, err := s.exportInside(t.master, hsm.ExportRequest{
		OpenRequest: hsm.OpenRequest{Blob: blob, Binding: t.binding},
		Algorithm:   algorithm,
	}, recipient.Public(), len(dataKey))
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
