package kms_test

import (
	"testing"

	. "github.com/onsi/gomega"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/kms"
)

func TestBlobTag_isGoodForOneDataKeyAndOneBlobOnly(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	s, other := newService(t), newService(t)
	key, _ := s.enabled(t, hsm.AES256)
	blob, another := s.dataKey(t, key, nil), s.dataKey(t, key, nil)
	tag, err := s.TagBlob(t.Context(), "team-a", "ledger", blob)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(s.CheckBlobTag(t.Context(), "team-a", "ledger", blob, tag)).To(Succeed())

	for sentence, err := range map[string]error{
		"another namespace":          s.CheckBlobTag(t.Context(), "team-b", "ledger", blob, tag),
		"another name":               s.CheckBlobTag(t.Context(), "team-a", "payroll", blob, tag),
		"another blob":               s.CheckBlobTag(t.Context(), "team-a", "ledger", another, tag),
		"the same text, cut apart":   s.CheckBlobTag(t.Context(), "team-al", "edger", blob, tag),
		"no tag":                     s.CheckBlobTag(t.Context(), "team-a", "ledger", blob, ""),
		"a tag that is cut short":    s.CheckBlobTag(t.Context(), "team-a", "ledger", blob, tag[:len(tag)-4]),
		"the tag of another module":  other.CheckBlobTag(t.Context(), "team-a", "ledger", blob, tag),
		"a tag with something added": s.CheckBlobTag(t.Context(), "team-a", "ledger", blob, tag+"AAAA"),
	} {
		g.Expect(kms.CodeOf(err)).To(Equal(kms.InvalidParameter), sentence)
	}
}
