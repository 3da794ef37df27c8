package hsmtest

import (
	"bytes"
	"testing"

	"github.com/keyconvoy/keyconvoy/internal/ciphertext"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// testExport exports data keys under every type of key, of several lengths, to every recipient.
func (s *suite) testExport(t *testing.T) {
	for _, spec := range s.keySpecs() {
		key := s.masters[spec]
		for _, n := range []int{1, 16, 20, 32, 184} {
			if s.generates(spec, n) {
				blob := s.generate(t, key, n, s.bind(key))
				s.mustExport(t, key, blob, openElsewhere(t, key, blob, s.bind(key)))
			}
		}
	}
}

// mustExport exports a data key with every algorithm, twice, and opens it with the recipient's key.
func (s *suite) mustExport(t testing.TB, key master, blob ciphertext.Blob, dataKey []byte) {
	t.Helper()
	for _, alg := range s.exportAlgorithms() {
		to := recipient(t, alg)
		if len(dataKey) > wrapping.MaxLen(to.Public().Spec(), alg) {
			continue
		}
		for _, format := range formatsOf(alg, "", wrapping.C1C3C2, wrapping.C1C2C3, wrapping.ASN1) {
			req := hsm.ExportRequest{
				OpenRequest: hsm.OpenRequest{Blob: blob, Binding: s.bind(key)},
				Recipient:   to.Public().SPKI(), Algorithm: alg, SM2Format: format,
			}
			one, other := s.export(t, key, req), s.export(t, key, req)
			if bytes.Equal(one, other) {
				t.Errorf("two exports with %s are equal: the encryption is not randomized", alg)
			}
			for _, exported := range [][]byte{one, other} {
				got, err := to.Unwrap(alg, explicit(format), exported)
				if err != nil || !bytes.Equal(got, dataKey) {
					t.Errorf("the export with %s %s does not contain the data key of %d bytes: %v", alg, format, len(dataKey), err)
				}
			}
		}
	}
}

// explicit replaces the default format by its name, so that independent code does not detect the format.
func explicit(format wrapping.SM2Format) wrapping.SM2Format {
	if format == "" {
		return wrapping.C1C3C2
	}
	return format
}

func (s *suite) export(t testing.TB, key master, req hsm.ExportRequest) []byte {
	t.Helper()
	exported, err := s.m.ExportDataKey(t.Context(), req)
	if err != nil {
		t.Fatalf("ExportDataKey of scheme %s under %s with %s %s: %v", req.Blob.Scheme, key.spec, req.Algorithm, req.SM2Format, err)
	}
	// An export opens and wraps, so its custody is the weaker of the two. If the module only reads the scheme, no capability
	// has its custody.
	most := worst(s.caps[hsm.OperationExport][string(req.Algorithm)], s.caps[hsm.OperationMasterKey][string(key.spec)],
		s.caps[hsm.OperationGenerate][req.Blob.Scheme.String()])
	exact := s.has(hsm.OperationGenerate, req.Blob.Scheme.String())
	if exported.Custody != most && (exact || worst(exported.Custody, most) != exported.Custody) {
		t.Errorf("ExportDataKey of scheme %s under %s with %s: custody %q; the capabilities have %q",
			req.Blob.Scheme, key.spec, req.Algorithm, exported.Custody, most)
	}
	return exported.Ciphertext
}

func (s *suite) testExportTooLong(t *testing.T) {
	for _, alg := range s.exportAlgorithms() {
		s.mustRefuseLonger(t, recipient(t, alg).Public(), alg)
	}
}

// mustRefuseLonger exports a data key of the maximum length for a recipient, and one that is a byte longer. Independent code
// encrypts both. If the module does not read the scheme for such lengths, it uses the next multiples of 8. SM2 has no maximum.
func (s *suite) mustRefuseLonger(t *testing.T, to *wrapping.PublicKey, alg wrapping.Algorithm) {
	t.Helper()
	longest := min(wrapping.MaxLen(to.Spec(), alg), hsm.MaxDataKeyLen)
	for _, spec := range s.keySpecs() {
		key := s.masters[spec]
		scheme, fits, tooLong := ciphertext.DerivedKeyWrap, longest/8*8, longest/8*8+8
		if !s.reads(spec, scheme) {
			scheme = ciphertext.KDFKeyWrap
		}
		for _, s2 := range []ciphertext.Scheme{ciphertext.KDFGCM, ciphertext.DerivedGCM, ciphertext.DirectGCM} {
			if s.reads(spec, s2) {
				scheme, fits, tooLong = s2, longest, longest+1
			}
		}
		req := hsm.ExportRequest{Recipient: to.SPKI(), Algorithm: alg}
		req.Binding = s.bind(key)
		req.Blob = seal(t, key, scheme, s.bind(key), random(fits))
		s.export(t, key, req)
		if tooLong > hsm.MaxDataKeyLen {
			continue
		}
		req.Blob = seal(t, key, scheme, s.bind(key), random(tooLong))
		_, err := s.m.ExportDataKey(t.Context(), req)
		WantKind(t, err, hsm.DataKeyTooLong, "ExportDataKey of %d bytes to %s with %s", tooLong, to.Spec(), alg)
	}
}

// testModuleToModule checks that an export to a module's wrapping key can be imported unchanged.
func (s *suite) testModuleToModule(t *testing.T) {
	for _, alg := range s.exportAlgorithms() {
		pair, ok := s.pairs[pairSpecFor(alg)]
		if !ok || !s.has(hsm.OperationImport, string(alg)) {
			continue
		}
		for _, spec := range s.keySpecs() {
			key := s.masters[spec]
			blob := s.generate(t, key, spec.Len(), s.bind(key))
			for _, format := range formatsOf(alg, "", wrapping.ASN1) {
				exported := s.export(t, key, hsm.ExportRequest{
					OpenRequest: hsm.OpenRequest{Blob: blob, Binding: s.bind(key)},
					Recipient:   pair.PublicKey, Algorithm: alg, SM2Format: format,
				})
				s.mustImport(t, hsm.ImportRequest{
					Owner: suiteOwner, KeyVersionID: s.newID(), Spec: spec, WrappingKey: pair.ID, Algorithm: alg, EncryptedMaterial: exported,
				}, openElsewhere(t, key, blob, s.bind(key)))
			}
		}
	}
}

// testExportMisfit checks that a module rejects what its callers should have checked.
func (s *suite) testExportMisfit(t *testing.T) {
	spec := s.keySpecs()[0]
	key := s.masters[spec]
	open := hsm.OpenRequest{Blob: s.blobs[spec], Binding: s.bind(key)}
	for _, alg := range s.exportAlgorithms() {
		misfit := wrapping.SM2PKE
		if alg == wrapping.SM2PKE {
			misfit = wrapping.RSAESOAEPSHA256
		}
		for sentence, req := range map[string]hsm.ExportRequest{
			"a recipient of another type": {OpenRequest: open, Algorithm: alg, Recipient: recipient(t, misfit).Public().SPKI()},
			"no recipient":                {OpenRequest: open, Algorithm: alg},
		} {
			_, err := s.m.ExportDataKey(t.Context(), req)
			WantKind(t, err, hsm.NotSupported, "ExportDataKey with %s, %s", alg, sentence)
		}
	}
	if !s.has(hsm.OperationExport, string(wrapping.SM2PKE)) {
		return
	}
	_, err := s.m.ExportDataKey(t.Context(), hsm.ExportRequest{
		OpenRequest: open, Algorithm: wrapping.SM2PKE, Recipient: recipient(t, wrapping.SM2PKE).Public().SPKI(), SM2Format: "C3C2C1",
	})
	WantKind(t, err, hsm.NotSupported, "ExportDataKey in an SM2 format that does not exist")
}
