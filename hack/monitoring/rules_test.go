// Package monitoring tests the files in config/monitoring and config/health with the code of the programs that read them:
// the parser, engine and templates of Prometheus, the types of prometheus-operator, Lua and CEL. It is a separate module,
// because the product must not depend on these.
package monitoring

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/model/timestamp"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/template"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/util/annotations"
	"sigs.k8s.io/yaml"
)

const (
	step = time.Minute // between samples and between evaluations
	day  = 24 * time.Hour
	job  = "keyconvoy-controller-manager-metrics"
)

var promQL = parser.NewParser(parser.Options{})

// rules returns the rules of the PrometheusRule, as Prometheus reads them.
func rules(t testing.TB) []rulefmt.Rule {
	t.Helper()
	var object monitoringv1.PrometheusRule
	text, err := os.ReadFile("../../config/monitoring/prometheusrule.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.UnmarshalStrict(text, &object); err != nil {
		t.Fatal(err)
	}
	file, err := yaml.Marshal(object.Spec)
	if err != nil {
		t.Fatal(err)
	}
	groups, problems := rulefmt.Parse(file, false, model.UTF8Validation, promQL, slog.New(slog.DiscardHandler))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	if len(groups.Groups) != 1 || time.Duration(groups.Groups[0].Interval) != step {
		t.Fatalf("want one group that is evaluated every %s", step)
	}
	return groups.Groups[0].Rules
}

// replicas is the number of operators that expose each series.
const replicas = 2

// scrapedBy adds the labels that Prometheus adds to a series when it scrapes a replica.
func scrapedBy(replica int, series labels.Labels) labels.Labels {
	b := labels.NewBuilder(series)
	for name, value := range map[string]string{
		"job": job, "namespace": "keyconvoy-system", "service": job, "endpoint": "https", "container": "manager",
		"pod": fmt.Sprintf("keyconvoy-controller-manager-%d", replica), "instance": fmt.Sprintf("10.0.0.%d:8443", replica),
	} {
		b.Set(name, value)
	}
	return b.Labels()
}

// samples are series in memory. Each begins at the zero time and has a sample per step.
type samples []storage.Series

// load reads series in the notation of promtool: "metric{label="value"} 1x10 2 _ stale". Every replica exposes each of
// them, unless the line begins with the number of a replica: "1: metric …".
func load(t testing.TB, lines ...string) samples {
	t.Helper()
	var all samples
	for _, line := range lines {
		only := 0
		if before, after, ok := strings.Cut(line, ": "); ok {
			only, line = int(before[0]-'0'), after
		}
		series, values, err := promQL.ParseSeriesDesc(line)
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		var list []chunks.Sample
		for i, v := range values {
			if !v.Omitted {
				list = append(list, sample{at: int64(i) * step.Milliseconds(), value: v.Value})
			}
		}
		for replica := range replicas {
			if only == 0 || only == replica+1 {
				all = append(all, storage.NewListSeries(scrapedBy(replica+1, series), list))
			}
		}
	}
	return all
}

type sample struct {
	at    int64
	value float64
}

func (s sample) T() int64                      { return s.at }
func (s sample) ST() int64                     { return 0 }
func (s sample) F() float64                    { return s.value }
func (s sample) H() *histogram.Histogram       { return nil }
func (s sample) FH() *histogram.FloatHistogram { return nil }
func (s sample) Type() chunkenc.ValueType      { return chunkenc.ValFloat }
func (s sample) Copy() chunks.Sample           { return s }

// queryable makes the samples available to the engine.
func (s samples) queryable() storage.Queryable {
	return &storage.MockQueryable{MockQuerier: &storage.MockQuerier{
		SelectMockFunction: func(_ bool, _ *storage.SelectHints, matchers ...*labels.Matcher) storage.SeriesSet {
			selected := &seriesSet{}
			for _, series := range s {
				if !slices.ContainsFunc(matchers, func(m *labels.Matcher) bool { return !m.Matches(series.Labels().Get(m.Name)) }) {
					selected.rest = append(selected.rest, series)
				}
			}
			slices.SortFunc(selected.rest, func(a, b storage.Series) int { return labels.Compare(a.Labels(), b.Labels()) })
			return selected
		},
	}}
}

type seriesSet struct {
	current storage.Series
	rest    []storage.Series
}

func (s *seriesSet) Next() bool {
	if len(s.rest) == 0 {
		return false
	}
	s.current, s.rest = s.rest[0], s.rest[1:]
	return true
}
func (s *seriesSet) At() storage.Series                { return s.current }
func (s *seriesSet) Err() error                        { return nil }
func (s *seriesSet) Warnings() annotations.Annotations { return nil }

// query evaluates an expression at each step from the zero time to the time until.
func (s samples) query(t testing.TB, expr string, until time.Duration) promql.Matrix {
	t.Helper()
	engine := promql.NewEngine(promql.EngineOpts{MaxSamples: 1_000_000, Timeout: time.Minute, Parser: promQL})
	zero := timestamp.Time(0)
	q, err := engine.NewRangeQuery(t.Context(), s.queryable(), nil, expr, zero, zero.Add(until), step)
	if err != nil {
		t.Fatalf("%s: %v", expr, err)
	}
	result := q.Exec(t.Context())
	matrix, err := result.Matrix()
	if err != nil {
		t.Fatalf("%s: %v", expr, err)
	}
	if len(result.Warnings) > 0 {
		t.Errorf("%s: %v", expr, result.Warnings)
	}
	return matrix
}

// firing returns the summaries of the alerts of a rule that fire at a time: those whose expression has had a value for the
// duration in the rule.
func (s samples) firing(t testing.TB, rule rulefmt.Rule, at time.Duration) []string {
	t.Helper()
	var summaries []string
	hold := time.Duration(rule.For)
	for _, series := range s.query(t, rule.Expr, at) {
		recent := 0
		for _, p := range series.Floats {
			if p.T >= (at - hold).Milliseconds() {
				recent++
			}
		}
		if at >= hold && recent == int(hold/step)+1 {
			last := promql.Sample{Metric: series.Metric, T: at.Milliseconds(), F: series.Floats[len(series.Floats)-1].F}
			summaries = append(summaries, expand(t, rule.Annotations["summary"], last))
		}
	}
	slices.Sort(summaries)
	return summaries
}

// expand expands the template of an annotation, as Prometheus does.
func expand(t testing.TB, text string, s promql.Sample) string {
	t.Helper()
	query := func(context.Context, string, time.Time) (promql.Vector, error) { return nil, nil }
	data := template.AlertTemplateData(s.Metric.Map(), nil, "", s)
	const names = "{{$labels := .Labels}}{{$value := .Value}}"
	out, err := template.NewTemplateExpander(t.Context(), names+text, "annotation", data, model.Time(s.T), query, &url.URL{}, nil).Expand()
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return out
}

// up are the series of two replicas that are scraped. All cases have them, except those of KeyconvoyDown.
const up = "up 1x3000"

// alerts are the summaries of the firing alerts, by rule.
type alerts = map[string][]string

var cases = map[string]struct {
	series []string
	at     time.Duration
	want   alerts
}{
	"no replica was ever scraped": {nil, 10 * time.Minute, alerts{"KeyconvoyDown": {"Prometheus cannot scrape Keyconvoy."}}},
	"both replicas are down":      {[]string{"up 1x10 0x20"}, 21 * time.Minute, alerts{"KeyconvoyDown": {"Prometheus cannot scrape Keyconvoy."}}},
	"one of two replicas is down": {[]string{"1: up 0x60", "2: up 1x60"}, time.Hour, nil},
	"both replicas restart":       {[]string{"up 1x10 0x5 1x60"}, 16 * time.Minute, nil},

	"all is well": {[]string{
		up, `keyconvoy_objects{kind="KeyStore",ready="True",reason="Succeeded"} 2x60`, `keyconvoy_objects{kind="ImportedKey",ready="True",reason="Succeeded"} 9x60`,
		`keyconvoy_objects{kind="ExportedDataKey",ready="True",reason="Succeeded"} 9x60`, `keyconvoy_keys{state="Enabled"} 9x60`,
		`keyconvoy_module_call_duration_seconds_count{operation="ExportDataKey",result="OK"} 0+10x60`,
	}, time.Hour, nil},
	"nothing is installed but the operator": {[]string{up}, time.Hour, nil},

	"one replica may not list a kind": {
		[]string{up, `1: keyconvoy_cache_synced{kind="ImportedKey"} 1x5 0x60`, `2: keyconvoy_cache_synced{kind="ImportedKey"} 1x60`, `keyconvoy_cache_synced{kind="DataKey"} 1x60`},
		30 * time.Minute, alerts{"KeyconvoyCacheNotFollowing": {"The cache of ImportedKey objects is not current."}},
	},
	"the caches are filled at a start": {[]string{up, `keyconvoy_cache_synced{kind="ImportedKey"} 0x5 1x60`}, 12 * time.Minute, nil},

	"a key store does not answer": {
		[]string{up, `keyconvoy_objects{kind="KeyStore",ready="True",reason="Succeeded"} 3x60`, `keyconvoy_objects{kind="KeyStore",ready="False",reason="ServiceUnavailableTemporary"} 1x60`},
		5 * time.Minute, alerts{"KeyconvoyKeyStoreDown": {"1 KeyStore(s) are not ready."}},
	},
	"a key store does not answer for a moment": {
		[]string{up, `keyconvoy_objects{kind="KeyStore",ready="False",reason="ServiceUnavailableTemporary"} 1x3 stale`, `keyconvoy_objects{kind="KeyStore",ready="True",reason="Succeeded"} _x4 1x60`},
		6 * time.Minute, nil,
	},
	"a key store is down for changing reasons": {
		[]string{up, `keyconvoy_objects{kind="KeyStore",ready="False",reason="ServiceUnavailableTemporary"} 1x2 stale`, `keyconvoy_objects{kind="KeyStore",ready="False",reason="ModuleMisconfigured"} _x3 1x60`},
		6 * time.Minute, alerts{"KeyconvoyKeyStoreDown": {"1 KeyStore(s) are not ready."}},
	},
	"key stores of both kinds are down, one was never looked at": {
		[]string{up, `keyconvoy_objects{kind="ClusterKeyStore",ready="False",reason="PINRefused"} 2x60`, `keyconvoy_objects{kind="KeyStore",ready="Unknown"} 1x60`},
		10 * time.Minute, alerts{"KeyconvoyKeyStoreDown": {"1 KeyStore(s) are not ready.", "2 ClusterKeyStore(s) are not ready."}},
	},
	"keys are not ready": {
		[]string{up, `keyconvoy_objects{kind="ImportedKey",ready="False",reason="PendingImport"} 5x60`, `keyconvoy_objects{kind="DataKey",ready="False",reason="KeyNotReady"} 5x60`}, time.Hour, nil,
	},

	"a fifth of the module's calls fail": {
		[]string{up, `keyconvoy_module_call_duration_seconds_count{operation="ExportDataKey",result="OK"} 0+8x60`, `keyconvoy_module_call_duration_seconds_count{operation="Check",result="Unavailable"} 0+2x60`},
		30 * time.Minute, alerts{"KeyconvoyModuleCallsFailing": {"20% of the calls into cryptographic modules fail."}},
	},
	"every call fails, on one replica": {
		[]string{up, `1: keyconvoy_module_call_duration_seconds_count{operation="Check",result="Locked"} 0+1x60`},
		30 * time.Minute, alerts{"KeyconvoyModuleCallsFailing": {"100% of the calls into cryptographic modules fail."}},
	},
	"a check finds a wrong result": {
		[]string{up, `keyconvoy_module_call_duration_seconds_count{operation="Check",result="OK"} 0+30x60`, `keyconvoy_module_call_duration_seconds_count{operation="Check",result="WrongResult"} 0x5 1x55`},
		7 * time.Minute, alerts{"KeyconvoyModuleReturnsWrongResults": {"A cryptographic module has returned wrong results."}},
	},
	"users bring the wrong material": {
		[]string{up, `keyconvoy_module_call_duration_seconds_count{operation="ImportKey",result="InvalidMaterial"} 0+9x60`, `keyconvoy_module_call_duration_seconds_count{operation="FindKey",result="NotFound"} 0+9x60`, `keyconvoy_module_call_duration_seconds_count{operation="Check",result="OK"} 0+1x60`},
		30 * time.Minute, nil,
	},
	"one call in fifty fails": {
		[]string{up, `keyconvoy_module_call_duration_seconds_count{operation="ExportDataKey",result="OK"} 0+49x60`, `keyconvoy_module_call_duration_seconds_count{operation="ExportDataKey",result="Unavailable"} 0+1x60`},
		30 * time.Minute, nil,
	},
	"calls failed for a moment, and the operator is idle since": {
		[]string{up, `keyconvoy_module_call_duration_seconds_count{operation="Check",result="Unavailable"} 0+5x5 25x60`, `keyconvoy_module_call_duration_seconds_count{operation="Check",result="OK"} 0+0x60`},
		30 * time.Minute, nil,
	},

	"material ends in three weeks": {[]string{up, `keyconvoy_next_material_expiry_seconds 1814400-60x60`}, time.Hour, nil},
	"material ends in ten days": {
		[]string{up, `keyconvoy_next_material_expiry_seconds 864000x60`}, 5 * time.Minute,
		alerts{"KeyconvoyMaterialExpiresSoon": {"Key material expires in 10d 0h 0m 0s."}},
	},
	"material ends in exactly two days": {
		[]string{up, `keyconvoy_next_material_expiry_seconds 172800x60`}, 5 * time.Minute,
		alerts{"KeyconvoyMaterialExpiresSoon": {"Key material expires in 2d 0h 0m 0s."}},
	},
	"material ends tomorrow": {
		[]string{up, `keyconvoy_next_material_expiry_seconds 86400x60`}, 5 * time.Minute,
		alerts{"KeyconvoyMaterialExpiresVerySoon": {"Key material expires in 1d 0h 0m 0s."}},
	},
	"material has ended, and the module does not destroy it": {
		[]string{up, `keyconvoy_next_material_expiry_seconds -3600x60`}, 5 * time.Minute,
		alerts{"KeyconvoyMaterialExpiresVerySoon": {"Key material expires in -1h 0m 0s."}},
	},
	"one replica's clock is behind": {
		[]string{up, `1: keyconvoy_next_material_expiry_seconds 864000x60`, `2: keyconvoy_next_material_expiry_seconds 864060x60`}, 5 * time.Minute,
		alerts{"KeyconvoyMaterialExpiresSoon": {"Key material expires in 10d 0h 0m 0s."}},
	},

	"a token is not renewed": {
		[]string{up, `keyconvoy_next_token_expiry_seconds 5400-60x90`}, time.Hour,
		alerts{"KeyconvoyImportTokenNotRenewed": {"The import token of a waiting key expires in 30m 0s."}},
	},
	"a token is renewed two hours before its end": {[]string{up, `keyconvoy_next_token_expiry_seconds 9000-60x30 86400x60`}, time.Hour, nil},

	"a key is left in its module": {
		[]string{up, `keyconvoy_left_in_module_total 0x30 1x60`}, 32 * time.Minute,
		alerts{"KeyconvoyKeysLeftInModule": {"A key or import key pairs were left in a module."}},
	},
	"no key is left in its module": {[]string{up, `keyconvoy_left_in_module_total 0x90`}, time.Hour, nil},
	"the audit log cannot be written": {
		[]string{up, `keyconvoy_audit_log_failures_total 0x30 1x60`}, 32 * time.Minute,
		alerts{"KeyconvoyAuditLogFails": {"Lines of Keyconvoy's audit log could not be written."}},
	},
	"the audit log can be written": {[]string{up, `keyconvoy_audit_log_failures_total 0x90`}, time.Hour, nil},
	"a library crashes again and again": {
		[]string{up, `keyconvoy_module_process_restarts_total{module="hsm",cause="SIGSEGV"} 0x15 1+1x30`}, 32 * time.Minute,
		alerts{"KeyconvoyModuleCrashes": {"The PKCS#11 library hsm crashes or hangs again and again."}},
	},
	"a library crashed once": {
		[]string{up, `keyconvoy_module_process_restarts_total{module="hsm",cause="SIGSEGV"} 0x15 1x60`}, 32 * time.Minute, nil,
	},
	"a token lacks keys": {
		[]string{up, `keyconvoy_missing_keys{kind="KeyStore"} 2x60`}, 10 * time.Minute,
		alerts{"KeyconvoyKeysMissing": {"2 master key(s) are missing in modules of KeyStores."}},
	},
	"a token lacks keys until it is restored": {
		[]string{up, `keyconvoy_missing_keys{kind="KeyStore"} 2x3 stale`}, 10 * time.Minute, nil,
	},
	"keys have no holder for a day": {
		[]string{up, `keyconvoy_keys_without_holder{kind="KeyStore"} 2x2000`}, day,
		alerts{"KeyconvoyKeysWithoutHolder": {"2 master key(s) in modules of KeyStores have no object."}},
	},
	"keys have no holder until they are adopted": {
		[]string{up, `keyconvoy_keys_without_holder{kind="KeyStore"} 2x1000 stale`}, day, nil,
	},

	"exports are refused": {
		[]string{
			up, `keyconvoy_objects{kind="ExportedDataKey",ready="False",reason="ForbiddenNoPermission"} 2x60`, `keyconvoy_objects{kind="ExportedDataKey",ready="False",reason="TargetNotOwned"} 1x60`,
			`keyconvoy_objects{kind="ExportedDataKey",ready="True",reason="Succeeded"} 7x60`, `keyconvoy_objects{kind="ClusterExportedDataKey",ready="False",reason="NamespacesFailed"} 1x60`,
		}, 15 * time.Minute, alerts{"KeyconvoyExportsStalled": {"1 ClusterExportedDataKey(s) are stalled.", "3 ExportedDataKey(s) are stalled."}},
	},
	"exports are refused for ten minutes": {
		[]string{up, `keyconvoy_objects{kind="ExportedDataKey",ready="False",reason="InvalidParameter"} 1x10 stale`}, 20 * time.Minute, nil,
	},
	"exports fail again and again, each time otherwise": {
		[]string{up, `keyconvoy_objects{kind="ExportedDataKey",ready="False",reason="InternalFailure"} 1x7 stale`, `keyconvoy_objects{kind="ExportedDataKey",ready="False",reason="APIServer"} _x8 1x60`},
		20 * time.Minute, alerts{"KeyconvoyExportsStalled": {"1 ExportedDataKey(s) are stalled."}},
	},
	"exports wait for their key": {
		[]string{
			up, `keyconvoy_objects{kind="ExportedDataKey",ready="False",reason="KeyNotReady"} 1x60`, `keyconvoy_objects{kind="ExportedDataKey",ready="False",reason="RejectedPendingImport"} 1x60`,
			`keyconvoy_objects{kind="ClusterExportedDataKey",ready="False",reason="NamespacesPending"} 1x60`,
		}, time.Hour, nil,
	},
	"exports wait for their key for a day": {
		[]string{up, `keyconvoy_objects{kind="ExportedDataKey",ready="False",reason="KeyNotReady"} 1x1000 stale`, `keyconvoy_objects{kind="ExportedDataKey",ready="False",reason="SourceNotFound"} _x1001 1x1000`},
		day, alerts{"KeyconvoyExportsWaiting": {"1 ExportedDataKey(s) have not been ready for a day."}},
	},
	"exports are stalled for a day": {
		[]string{up, `keyconvoy_objects{kind="ExportedDataKey",ready="False",reason="InvalidParameter"} 1x2000`},
		day, alerts{"KeyconvoyExportsStalled": {"1 ExportedDataKey(s) are stalled."}, "KeyconvoyExportsWaiting": {"1 ExportedDataKey(s) have not been ready for a day."}},
	},
	"dry runs stay for days": {
		[]string{
			up, `keyconvoy_objects{kind="ExportedDataKey",ready="False",reason="DryRunOperationError"} 1x2000`, `keyconvoy_objects{kind="ExportedDataKey",ready="False",reason="ValidationError"} 1x2000`,
			`keyconvoy_objects{kind="ExportedDataKey",ready="False",reason="AccessDeniedError"} 1x2000`,
		}, day + time.Hour, nil,
	},
}

// Each case lists the alerts that fire. No other alert may fire.
func TestRules_fireInTheirCasesOnly(t *testing.T) {
	t.Parallel()
	all := rules(t)
	fired := map[string]bool{}
	for name, c := range cases {
		series := load(t, c.series...)
		got := alerts{}
		for _, rule := range all {
			if summaries := series.firing(t, rule, c.at); len(summaries) > 0 {
				got[rule.Alert], fired[rule.Alert] = summaries, true
			}
		}
		if !maps.EqualFunc(got, c.want, slices.Equal) {
			t.Errorf("%s: %v fire, want %v", name, got, c.want)
		}
	}
	for _, rule := range all {
		if !fired[rule.Alert] {
			t.Errorf("%s fires in no case", rule.Alert)
		}
	}
}

// An alert fires at the end of its duration, and not a step earlier.
func TestRules_waitForTheirDuration(t *testing.T) {
	t.Parallel()
	for _, rule := range rules(t) {
		for name, c := range cases {
			if _, fires := c.want[rule.Alert]; !fires {
				continue
			}
			series, first := load(t, c.series...), time.Duration(-1)
			for _, s := range series.query(t, rule.Expr, c.at) {
				if at := time.Duration(s.Floats[0].T) * time.Millisecond; first < 0 || at < first {
					first = at
				}
			}
			due := first + time.Duration(rule.For)
			if len(series.firing(t, rule, due)) == 0 || (due >= step && len(series.firing(t, rule, due-step)) > 0) {
				t.Errorf("%s: %s does not begin to fire at %s", name, rule.Alert, due)
			}
		}
	}
}

func TestRules_haveSummaryDescriptionAndRunbook(t *testing.T) {
	t.Parallel()
	for _, rule := range rules(t) {
		if !slices.Contains([]string{"critical", "warning", "info"}, rule.Labels["severity"]) || len(rule.Labels) != 1 {
			t.Errorf("%s has labels %v", rule.Alert, rule.Labels)
		}
		for _, name := range []string{"summary", "description", "runbook"} {
			text := rule.Annotations[name]
			if !strings.HasSuffix(text, ".") || strings.Contains(text, "\n") || len(text) > 900 {
				t.Errorf("the %s of %s does not consist of sentences: %q", name, rule.Alert, text)
			}
		}
		if len(rule.Annotations) != 3 || len(rule.Annotations["summary"]) > 100 {
			t.Errorf("%s has annotations %v", rule.Alert, rule.Annotations)
		}
	}
}
