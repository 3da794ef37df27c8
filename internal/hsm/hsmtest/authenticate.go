package hsmtest

import (
	"bytes"
	"testing"
)

func (s *suite) testAuthenticate(t *testing.T) {
	tags := map[string][]byte{}
	for _, message := range []string{"", "a", "b", "ab", string(random(1000))} {
		tag, err := s.m.Authenticate(t.Context(), []byte(message))
		if err != nil || len(tag) != 32 {
			t.Fatalf("Authenticate(%d bytes) = %d bytes, %v; want 32", len(message), len(tag), err)
		}
		again, err := s.m.Authenticate(t.Context(), []byte(message))
		if err != nil || !bytes.Equal(again, tag) {
			t.Errorf("the second tag is %x, %v; the first was %x", again, err, tag)
		}
		for other, known := range tags {
			if bytes.Equal(known, tag) {
				t.Errorf("messages %q and %q have one tag", other, message)
			}
		}
		tags[message] = tag
	}
}
