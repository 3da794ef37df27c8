// Package b64 decodes Base64 text that people paste.
package b64

import (
	"encoding/base64"
	"errors"
	"strings"
)

// ErrNotBase64 means that text is not standard Base64 with padding (RFC 4648, section 4). It contains no part of the
// text, which may be secret.
var ErrNotBase64 = errors.New("not standard Base64 with padding")

// Decode decodes standard Base64 with padding. It ignores ASCII white space, which tools add, at any position.
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
