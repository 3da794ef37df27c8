package secrets_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/keyconvoy/keyconvoy/internal/secrets"
)

// printer returns an EntryReader whose process prints that output.
func printer(t *testing.T, output []byte, exit string) secrets.EntryReader {
	t.Helper()
	file := filepath.Join(t.TempDir(), "output")
	if err := os.WriteFile(file, output, 0o600); err != nil {
		t.Fatal(err)
	}
	return secrets.BySubprocess(io.Discard, "sh", "-c", `cat "$0"; exit `+exit, file)
}

// printed is what PrintEntry writes about the entry "pin".
func printed(t *testing.T, s *corev1.Secret, err error) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := secrets.PrintEntry(t.Context(), func(context.Context) (*corev1.Secret, error) { return s, err }, "pin", &out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func secretWith(data map[string][]byte) *corev1.Secret {
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{UID: "uid", ResourceVersion: "7"}, Data: data}
}

func TestBySubprocess_readsWhatTheAPIServerReturns(t *testing.T) {
	t.Parallel()
	name := types.NamespacedName{Namespace: "team-a", Name: "hsm"}
	for sentence, test := range map[string]struct {
		data map[string][]byte
		want []byte
	}{
		"a PIN":                            {map[string][]byte{"pin": []byte("12\n34\n")}, []byte("12\n34\n")},
		"an empty entry":                   {map[string][]byte{"pin": {}}, []byte{}},
		"no such entry":                    {map[string][]byte{"other": []byte("1")}, nil},
		"more than any PIN has, shortened": {map[string][]byte{"pin": bytes.Repeat([]byte("1"), 1<<19)}, bytes.Repeat([]byte("1"), secrets.MaxEntryLen+1)},
	} {
		got, err := printer(t, printed(t, secretWith(test.data), nil), "0")(t.Context(), name, "pin")
		if err != nil || got == nil || got.UID != "uid" || got.ResourceVersion != "7" || !bytes.Equal(got.Value, test.want) || (got.Value == nil) != (test.want == nil) {
			t.Errorf("%s: %+v, %v", sentence, got, err)
		}
	}
	arguments := secrets.BySubprocess(io.Discard, "sh", "-c", `printf '{"UID":"uid","ResourceVersion":"7","Length":%d}\n%s' "${#*}" "$*"`, "command")
	if got, err := arguments(t.Context(), name, "--help"); err != nil || string(got.Value) != "-- team-a hsm --help" {
		t.Errorf("an entry that looks like a flag: %v", err)
	}
	notFound := apierrors.NewNotFound(corev1.Resource("secrets"), "hsm")
	if got, err := printer(t, printed(t, nil, notFound), "0")(t.Context(), name, "pin"); got != nil || err != nil {
		t.Errorf("a Secret that does not exist: %+v, %v", got, err)
	}
	forbidden := apierrors.NewForbidden(corev1.Resource("secrets"), "hsm", errors.New("no role"))
	if _, err := printer(t, printed(t, nil, forbidden), "0")(t.Context(), name, "pin"); !apierrors.IsForbidden(err) {
		t.Errorf("a Secret that the operator may not read: %v", err)
	}
	if _, err := printer(t, printed(t, nil, errors.New("connection refused")), "0")(t.Context(), name, "pin"); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("no API server: %v", err)
	}
}

func TestBySubprocess_processThatFails_isAnError(t *testing.T) {
	t.Parallel()
	name := types.NamespacedName{Namespace: "team-a", Name: "hsm"}
	whole := printed(t, secretWith(map[string][]byte{"pin": []byte("1234")}), nil)
	for sentence, read := range map[string]secrets.EntryReader{
		"it ends with an error":              printer(t, whole, "1"),
		"it ends before the end of the PIN":  printer(t, whole[:len(whole)-1], "0"),
		"it ends before the end of the line": printer(t, whole[:9], "0"),
		"it prints nothing":                  printer(t, nil, "0"),
		"it prints too much":                 printer(t, append(whole, make([]byte, 1<<17)...), "0"),
		"it does not exist":                  secrets.BySubprocess(io.Discard, "/does/not/exist"),
	} {
		got, err := read(t.Context(), name, "pin")
		if err == nil || got != nil {
			t.Errorf("%s: %v", sentence, err)
		} else if strings.Contains(err.Error(), "1234") {
			t.Errorf("%s: the error has the PIN", sentence)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := printer(t, whole, "0")(ctx, name, "pin"); !errors.Is(err, context.Canceled) {
		t.Errorf("a read that is canceled: %v", err)
	}
}
