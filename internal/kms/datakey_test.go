package kms_test

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/ciphertext"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/kms"
)

func TestGenerateDataKey_hasTheLengthThatIsAsked(t *testing.T) {
	t.Parallel()
	s := newService(t)
	for sentence, tc := range map[string]struct {
		spec  hsm.KeySpec
		bytes int
		want  int
	}{
		"neither is 32 bytes":         {"", 0, 32},
		"AES_256 is 32 bytes":         {hsm.AES256, 0, 32},
		"AES_128 is 16 bytes":         {hsm.AES128, 0, 16},
		"the shortest":                {"", 1, 1},
		"a length that is no key's":   {"", 33, 33},
		"the longest":                 {"", 1024, 1024},
		"NumberOfBytes wins":          {hsm.AES256, 16, 16},
		"NumberOfBytes wins, longer":  {hsm.AES128, 64, 64},
		"NumberOfBytes wins, shorter": {hsm.AES128, 7, 7},
	} {
		t.Run(sentence, func(t *testing.T) {
			t.Parallel()
			for _, master := range hsm.KeySpecs() {
				key, material := s.enabled(t, master)
				context := kms.EncryptionContext{"app": "ledger"}
				made, err := s.GenerateDataKeyWithoutPlaintext(t.Context(), kms.GenerateDataKeyRequest{
					Key: key, KeySpec: tc.spec, NumberOfBytes: tc.bytes, EncryptionContext: context,
				})
				if err != nil {
					t.Fatal(err)
				}
				if made.KeyID != key.ID || made.KeyVersionID != key.Primary.ID || made.Custody != hsm.CustodySoftware {
					t.Errorf("made %+v", made)
				}
				if n := len(open(t, master, material, made.CiphertextBlob, context)); n != tc.want {
					t.Errorf("under %s the data key has %d bytes, want %d", master, n, tc.want)
				}
			}
		})
	}
}

// open opens a blob without the module: with the material, which the test knows.
func open(t testing.TB, spec hsm.KeySpec, material []byte, blob kms.Blob, context kms.EncryptionContext) []byte {
	t.Helper()
	parsed, err := ciphertext.Parse(blob.String())
	if err != nil {
		t.Fatal(err)
	}
	block, err := hsm.NewCipher(spec, material)
	if err != nil {
		t.Fatal(err)
	}
	dataKey, err := ciphertext.Open(parsed, block, ciphertext.Bind(parsed.KeyVersionID, context))
	if err != nil {
		t.Fatal(err)
	}
	return dataKey
}

func TestGenerateDataKey_refuses(t *testing.T) {
	t.Parallel()
	s := newService(t)
	key, _ := s.enabled(t, hsm.AES256)
	s.module.Reset()
	for sentence, tc := range map[string]struct {
		req  kms.GenerateDataKeyRequest
		says string
	}{
		"a key type that is no data key's": {kms.GenerateDataKeyRequest{KeySpec: hsm.AES192}, "KeySpec: It must be AES_256 or AES_128"},
		"an SM4 data key by name":          {kms.GenerateDataKeyRequest{KeySpec: hsm.SM4}, "KeySpec"},
		"a wrong key type with a length":   {kms.GenerateDataKeyRequest{KeySpec: "DES", NumberOfBytes: 8}, "KeySpec"},
		"a negative length":                {kms.GenerateDataKeyRequest{NumberOfBytes: -1}, "NumberOfBytes: It must be 1 to 1024"},
		"a length of 1025 bytes":           {kms.GenerateDataKeyRequest{NumberOfBytes: 1025}, "NumberOfBytes"},
		"a context that is too long":       {kms.GenerateDataKeyRequest{EncryptionContext: contextOf(8193)}, "EncryptionContext: It has 8193 characters"},
	} {
		tc.req.Key = key
		_, err := s.GenerateDataKeyWithoutPlaintext(t.Context(), tc.req)
		wantError(t, err, kms.InvalidParameter, tc.says)
		if calls := s.module.Calls(); len(calls) > 0 {
			t.Errorf("%s: the module was asked: %v", sentence, calls)
		}
	}
}

func TestGenerateDataKey_withoutMaterialInTheModule_isNotFound(t *testing.T) {
	t.Parallel()
	s := newService(t)
	key := newKey(hsm.AES256)
	key.State = kms.StateEnabled
	_, err := s.GenerateDataKeyWithoutPlaintext(t.Context(), kms.GenerateDataKeyRequest{Key: key})
	wantError(t, err, kms.ForbiddenKeyVersionNotFound)
}

// contextOf makes a context of n characters as JSON, {"k":"…"}.
func contextOf(n int) kms.EncryptionContext {
	return kms.EncryptionContext{"k": strings.Repeat("v", n-len(`{"k":""}`))}
}

// The limit is of characters, as JSON is written by other tools than Go's.
func TestEncryptionContext_has8192CharactersAtMost(t *testing.T) {
	t.Parallel()
	s := newService(t)
	key, _ := s.enabled(t, hsm.AES256)
	for sentence, tc := range map[string]struct {
		context kms.EncryptionContext
		ok      bool
	}{
		"the longest": {contextOf(8192), true},
		"one more":    {contextOf(8193), false},
		"the longest of characters, not of bytes":     {kms.EncryptionContext{"k": strings.Repeat("密", 8192-8)}, true},
		"one more of characters, not of bytes":        {kms.EncryptionContext{"k": strings.Repeat("密", 8192-7)}, false},
		"what only HTML would have escaped":           {kms.EncryptionContext{"k": strings.Repeat("<", 8192-8)}, true},
		"a quotation mark takes two":                  {kms.EncryptionContext{"k": strings.Repeat(`"`, 4092)}, true},
		"one quotation mark more":                     {kms.EncryptionContext{"k": strings.Repeat(`"`, 4093)}, false},
		"keys count":                                  {kms.EncryptionContext{strings.Repeat("k", 8192): "v"}, false},
		"many short pairs count with what is between": {pairs(1024), false},
	} {
		_, err := s.GenerateDataKeyWithoutPlaintext(t.Context(), kms.GenerateDataKeyRequest{Key: key, EncryptionContext: tc.context})
		switch {
		case tc.ok && err != nil:
			t.Errorf("%s: %v", sentence, err)
		case !tc.ok:
			wantError(t, err, kms.InvalidParameter, "EncryptionContext", "8192")
		}
	}
}

// pairs is a context of n pairs; each is written with eight characters at the least.
func pairs(n int) kms.EncryptionContext {
	context := kms.EncryptionContext{}
	for i := range n {
		context[string(rune(0x4e00+i))] = "v"
	}
	return context
}

func TestVerifyDataKey_opensUnderItsKeyAndContextOnly(t *testing.T) {
	t.Parallel()
	s := newService(t)
	key, _ := s.enabled(t, hsm.AES256)
	other, _ := s.enabled(t, hsm.AES256)
	context := kms.EncryptionContext{"app": "ledger", "env": "prod"}
	blob := s.dataKey(t, key, context)
	text := blob.String()

	for sentence, tc := range map[string]struct {
		blob    kms.Blob
		context kms.EncryptionContext
	}{
		"the same context, written in another order": {blob, kms.EncryptionContext{"env": "prod", "app": "ledger"}},
		"a blob with the line breaks of a tool":      {parsed(t, text[:20]+"\n"+text[20:]+"\r\n"), context},
		"no context and an absent one":               {s.dataKey(t, key, nil), kms.EncryptionContext{}},
		"an absent context and no context":           {s.dataKey(t, key, kms.EncryptionContext{}), nil},
	} {
		if err := s.VerifyDataKey(t.Context(), key, tc.blob, tc.context); err != nil {
			t.Errorf("%s: %v", sentence, err)
		}
	}

	messages := map[string]string{}
	for cause, tc := range map[string]struct {
		key     kms.Key
		context kms.EncryptionContext
	}{
		"no context":             {key, nil},
		"another value":          {key, kms.EncryptionContext{"app": "ledger", "env": "test"}},
		"another name":           {key, kms.EncryptionContext{"app": "ledger", "Env": "prod"}},
		"a pair less":            {key, kms.EncryptionContext{"app": "ledger"}},
		"a pair more":            {key, kms.EncryptionContext{"app": "ledger", "env": "prod", "": ""}},
		"pairs run into another": {key, kms.EncryptionContext{"app": "ledgerenv", "": "prod"}},
		"another key":            {other, context},
	} {
		messages[cause] = wantError(t, s.VerifyDataKey(t.Context(), tc.key, blob, tc.context), kms.InvalidParameter, "CiphertextBlob")
	}
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	for at := 36; at < len(raw); at++ { // the scheme and the payload; the name before them is checked below
		messages["a byte changed"] = wantError(t,
			s.VerifyDataKey(t.Context(), key, parsed(t, base64.StdEncoding.EncodeToString(flipped(raw, at))), context), kms.InvalidParameter)
	}
	for n := 37; n < len(raw); n++ {
		messages["cut short"] = wantError(t,
			s.VerifyDataKey(t.Context(), key, parsed(t, base64.StdEncoding.EncodeToString(raw[:n])), context), kms.InvalidParameter)
	}
	wantSame(t, messages)

	wantError(t, s.VerifyDataKey(t.Context(), key, kms.Blob{}, context), kms.MissingParameter, "CiphertextBlob")
	wantError(t, s.VerifyDataKey(t.Context(), key, blob, contextOf(8193)), kms.InvalidParameter, "EncryptionContext")
}

func TestCheckBlob_wantsTheLengthThatIsAskedFor(t *testing.T) {
	t.Parallel()
	s := newService(t)
	key, _ := s.enabled(t, hsm.AES256)
	for sentence, tc := range map[string]struct {
		has   int
		asked kms.GenerateDataKeyRequest
		ok    bool
	}{
		"nothing is asked for":           {20, kms.GenerateDataKeyRequest{}, true},
		"what the key spec says":         {16, kms.GenerateDataKeyRequest{KeySpec: hsm.AES128}, true},
		"other than the key spec says":   {16, kms.GenerateDataKeyRequest{KeySpec: hsm.AES256}, false},
		"what the bytes say":             {20, kms.GenerateDataKeyRequest{NumberOfBytes: 20}, true},
		"other than the bytes say":       {20, kms.GenerateDataKeyRequest{NumberOfBytes: 24}, false},
		"the bytes win over the spec":    {20, kms.GenerateDataKeyRequest{KeySpec: hsm.AES256, NumberOfBytes: 20}, true},
		"the spec does not win":          {32, kms.GenerateDataKeyRequest{KeySpec: hsm.AES256, NumberOfBytes: 20}, false},
		"the longest, where one is long": {1024, kms.GenerateDataKeyRequest{NumberOfBytes: 1024}, true},
	} {
		made, err := s.GenerateDataKeyWithoutPlaintext(t.Context(), kms.GenerateDataKeyRequest{Key: key, NumberOfBytes: tc.has})
		if err != nil {
			t.Fatal(err)
		}
		switch err := tc.asked.CheckBlob(made.CiphertextBlob); {
		case !tc.ok:
			wantError(t, err, kms.InvalidParameter, "CiphertextBlob", fmt.Sprintf("has %d bytes", tc.has), "Create another DataKey")
		case err != nil:
			t.Errorf("%s: %v", sentence, err)
		}
	}
	wantError(t, kms.GenerateDataKeyRequest{KeySpec: hsm.SM4}.CheckBlob(kms.Blob{}), kms.InvalidParameter, "KeySpec")
}

func TestParseBlob_readsTheNameOfTheKeyAndDropsWhiteSpace(t *testing.T) {
	t.Parallel()
	s := newService(t)
	key, _ := s.enabled(t, hsm.SM4)
	made := s.dataKey(t, key, nil).String()
	spaced := " " + strings.Join(strings.SplitAfter(made, "A"), "\n") + "\t"
	for _, text := range []string{made, spaced} {
		blob, err := kms.ParseBlob(text)
		if err != nil || blob.KeyVersionID() != key.Primary.ID || blob.String() != made || blob.IsZero() {
			t.Errorf("ParseBlob(%q) = %s of %s, %v", text, blob, blob.KeyVersionID(), err)
		}
	}
}

func TestParseBlob_refusesWhatIsNoBlob(t *testing.T) {
	t.Parallel()
	encode := func(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }
	name := "b0c1d2e3-0000-4000-8000-00000000000a"
	messages := map[string]string{}
	for sentence, text := range map[string]string{
		"nothing":                          "",
		"no Base64":                        "{}",
		"Base64 without its padding":       strings.TrimRight(encode(name+"\x01x"), "="),
		"URL Base64":                       strings.ReplaceAll(encode(name+"\x01\xff\xff\xff"), "/", "_"),
		"a key version and nothing more":   encode(name),
		"a key version in capitals":        encode(strings.ToUpper(name) + "\x01payload"),
		"a key version in braces":          encode("{" + name[:34] + "}\x01payload"),
		"a key version without its dashes": encode(strings.ReplaceAll(name, "-", "") + "0000\x01payload"),
		"longer than any blob":             encode(name + "\x01" + strings.Repeat("p", 4096)),
	} {
		blob, err := kms.ParseBlob(text)
		messages[sentence] = wantError(t, err, kms.InvalidParameter, "CiphertextBlob", "status.ciphertextBlob")
		if !blob.IsZero() || blob.KeyVersionID() != uuid.Nil {
			t.Errorf("%s: %s comes with the error", sentence, blob)
		}
	}
	wantSame(t, messages)
}

func FuzzParseBlob(f *testing.F) {
	f.Add("")
	f.Add(base64.StdEncoding.EncodeToString([]byte("b0c1d2e3-0000-4000-8000-00000000000a\x01payload")))
	f.Add(" YjBj\nMWQy ")
	f.Fuzz(func(t *testing.T, text string) {
		blob, err := kms.ParseBlob(text)
		if err != nil {
			wantError(t, err, kms.InvalidParameter)
			return
		}
		again, err := kms.ParseBlob(blob.String())
		if err != nil || again.KeyVersionID() != blob.KeyVersionID() || again.String() != blob.String() {
			t.Errorf("its own text parses as %q (%s), %v", again, again.KeyVersionID(), err)
		}
	})
}
