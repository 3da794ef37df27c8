package wire

import (
	"maps"
	"slices"
	"strings"
)

// encode is the percent-encoding of both signatures: UTF-8, all but unreserved characters (RFC 3986) as %XX.
func encode(text string) string {
	const hex = "0123456789ABCDEF"
	plain := 0
	for i := range len(text) {
		if unreserved(text[i]) {
			plain++
		}
	}
	if plain == len(text) {
		return text
	}
	var b strings.Builder
	b.Grow(plain + 3*(len(text)-plain))
	for i := range len(text) {
		if c := text[i]; unreserved(c) {
			b.WriteByte(c)
		} else {
			b.Write([]byte{'%', hex[c>>4], hex[c&15]})
		}
	}
	return b.String()
}

func unreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_' || c == '.' || c == '~'
}

// canonical returns parameters as both signatures cover them: encoded, sorted by their encoded names, joined. Clients encode
// blanks, ~ and * in different ways, so what they sent is decoded first.
func canonical(parameters map[string]string) string {
	encoded := make(map[string]string, len(parameters))
	for name, value := range parameters {
		encoded[encode(name)] = encode(value)
	}
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(encoded)) {
		if b.Len() > 0 {
			b.WriteByte('&')
		}
		b.WriteString(name)
		b.WriteByte('=')
		b.WriteString(encoded[name])
	}
	return b.String()
}
