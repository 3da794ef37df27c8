package hsmtest

import (
	"strconv"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// refusal is an import that must fail in one of some kinds.
type refusal struct {
	cause string
	req   hsm.ImportRequest
	kinds []hsm.Kind // the first is the expected one, the others are accepted
	// implicit means that the module may replace material that does not unwrap by random bytes (implicit rejection). If they
	// have the right length, the import creates a key from them.
	implicit bool
}

// testImportNotUnwrapping checks that all causes for which material does not unwrap fail with the same text, and that none
// creates or changes a key.
func (s *suite) testImportNotUnwrapping(t *testing.T) {
	spec := s.keySpecs()[0]
	key := s.newMaster(t, spec)
	for _, alg := range s.importAlgorithms() {
		var text oneText
		for cause, encrypted := range s.notUnwrapping(t, alg) {
			req := s.importRequest(t, uuid.Nil, spec, alg, random(spec.Len()))
			req.EncryptedMaterial = encrypted
			r := refusal{cause: string(alg) + ", " + cause, req: req, kinds: []hsm.Kind{hsm.InvalidMaterial}}
			if alg == wrapping.RSAESPKCS1V15 {
				// A module such as NSS may use random bytes instead of failing: implicit rejection, which reveals nothing. Sometimes
				// they have the right length. They differ in every attempt.
				r.kinds, r.implicit = append(r.kinds, hsm.OtherMaterial), true
			}
			if detail, kind := s.mustRefuse(t, key, r); kind == r.kinds[0] {
				text.add(t, detail, r.cause)
			}
		}
	}
}

// notUnwrapping returns ciphertexts that do not unwrap under the shared pair, by cause.
func (s *suite) notUnwrapping(t *testing.T, alg wrapping.Algorithm) map[string][]byte {
	t.Helper()
	pair := s.pairs[pairSpecFor(alg)]
	good := wrap(t, PublicKey(t, pair), alg, "", random(32))
	n := len(good)
	zeros, ones := make([]byte, n), make([]byte, n)
	for i := range ones {
		ones[i] = 0xff
	}
	all := map[string][]byte{
		"nothing":                         nil,
		"one byte":                        {4},
		"zeros":                           zeros,
		"ones, more than any modulus":     ones,
		"random bytes":                    random(n),
		"its first byte flipped":          flipped(good, 0),
		"a byte in the middle flipped":    flipped(good, n/2),
		"its last byte flipped":           flipped(good, n-1),
		"cut short by one byte":           good[:n-1],
		"cut short by its first byte":     good[1:],
		"longer by one byte":              append(append([]byte(nil), good...), 0),
		"longer by a zero in front":       append([]byte{0}, good...),
		"wrapped for another recipient":   wrap(t, recipient(t, alg).Public(), alg, "", random(32)),
		"material that is not wrapped":    random(32),
		"ten thousand bytes":              random(10_000),
		"as long as a longer modulus":     random(512),
		"as long as two of these, joined": append(append([]byte(nil), good...), good...),
	}
	if alg == wrapping.SM2PKE {
		all["the older order of its parts"] = wrap(t, PublicKey(t, pair), alg, wrapping.C1C2C3, random(32))
		der := wrap(t, PublicKey(t, pair), alg, wrapping.ASN1, random(32))
		all["DER, its last byte flipped"] = flipped(der, len(der)-1)
		all["DER, cut short"] = der[:len(der)-1]
		all["DER, longer by one byte"] = append(append([]byte(nil), der...), 0)
		all["DER of nothing"] = []byte{0x30, 0}
		return all
	}
	for _, other := range []wrapping.Algorithm{wrapping.RSAESOAEPSHA256, wrapping.RSAESOAEPSHA1, wrapping.RSAESPKCS1V15} {
		if other != alg {
			all["wrapped with "+string(other)] = wrap(t, PublicKey(t, pair), other, "", random(32))
		}
	}
	return all
}

// testImportLength checks that the error has the right length, because users often get it wrong.
func (s *suite) testImportLength(t *testing.T) {
	for _, spec := range s.keySpecs() {
		key := s.newMaster(t, spec)
		for _, alg := range s.importAlgorithms() {
			for _, n := range []int{0, 1, 15, 16, 17, 24, 31, 32, 33, 64} {
				if n == spec.Len() || n == 0 && alg == wrapping.SM2PKE { // SM2PKE cannot encrypt an empty message
					continue
				}
				r := refusal{
					cause: strconv.Itoa(n) + " bytes under " + string(alg) + " for " + string(spec),
					req:   s.importRequest(t, uuid.Nil, spec, alg, random(n)),
					kinds: []hsm.Kind{hsm.MaterialLength},
				}
				if n == 0 {
					r.kinds = append(r.kinds, hsm.InvalidMaterial)
				}
				if alg == wrapping.RSAESPKCS1V15 { // the length would reveal that the padding is valid
					r.kinds = []hsm.Kind{hsm.InvalidMaterial}
				}
				detail, kind := s.mustRefuse(t, key, r)
				if kind == hsm.MaterialLength && !strings.Contains(detail, strconv.Itoa(spec.Len())+" bytes") {
					t.Errorf("%s: %q does not contain the right length, %d", r.cause, detail, spec.Len())
				}
			}
		}
	}
}

// testImportOther checks that other material is rejected, whether the module has the key or the request has its fingerprint. A
// key of another type with the same bytes is other material, too.
func (s *suite) testImportOther(t *testing.T) {
	for _, spec := range s.keySpecs() {
		key := s.newMaster(t, spec)
		known := fingerprint(t, spec, key.material)
		for _, alg := range s.importAlgorithms() {
			req := s.importRequest(t, key.id, spec, alg, random(spec.Len()))
			s.mustRefuseOther(t, key, req)
			req.Fingerprint = &known
			s.mustRefuseOther(t, key, req)

			req.KeyVersionID = s.newID() // which does not exist, as after a destruction
			_, err := s.m.ImportKey(t.Context(), req)
			WantKind(t, err, hsm.OtherMaterial, "ImportKey of other material than that of the fingerprint")
			s.mustNotHold(t, req.KeyVersionID)
		}
		for _, other := range s.keySpecs() {
			if other != spec && other.Len() == spec.Len() {
				s.mustRefuseOther(t, key, s.importRequest(t, key.id, other, s.importAlgorithms()[0], key.material))
			}
		}
	}
}

func (s *suite) mustRefuseOther(t *testing.T, key master, req hsm.ImportRequest) {
	t.Helper()
	_, err := s.m.ImportKey(t.Context(), req)
	WantKind(t, err, hsm.OtherMaterial, "ImportKey of other material into a key of type %s", key.spec)
	s.mustHold(t, key.id, key.spec, key.material)
}

// mustRefuse tries the import twice: into a key that does not exist, which must not exist afterwards, and into an existing key,
// which must not change. If both errors have the same kind, their text must be the same. mustRefuse returns text and kind.
func (s *suite) mustRefuse(t *testing.T, key master, r refusal) (detail string, kind hsm.Kind) {
	t.Helper()
	texts := map[hsm.Kind]*oneText{}
	r.req.Spec = key.spec
	for _, id := range []uuid.UUID{s.newID(), key.id} {
		r.req.KeyVersionID = id
		_, err := s.m.ImportKey(t.Context(), r.req)
		if err == nil && r.implicit && id != key.id {
			if err := s.m.DestroyKey(t.Context(), id); err != nil {
				t.Errorf("DestroyKey of random material: %v", err)
			}
			continue
		}
		kind = r.kinds[0]
		for _, allowed := range r.kinds[1:] {
			if hsm.KindOf(err) == allowed {
				kind = allowed
			}
		}
		detail = WantKind(t, err, kind, "ImportKey, %s", r.cause)
		if texts[kind] == nil {
			texts[kind] = &oneText{}
		}
		texts[kind].add(t, detail, r.cause)
		if id != key.id {
			s.mustNotHold(t, id)
		}
	}
	s.mustHold(t, key.id, key.spec, key.material)
	return detail, kind
}

// testImportOwner checks that owners that the module could not store are rejected.
func (s *suite) testImportOwner(t *testing.T) {
	longName, withColon := suiteOwner, suiteOwner
	longName.Name += "o"
	withColon.Name = "a:b"
	for name, owner := range map[string]hsm.Owner{
		"too long":        {Namespace: suiteNamespace + "n"},
		"with blanks":     {Namespace: "team a"},
		"not ASCII":       {Namespace: "tëam"},
		"of a long name":  longName,
		"with a colon":    withColon,
		"without version": {Namespace: "team-a", Name: "payments", Origin: hsm.OriginImported},
	} {
		t.Run(name, func(t *testing.T) {
			alg, spec := s.importAlgorithms()[0], s.keySpecs()[0]
			req := s.importRequest(t, s.newID(), spec, alg, random(spec.Len()))
			req.Owner = owner
			_, err := s.m.ImportKey(t.Context(), req)
			WantKind(t, err, hsm.NotSupported, "ImportKey for an owner %s", name)
			s.mustNotHold(t, req.KeyVersionID)
		})
	}
}
