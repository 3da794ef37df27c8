package redact_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/go-logr/logr/funcr"

	"github.com/keyconvoy/keyconvoy/internal/redact"
)

func TestBytes_neverPrints(t *testing.T) {
	t.Parallel()
	secret := redact.Bytes("hunter22")
	holder := struct {
		Pin  redact.Bytes
		Pins []redact.Bytes
	}{secret, []redact.Bytes{secret}}

	var out strings.Builder
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "% x"} {
		fmt.Fprintf(&out, verb+"\n", secret)
		fmt.Fprintf(&out, verb+"\n", holder)
		fmt.Fprintf(&out, verb+"\n", &holder)
	}
	marshalled, err := json.Marshal(holder)
	if err != nil {
		t.Fatal(err)
	}
	out.Write(marshalled)
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("Opened", "pin", secret)
	slog.New(slog.NewTextHandler(&log, nil)).Info("Opened", "pin", secret)
	funcr.NewJSON(func(line string) { log.WriteString(line) }, funcr.Options{}).Info("Opened", "pin", secret, "holder", holder)
	out.Write(log.Bytes())

	for _, leak := range []string{
		"hunter", fmt.Sprintf("%x", "hunter"), fmt.Sprintf("%X", "hunter"), "104 117 110", "aHVudGVy", "68 75 6e",
	} {
		if strings.Contains(out.String(), leak) {
			t.Errorf("output contains %q:\n%s", leak, out.String())
		}
	}
	if !strings.Contains(out.String(), "[redacted]") {
		t.Error("nothing says [redacted]")
	}
}

func TestBytes_wipeOverwrites(t *testing.T) {
	t.Parallel()
	secret := redact.Bytes("hunter22")
	alias := []byte(secret)
	secret.Wipe()
	if !bytes.Equal(alias, make([]byte, 8)) {
		t.Errorf("still holds %q", alias)
	}
	redact.Bytes(nil).Wipe()
}
