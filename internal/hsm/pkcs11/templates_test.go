//go:build cgo

package pkcs11

import (
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
)

// A token may keep the beginning of a label only.
func TestParseKeyLabel_ofALabelThatWasCutOff_hasNoPartOfAName(t *testing.T) {
	t.Parallel()
	owner := hsm.Owner{Namespace: "team-a", Name: "payments", Origin: hsm.OriginImported, Number: 1, KeyID: uuid.New()}
	label := keyLabel(uuid.New(), hsm.AES256, owner)
	if spec, got := parseKeyLabel(label); spec != hsm.AES256 || got != owner {
		t.Errorf("the whole label is of %s, %+v", spec, got)
	}
	namespaceEnds := strings.Index(label, ":payments")
	for n := range len(label) {
		spec, got := parseKeyLabel(label[:n])
		if n > namespaceEnds && (spec != hsm.AES256 || got != (hsm.Owner{Namespace: "team-a"})) || got.Name != "" {
			t.Errorf("the label %q is of %s, %+v", label[:n], spec, got)
		}
	}
}

func TestParseKeyLabel_ofEarlyVersions(t *testing.T) {
	t.Parallel()
	id := uuid.NewString()
	for label, want := range map[string]hsm.Owner{
		"keyconvoy:key:" + id + ":AES_256:":       {},
		"keyconvoy:key:" + id + ":AES_256:team-a": {Namespace: "team-a"},
	} {
		if spec, got := parseKeyLabel(label); spec != hsm.AES256 || got != want {
			t.Errorf("the label %q is of %s, %+v", label, spec, got)
		}
	}
	for _, label := range []string{"", "keyconvoy:key:", "keyconvoy:wrapping:" + id + ":RSA_2048:0:team-a", "payments"} {
		if spec, got := parseKeyLabel(label); spec != "" || got != (hsm.Owner{}) {
			t.Errorf("the label %q is of %s, %+v", label, spec, got)
		}
	}
}
