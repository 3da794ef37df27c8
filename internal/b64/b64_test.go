package b64_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"testing"

	"github.com/keyconvoy/keyconvoy/internal/b64"
)

func TestDecode(t *testing.T) {
	t.Parallel()
	for sentence, tc := range map[string]struct {
		text string
		want []byte // nil: refused
	}{
		"one line":                          {"a2V5Y29udm95", []byte("keyconvoy")},
		"lines of openssl, Windows ends":    {"a2V5Y2\r\n9udm95\r\n", []byte("keyconvoy")},
		"blanks and tabs around":            {" \t a2V5\f Y29u\v dm95 ", []byte("keyconvoy")},
		"nothing":                           {"", []byte{}},
		"padding is kept":                   {"a2U=", []byte("ke")},
		"padding forgotten":                 {"a2U", nil},
		"bits left over in the last symbol": {"a2V=", nil},
		"URL alphabet":                      {"_-_-", nil},
		"a non-breaking space is no space":  {"a2V5\u00a0Y29u", nil},
		"PEM":                               {"-----BEGIN", nil},
	} {
		t.Run(sentence, func(t *testing.T) {
			t.Parallel()
			got, err := b64.Decode(tc.text)
			if tc.want == nil {
				if !errors.Is(err, b64.ErrNotBase64) {
					t.Fatalf("Decode = %q, %v; want ErrNotBase64", got, err)
				}
				return
			}
			if err != nil || !bytes.Equal(got, tc.want) {
				t.Errorf("Decode = %q, %v; want %q", got, err, tc.want)
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	f.Add("a2V5Y29udm95\n")
	f.Add("=")
	f.Fuzz(func(t *testing.T, text string) {
		raw, err := b64.Decode(text)
		if err != nil {
			return
		}
		again, err := b64.Decode(base64.StdEncoding.EncodeToString(raw))
		if err != nil || !bytes.Equal(raw, again) {
			t.Errorf("%q decodes to %q and then to %q, %v", text, raw, again, err)
		}
	})
}
