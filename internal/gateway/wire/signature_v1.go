package wire

import (
	"crypto/hmac"
	"crypto/sha1" //nolint:gosec // the documented signature is HMAC-SHA1, which collisions of SHA-1 do not break
	"encoding/base64"

	"github.com/keyconvoy/keyconvoy/internal/redact"
)

// readV1 returns the claims of a request with signature V1, which are all parameters.
func (m *message) readV1() (claims, error) {
	if m.jsonBody {
		return claims{}, invalid("", "Signature V1 does not cover a JSON body. Send a form, or use ACS3-HMAC-SHA256.")
	}
	all := m.all()
	for _, name := range []string{"AccessKeyId", "Timestamp"} {
		if all[name] == "" {
			return claims{}, missing(name)
		}
	}
	if all["Signature"] == "" {
		return claims{}, &Error{Code: IncompleteSignature, Detail: "The parameter Signature is missing."}
	}
	if method := all["SignatureMethod"]; method != "" && method != "HMAC-SHA1" {
		return claims{}, invalid("SignatureMethod", "It must be HMAC-SHA1.")
	}
	if version := all["SignatureVersion"]; version != "" && version != "1.0" {
		return claims{}, invalid("SignatureVersion", "It must be 1.0.")
	}
	return claims{
		accessKeyID: all["AccessKeyId"], time: all["Timestamp"], nonce: all["SignatureNonce"], version: all["Version"], action: all["Action"],
		parameters: operation(all),
		verify:     func(secret redact.Bytes) (string, error) { return verifyV1(m.method, all, secret) },
	}, nil
}

// maxEchoed bounds, in bytes, the text to sign that the answer to a wrong signature repeats: anyone can ask for it.
const maxEchoed = 16 << 10

func verifyV1(method string, all map[string]string, secret redact.Bytes) (string, error) {
	text := stringToSignV1(method, all)
	want := signV1(text, secret)
	if !hmac.Equal([]byte(want), []byte(all["Signature"])) {
		if len(text) > maxEchoed {
			return "", &Error{Code: SignatureDoesNotMatch, Detail: "Check the secret of the access key. The text to sign is too long to be repeated here."}
		}
		// A client compares the end of this message with its own text, and then knows that only the secret can be wrong.
		return "", &Error{Code: SignatureDoesNotMatch, Detail: "server string to sign is:" + text}
	}
	return want, nil
}

func stringToSignV1(method string, all map[string]string) string {
	signed := make(map[string]string, len(all))
	for name, value := range all {
		if name != "Signature" {
			signed[name] = value
		}
	}
	return method + "&%2F&" + encode(canonical(signed))
}

func signV1(text string, secret redact.Bytes) string {
	key := make(redact.Bytes, 0, len(secret)+1)
	key = append(append(key, secret...), '&')
	defer key.Wipe()
	mac := hmac.New(sha1.New, key)
	mac.Write([]byte(text))
	return base64.StdEncoding.EncodeToString(mac.Sum(nil))
}
