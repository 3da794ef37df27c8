package wrapping

import (
	"bytes"
	"encoding/hex"
	"fmt"

	"github.com/keyconvoy/keyconvoy/internal/b64"
)

// ExplainImport explains why encrypted material could not be unwrapped, and what to do. It uses only what the sender
// chose and knows (the received bytes, the key type, the algorithm, the required length of the material, 0 for any)
// and never the result of decryption, so that it reveals nothing to an attacker: the same request always has the same
// text.
func ExplainImport(spec KeySpec, algorithm Algorithm, materialLen int, ciphertext []byte) string {
	raw, note := undoText(ciphertext)
	if note != "" && len(raw) == materialLen {
		note += " and, decoded, "
	} else if note != "" {
		return fmt.Sprintf("%d bytes were received, %s. Encode the encrypted bytes exactly once, in Base64.", len(ciphertext), note)
	}
	switch {
	case materialLen > 0 && len(raw) == materialLen:
		return fmt.Sprintf("%d bytes were received, %sas long as the material itself. If this is the unencrypted material, it is disclosed: "+
			"generate new material, and wrap it with %s.", len(ciphertext), note, algorithm)
	case algorithm == SM2PKE:
		return explainSM2(materialLen, raw)
	}
	return explainRSA(spec, algorithm, raw)
}

// undoText decodes bytes that are text, and returns the kind of text.
func undoText(in []byte) (raw []byte, note string) {
	text := bytes.TrimSpace(in)
	if len(text) < 32 {
		return in, ""
	}
	if raw, err := hex.AppendDecode(nil, bytes.Join(bytes.Fields(text), nil)); err == nil {
		return raw, "which are hexadecimal text"
	}
	if raw, err := b64.Decode(string(text)); err == nil {
		return raw, "which are Base64 text"
	}
	return in, ""
}

const opensslSHA256 = "-pkeyopt rsa_padding_mode:oaep -pkeyopt rsa_oaep_md:sha256 -pkeyopt rsa_mgf1_md:sha256"

func explainRSA(spec KeySpec, algorithm Algorithm, ciphertext []byte) string {
	if want := CiphertextLen(spec); len(ciphertext) != want {
		return fmt.Sprintf("%d bytes were received, but with an %s key %s results in %d. Wrap the material under the public key that belongs to the token.",
			len(ciphertext), spec, algorithm, want)
	}
	text := fmt.Sprintf("%d bytes were received, which is the correct length. Wrap with %s under the public key that belongs to the token", len(ciphertext), algorithm)
	switch algorithm {
	case RSAESOAEPSHA256:
		return text + ": SHA-256 for the hash and for MGF1, no label. Java uses SHA-1 for MGF1 without an OAEPParameterSpec, " +
			"and openssl uses SHA-1 for both without " + opensslSHA256 + "."
	case RSAESOAEPSHA1:
		return text + ": SHA-1 for the hash and for MGF1, no label (openssl: -pkeyopt rsa_padding_mode:oaep)."
	}
	return text + "."
}

func explainSM2(materialLen int, ciphertext []byte) string {
	const expected = " Expected is 04 ‖ x ‖ y ‖ C3 ‖ C2, or the DER of GM/T 0009."
	text := fmt.Sprintf("%d bytes were received. ", len(ciphertext))
	point := ciphertext[:min(pointLen, len(ciphertext))]
	_, isDER := parseSM2ASN1(ciphertext)
	switch {
	case isDER:
		return text + "They are valid DER. Wrap with SM2PKE under the public key that belongs to the token."
	case len(ciphertext) > 0 && ciphertext[0] == derSequence:
		return text + "They begin like DER, but are not a SEQUENCE{INTEGER x, INTEGER y, OCTET STRING C3 of 32 bytes, OCTET STRING C2}." + expected
	case len(point) == pointLen && onCurve(append([]byte{uncompressed}, point[:pointLen-1]...)):
		return text + "The byte 04 before the point C1 is missing. Add it." + expected
	case !onCurve(point):
		return text + "They do not begin with a point on the curve SM2, so they are damaged or were not encrypted with SM2PKE." + expected
	case materialLen > 0 && len(ciphertext) != pointLen+sm3Len+materialLen:
		return text + fmt.Sprintf("This key requires %d in the order C1C3C2, or DER.", pointLen+sm3Len+materialLen) + expected
	}
	return text + "The order must be C1C3C2: the default of Bouncy Castle is C1C2C3. " +
		"Wrap with SM2PKE under the public key that belongs to the token." + expected
}
