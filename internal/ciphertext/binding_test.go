package ciphertext_test

import (
	"maps"
	"math/rand/v2"
	"testing"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/ciphertext"
)

type encryptionContext = map[string]string

func TestBind_tellsContextsApart(t *testing.T) {
	t.Parallel()
	for sentence, pair := range map[string][2]encryptionContext{
		"none and an empty pair":                  {nil, {"": ""}},
		"key and value swapped":                   {{"a": "b"}, {"b": "a"}},
		"a byte moved from key to value":          {{"ab": "c"}, {"a": "bc"}},
		"key without value, value without key":    {{"a": ""}, {"": "a"}},
		"one pair and two":                        {{"a": "b"}, {"a": "b", "c": "d"}},
		"one pair and an empty one more":          {{"a": "b"}, {"a": "b", "": ""}},
		"two pairs run together":                  {{"a": "b", "c": "d"}, {"a": "bcd"}},
		"values exchanged":                        {{"a": "x", "b": "y"}, {"a": "y", "b": "x"}},
		"a length in the value":                   {{"a": "\x00\x00\x00\x01b"}, {"a": "", "b": ""}},
		"lengths that imitate a second pair":      {{"a": "b\x00\x00\x00\x01c\x00\x00\x00\x01d"}, {"a": "b", "c": "d"}},
		"a key that imitates the label's length":  {{"\x00\x00\x00\x16": "x"}, {"\x00\x00\x00": "\x16x"}},
		"a zero byte at the end":                  {{"a": "b"}, {"a": "b\x00"}},
		"upper and lower case":                    {{"a": "B"}, {"a": "b"}},
		"white space":                             {{"a": "b"}, {"a": " b"}},
		"composed and decomposed":                 {{"a": "\u00e9"}, {"a": "e\u0301"}},
		"what JSON would write the same way":      {{"a": "\xff"}, {"a": "\ufffd"}},
		"what JSON would escape":                  {{"a": `","b":"`}, {"a": "", "b": ""}},
		"a separator":                             {{"a": "b,c=d"}, {"a": "b", "c": "d"}},
		"long values that differ at their end":    {{"a": string(make([]byte, 8000)) + "x"}, {"a": string(make([]byte, 8000)) + "y"}},
		"a value of 256 bytes and its length cut": {{"a": string(make([]byte, 256))}, {"a": ""}},
	} {
		if ciphertext.Bind(versionA, pair[0]) == ciphertext.Bind(versionA, pair[1]) {
			t.Errorf("%s: %q and %q have one binding", sentence, pair[0], pair[1])
		}
	}
}

func TestBind_tellsKeyVersionsApart(t *testing.T) {
	t.Parallel()
	context := encryptionContext{"a": "b"}
	if ciphertext.Bind(versionA, context) == ciphertext.Bind(versionB, context) || ciphertext.Bind(versionA, nil) == ciphertext.Bind(uuid.Nil, nil) {
		t.Error("two key versions have one binding")
	}
}

func TestBind_isTheSameForTheSameMap(t *testing.T) {
	t.Parallel()
	if ciphertext.Bind(versionA, nil) != ciphertext.Bind(versionA, encryptionContext{}) {
		t.Error("an absent context and an empty one differ")
	}
	first := encryptionContext{}
	for i := range 100 {
		first[string(rune('a'+i))] = "value"
	}
	want := ciphertext.Bind(versionA, first)
	for range 10 { // iteration order changes
		if ciphertext.Bind(versionA, maps.Clone(first)) != want {
			t.Fatal("the order of a map shows")
		}
	}
}

// Contexts over a small alphabet collide at once where an encoding is not injective.
func TestBind_isInjective(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2)) // the same contexts in each run
	alphabet := []string{"", "a", "b", "\x00", "\x00\x00\x00\x01", "\x00\x00\x00\x00", "\x01", "=", ",", `"`}
	text := func() string {
		var s string
		for range random.IntN(4) {
			s += alphabet[random.IntN(len(alphabet))]
		}
		return s
	}
	seen := map[ciphertext.Binding]encryptionContext{}
	for range 20_000 {
		context := encryptionContext{}
		for range random.IntN(4) {
			context[text()] = text()
		}
		binding := ciphertext.Bind(versionA, context)
		if other, found := seen[binding]; found && !maps.Equal(other, context) {
			t.Fatalf("%q and %q have one binding", context, other)
		}
		seen[binding] = context
	}
	if len(seen) < 10_000 {
		t.Errorf("only %d different contexts were tried", len(seen))
	}
}

func TestDerivation_differsByScheme(t *testing.T) {
	t.Parallel()
	binding := ciphertext.Bind(versionA, nil)
	if binding.Derivation(ciphertext.DerivedKeyWrap) == binding.Derivation(ciphertext.DerivedGCM) {
		t.Error("two schemes derive one key")
	}
}
