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

// maxMaterialText is more than any key takes, in whatever encoding and however it is broken into lines.
const maxMaterialText = 1 << 10

// readMaterial reads key material in the encoding that the caller named: never a guessed one, because
// 32 hexadecimal digits are a key of 16 bytes or one of 32. The caller wipes the result.
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

// checkMaterial refuses material that is no key of that type, before anything is sent.
func checkMaterial(spec hsm.KeySpec, material redact.Bytes, as encoding) error {
	switch {
	case spec.Len() == 0:
		return fmt.Errorf("this keyconvoy does not know keySpec %s; use one of the operator's version", spec)
	case len(material) == 0:
		return errors.New("the material is empty; give it on standard input or with --in")
	case len(material) == spec.Len():
		return nil
	}
	message := fmt.Sprintf("%s takes %d bytes and the material has %d", spec, spec.Len(), len(material))
	if as == encodingRaw {
		message += guessMistake(spec, material)
	}
	return errors.New(message)
}

// guessMistake says which of the usual mistakes explains a wrong length.
func guessMistake(spec hsm.KeySpec, material redact.Bytes) string {
	text := bytes.TrimRight(material, "\r\n")
	if len(text) < len(material) && len(text) == spec.Len() {
		return ": a newline follows the key; write the key without it (printf does, echo does not)"
	}
	for _, try := range []encoding{encodingHex, encodingBase64} {
		decoded, err := try.decode(append(redact.Bytes(nil), material...))
		n := len(decoded)
		decoded.Wipe()
		if err == nil && n == spec.Len() {
			return fmt.Sprintf(": it reads as %s text of %d bytes; if it is that, add --%s", try, n, try)
		}
	}
	return ""
}

// looksLikeText says whether raw material of the right length consists of hexadecimal digits. No
// random key does; a key printed as text and cut, or one of half the strength, does.
func looksLikeText(material redact.Bytes) bool {
	return len(bytes.Trim(material, "0123456789abcdefABCDEF")) == 0
}

// checkSameMaterial refuses material other than that which the key was bound to by its first import.
// The operator would refuse it too, later. bound is empty before the first import.
func checkSameMaterial(spec hsm.KeySpec, material redact.Bytes, bound string) error {
	if bound == "" {
		return nil
	}
	fingerprint, err := hsm.FingerprintOf(spec, material)
	if err != nil {
		return err
	}
	if !strings.EqualFold(fingerprint.String(), bound) {
		return errors.New("the key was bound to other material by its first import, and takes that again and nothing else; " +
			"for this material make another ImportedKey")
	}
	return nil
}
