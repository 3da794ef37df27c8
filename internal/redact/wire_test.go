package redact_test

import (
	"bytes"
	"encoding/gob"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/go-logr/logr/funcr"

	"github.com/keyconvoy/keyconvoy/internal/redact"
)

type request struct {
	Token string
	PIN   redact.WireBytes
}

func TestWireBytes_arriveInAnotherProcess(t *testing.T) {
	t.Parallel()
	for _, pin := range []string{"", "hunter22", "\x00\xff[redacted]"} {
		var wire bytes.Buffer
		if err := gob.NewEncoder(&wire).Encode(request{Token: "t", PIN: redact.WireBytes(pin)}); err != nil {
			t.Fatal(err)
		}
		var got request
		if err := gob.NewDecoder(&wire).Decode(&got); err != nil || string(got.PIN) != pin || got.Token != "t" {
			t.Errorf("%q arrives as %q, %v", pin, []byte(got.PIN), err)
		}
	}
}

// A PIN that arrives as "[redacted]" would be tried, and tries lock a token.
func TestWireBytes_inAnEncodingThatIsText_failToBeSent(t *testing.T) {
	t.Parallel()
	for what, of := range map[string]any{
		"in a field": request{PIN: redact.WireBytes("hunter22")}, "alone": redact.WireBytes("hunter22"),
		"as a key": map[string]redact.WireBytes{"pin": redact.WireBytes("hunter22")},
	} {
		if out, err := json.Marshal(of); err == nil {
			t.Errorf("%s, it is sent as %s", what, out)
		}
	}
}

func TestBytes_doNotLeaveTheProcess(t *testing.T) {
	t.Parallel()
	var wire bytes.Buffer
	if err := gob.NewEncoder(&wire).Encode(struct{ PIN redact.Bytes }{redact.Bytes("hunter22")}); err == nil {
		t.Error("they are encoded")
	}
	if strings.Contains(wire.String(), "hunter") {
		t.Error("they are sent before the encoding fails")
	}
}

func TestWireBytes_neverPrint(t *testing.T) {
	t.Parallel()
	secret := request{PIN: redact.WireBytes("hunter22")}
	var out strings.Builder
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "% x"} {
		fmt.Fprintf(&out, verb+"\n", secret.PIN)
		fmt.Fprintf(&out, verb+"\n", secret)
		fmt.Fprintf(&out, verb+"\n", &secret)
	}
	slog.New(slog.NewJSONHandler(&out, nil)).Info("Opened", "pin", secret.PIN, "request", secret)
	slog.New(slog.NewTextHandler(&out, nil)).Info("Opened", "pin", secret.PIN, "request", secret)
	funcr.NewJSON(func(line string) { out.WriteString(line) }, funcr.Options{}).Info("Opened", "pin", secret.PIN, "request", secret)
	for _, leak := range []string{"hunter", fmt.Sprintf("%x", "hunter"), fmt.Sprintf("%X", "hunter"), "104 117 110", "aHVudGVy", "68 75 6e"} {
		if strings.Contains(out.String(), leak) {
			t.Errorf("output contains %q:\n%s", leak, out.String())
		}
	}
}

func TestWireBytes_wipeOverwrites(t *testing.T) {
	t.Parallel()
	secret := redact.WireBytes("hunter22")
	secret.Wipe()
	if !bytes.Equal(secret, make([]byte, 8)) {
		t.Error("still there")
	}
}
