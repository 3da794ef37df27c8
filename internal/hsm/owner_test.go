package hsm_test

import (
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
)

var ownerID = uuid.MustParse("00000000-0000-4000-8000-000000000001")

// longestOwner is one with the longest parts.
func longestOwner() hsm.Owner {
	return hsm.Owner{
		Namespace: strings.Repeat("n", hsm.MaxNamespaceLen), Name: strings.Repeat("o", hsm.MaxNameLen),
		Origin: hsm.OriginGenerated, Number: 64, KeyID: ownerID,
	}
}

// Tokens keep these texts.
func TestOwner_isStoredAsText(t *testing.T) {
	t.Parallel()
	for want, owner := range map[string]hsm.Owner{
		"":       {},
		"team-a": {Namespace: "team-a"},
		"team-a:payments.v1:Imported:1:00000000-0000-4000-8000-000000000001": {
			Namespace: "team-a", Name: "payments.v1", Origin: hsm.OriginImported, Number: 1, KeyID: ownerID},
	} {
		if got := owner.String(); got != want {
			t.Errorf("%+v is %q, want %q", owner, got, want)
		}
		if got, ok := hsm.ParseOwner(want); !ok || got != owner {
			t.Errorf("%q is %+v (%t)", want, got, ok)
		}
	}
}

// A token may cut off a label.
func TestParseOwner_ofAPart_isNone(t *testing.T) {
	t.Parallel()
	text := longestOwner().String()
	for n := range len(text) {
		if got, ok := hsm.ParseOwner(text[:n]); ok && got.Name != "" {
			t.Fatalf("the first %d bytes are read as %+v", n, got)
		}
	}
}

// FuzzParseOwner checks that each owner has one text.
func FuzzParseOwner(f *testing.F) {
	f.Add("team-a")
	f.Add(longestOwner().String())
	f.Add("team-a:payments:Imported:01:00000000-0000-4000-8000-000000000001")
	f.Fuzz(func(t *testing.T, text string) {
		owner, ok := hsm.ParseOwner(text)
		if !ok {
			if owner != (hsm.Owner{}) {
				t.Errorf("the owner of an invalid text is %+v", owner)
			}
			return
		}
		if owner.String() != text || owner.Validate() != nil {
			t.Errorf("%q is read as %+v", text, owner)
		}
	})
}

func TestOwner_Validate(t *testing.T) {
	t.Parallel()
	for sentence, c := range map[string]struct {
		change func(*hsm.Owner)
		want   string // "" if it is valid
	}{
		"the longest":                        {func(*hsm.Owner) {}, ""},
		"a key of an early version":          {func(o *hsm.Owner) { *o = hsm.Owner{Namespace: "team-a"} }, ""},
		"a long namespace":                   {func(o *hsm.Owner) { o.Namespace += "n" }, "63 printable ASCII"},
		"a namespace with a blank":           {func(o *hsm.Owner) { o.Namespace = "team a" }, "63 printable ASCII"},
		"a namespace that looks like more":   {func(o *hsm.Owner) { o.Namespace = "team:a" }, "63 printable ASCII"},
		"a long name":                        {func(o *hsm.Owner) { o.Name += "o" }, "253 printable ASCII"},
		"a name not in ASCII":                {func(o *hsm.Owner) { o.Name = "é" }, "253 printable ASCII"},
		"a name that looks like more":        {func(o *hsm.Owner) { o.Name = "a:Imported" }, "253 printable ASCII"},
		"no name, but an origin":             {func(o *hsm.Owner) { o.Name = "" }, "253 printable ASCII"},
		"no origin":                          {func(o *hsm.Owner) { o.Origin = "" }, "an origin, a number"},
		"another origin":                     {func(o *hsm.Owner) { o.Origin = "Found" }, "an origin, a number"},
		"no number":                          {func(o *hsm.Owner) { o.Number = 0 }, "an origin, a number"},
		"a negative number":                  {func(o *hsm.Owner) { o.Number = -1 }, "an origin, a number"},
		"a number that no key reaches":       {func(o *hsm.Owner) { o.Number = 1 << 31 }, "an origin, a number"},
		"a version without a key's identity": {func(o *hsm.Owner) { o.KeyID = uuid.Nil }, "an origin, a number"},
	} {
		owner := longestOwner()
		c.change(&owner)
		err := owner.Validate()
		if (err == nil) != (c.want == "") || err != nil && (!strings.Contains(err.Error(), c.want) || hsm.KindOf(err) != hsm.NotSupported) {
			t.Errorf("%s: %v", sentence, err)
		}
	}
}
