package hsmtest

import (
	"bytes"
	"testing"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
)

// testManyCallers runs sixteen callers in parallel, each with all operations, on shared keys and on keys of its own.
func (s *suite) testManyCallers(t *testing.T) {
	specs, imports, exports := s.keySpecs(), s.importAlgorithms(), s.exportAlgorithms()
	atOnce(16, func(i int) {
		spec := specs[i%len(specs)]
		own := s.newMaster(t, spec)
		for j, key := range []master{own, s.masters[spec], own, s.masters[spec]} {
			n := 16 + 8*(i%3)
			blob := s.generate(t, key, n, s.bind(key))
			s.mustOpen(t, key, blob)
			if len(exports) > 0 {
				alg := exports[(i+j)%len(exports)]
				to := recipient(t, alg)
				exported := s.export(t, key, hsm.ExportRequest{
					OpenRequest: hsm.OpenRequest{Blob: blob, Binding: s.bind(key)}, Recipient: to.Public().SPKI(), Algorithm: alg,
				})
				got, err := to.Unwrap(alg, "", exported)
				if err != nil || !bytes.Equal(got, openElsewhere(t, key, blob, s.bind(key))) {
					t.Errorf("caller %d: the export with %s does not contain the data key: %v", i, alg, err)
				}
			}
			s.mustImport(t, s.importRequest(t, key.id, spec, imports[(i+j)%len(imports)], key.material), key.material)
			s.mustHold(t, key.id, spec, key.material)
		}
		if err := s.m.DestroyKey(t.Context(), own.id); err != nil {
			t.Errorf("DestroyKey: %v", err)
		}
		s.mustNotHold(t, own.id)
	})
}
