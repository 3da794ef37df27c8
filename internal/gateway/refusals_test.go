package gateway

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/go-logr/logr"

	"github.com/keyconvoy/keyconvoy/internal/audit"
	"github.com/keyconvoy/keyconvoy/internal/gateway/wire"
	"github.com/keyconvoy/keyconvoy/internal/kms"
)

// The audit log knows each operation, and each code in which the protocol refuses a request whose signature is right.
func TestAudit_knowsOperationsAndRefusals(t *testing.T) {
	t.Parallel()
	known := map[string]bool{}
	for _, operation := range audit.Operations() {
		known[string(operation)] = true
	}
	for action := range all {
		if !known[action] && !slices.Contains(withPlaintext, action) {
			t.Errorf("The audit log does not know %s", action)
		}
	}
	for _, code := range []wire.Code{
		wire.DisabledAccessKey, wire.ExpiredTimestamp, wire.NonceUsed, wire.InvalidVersion, wire.UnknownAction, wire.AliasNotFound,
		wire.AliasAlreadyExists, wire.LimitExceeded,
	} {
		var out bytes.Buffer
		audit.New(&out, logr.Discard()).Write(audit.Record{Operation: audit.UnknownOperation, Outcome: kms.Code(code)})
		if !strings.Contains(out.String(), `"outcome":"`+string(code)+`"`) {
			t.Errorf("%s is recorded as %s", code, out.String())
		}
	}
}
