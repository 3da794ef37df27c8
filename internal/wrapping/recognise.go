package wrapping

import (
	"bytes"
	encasn1 "encoding/asn1"
	"encoding/hex"
)

// What people hand over in place of a key, and what to do with it. Each command is one that a test runs.
var (
	errUTF16 = &KeyError{"UTF-16 text; convert it: iconv -f UTF-16 -t UTF-8 key.pem >utf8.pem"}
	errJSON  = &KeyError{"JSON, perhaps a JSON Web Key; convert it to PEM"}

	errPublicSSH = &KeyError{"an SSH public key; convert it: ssh-keygen -e -m PKCS8 -f key.pub"}
	errPublicRFC = &KeyError{"an SSH public key of RFC 4716; convert it: " +
		"ssh-keygen -i -m RFC4716 -f key.pub >key.ssh; ssh-keygen -e -m PKCS8 -f key.ssh"}
	errPublicOtherSSH = &KeyError{"an SSH key that is not RSA, so it cannot encrypt; make an RSA or an SM2 key"}
	errPublicPKCS1    = &KeyError{"a PKCS#1 public key; convert it: openssl rsa -RSAPublicKey_in -in key.pem -pubout " +
		"(for DER add -inform DER)"}
	errPublicRequest = &KeyError{"a certificate request; take its public key: openssl req -in request.pem -pubkey -noout " +
		"(for DER add -inform DER)"}
	errPublicTrusted = &KeyError{"a certificate with OpenSSL's trust settings (TRUSTED CERTIFICATE); convert it: " +
		"openssl x509 -in cert.pem -out plain.pem"}
	errPublicPKCS7 = &KeyError{"a PKCS#7 file; take its certificates: openssl pkcs7 -in file.p7b -print_certs " +
		"(for DER add -inform DER)"}
	errPublicPKCS12 = &KeyError{"a PKCS#12 file, which may hold a private key; take its certificate: " +
		"openssl pkcs12 -in file.p12 -clcerts -nokeys"}
	errPublicHex = &KeyError{"a key as hexadecimal text; convert it: xxd -r -p key.hex >key.der"}
	errBarePoint = &KeyError{"a bare SM2 point; make a public key of it, with its 128 hexadecimal digits after 04 for POINT: " +
		"echo " + spkiBeforePoint + "POINT | xxd -r -p | openssl pkey -pubin -inform DER"}

	errPrivatePKCS12 = &KeyError{"a PKCS#12 file; take its private key: openssl pkcs12 -in file.p12 -nocerts -noenc"}
	errPrivateSSH    = &KeyError{"an OpenSSH private key; convert a copy of it: ssh-keygen -p -m PKCS8 -f copy"}
)

// spkiBeforePoint is a SubjectPublicKeyInfo of an SM2 key up to its coordinates.
const spkiBeforePoint = "3059301306072a8648ce3d020106082a811ccf5501822d03420004"

// foreign recognises text that is neither PEM nor Base64, whatever key it holds.
func foreign(text []byte) error {
	switch {
	case bytes.HasPrefix(text, []byte{0xff, 0xfe}), bytes.HasPrefix(text, []byte{0xfe, 0xff}),
		len(text) > 3 && (text[0] == 0) != (text[1] == 0) && (text[0] == 0) == (text[2] == 0) && (text[1] == 0) == (text[3] == 0):
		return errUTF16
	case bytes.HasPrefix(bytes.TrimSpace(text), []byte("{")):
		return errJSON
	}
	return nil
}

// foreignPublic recognises text that people give as a public key.
func foreignPublic(text []byte) error {
	if err := barePoint(text); err != nil {
		return err
	}
	text = bytes.TrimSpace(text)
	has := func(prefix string) bool { return bytes.HasPrefix(text, []byte(prefix)) }
	switch {
	case has("ssh-rsa "):
		return errPublicSSH
	case has("ssh-"), has("ecdsa-sha2-"), has("sk-ssh-"), has("sk-ecdsa-"):
		return errPublicOtherSSH
	case has("---- BEGIN SSH2 PUBLIC KEY"):
		return errPublicRFC
	case has("PuTTY-User-Key-File"), has("{") && bytes.Contains(text, []byte(`"d"`)):
		return errPublicPrivate
	}
	raw, err := hex.AppendDecode(nil, bytes.Join(bytes.Fields(bytes.TrimPrefix(text, []byte("0x"))), nil))
	defer clear(raw)
	if err != nil {
		return nil
	}
	switch shape := shapeOf(raw); {
	case shape == shapePKCS8, shape == shapePKCS1Private, shape == shapeSEC1, shape == shapeEncryptedPKCS8:
		return errPublicPrivate
	case shape != shapeNone:
		return errPublicHex
	}
	return barePoint(raw)
}

// barePoint recognises the coordinates of an SM2 key, with or without the 04 before them.
func barePoint(raw []byte) error {
	if onCurve(raw) || onCurve(append([]byte{uncompressed}, raw...)) {
		return errBarePoint
	}
	return nil
}

var (
	errRSANoNull = &KeyError{"an RSA key without the NULL after its algorithm; write it anew: openssl rsa -in key.pem -out new.pem " +
		"(for a public key add -pubin -pubout, for DER -inform DER)"}
	errKeyOAEP = &KeyError{"an RSA key of the type id-RSAES-OAEP; write it as plain RSA: " +
		"openssl asn1parse -in key.pem -strparse OFFSET -noout -out rsa.der, with the offset of its BIT STRING, " +
		"then openssl rsa -RSAPublicKey_in -inform DER -in rsa.der -pubout"}
	errKeyPSS      = &KeyError{"an RSA key for signatures only (RSASSA-PSS); make one for encryption: openssl genrsa -out key.pem 3072"}
	errKeyExplicit = &KeyError{"an elliptic-curve key with explicit parameters; write it with the name of its curve: " +
		"openssl ec -in key.pem -param_enc named_curve -out new.pem (for a public key add -pubin -pubout)"}
	errKeySM2OID = &KeyError{"an SM2 key of a type of its own; its algorithm must be id-ecPublicKey (1.2.840.10045.2.1) " +
		"with the curve SM2 (1.2.156.10197.1.301)"}
)

// otherAlgorithm names the type of a key that is neither plain RSA nor on an elliptic curve.
func otherAlgorithm(oid encasn1.ObjectIdentifier) *KeyError {
	switch oid.String() {
	case "1.2.840.113549.1.1.7":
		return errKeyOAEP
	case "1.2.840.113549.1.1.10":
		return errKeyPSS
	case "1.2.156.10197.1.301", "1.2.156.10197.1.301.1", "1.2.156.10197.1.301.2", "1.2.156.10197.1.301.3":
		return errKeySM2OID
	}
	if name, ok := algorithms[oid.String()]; ok {
		return &KeyError{"a key for " + name + ", " + errKeyAlgorithm.text}
	}
	return errKeyAlgorithm
}

var algorithms = map[string]string{
	"1.2.840.10040.4.1":    "DSA",
	"1.2.840.113549.1.3.1": "Diffie-Hellman",
	"1.2.840.10046.2.1":    "Diffie-Hellman",
	"1.3.101.110":          "X25519",
	"1.3.101.111":          "X448",
	"1.3.101.112":          "Ed25519",
	"1.3.101.113":          "Ed448",
}

// otherCurve names a curve that is not SM2, where it has a well-known name.
func otherCurve(oid encasn1.ObjectIdentifier) *KeyError {
	if name, ok := curves[oid.String()]; ok {
		return &KeyError{"an elliptic-curve key on the curve " + name + "; the curve must be SM2 (OID 1.2.156.10197.1.301), or use an RSA key"}
	}
	return errKeyCurve
}

var curves = map[string]string{
	"1.2.840.10045.3.1.1":   "P-192",
	"1.3.132.0.33":          "P-224",
	"1.2.840.10045.3.1.7":   "P-256",
	"1.3.132.0.34":          "P-384",
	"1.3.132.0.35":          "P-521",
	"1.3.132.0.10":          "secp256k1",
	"1.3.36.3.3.2.8.1.1.7":  "brainpoolP256r1",
	"1.3.36.3.3.2.8.1.1.11": "brainpoolP384r1",
	"1.3.36.3.3.2.8.1.1.13": "brainpoolP512r1",
}
