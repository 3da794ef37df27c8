package controllers_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	hsmprocess "github.com/keyconvoy/keyconvoy/internal/hsm/process"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/reconciler"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
)

// startMetered starts an operator that registers its metrics, as the product does.
func startMetered(t *testing.T, options ...harness.Option) (*operator, *prometheus.Registry) {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	return startOperator(t, append(options, harness.WithMetrics(registry))...), registry
}

// scraped is one scrape: values by name and labels, as Prometheus writes them. A histogram's is its count.
func scraped(t testing.TB, registry *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]float64{}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			var labels []string
			for _, pair := range m.GetLabel() {
				labels = append(labels, fmt.Sprintf("%s=%q", pair.GetName(), pair.GetValue()))
			}
			name := family.GetName() + "{" + strings.Join(labels, ",") + "}"
			all[name] = m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return all
}

// scrapes waits until a scrape shows these series and no others of what is counted: the cache may be a
// moment behind the API server.
func scrapes(t testing.TB, registry *prometheus.Registry, want map[string]float64) {
	t.Helper()
	harness.Eventually(t, func() string {
		got := scraped(t, registry)
		maps.DeleteFunc(got, func(name string, value float64) bool {
			return strings.HasPrefix(name, "keyconvoy_module_call_duration_seconds{") || strings.HasPrefix(name, "keyconvoy_cache_") ||
				name == "keyconvoy_left_in_module_total{}" || name == "keyconvoy_audit_log_failures_total{}" || strings.HasPrefix(name, "keyconvoy_missing_keys{") && value == 0
		})
		if maps.Equal(got, want) {
			return ""
		}
		return fmt.Sprintf("scraped %v, want %v", got, want)
	})
}

const (
	succeeded   = `,ready="True",reason="Succeeded"}`
	storesReady = `keyconvoy_objects{kind="KeyStore"` + succeeded
	keysReady   = `keyconvoy_objects{kind="ImportedKey"` + succeeded
	keysWaiting = `keyconvoy_objects{kind="ImportedKey",ready="False",reason="PendingImport"}`
	nextToken   = `keyconvoy_next_token_expiry_seconds{}`
	nextEnd     = `keyconvoy_next_material_expiry_seconds{}`
)

// The metrics show what the compromise of a former version would expose, and which versions nothing needs.
func TestMetrics_countWhatIsUnderFormerVersions(t *testing.T) {
	t.Parallel()
	o, registry := startMetered(t)
	o.store(t, onSoftware)
	key := o.generated(t, "key")
	o.dataKey(t, "stays", underGenerated("key"))
	moves := o.dataKey(t, "moves", underGenerated("key"), onRotation)
	versions := func(dataKeys, unused, ofDataKeys float64) {
		t.Helper()
		scrapes(t, registry, map[string]float64{
			storesReady: 1, `keyconvoy_objects{kind="GeneratedKey"` + succeeded: 1, `keyconvoy_keys{state="Enabled"}`: 1,
			`keyconvoy_objects{kind="DataKey"` + succeeded: ofDataKeys,
			`keyconvoy_data_keys_under_former_versions{}`:  dataKeys, `keyconvoy_unused_former_versions{}`: unused,
		})
	}
	versions(0, 0, 2)
	former := *moves.Status.DeepCopy()
	o.rotate(t, key, "first")
	o.movedTo(t, moves, key.Status.PrimaryVersion, former)
	versions(1, 0, 2)
	former = *moves.Status.DeepCopy()
	o.rotate(t, key, "second")
	o.movedTo(t, moves, key.Status.PrimaryVersion, former)
	versions(1, 1, 2)
}

// What is scraped is what is there: nothing outlives its object.
func TestMetrics_followTheObjects(t *testing.T) {
	t.Parallel()
	o, registry := startMetered(t)
	scrapes(t, registry, map[string]float64{})

	o.store(t, onSoftware)
	scrapes(t, registry, map[string]float64{storesReady: 1})

	key := o.enabledKey(t, "master", nil)
	dek := o.dataKey(t, "dek", underKey("master"))
	rsa := o.export(t, "rsa")
	sm2 := o.export(t, "sm2", toBlob(sm2Recipient().public.Base64()), withSM2)
	wrong := newExport("wrong", toBlob("no key"))
	o.Make(t, wrong)
	o.Stalls(t, wrong, "InvalidParameter")
	all := map[string]float64{
		storesReady: 1, keysReady: 1,
		`keyconvoy_keys{state="Enabled"}`:                                                   1,
		`keyconvoy_objects{kind="DataKey"` + succeeded:                                      1,
		`keyconvoy_objects{kind="ExportedDataKey"` + succeeded:                              2,
		`keyconvoy_objects{kind="ExportedDataKey",ready="False",reason="InvalidParameter"}`: 1,
		`keyconvoy_exports{algorithm="RSAES_OAEP_SHA_256",custody="Software"}`:              1,
		`keyconvoy_exports{algorithm="SM2PKE",custody="Software"}`:                          1,
	}
	scrapes(t, registry, all)

	o.desire(t, key, v1alpha1.DesiredDisabled, 0)
	o.keyIs(t, key, kms.StateDisabled)
	for _, object := range []client.Object{rsa, wrong} {
		o.Remove(t, object)
		o.Gone(t, object)
	}
	scrapes(t, registry, map[string]float64{
		storesReady: 1, keysReady: 1,
		`keyconvoy_keys{state="Disabled"}`:                         1,
		`keyconvoy_objects{kind="DataKey"` + succeeded:             1,
		`keyconvoy_objects{kind="ExportedDataKey"` + succeeded:     1,
		`keyconvoy_exports{algorithm="SM2PKE",custody="Software"}`: 1,
	})

	for _, object := range []client.Object{sm2, dek, key} {
		o.Remove(t, object)
		o.Gone(t, object)
	}
	scrapes(t, registry, map[string]float64{storesReady: 1})
}

// An object that the operator has not looked at yet is counted too: its kind's alerts must see it.
func TestMetrics_objectThatWasNotReconciled_isUnknown(t *testing.T) {
	t.Parallel()
	hold := make(chan struct{})
	o, registry := startMetered(t, harness.BeforeOpen(func(ctx context.Context, _ hsm.Config) error {
		select {
		case <-hold:
		case <-ctx.Done():
		}
		return ctx.Err()
	}))
	held := &v1alpha1.KeyStore{ObjectMeta: metav1.ObjectMeta{Name: "store"}, Spec: storeSpec(onSoftware)}
	key := importedKey("key")
	o.Make(t, held, key)
	scrapes(t, registry, map[string]float64{
		`keyconvoy_objects{kind="KeyStore",ready="Unknown",reason=""}`:    1,
		`keyconvoy_objects{kind="ImportedKey",ready="Unknown",reason=""}`: 1,
	})
	close(hold)
	o.Ready(t, held)
	o.Waits(t, key, v1alpha1.ReasonPendingImport)
}

func TestMetrics_nextExpiry_isThatOfTheFirst(t *testing.T) {
	t.Parallel()
	clock := testClock()
	o, registry := startMetered(t, harness.WithClock(clock))
	o.store(t, onSoftware)
	scrapes(t, registry, map[string]float64{storesReady: 1})

	// No end, no metric: neither zero nor infinity is a time.
	o.enabledKey(t, "for-ever", nil)
	scrapes(t, registry, map[string]float64{storesReady: 1, keysReady: 1, `keyconvoy_keys{state="Enabled"}`: 1})

	const day = 24 * time.Hour
	o.keyUntil(t, "later", o.material(32), clock.Now().Add(30*day))
	first := o.keyUntil(t, "first", o.material(32), clock.Now().Add(10*day))
	want := map[string]float64{storesReady: 1, keysReady: 3, `keyconvoy_keys{state="Enabled"}`: 3, nextEnd: (10 * day).Seconds()}
	scrapes(t, registry, want)

	// It counts down by itself: a scrape asks the clock, no reconcile is needed.
	clock.SetTime(clock.Now().Add(8 * day))
	want[nextEnd] = (2 * day).Seconds()
	scrapes(t, registry, want)
	clock.SetTime(clock.Now().Add(2*day + time.Minute))
	want[nextEnd] = -60
	scrapes(t, registry, want)

	// Material that has ended and is destroyed is no next end any more. The key waits for it again, under
	// fresh parameters.
	o.Touch(t, first)
	o.Waits(t, first, v1alpha1.ReasonPendingImport)
	scrapes(t, registry, map[string]float64{
		storesReady: 1, keysReady: 2, keysWaiting: 1, `keyconvoy_keys{state="Enabled"}`: 2, `keyconvoy_keys{state="PendingImport"}`: 1,
		nextEnd: (20*day - time.Minute).Seconds(), nextToken: day.Seconds(),
	})
}

// The token of a key that has its material ends without harm; that of a key that waits is renewed
// in time, or something is wrong.
func TestMetrics_nextTokenExpiry_isThatOfKeysThatWait(t *testing.T) {
	t.Parallel()
	clock := testClock()
	o, registry := startMetered(t, harness.WithClock(clock))
	o.store(t, onSoftware)
	key := o.pendingKey(t, "key")
	want := map[string]float64{storesReady: 1, keysWaiting: 1, `keyconvoy_keys{state="PendingImport"}`: 1, nextToken: (24 * time.Hour).Seconds()}
	scrapes(t, registry, want)
	clock.SetTime(clock.Now().Add(21 * time.Hour))
	want[nextToken] = (3 * time.Hour).Seconds()
	scrapes(t, registry, want)

	p := key.Status.ImportParameters
	o.give(t, key, inline(wrapUnder(t, p, o.material(32)), p.ImportToken))
	o.enabled(t, key)
	scrapes(t, registry, map[string]float64{storesReady: 1, keysReady: 1, `keyconvoy_keys{state="Enabled"}`: 1})
}

// Calls are measured as they are made: by operation and result, those that fail too.
func TestMetrics_moduleCalls_areThoseThatWereMade(t *testing.T) {
	t.Parallel()
	o, registry := startMetered(t, harness.WithModules(func(r *hsmtest.Recorder) {
		r.FailNext("GenerateDataKey", hsm.Errorf(hsm.Unavailable, "the device does not answer"))
		r.FailAll("ExportDataKey", hsm.Errorf(hsm.NotSupported, "it cannot do that"))
	}))
	o.store(t, onSoftware)
	o.enabledKey(t, "master", nil)
	o.dataKey(t, "dek", underKey("master"))
	export := newExport("export")
	o.Make(t, export)
	o.Stalls(t, export, "UnsupportedOperation")

	call := func(operation, result string) string {
		return fmt.Sprintf("keyconvoy_module_call_duration_seconds{operation=%q,result=%q}", operation, result)
	}
	got := scraped(t, registry)
	for _, name := range []string{
		call("Check", "OK"), call("ImportKey", "OK"), call("GenerateDataKey", "OK"), call("GenerateDataKey", "Unavailable"), call("ExportDataKey", "NotSupported"),
	} {
		if got[name] < 1 {
			t.Errorf("there is no %s in %v", name, got)
		}
	}
	if name := call("ExportDataKey", "OK"); got[name] != 0 {
		t.Errorf("no export succeeded, but %s is %v", name, got[name])
	}
	o.Stop(t)
	measured, made := map[string]int{}, map[string]int{}
	for name, n := range scraped(t, registry) {
		if operation := regexp.MustCompile(`operation="(\w+)"`).FindStringSubmatch(name); operation != nil {
			measured[operation[1]] += int(n)
		}
	}
	for _, m := range o.Modules() {
		for method, n := range m.Calls() {
			if method != "Close" {
				made[method] += n
			}
		}
	}
	if !maps.Equal(measured, made) {
		t.Errorf("measured %v, made %v", measured, made)
	}
}

// metricLabels are the metrics and the labels that they may have: kinds, reasons, states, algorithms,
// operations, all of which are few. What names an object or a key is none of them, or every key would make
// series that never end, and tell readers of metrics what it is called.
var metricLabels = map[string][]string{
	"keyconvoy_cache_errors_total":              {"kind"},
	"keyconvoy_cache_synced":                    {"kind"},
	"keyconvoy_objects":                         {"kind", "ready", "reason"},
	"keyconvoy_keys":                            {"state"},
	"keyconvoy_exports":                         {"algorithm", "custody"},
	"keyconvoy_keys_without_holder":             {"kind"},
	"keyconvoy_missing_keys":                    {"kind"},
	"keyconvoy_data_keys_under_former_versions": nil,
	"keyconvoy_unused_former_versions":          nil,
	"keyconvoy_left_in_module_total":            nil,
	"keyconvoy_audit_log_failures_total":        nil,
	"keyconvoy_next_material_expiry_seconds":    nil,
	"keyconvoy_next_token_expiry_seconds":       nil,
	"keyconvoy_module_call_duration_seconds":    {"operation", "result"},
}

func TestMetrics_areInGoodForm_andNameNoKey(t *testing.T) {
	t.Parallel()
	clock := testClock()
	o, registry := startMetered(t, harness.WithClock(clock))
	store := o.store(t, onSoftware)
	left := o.keyUntil(t, "left", o.material(32), clock.Now().Add(time.Hour))
	o.Remove(t, left)
	o.Gone(t, left)
	o.Change(t, store, func() { store.Spec.AllowPKCS1V15Import = true }) // has the module opened again, and swept
	o.keyUntil(t, "master", o.material(32), clock.Now().Add(time.Hour))
	o.pendingKey(t, "waiting")
	o.generated(t, "generated")
	o.dataKey(t, "dek", underKey("master"))
	o.export(t, "export")
	harness.Eventually(t, func() string {
		if n := len(scraped(t, registry)); n < 10 {
			return fmt.Sprintf("only %d series", n)
		}
		if scraped(t, registry)[`keyconvoy_keys_without_holder{kind="KeyStore"}`] != 1 {
			return "the key that was left is not counted"
		}
		for series := range scraped(t, registry) {
			if strings.HasPrefix(series, "keyconvoy_exports{") {
				return ""
			}
		}
		return "the export is not counted"
	})

	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("promlint: %v %v", problems, err)
	}
	found := map[string][]string{}
	word := regexp.MustCompile(`^[A-Za-z0-9_]*$`) // no name of a test's namespace, no UUID
	names := []string{"master", "waiting", "generated", "dek", "export", "store"}
	for _, family := range families {
		found[family.GetName()] = nil
		for _, m := range family.GetMetric() {
			for _, pair := range m.GetLabel() {
				if !slices.Contains(found[family.GetName()], pair.GetName()) {
					found[family.GetName()] = append(found[family.GetName()], pair.GetName())
				}
				if !word.MatchString(pair.GetValue()) || slices.Contains(names, pair.GetValue()) {
					t.Errorf("%s has %s=%q", family.GetName(), pair.GetName(), pair.GetValue())
				}
			}
		}
	}
	if !maps.EqualFunc(found, metricLabels, slices.Equal) {
		t.Errorf("the metrics and their labels are %v, want %v", found, metricLabels)
	}
}

// Every metric and label in the alerts and the dashboard exists in the operator.
func TestMetrics_alertsAndDashboard_useOnlyThem(t *testing.T) {
	t.Parallel()
	var rule struct {
		Spec struct {
			Groups []struct {
				Rules []struct{ Expr string }
			}
		}
	}
	readYAML(t, "../config/monitoring/prometheusrule.yaml", &rule)
	var dashboard struct {
		Panels []struct{ Targets []struct{ Expr string } }
	}
	readYAML(t, "../config/monitoring/dashboard.json", &dashboard)
	var all []string
	for _, r := range rule.Spec.Groups[0].Rules {
		all = append(all, r.Expr)
	}
	for _, panel := range dashboard.Panels {
		for _, target := range panel.Targets {
			all = append(all, target.Expr)
		}
	}
	known := maps.Clone(metricLabels)
	known[nameOfRestarts(t)] = []string{"cause", "module"}
	used := map[string]bool{}
	for _, expr := range all {
		for _, name := range regexp.MustCompile(`keyconvoy_\w+`).FindAllString(expr, -1) {
			base := regexp.MustCompile(`_(bucket|count|sum)$`).ReplaceAllString(name, "")
			if _, ok := known[base]; !ok {
				t.Errorf("there is no metric %s: %s", name, expr)
			}
			used[base] = true
		}
	}
	if want := slices.Sorted(maps.Keys(known)); !slices.Equal(slices.Sorted(maps.Keys(used)), want) {
		t.Errorf("used are %v of %v", used, want)
	}
}

// nameOfRestarts returns the name of the metric that counts restarts of libraries, which the command line registers.
func nameOfRestarts(t testing.TB) string {
	t.Helper()
	descriptions := make(chan *prometheus.Desc, 1)
	hsmprocess.New(hsmprocess.Options{}).Metrics().Describe(descriptions)
	name := regexp.MustCompile(`keyconvoy_\w+`).FindString((<-descriptions).String())
	if name == "" {
		t.Fatal("the metric has no name")
	}
	return name
}

// The alert on stalled exports leaves out what waits for something else, and nothing more: whatever only a
// person can repair, and whatever is tried again and again, must reach a person.
func TestMetrics_alertOnStalledExports_knowsTheReasons(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../config/monitoring/prometheusrule.yaml")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(text), "alert: KeyconvoyExportsStalled")
	m := regexp.MustCompile(`reason!~"([^"]+)"`).FindStringSubmatch(after)
	if m == nil {
		t.Fatal("the rule leaves out no reasons")
	}
	left := strings.Split(m[1], "|")
	dryRuns := []kms.Code{kms.DryRunOperationError, kms.ValidationError, kms.AccessDeniedError}
	// What an export waits for beside the codes of operations.
	waits := []string{
		v1alpha1.ReasonKeyNotReady, v1alpha1.ReasonKeyStoreNotFound, v1alpha1.ReasonKeyStoreNotReady,
		v1alpha1.ReasonSourceNotFound, v1alpha1.ReasonNamespacesPending,
	}
	want := slices.Clone(waits)
	for _, code := range kms.Codes() {
		if code == kms.ForbiddenKeyVersionNotFound {
			continue // the operator looks again, and people must restore the key
		}
		if slices.Contains(dryRuns, code) || reconciler.From(&kms.Error{Code: code}).Class == reconciler.Waiting {
			want = append(want, code.Reason())
		}
	}
	slices.Sort(left)
	slices.Sort(want)
	if !slices.Equal(left, want) {
		t.Errorf("it leaves out\n%q, want\n%q", left, want)
	}
}

func readYAML(t testing.TB, file string, into any) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	asJSON, err := yaml.YAMLToJSON(text)
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	if err := json.Unmarshal(asJSON, into); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
}
