package kms

import (
	"bytes"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// A token has one spelling: whatever is taken apart goes together to the same bytes. So nothing can hide in
// one, and the tag covers all that is read.
func FuzzParseToken(f *testing.F) {
	tag := bytes.Repeat([]byte{0xee}, tokenTagLen)
	for _, algorithm := range append(wrapping.Algorithms(), "") {
		token := importToken{keyID: uuid.New(), pairID: uuid.New(), expires: time.Unix(2_000_000_000, 0), algorithm: algorithm}
		f.Add(append(token.message(), tag...))
	}
	f.Add([]byte{})
	f.Add(make([]byte, tokenMinLen))
	f.Add(append([]byte{tokenVersion}, make([]byte, tokenMinLen-1)...))
	f.Fuzz(func(t *testing.T, raw []byte) {
		token, tag, ok := parseToken(raw)
		if !ok {
			if tag != nil || token != (importToken{}) {
				t.Error("an invalid token is accepted")
			}
			return
		}
		if again := append(token.message(), tag...); !bytes.Equal(again, raw) {
			t.Errorf("%x is taken for %x", raw, again)
		}
		if token.expires.Unix() < 0 || token.expires.Year() < 1970 {
			t.Errorf("it ended at %s", token.expires)
		}
	})
}

func TestParseToken_refusesATimeThatOverflows(t *testing.T) {
	t.Parallel()
	for _, seconds := range []byte{0x80, 0xff} {
		raw := importToken{expires: time.Unix(1, 0)}.message()
		raw[33] = seconds // the first byte of the expiry
		if _, _, ok := parseToken(append(raw, make([]byte, tokenTagLen)...)); ok {
			t.Errorf("an expiry that begins with %x is taken", seconds)
		}
	}
}

// The clock is the wall clock unless a test says otherwise.
func TestOperations_withoutAClockReadTheWallClock(t *testing.T) {
	t.Parallel()
	before := time.Now()
	if now := (Operations{}).now(); now.Before(before) || now.After(time.Now()) {
		t.Errorf("now is %s", now)
	}
}

// Both are tags of the same module, so one must never be good as the other.
func TestBlobTag_isNeverThatOfAnImportToken(t *testing.T) {
	t.Parallel()
	if first := blobTagMessage("team-a", "ledger", "blob")[0]; first == tokenVersion || first == (importToken{}).message()[0] {
		t.Errorf("a blob's message begins with %#x, as an import token does", first)
	}
}
