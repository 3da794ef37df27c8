package ciphertext

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"testing"

	"github.com/c2sp/wycheproof"
)

func raw(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// RFC 3394, section 4.
func TestKeyWrap_reproducesTheExamplesOfTheRFC(t *testing.T) {
	t.Parallel()
	const (
		kek = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
		key = "00112233445566778899aabbccddeeff000102030405060708090a0b0c0d0e0f"
	)
	for section, tc := range map[string]struct {
		kekLen, keyLen int
		want           string
	}{
		"4.1": {16, 16, "1fa68b0a8112b447aef34bd8fb5a7b829d3e862371d2cfe5"},
		"4.2": {24, 16, "96778b25ae6ca435f92b5b97c050aed2468ab8a17ad84e5d"},
		"4.3": {32, 16, "64e8c3f9ce0f5ba263e9777905818a2a93c8191e7d6e8ae7"},
		"4.4": {24, 24, "031d33264e15d33268f24ec260743edce1c6c7ddee725a936ba814915c6762d2"},
		"4.5": {32, 24, "a8f9bc1612c68b3ff6e6f4fbe30e71e4769c8b80a32cb8958cd5d17d6b254da1"},
		"4.6": {32, 32, "28c9f404c4b810f4cbccb35cfb87f8263f5786e2d80ed326cbc7f0e71a99f43bfb988b9b7a02dd21"},
	} {
		kek, key := raw(t, kek)[:tc.kekLen], raw(t, key)[:tc.keyLen]
		wrapped, err := wrapKey(kek, key)
		if err != nil || hex.EncodeToString(wrapped) != tc.want {
			t.Errorf("section %s: wrapped to %x, %v", section, wrapped, err)
		}
		got, err := unwrapKey(kek, raw(t, tc.want))
		if err != nil || !bytes.Equal(got, key) {
			t.Errorf("section %s: unwrapped to %x, %v", section, got, err)
		}
	}
}

func TestKeyWrap_passesWycheproof(t *testing.T) {
	t.Parallel()
	text, err := fs.ReadFile(wycheproof.TestVectors, "aes_wrap_test.json")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		TestGroups []struct {
			Tests []struct {
				TcID                          int
				Comment, Key, Msg, Ct, Result string
			}
		}
	}
	if err := json.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	ran := map[string]int{}
	for _, group := range file.TestGroups {
		for _, tc := range group.Tests {
			ran[tc.Result]++
			got, err := unwrapKey(raw(t, tc.Key), raw(t, tc.Ct))
			// "acceptable" are keys of one block, for which RFC 3394 is not made.
			if tc.Result != "valid" {
				if got != nil || !errors.Is(err, ErrOpen) {
					t.Errorf("vector %d (%s): unwrapped to %x, %v", tc.TcID, tc.Comment, got, err)
				}
				continue
			}
			if err != nil || !bytes.Equal(got, raw(t, tc.Msg)) {
				t.Errorf("vector %d (%s): unwrapped to %x, %v", tc.TcID, tc.Comment, got, err)
			}
			if wrapped, err := wrapKey(raw(t, tc.Key), raw(t, tc.Msg)); err != nil || !bytes.Equal(wrapped, raw(t, tc.Ct)) {
				t.Errorf("vector %d (%s): wrapped to %x, %v", tc.TcID, tc.Comment, wrapped, err)
			}
		}
	}
	if ran["valid"] < 36 || ran["invalid"] < 126 {
		t.Errorf("only %v ran", ran)
	}
}
