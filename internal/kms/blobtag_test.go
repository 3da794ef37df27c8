package kms_test

import (
	"strings"
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
	ledger := kms.Assigned{Namespace: "team-a", Name: "ledger", Blob: blob}
	reencrypted := ledger
	reencrypted.Digest = strings.Repeat("0", 64)
	movedTag, err := s.TagBlob(t.Context(), reencrypted)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(s.CheckBlobTag(t.Context(), reencrypted, movedTag)).To(Succeed())
	accepted, inModule := reencrypted, reencrypted
	accepted.Accepted, inModule.Custody = strings.Repeat("1", 64), "Module"
	inModuleTag, err := s.TagBlob(t.Context(), inModule)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(s.CheckBlobTag(t.Context(), inModule, inModuleTag)).To(Succeed())
	inSoftware := inModule
	inSoftware.Custody = "Software"
	tag, err := s.TagBlob(t.Context(), ledger)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(s.CheckBlobTag(t.Context(), ledger, tag)).To(Succeed())

	for sentence, err := range map[string]error{
		"another namespace":          s.CheckBlobTag(t.Context(), kms.Assigned{Namespace: "team-b", Name: "ledger", Blob: blob}, tag),
		"another name":               s.CheckBlobTag(t.Context(), kms.Assigned{Namespace: "team-a", Name: "payroll", Blob: blob}, tag),
		"another blob":               s.CheckBlobTag(t.Context(), kms.Assigned{Namespace: "team-a", Name: "ledger", Blob: another}, tag),
		"the same text, cut apart":   s.CheckBlobTag(t.Context(), kms.Assigned{Namespace: "team-al", Name: "edger", Blob: blob}, tag),
		"another data key":           s.CheckBlobTag(t.Context(), reencrypted, tag),
		"no data key's digest":       s.CheckBlobTag(t.Context(), ledger, movedTag),
		"another accepted blob":      s.CheckBlobTag(t.Context(), accepted, movedTag),
		"another custody":            s.CheckBlobTag(t.Context(), inSoftware, inModuleTag),
		"a custody of its own":       s.CheckBlobTag(t.Context(), inModule, movedTag),
		"no tag":                     s.CheckBlobTag(t.Context(), ledger, ""),
		"a tag that is cut short":    s.CheckBlobTag(t.Context(), ledger, tag[:len(tag)-4]),
		"the tag of another module":  other.CheckBlobTag(t.Context(), ledger, tag),
		"a tag with something added": s.CheckBlobTag(t.Context(), ledger, tag+"AAAA"),
	} {
		g.Expect(kms.CodeOf(err)).To(Equal(kms.InvalidParameter), sentence)
	}
}
