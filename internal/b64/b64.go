// Package b64 reads Base64 as people paste it.
package b64

import (
	"encoding/base64"
	"errors"
	"strings"
)

// ErrNotBase64 says that text is not standard Base64 with padding (RFC 4648, section 4). It holds
// nothing of the text, which may be secret.
var ErrNotBase64 = errors.New("not standard Base64 with padding")

// Decode reads standard Base64 with padding; ASCII white space, which tools add, is ignored
// wherever it stands.
func Decode(text string) ([]byte, error) {
	raw, err := base64.StdEncoding.Strict().DecodeString(strings.Map(dropSpace, text))
	if err != nil {
		return nil, ErrNotBase64
	}
	return raw, nil
}

func dropSpace(r rune) rune {
	switch r {
	case ' ', '\t', '\n', '\r', '\v', '\f':
		return -1
	}
	return r
}
