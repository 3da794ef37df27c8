package wire

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"slices"
	"strings"

	"github.com/emmansun/gmsm/sm3"

	"github.com/keyconvoy/keyconvoy/internal/redact"
)

// hashes are those of the ACS3 algorithms.
var hashes = map[string]func() hash.Hash{"ACS3-HMAC-SHA256": sha256.New, "ACS3-HMAC-SM3": sm3.New}

// The headers of ACS3.
const (
	headerAction  = "x-acs-action"
	headerVersion = "x-acs-version"
	headerDate    = "x-acs-date"
	headerNonce   = "x-acs-signature-nonce"
	headerPayload = "x-acs-content-sha256" // with SM3, too
)

// acs3 is the content of the header Authorization.
type acs3 struct {
	algorithm string
	id        string
	signed    []string
	signature string
}

// readACS3 returns the claims of a request with an ACS3 signature. Those of the protocol are in headers.
func (m *message) readACS3(authorization string) (claims, error) {
	a, err := parseACS3(authorization)
	if err != nil {
		return claims{}, err
	}
	if err := m.checkSigned(a); err != nil {
		return claims{}, err
	}
	h := m.header
	if h.Get(headerDate) == "" {
		return claims{}, missing(headerDate)
	}
	return claims{
		accessKeyID: a.id, time: h.Get(headerDate), nonce: h.Get(headerNonce), version: h.Get(headerVersion), action: h.Get(headerAction),
		parameters: operation(m.all()),
		verify:     func(secret redact.Bytes) (string, error) { return m.verifyACS3(a, secret) },
	}, nil
}

func parseACS3(authorization string) (acs3, error) {
	algorithm, rest, _ := strings.Cut(authorization, " ")
	if hashes[algorithm] == nil {
		return acs3{}, &Error{Code: IncompleteSignature, Detail: "The algorithm must be ACS3-HMAC-SHA256 or ACS3-HMAC-SM3."}
	}
	a := acs3{algorithm: algorithm}
	for part := range strings.SplitSeq(rest, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		switch name {
		case "Credential":
			a.id = value
		case "SignedHeaders":
			a.signed = strings.Split(value, ";")
		case "Signature":
			a.signature = value
		}
	}
	if a.id == "" || len(a.signed) == 0 || a.signature == "" {
		return acs3{}, &Error{Code: IncompleteSignature, Detail: "The header Authorization must have Credential, SignedHeaders and Signature."}
	}
	return a, nil
}

// checkSigned checks that everything that the gateway reads is signed, and is there once.
func (m *message) checkSigned(a acs3) error {
	required := []string{"host", headerAction, headerVersion, headerDate, headerPayload}
	if m.header.Get(headerNonce) != "" {
		required = append(required, headerNonce)
	}
	if len(m.body) > 0 {
		required = append(required, "content-type") // it says how the body is read
	}
	for _, name := range required {
		if !slices.Contains(a.signed, name) {
			return &Error{Code: IncompleteSignature, Detail: "SignedHeaders must have " + name + "."}
		}
	}
	for _, name := range a.signed {
		if len(m.header.Values(name)) > 1 {
			return &Error{Code: IncompleteSignature, Detail: "A signed header occurs more than once."}
		}
		// The signature covers the trimmed value. With another one, a request could be repeated with another nonce.
		if value := m.signedHeader(name); value != strings.TrimSpace(value) {
			return &Error{Code: IncompleteSignature, Detail: "A signed header begins or ends with white space."}
		}
	}
	return nil
}

func (m *message) verifyACS3(a acs3, secret redact.Bytes) (string, error) {
	newHash := hashes[a.algorithm]
	payload := sum(newHash, m.body)
	if !hmac.Equal([]byte(payload), []byte(strings.ToLower(m.header.Get(headerPayload)))) {
		return "", &Error{Code: SignatureDoesNotMatch, Detail: headerPayload + " is not the hash of the body."}
	}
	request := m.canonicalACS3(a, payload)
	mac := hmac.New(newHash, secret)
	mac.Write([]byte(a.algorithm + "\n" + sum(newHash, []byte(request))))
	want := hex.EncodeToString(mac.Sum(nil))
	if !hmac.Equal([]byte(want), []byte(strings.ToLower(a.signature))) {
		return "", &Error{Code: SignatureDoesNotMatch, Detail: "Check the secret of the access key, and that no proxy changes the header Host."}
	}
	return want, nil
}

// canonicalACS3 returns the text whose hash is signed.
func (m *message) canonicalACS3(a acs3, payload string) string {
	var b strings.Builder
	for _, part := range []string{m.method, "/", canonical(m.query)} {
		b.WriteString(part + "\n")
	}
	for _, name := range a.signed {
		b.WriteString(name + ":" + m.signedHeader(name) + "\n")
	}
	b.WriteString("\n" + strings.Join(a.signed, ";") + "\n" + payload)
	return b.String()
}

// signedHeader returns the value of a header that is signed. checkSigned has found no white space around it.
func (m *message) signedHeader(name string) string {
	if name == "host" {
		return m.host
	}
	return m.header.Get(name)
}

func sum(newHash func() hash.Hash, data []byte) string {
	h := newHash()
	h.Write(data)
	return hex.EncodeToString(h.Sum(nil))
}
