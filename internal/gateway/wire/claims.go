package wire

import (
	"maps"
	"strings"
	"time"

	"github.com/keyconvoy/keyconvoy/internal/redact"
)

// claims are what a request states. Nothing of it is trusted before verify has returned nil.
type claims struct {
	accessKeyID string
	time        string
	nonce       string
	version     string
	action      string
	parameters  map[string]string
	// verify checks the signature. It returns what identifies a request without a nonce: its signature.
	verify func(secret redact.Bytes) (signature string, err error)
}

// read returns the claims of a request. The header Authorization decides between the signatures: clients send the other headers
// of ACS3 with V1, too.
func (m *message) read() (claims, error) {
	authorization := m.header.Values("Authorization")
	switch {
	case len(authorization) == 0:
		return m.readV1()
	case len(authorization) == 1 && strings.HasPrefix(authorization[0], "ACS"):
		return m.readACS3(authorization[0])
	}
	return claims{}, &Error{Code: IncompleteSignature, Detail: "The header Authorization must begin with ACS3-HMAC-SHA256 or ACS3-HMAC-SM3."}
}

// commonV1 are the parameters of the protocol. The others are the operation's.
var commonV1 = []string{
	"AccessKeyId", "Action", "Format", "RegionId", "SecurityToken", "Signature", "SignatureMethod", "SignatureNonce", "SignatureType",
	"SignatureVersion", "Timestamp", "Version",
}

// all returns the parameters of query and body, which have none in common.
func (m *message) all() map[string]string {
	out := make(map[string]string, len(m.query)+len(m.form))
	maps.Copy(out, m.query)
	maps.Copy(out, m.form)
	return out
}

// operation returns the parameters without those of the protocol.
func operation(all map[string]string) map[string]string {
	out := maps.Clone(all)
	for _, name := range commonV1 {
		delete(out, name)
	}
	return out
}

// MaxSkew is how much the time of a request may differ from the gateway's, either way.
const MaxSkew = 15 * time.Minute

// parseTime reads the time of a request, in UTC, with or without a fraction.
func parseTime(text string) (time.Time, bool) {
	at, err := time.Parse("2006-01-02T15:04:05Z", text) // which accepts a fraction
	return at, err == nil
}

// checkTime checks the time of a request, and returns until when it is accepted.
func (c claims) checkTime(now time.Time) (until time.Time, err error) {
	at, ok := parseTime(c.time)
	if !ok {
		return time.Time{}, invalid("Timestamp", "It must be a time in UTC, such as 2026-01-02T15:04:05Z.")
	}
	if off := now.Sub(at); off > MaxSkew || off < -MaxSkew {
		return time.Time{}, &Error{Code: ExpiredTimestamp, Detail: "It differs from the time here by more than 15 minutes. Set the clock."}
	}
	return at.Add(MaxSkew), nil
}
