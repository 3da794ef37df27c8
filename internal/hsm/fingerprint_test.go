package hsm_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
)

// counting returns the bytes 0, 1, 2, …
func counting(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i)
	}
	return b
}

// The expected values are from OpenSSL, which shares no code with this implementation:
//
//	printf keyconvoy.io/fp1 | openssl mac -cipher AES-256-CBC -macopt hexkey:000102… CMAC
func TestFingerprintOf_equalsThatOfOpenSSL(t *testing.T) {
	t.Parallel()
	for spec, want := range map[hsm.KeySpec]string{
		hsm.AES128: "63f2c2ceba6323f37eea85bb5a29eb33",
		hsm.AES192: "440ee8a25f59778baee7e08009adc68f",
		hsm.AES256: "b6e9b201de0ba2916d5ffc7ddd109c13",
		hsm.SM4:    "f567a7fca59796c47b9f960d92c4b345",
	} {
		got, err := hsm.FingerprintOf(spec, counting(spec.Len()))
		if err != nil || got.String() != want {
			t.Errorf("FingerprintOf(%s) = %s, %v; want %s", spec, got, err, want)
		}
		if parsed, ok := hsm.ParseFingerprint(want); !ok || parsed != got {
			t.Errorf("ParseFingerprint(%s) = %s, %v; want %s", want, parsed, ok, got)
		}
	}
}

func TestParseFingerprint_rejectsOtherTexts(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "00", strings.Repeat("0", 30), strings.Repeat("0", 34), strings.Repeat("g", 32)} {
		if got, ok := hsm.ParseFingerprint(text); ok {
			t.Errorf("ParseFingerprint(%q) = %s", text, got)
		}
	}
}

func TestNewCipher_rejectsOtherLengths(t *testing.T) {
	t.Parallel()
	for _, spec := range hsm.KeySpecs() {
		for n := range 66 {
			_, err := hsm.NewCipher(spec, counting(n))
			want := hsm.MaterialLength
			if n == spec.Len() {
				want = ""
			}
			if hsm.KindOf(err) != want {
				t.Errorf("NewCipher(%s, %d bytes) fails with %v; want kind %q", spec, n, err, want)
			}
			if err != nil && !strings.Contains(err.Error(), fmt.Sprintf("must be %d bytes long for %s", spec.Len(), spec)) {
				t.Errorf("%v does not contain the right length", err)
			}
		}
	}
	for _, n := range []int{0, 16} {
		if _, err := hsm.FingerprintOf("DES", counting(n)); hsm.KindOf(err) != hsm.NotSupported {
			t.Errorf("an unknown key type, %d bytes: %v", n, err)
		}
	}
}

func TestNewCipher_distinguishesAESAndSM4(t *testing.T) {
	t.Parallel()
	out := map[hsm.KeySpec][]byte{}
	for _, spec := range []hsm.KeySpec{hsm.AES128, hsm.SM4} {
		block, err := hsm.NewCipher(spec, counting(16))
		if err != nil {
			t.Fatal(err)
		}
		out[spec] = make([]byte, 16)
		block.Encrypt(out[spec], counting(16))
	}
	if bytes.Equal(out[hsm.AES128], out[hsm.SM4]) {
		t.Error("SM4 and AES encrypt alike")
	}
}
