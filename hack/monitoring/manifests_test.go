package monitoring

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// build builds a kustomization and returns its objects by "Kind/name".
func build(t testing.TB, dir string) map[string][]byte {
	t.Helper()
	assets := os.Getenv("KUBEBUILDER_ASSETS")
	if assets == "" {
		t.Fatal("KUBEBUILDER_ASSETS is not set. Run make test, which builds kubectl and sets it.")
	}
	var stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), filepath.Join(assets, "kubectl"), "kustomize", dir)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil || stderr.Len() > 0 {
		t.Fatalf("kubectl kustomize %s: %v\n%s", dir, err, &stderr)
	}
	objects := map[string][]byte{}
	for document := range bytes.SplitSeq(out, []byte("\n---\n")) {
		var object struct {
			Kind     string
			Metadata struct{ Name string }
		}
		if err := yaml.Unmarshal(document, &object); err != nil {
			t.Fatal(err)
		}
		objects[object.Kind+"/"+object.Metadata.Name] = document
	}
	return objects
}

// find decodes an object strictly, because prometheus-operator ignores unknown fields.
func find(t testing.TB, objects map[string][]byte, name string, into any) {
	t.Helper()
	text, ok := objects[name]
	if !ok {
		t.Fatalf("there is no %s", name)
	}
	if err := yaml.UnmarshalStrict(text, into); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

func TestServiceMonitor_findsTheOperatorsMetrics(t *testing.T) {
	t.Parallel()
	var monitor monitoringv1.ServiceMonitor
	find(t, build(t, "../../config/monitoring"), "ServiceMonitor/keyconvoy-controller-manager", &monitor)
	var service corev1.Service
	// Alerts select the operator by its job, which is the name of the Service.
	find(t, build(t, "../../config/default"), "Service/"+job, &service)

	if monitor.Namespace != service.Namespace {
		t.Errorf("it is in %s, the Service in %s", monitor.Namespace, service.Namespace)
	}
	for name, value := range monitor.Spec.Selector.MatchLabels {
		if service.Labels[name] != value {
			t.Errorf("it selects %s=%s, the Service has %v", name, value, service.Labels)
		}
	}
	if len(monitor.Spec.Selector.MatchLabels) == 0 || len(monitor.Spec.Endpoints) != 1 {
		t.Fatalf("want a selector and one endpoint: %+v", monitor.Spec)
	}
	e := monitor.Spec.Endpoints[0]
	if e.Port != service.Spec.Ports[0].Name || e.Path != "/metrics" || e.Scheme == nil || !strings.EqualFold(e.Scheme.String(), "https") || e.TLSConfig == nil {
		t.Errorf("it scrapes %+v, the Service has %+v", e, service.Spec.Ports[0])
	}
}

// config/default must also work in clusters without prometheus-operator.
func TestDefault_needsNoPrometheusOperator(t *testing.T) {
	t.Parallel()
	for name := range build(t, "../../config/default") {
		if kind, _, _ := strings.Cut(name, "/"); slices.Contains([]string{"ServiceMonitor", "PodMonitor", "PrometheusRule"}, kind) {
			t.Errorf("it has %s", name)
		}
	}
}

// panel contains the tested fields of a dashboard's panel.
type panel struct {
	ID          int
	Title, Type string
	Description string
	Datasource  struct{ Type, UID string }
	GridPos     struct{ X, Y, W, H int }
	Targets     []struct {
		RefID, Expr, LegendFormat string
		Datasource                struct{ Type, UID string }
	}
}

func dashboard(t testing.TB) []panel {
	t.Helper()
	var cm corev1.ConfigMap
	find(t, build(t, "../../config/monitoring"), "ConfigMap/keyconvoy-dashboard", &cm)
	if cm.Labels["grafana_dashboard"] != "1" {
		t.Errorf("Grafana's sidecar does not find it by %v", cm.Labels)
	}
	var d struct {
		UID, Title    string
		SchemaVersion int
		Panels        []panel
		Templating    struct {
			List []struct{ Name, Type string }
		}
	}
	if err := json.Unmarshal([]byte(cm.Data["keyconvoy.json"]), &d); err != nil {
		t.Fatal(err)
	}
	if d.UID != "keyconvoy" || d.Title != "Keyconvoy" || d.SchemaVersion == 0 || len(d.Templating.List) != 2 || len(d.Panels) == 0 {
		t.Errorf("the dashboard is %+v", d)
	}
	return d.Panels
}

func TestDashboard_panels_areComplete(t *testing.T) {
	t.Parallel()
	taken := map[string]string{}
	ids := map[int]bool{}
	for _, p := range dashboard(t) {
		if p.Title == "" || p.Description == "" || p.Datasource.UID != "${datasource}" || ids[p.ID] || len(p.Targets) == 0 {
			t.Errorf("a panel is %+v", p)
		}
		ids[p.ID] = true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				at := fmt.Sprint(x, ",", y)
				if other := taken[at]; other != "" || x >= 24 {
					t.Fatalf("%s lies over %q at %s", p.Title, other, at)
				}
				taken[at] = p.Title
			}
		}
	}
}

// Every panel has data if the operator has objects of every kind, and counts each object once although there are two
// replicas.
func TestDashboard_panels_haveData(t *testing.T) {
	t.Parallel()
	series := load(t,
		`keyconvoy_cache_errors_total{kind="ImportedKey"} 0+30x60`,
		`keyconvoy_objects{kind="ImportedKey",ready="True",reason="Succeeded"} 5x60`,
		`keyconvoy_objects{kind="ImportedKey",ready="False",reason="PendingImport"} 5x60`,
		`keyconvoy_keys{state="Enabled"} 5x60`,
		`keyconvoy_exports{algorithm="SM2PKE",custody="Module"} 5x60`,
		`keyconvoy_data_keys_under_former_versions 5x60`,
		`keyconvoy_unused_former_versions 5x60`,
		`keyconvoy_next_material_expiry_seconds 5x60`,
		`keyconvoy_next_token_expiry_seconds 5x60`,
		`keyconvoy_module_call_duration_seconds_count{operation="Check",result="OK"} 0+30x60`,
		`keyconvoy_module_call_duration_seconds_count{operation="Check",result="Unavailable"} 0+30x60`,
		`keyconvoy_module_call_duration_seconds_bucket{operation="Check",result="OK",le="5"} 0+30x60`,
		`keyconvoy_module_call_duration_seconds_bucket{operation="Check",result="OK",le="+Inf"} 0+30x60`,
	)
	legend := regexp.MustCompile(`{{(\w+)}}`)
	for _, p := range dashboard(t) {
		for _, target := range p.Targets {
			expr := strings.NewReplacer("$job", job, "$__rate_interval", "5m").Replace(target.Expr)
			shown := series.query(t, expr, time.Hour)
			if len(shown) == 0 {
				t.Errorf("%s has no data: %s", p.Title, expr)
			}
			for _, s := range shown {
				if v := s.Floats[len(s.Floats)-1].F; !strings.Contains(expr, "rate") && v != 5 {
					t.Errorf("%s shows %v of 5: %s", p.Title, v, expr)
				}
				for _, name := range legend.FindAllStringSubmatch(target.LegendFormat, -1) {
					if s.Metric.Get(name[1]) == "" {
						t.Errorf("the legend of %s uses the label %s, which is not in %s", p.Title, name[1], s.Metric)
					}
				}
			}
		}
	}
}
