package keystore

import (
	"strings"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
)

// TokenName identifies a token by manufacturer, model and serial number; for a software store the serial number is the
// identifier of its root key. The library is left out: two libraries, or two paths of one, can reach one token. Tokens
// that report the same values count as one, which can only refuse too much.
//
// A key store does not identify a token: several key stores, of both kinds and in several namespaces, can reach one token,
// and one key store can be pointed at another.
func TokenName(info hsm.Info) string {
	return strings.ToValidUTF8(strings.Join([]string{info.Manufacturer, info.Model, info.Serial}, "/"), "?")
}
