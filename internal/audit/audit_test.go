package audit_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyconvoy/keyconvoy/internal/audit"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// full is a record with every field.
func full() audit.Record {
	return audit.Record{
		Time:      time.Date(2026, 11, 29, 3, 4, 5, 678_900_000, time.FixedZone("", 3600)),
		RequestID: "2b9b1f0e-3c1c-4b3f-9c1b-5a3f0f1f2d3c", Operation: audit.ExportDataKey,
		Object: audit.Object{Kind: "ExportedDataKey", Namespace: "team-a", Name: "ledger.rsa", UID: "8f14e45f-ceea-467f-a8f3-0a1b2c3d4e5f"},
		KeyID:  "c9f0f895-fb98-4b91-9f5a-6b7c8d9e0f1a", KeyVersionID: "45c48cce-2e2d-5fbd-8a1b-2c3d4e5f6a7b",
		RecipientFingerprint: "SHA256:" + strings.Repeat("0a", 32),
		Algorithm:            wrapping.RSAESOAEPSHA256, Custody: hsm.CustodyHost,
		Outcome: audit.Success, DurationMillis: 12,
	}
}

func written(t *testing.T, r audit.Record) string {
	t.Helper()
	var out bytes.Buffer
	audit.New(&out, logr.Discard()).Write(r)
	return out.String()
}

func TestWrite_isOneLineOfJSON(t *testing.T) {
	t.Parallel()
	want := `{"audit":"keyconvoy.io/v1","time":"2026-11-29T02:04:05.678Z","requestID":"2b9b1f0e-3c1c-4b3f-9c1b-5a3f0f1f2d3c",` +
		`"operation":"ExportDataKey","object":{"kind":"ExportedDataKey","namespace":"team-a","name":"ledger.rsa","uid":"8f14e45f-ceea-467f-a8f3-0a1b2c3d4e5f"},` +
		`"keyID":"c9f0f895-fb98-4b91-9f5a-6b7c8d9e0f1a","keyVersionID":"45c48cce-2e2d-5fbd-8a1b-2c3d4e5f6a7b",` +
		`"recipientFingerprint":"SHA256:` + strings.Repeat("0a", 32) + `","algorithm":"RSAES_OAEP_SHA_256","custody":"Host","outcome":"Success","durationMillis":12}` + "\n"
	if got := written(t, full()); got != want {
		t.Errorf("got  %swant %s", got, want)
	}
}

// A blob that is put into any field of text, by mistake or by a conversion, does not appear.
func TestWrite_leavesOutWhatAFieldIsNotFor(t *testing.T) {
	t.Parallel()
	secret := bytes.Repeat([]byte{0xa5, 0x5a, 0x0f, 0xf0}, 8)
	version := "45c48cce-2e2d-5fbd-8a1b-2c3d4e5f6a7b"
	fields := 0
	for _, form := range []string{
		base64.StdEncoding.EncodeToString(secret),
		base64.StdEncoding.EncodeToString([]byte(version + string(secret))), // as a CiphertextBlob begins
		version + string(secret),
		"SHA256:" + base64.StdEncoding.EncodeToString(secret),
		string(secret),
		strings.ToUpper(hex.EncodeToString(secret)),
	} {
		var visit func(reflect.Value, []int)
		visit = func(v reflect.Value, path []int) {
			for i := range v.NumField() {
				at := append(slices.Clone(path), i)
				switch v.Field(i).Kind() {
				case reflect.String:
					r := full()
					reflect.ValueOf(&r).Elem().FieldByIndex(at).SetString(form)
					if got := written(t, r); strings.Contains(got, strings.Trim(jsonText(form), `"`)) {
						t.Errorf("%s shows %q: %s", reflect.TypeOf(r).FieldByIndex(at).Name, form, got)
					}
					fields++
				case reflect.Struct:
					if v.Field(i).Type() != reflect.TypeFor[time.Time]() {
						visit(v.Field(i), at)
					}
				case reflect.Int64:
				default:
					t.Errorf("%s is of a type that may hold anything", v.Type().Field(i).Name)
				}
			}
		}
		visit(reflect.ValueOf(audit.Record{}), nil)
	}
	if fields < 6*12 {
		t.Errorf("only %d fields were tried", fields)
	}
}

func jsonText(v any) string {
	text, _ := json.Marshal(v)
	return string(text)
}

func TestOutcomeOf_isTheDocumentedCode(t *testing.T) {
	t.Parallel()
	for want, err := range map[kms.Code]error{
		audit.Success:             nil,
		kms.ForbiddenNoPermission: &kms.Error{Code: kms.ForbiddenNoPermission, Detail: "no"},
		kms.InternalFailure:       errors.New("anything else"),
	} {
		if got := audit.OutcomeOf(err); got != want {
			t.Errorf("%v is %s, want %s", err, got, want)
		}
	}
}

// flaky fails as often as it is told, and may write a part of a line before.
type flaky struct {
	bytes.Buffer
	fail int
	part int
}

func (f *flaky) Write(p []byte) (int, error) {
	if f.fail > 0 {
		f.fail--
		n, _ := f.Buffer.Write(p[:f.part])
		return n, fs.ErrClosed
	}
	return f.Buffer.Write(p)
}

func TestWrite_failure_isCountedAndLoggedOnce(t *testing.T) {
	t.Parallel()
	var logged []string
	log := funcr.New(func(_, line string) { logged = append(logged, line) }, funcr.Options{})
	out := &flaky{fail: 3, part: 10}
	l := audit.New(out, log)
	for range 5 {
		l.Write(full())
	}
	if len(logged) != 2 || !strings.Contains(logged[0], fs.ErrClosed.Error()) || !strings.Contains(logged[1], "written again") {
		t.Errorf("logged %q", logged)
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(l.Failures())
	if families, err := registry.Gather(); err != nil || families[0].GetMetric()[0].GetCounter().GetValue() != 3 {
		t.Errorf("not 3 failures are counted: %v %v", families, err)
	}
	// What comes after a torn line is whole.
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	for _, line := range lines[len(lines)-2:] {
		if !json.Valid([]byte(line)) {
			t.Errorf("a line after the failure is not JSON: %s", line)
		}
	}
}

func TestOpen(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.log")
	for range 2 { // the second time it is there already
		l, err := audit.Open(path, nil, logr.Discard())
		if err != nil {
			t.Fatal(err)
		}
		l.Write(full())
	}
	text, err := os.ReadFile(path)
	if err != nil || strings.Count(string(text), "\n") != 2 {
		t.Errorf("the file is not appended to: %q %v", text, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file has the mode %v, %v", info.Mode(), err)
	}

	var out bytes.Buffer
	l, err := audit.Open(audit.Stdout, &out, logr.Discard())
	if err != nil {
		t.Fatal(err)
	}
	if l.Write(full()); out.Len() == 0 {
		t.Error("nothing is written to the standard output")
	}

	l, err = audit.Open(audit.Off, &out, logr.Discard())
	if err != nil || l != nil || l.Failures() != nil {
		t.Errorf("off is %v, %v", l, err)
	}
	l.Write(full()) // does nothing

	for _, target := range []string{"", filepath.Join(path, "below-a-file")} {
		if _, err := audit.Open(target, nil, logr.Discard()); err == nil {
			t.Errorf("%q is taken", target)
		}
	}
}

// The page names each field and each operation, and no others.
func TestDocs_describeEachFieldAndOperation(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/audit-log.md")
	if err != nil {
		t.Fatal(err)
	}
	var operations []string
	for _, o := range audit.Operations() {
		operations = append(operations, string(o))
	}
	for heading, want := range map[string][]string{"## Fields": fieldNames(reflect.TypeFor[audit.Record](), ""), "## Operations": operations} {
		_, section, found := strings.Cut(string(page), "\n"+heading+"\n")
		if !found {
			t.Fatalf("there is no %q", heading)
		}
		section, _, _ = strings.Cut(section, "\n## ")
		var got []string
		for _, row := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\|").FindAllStringSubmatch(section, -1) {
			got = append(got, row[1])
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s has\n%q, want\n%q", heading, got, want)
		}
	}
	if !strings.Contains(string(page), audit.Format) {
		t.Errorf("the page does not name the format %s", audit.Format)
	}
}

func fieldNames(of reflect.Type, prefix string) []string {
	var names []string
	for i := range of.NumField() {
		name, _, _ := strings.Cut(of.Field(i).Tag.Get("json"), ",")
		if f := of.Field(i).Type; f.Kind() == reflect.Struct && f != reflect.TypeFor[time.Time]() {
			names = append(names, fieldNames(f, prefix+name+".")...)
			continue
		}
		names = append(names, prefix+name)
	}
	return names
}
