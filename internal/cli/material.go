package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/redact"
)

// maxMaterialText is longer than any key in any encoding, with any line breaks.
const maxMaterialText = 1 << 10

// readMaterial reads key material in the given encoding. It never guesses, because 32 hexadecimal digits can be a key
// of 16 or of 32 bytes. The caller must wipe the result.
func readMaterial(ctx context.Context, name string, in io.Reader, as encoding) (redact.Bytes, error) {
	text, err := readBounded(ctx, name, in, maxMaterialText)
	if err != nil {
		return nil, err
	}
	material, err := as.decode(text)
	if err != nil {
		return nil, fmt.Errorf("the material in %s is %w", describeInput(name), err)
	}
	return material, nil
}

// checkMaterial rejects material that is not a key of the given type, before anything is sent.
func checkMaterial(spec hsm.KeySpec, material redact.Bytes, as encoding) error {
	switch {
	case spec.Len() == 0:
		return fmt.Errorf("this version of keyconvoy does not support keySpec %s\nhint: use the version of the operator", spec)
	case len(material) == 0:
		return errors.New("the material is empty\nhint: pass it on standard input or with --in")
	case len(material) == spec.Len():
		return nil
	}
	message := fmt.Sprintf("%s requires %d bytes, but the material has %d", spec, spec.Len(), len(material))
	if as == encodingRaw {
		message += guessMistake(spec, material)
	}
	return errors.New(message)
}

// guessMistake returns the usual mistake that explains a wrong length.
func guessMistake(spec hsm.KeySpec, material redact.Bytes) string {
	text := bytes.TrimRight(material, "\r\n")
	if len(text) < len(material) && len(text) == spec.Len() {
		return ": a newline follows the key\nhint: write the key without it, with printf instead of echo"
	}
	for _, try := range []encoding{encodingHex, encodingBase64} {
		decoded, err := try.decode(append(redact.Bytes(nil), material...))
		n := len(decoded)
		decoded.Wipe()
		if err == nil && n == spec.Len() {
			return fmt.Sprintf("\nhint: it looks like %s text of %d bytes; if so, add --%s", try, n, try)
		}
	}
	return ""
}

// suspicion returns why material of the correct length is probably not a random key, or "". A random key of 16 bytes
// or more practically never matches.
func suspicion(material redact.Bytes, as encoding) string {
	consistsOf := func(chars string) bool { return len(bytes.Trim(material, chars)) == 0 }
	switch period := periodOf(material); {
	case period == 1:
		return "is one byte repeated, which is easy to guess"
	case period > 0:
		return fmt.Sprintf("is the same %d bytes repeated, so it is no stronger than those bytes", period)
	case counts(material):
		return "is a sequence of evenly spaced bytes, which is easy to guess"
	case as == encodingRaw && consistsOf(hexDigits):
		return "consists of hexadecimal digits only, and is used as raw bytes; " +
			"if it is text, this is the wrong key: use --hex and material of the full length"
	case as == encodingRaw && consistsOf(base64Digits):
		return "consists of Base64 characters only, and is used as raw bytes; " +
			"if it is text, this is the wrong key: use --base64 and material of the full length"
	case bytes.IndexFunc(material, func(r rune) bool { return (r < ' ' || r > '~') && r != '\n' && r != '\r' && r != '\t' }) < 0:
		return "is printable text, which is easier to guess than a random key; generate a key with openssl rand"
	}
	return ""
}

const (
	hexDigits    = "0123456789abcdefABCDEF"
	base64Digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="
)

// periodOf returns the number of bytes after which the material repeats, at most half of its length, or 0.
func periodOf(material redact.Bytes) int {
	for period := 1; period <= len(material)/2; period++ {
		if bytes.Equal(material[period:], material[:len(material)-period]) {
			return period
		}
	}
	return 0
}

// counts reports whether all differences between neighbouring bytes are equal.
func counts(material redact.Bytes) bool {
	for i := 2; i < len(material); i++ {
		if material[i]-material[i-1] != material[1]-material[0] {
			return false
		}
	}
	return len(material) > 2
}

// checkSameMaterial rejects material other than that of the first import, to which the key is bound. The operator
// would reject it too, later. bound is empty before the first import.
func checkSameMaterial(spec hsm.KeySpec, material redact.Bytes, bound string) error {
	if bound == "" {
		return nil
	}
	fingerprint, err := hsm.FingerprintOf(spec, material)
	if err != nil {
		return err
	}
	if !strings.EqualFold(fingerprint.String(), bound) {
		return errors.New("the key accepts only the material of its first import, and this material is different\nhint: " +
			"for this material create another ImportedKey")
	}
	return nil
}
