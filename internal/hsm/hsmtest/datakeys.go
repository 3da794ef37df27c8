package hsmtest

import (
	"bytes"
	"crypto/rand"
	"slices"
	"strconv"
	"testing"

	"github.com/keyconvoy/keyconvoy/internal/ciphertext"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
)

// lengths has lengths below and above what RFC 3394 wraps, multiples of 8 and 16 and others, and the maximum. 264 and 1000 are
// multiples of 8, but not of 16.
var lengths = []int{1, 15, 16, 20, 24, 32, 64, 256, 264, 1000, 1024}

// testGenerate checks that a data key has the requested length, is new each time, and that independent code opens its blob.
func (s *suite) testGenerate(t *testing.T) {
	for _, spec := range s.keySpecs() {
		key := s.masters[spec]
		for _, n := range lengths {
			if !s.generates(spec, n) {
				s.mustNotGenerate(t, key, n)
				continue
			}
			binding := s.bind(key)
			one, other := s.generate(t, key, n, binding), s.generate(t, key, n, binding)
			dataKey := openElsewhere(t, key, one, binding)
			if len(dataKey) != n {
				t.Errorf("requested %d bytes under %s, got %d", n, spec, len(dataKey))
			}
			if n > 8 && bytes.Equal(dataKey, openElsewhere(t, key, other, binding)) || bytes.Equal(one.Payload, other.Payload) {
				t.Errorf("two data keys of %d bytes under %s are the same", n, spec)
			}
			s.mustOpen(t, key, one, other)
		}
	}
}

func (s *suite) testGenerateLength(t *testing.T) {
	for _, spec := range s.keySpecs() {
		for _, n := range []int{-1, 0, hsm.MaxDataKeyLen + 1, 1 << 30} {
			s.mustNotGenerate(t, s.masters[spec], n)
		}
	}
}

func (s *suite) mustNotGenerate(t *testing.T, key master, n int) {
	t.Helper()
	_, err := s.m.GenerateDataKey(t.Context(), hsm.GenerateRequest{KeyVersionID: key.id, Length: n, Binding: s.bind(key)})
	WantKind(t, err, hsm.NotSupported, "GenerateDataKey of %d bytes under %s", n, key.spec)
}

// testForeignBlobs checks that a blob that independent code encrypted under the same material opens: a restored module must open
// the blobs of its predecessor.
func (s *suite) testForeignBlobs(t *testing.T) {
	for _, spec := range s.keySpecs() {
		key := s.masters[spec]
		for _, scheme := range schemes {
			for _, n := range []int{32, 20, 1, 1024} {
				if !holds(scheme, n) {
					continue
				}
				dataKey := random(n)
				blob := seal(t, key, scheme, s.bind(key), dataKey)
				if s.reads(spec, scheme) {
					s.mustOpen(t, key, blob)
					s.mustExport(t, key, blob, dataKey)
					continue
				}
				for call, err := range s.openEveryWay(t, hsm.OpenRequest{Blob: blob, Binding: s.bind(key)}) {
					WantKind(t, err, hsm.NotSupported, "%s of scheme %s under %s", call, scheme, spec)
				}
			}
		}
	}
}

func seal(t testing.TB, key master, scheme ciphertext.Scheme, binding ciphertext.Binding, dataKey []byte) ciphertext.Blob {
	t.Helper()
	blob, err := ciphertext.Seal(rand.Reader, scheme, key.id, key.block, binding, dataKey)
	if err != nil {
		t.Fatal(err)
	}
	return blob
}

// openEveryWay opens a blob with every operation, and returns their errors.
func (s *suite) openEveryWay(t testing.TB, open hsm.OpenRequest) map[string]error {
	t.Helper()
	errs := map[string]error{"VerifyDataKey": s.m.VerifyDataKey(t.Context(), open)}
	to := s.masters[s.keySpecs()[0]]
	_, errs["ReencryptDataKey"] = s.m.ReencryptDataKey(t.Context(), hsm.ReencryptRequest{OpenRequest: open, NewKeyVersionID: to.id, NewBinding: s.bind(to)})
	for _, alg := range s.exportAlgorithms() {
		_, err := s.m.ExportDataKey(t.Context(), hsm.ExportRequest{
			OpenRequest: open, Recipient: recipient(t, alg).Public().SPKI(), Algorithm: alg,
		})
		errs["ExportDataKey with "+string(alg)] = err
	}
	return errs
}

// testBlobRefused checks that all invalid blobs fail with the same text.
func (s *suite) testBlobRefused(t *testing.T) {
	for _, spec := range s.keySpecs() {
		key := s.masters[spec]
		var text oneText
		for _, n := range []int{32, 20} {
			if !s.generates(spec, n) {
				continue
			}
			good := hsm.OpenRequest{Blob: s.generate(t, key, n, s.bind(key)), Binding: s.bind(key)}
			for cause, bad := range s.refusedBlobs(t, key, good) {
				want := hsm.InvalidBlob
				if slices.Contains(schemes, bad.Blob.Scheme) && !s.reads(spec, bad.Blob.Scheme) {
					want = hsm.NotSupported
				}
				for call, err := range s.openEveryWay(t, bad) {
					detail := WantKind(t, err, want, "%s, %s, of scheme %s under %s", call, cause, good.Blob.Scheme, spec)
					if want == hsm.InvalidBlob {
						text.add(t, detail, cause)
					}
				}
			}
			s.mustOpen(t, key, good.Blob) // the invalid blobs did no harm
		}
	}
}

// refusedBlobs returns variants of a valid blob that must not open, by cause.
func (s *suite) refusedBlobs(t *testing.T, key master, good hsm.OpenRequest) map[string]hsm.OpenRequest {
	t.Helper()
	all := map[string]hsm.OpenRequest{}
	payload := func(cause string, p []byte) {
		bad := good
		bad.Blob.Payload = p
		all[cause] = bad
	}
	p := good.Blob.Payload
	for i := range p {
		payload("a bit of byte "+strconv.Itoa(i)+" flipped", flipped(p, i))
	}
	for _, n := range []int{0, 1, 8, 12, 16, 23, 24, 28, len(p) - 8, len(p) - 1} {
		payload("cut short to "+strconv.Itoa(n), p[:n])
	}
	payload("without its first 8 bytes", p[8:])
	payload("none", nil)
	payload("longer by 1", append(bytes.Clone(p), 0))
	payload("longer by 8", append(bytes.Clone(p), make([]byte, 8)...))
	payload("twice", append(bytes.Clone(p), p...))
	payload("random", random(len(p)))
	payload("longer than any", random(4096))

	for _, scheme := range append([]ciphertext.Scheme{0, 6, 0x7f, 0xff}, schemes...) {
		if scheme != good.Blob.Scheme {
			bad := good
			bad.Blob.Scheme = scheme
			all["as "+scheme.String()] = bad
		}
	}
	for cause, context := range map[string]map[string]string{
		"no context": nil, "another context": {"app": "other"}, "a context with more": {"app": "contract", "more": ""},
	} {
		bad := good
		bad.Binding = ciphertext.Bind(key.id, context)
		all[cause] = bad
	}
	other := s.newMaster(t, key.spec)
	bad := good
	bad.Blob.KeyVersionID = other.id
	all["another key, the same binding"] = bad
	bad.Binding = s.bind(other)
	all["another key and its binding"] = bad
	return all
}

// testTwinKeys checks that a blob does not open under another key of the same material.
func (s *suite) testTwinKeys(t *testing.T) {
	for _, spec := range s.keySpecs() {
		key := s.masters[spec]
		twin := s.newMasterOf(t, spec, key.material)
		open := hsm.OpenRequest{Blob: s.generate(t, key, 32, s.bind(key)), Binding: s.bind(twin)}
		open.Blob.KeyVersionID = twin.id
		for call, err := range s.openEveryWay(t, open) {
			WantKind(t, err, hsm.InvalidBlob, "%s of a blob of another key of the same material, under %s", call, spec)
		}
	}
}

func (s *suite) testContextEquality(t *testing.T) {
	for _, spec := range s.keySpecs() {
		key := s.masters[spec]
		blob := s.generate(t, key, 32, ciphertext.Bind(key.id, nil))
		open := hsm.OpenRequest{Blob: blob, Binding: ciphertext.Bind(key.id, map[string]string{})}
		if err := s.m.VerifyDataKey(t.Context(), open); err != nil {
			t.Errorf("a blob without a context does not open with an empty one, under %s: %v", spec, err)
		}
	}
}
