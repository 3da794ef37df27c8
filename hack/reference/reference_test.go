package main

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/utils/ptr"
)

func TestReference_isAsGenerated(t *testing.T) {
	t.Parallel()
	want, err := generate("../..")
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("../../docs/reference/*.md")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, file := range files {
		got, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Base(file)
		if names = append(names, name); string(got) != want[name] {
			t.Errorf("docs/reference/%s is not current; run: make generate", name)
		}
	}
	if all := slices.Sorted(maps.Keys(want)); !slices.Equal(names, all) {
		t.Errorf("docs/reference has %v, and %v are generated", names, all)
	}
}

func TestWrite_removesThePageOfAKindThatNoLongerExists(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "reference")
	for _, pages := range []map[string]string{{"old.md": "old", "kept.md": "before"}, {"kept.md": "after"}} {
		if err := write(dir, pages); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "old.md")); !os.IsNotExist(err) {
		t.Errorf("the old page: %v", err)
	}
	if kept, err := os.ReadFile(filepath.Join(dir, "kept.md")); err != nil || string(kept) != "after" {
		t.Errorf("the page that is kept: %q, %v", kept, err)
	}
}

func TestLimits_areInWords(t *testing.T) {
	t.Parallel()
	stringSchema := func(s schema) *schema { s.Type = "string"; return &s }
	for want, s := range map[string]*schema{
		"":                             stringSchema(schema{}),
		"1 to 63 characters":           stringSchema(schema{MinLength: ptr.To[int64](1), MaxLength: ptr.To[int64](63)}),
		"at most 63 characters":        stringSchema(schema{MinLength: ptr.To[int64](0), MaxLength: ptr.To[int64](63)}),
		"at least 2 characters":        stringSchema(schema{MinLength: ptr.To[int64](2)}),
		"`A`, `B`":                     stringSchema(schema{Enum: []apiextensionsv1.JSON{{Raw: []byte(`"A"`)}, {Raw: []byte(`"B"`)}}}),
		"`^a\\|b$`":                    stringSchema(schema{Pattern: "^a|b$"}),
		"RFC 3339":                     stringSchema(schema{Pattern: "^(2000-02-29)T(00:00:00)Z$", MaxLength: ptr.To[int64](64)}),
		"7 to 366":                     {Type: "integer", Minimum: ptr.To(7.0), Maximum: ptr.To(366.0)},
		"at most 32 entries; be brief": {Type: "object", MaxProperties: ptr.To[int64](32), XValidations: apiextensionsv1.ValidationRules{{Message: "be brief"}}},
		"1 to 2 items; each: at most 9 characters": {
			Type: "array", MinItems: ptr.To[int64](1), MaxItems: ptr.To[int64](2),
			Items: &apiextensionsv1.JSONSchemaPropsOrArray{Schema: stringSchema(schema{MaxLength: ptr.To[int64](9)})},
		},
	} {
		p := &page{}
		if got := p.limits("spec.field", s); got != want || p.err != nil {
			t.Errorf("got %q, %v; want %q", got, p.err, want)
		}
	}
}

func TestLimits_aPatternThatIsTooLongToPrint_isAnError(t *testing.T) {
	t.Parallel()
	p := &page{}
	p.limits("spec.field", &schema{Type: "string", Pattern: strings.Repeat("a", 101)})
	if p.err == nil || !strings.Contains(p.err.Error(), "spec.field") {
		t.Errorf("the error is %v", p.err)
	}
}

func TestSplitDefault(t *testing.T) {
	t.Parallel()
	for description, want := range map[string][2]string{
		"Size of it.":                               {"Size of it.", ""},
		"Size of it. Defaults to 8.":                {"Size of it.", "8"},
		"Size of it.\nDefaults to\n8. It is fixed.": {"Size of it. It is fixed.", "8"},
		"Defaults to a.b in c.":                     {"", "a.b in c"},
	} {
		if rest, byDefault := splitDefault(description); rest != want[0] || byDefault != want[1] {
			t.Errorf("%q: got %q and %q", description, rest, byDefault)
		}
	}
}

func TestPage_showsTextAsItIs(t *testing.T) {
	t.Parallel()
	if got, want := inCell("RSA_2048 | <none>\n*"), `RSA\_2048 \| &lt;none> \*`; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
