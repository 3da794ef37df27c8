package monitoring

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/ext"
	lua "github.com/yuin/gopher-lua"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

// recording is an object as the operator writes it. The tests of the controllers record these objects, and check that the
// recordings are current.
type recording struct {
	Name, Health string
	Object       map[string]any
}

func recordings(t testing.TB) []recording {
	t.Helper()
	var all []recording
	read(t, "../../config/health/testdata/objects.yaml", &all)
	seen := map[string]bool{}
	for _, r := range all {
		seen[r.Object["kind"].(string)+" "+r.Health] = true
		integers(r.Object)
	}
	for _, kind := range kinds(t) {
		for _, health := range []string{"Ready", "Stalled", "Progressing"} {
			if !seen[kind+" "+health] {
				t.Errorf("there is no %s that is %s", kind, health)
			}
		}
	}
	return all
}

func read(t testing.TB, file string, into any) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, into); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
}

// integers converts whole numbers to int64, the type that they have in objects from the API.
func integers(v any) {
	switch v := v.(type) {
	case map[string]any:
		for name, value := range v {
			if f, ok := value.(float64); ok {
				v[name] = int64(f)
			}
			integers(value)
		}
	case []any:
		for _, value := range v {
			integers(value)
		}
	}
}

// kinds returns the kinds that have a CRD.
func kinds(t testing.TB) []string {
	t.Helper()
	files, err := filepath.Glob("../../config/crd/bases/*.yaml")
	if err != nil || len(files) < 6 {
		t.Fatalf("only %v (%v)", files, err)
	}
	var all []string
	for _, file := range files {
		var crd struct {
			Spec struct{ Names struct{ Kind string } }
		}
		read(t, file, &crd)
		all = append(all, crd.Spec.Names.Kind)
	}
	slices.Sort(all)
	return all
}

func TestArgoCD_reads(t *testing.T) {
	t.Parallel()
	var cm struct{ Data map[string]string }
	read(t, "../../config/health/argocd-cm.yaml", &cm)
	const prefix = "resource.customizations.health.keyconvoy.io_"
	for _, kind := range kinds(t) {
		if cm.Data[prefix+kind] != cm.Data[prefix+"ImportedKey"] || cm.Data[prefix+kind] == "" {
			t.Errorf("%s has another script than the other kinds", kind)
		}
	}
	if len(cm.Data) != len(kinds(t)) {
		t.Errorf("it has other keys: %v", cm.Data)
	}
	words := map[string]string{"Ready": "Healthy", "Stalled": "Degraded", "Progressing": "Progressing"}
	for _, r := range recordings(t) {
		t.Run(r.Name, func(t *testing.T) {
			t.Parallel()
			health, message := argoCD(t, cm.Data[prefix+r.Object["kind"].(string)], r.Object)
			if health != words[r.Health] || message == "" {
				t.Errorf("it is %s (%s), want %s", health, message, words[r.Health])
			}
		})
	}
}

// argoCD runs a health script as Argo CD does by default: with the object as obj, and with the libraries base, table and
// package only.
func argoCD(t testing.TB, script string, object map[string]any) (health, message string) {
	t.Helper()
	vm := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer vm.Close()
	for name, open := range map[string]lua.LGFunction{
		lua.LoadLibName: lua.OpenPackage, lua.BaseLibName: lua.OpenBase, lua.TabLibName: lua.OpenTable,
	} {
		if err := vm.CallByParam(lua.P{Fn: vm.NewFunction(open), Protect: true}, lua.LString(name)); err != nil {
			t.Fatal(err)
		}
	}
	vm.SetGlobal("obj", toLua(vm, object))
	if err := vm.DoString(script); err != nil {
		t.Fatal(err)
	}
	result, ok := vm.Get(-1).(*lua.LTable)
	if !ok {
		t.Fatalf("it returns a %s", vm.Get(-1).Type())
	}
	return result.RawGetString("status").String(), lua.LVAsString(result.RawGetString("message"))
}

func toLua(vm *lua.LState, v any) lua.LValue {
	switch v := v.(type) {
	case map[string]any:
		table := vm.NewTable()
		for name, value := range v {
			table.RawSetString(name, toLua(vm, value))
		}
		return table
	case []any:
		table := vm.NewTable()
		for _, value := range v {
			table.Append(toLua(vm, value))
		}
		return table
	case string:
		return lua.LString(v)
	case int64:
		return lua.LNumber(v)
	case bool:
		return lua.LBool(v)
	}
	panic(fmt.Sprintf("a %T in an object", v))
}

// healthCheckExpr is an entry of a Flux Kustomization's spec.healthCheckExprs.
type healthCheckExpr struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	InProgress string `json:"inProgress"`
	Failed     string `json:"failed"`
	Current    string `json:"current"`
}

func TestFlux_reads(t *testing.T) {
	t.Parallel()
	var kustomization struct {
		Spec struct{ HealthCheckExprs []healthCheckExpr }
	}
	read(t, "../../config/health/flux.yaml", &kustomization)
	exprs := map[string]healthCheckExpr{}
	for _, e := range kustomization.Spec.HealthCheckExprs {
		if e.APIVersion != "keyconvoy.io/v1alpha1" {
			t.Errorf("the API version of %s is %s", e.Kind, e.APIVersion)
		}
		exprs[e.Kind] = e
	}
	for _, kind := range kinds(t) {
		if _, ok := exprs[kind]; !ok {
			t.Errorf("there are no expressions for %s", kind)
		}
	}
	words := map[string]status.Status{"Ready": status.CurrentStatus, "Stalled": status.FailedStatus, "Progressing": status.InProgressStatus}
	for _, r := range recordings(t) {
		t.Run(r.Name, func(t *testing.T) {
			t.Parallel()
			want := words[r.Health]
			if r.Object["status"] == nil {
				// If the object has no status, the expression returns an error. Flux treats this as Unknown, and
				// continues to wait, as for InProgress.
				want = status.UnknownStatus
			}
			if got := flux(t, exprs[r.Object["kind"].(string)], r.Object); got != want {
				t.Errorf("it is %s, want %s", got, want)
			}
		})
	}
}

// flux evaluates health expressions as Flux does (its RFC 0009): if observedGeneration is not current, the result is
// InProgress; otherwise the first expression that is true decides; if there is none, the result is InProgress.
func flux(t testing.TB, e healthCheckExpr, object map[string]any) status.Status {
	t.Helper()
	u := &unstructured.Unstructured{Object: object}
	observed, ok, err := unstructured.NestedInt64(object, "status", "observedGeneration")
	if err != nil {
		t.Fatal(err)
	}
	if ok && observed != u.GetGeneration() {
		return status.InProgressStatus
	}
	for _, step := range []struct {
		expr string
		then status.Status
	}{{e.InProgress, status.InProgressStatus}, {e.Failed, status.FailedStatus}, {e.Current, status.CurrentStatus}} {
		holds, err := evaluate(t, step.expr, object)
		if err != nil {
			return status.UnknownStatus
		}
		if holds {
			return step.then
		}
	}
	return status.InProgressStatus
}

// evaluate parses an expression, without checking types, and evaluates it for an object.
func evaluate(t testing.TB, expr string, object map[string]any) (bool, error) {
	t.Helper()
	env, err := cel.NewEnv(
		cel.HomogeneousAggregateLiterals(), cel.EagerlyValidateDeclarations(true), cel.DefaultUTCTimeZone(true),
		cel.CrossTypeNumericComparisons(true), cel.OptionalTypes(), ext.Strings(), ext.Sets(), ext.Encoders(),
	)
	if err != nil {
		t.Fatal(err)
	}
	parsed, issues := env.Parse(expr)
	if issues.Err() != nil {
		t.Fatalf("%s: %v", expr, issues.Err())
	}
	program, err := env.Program(parsed, cel.EvalOptions(cel.OptOptimize))
	if err != nil {
		t.Fatalf("%s: %v", expr, err)
	}
	value, _, err := program.Eval(object)
	if err != nil {
		return false, err
	}
	holds, ok := value.Value().(bool)
	if !ok {
		t.Fatalf("%s is %v", expr, value)
	}
	return holds, nil
}

// kubectl wait, and Flux without expressions, interpret the conditions with kstatus.
func TestKstatus_agrees(t *testing.T) {
	t.Parallel()
	words := map[string]status.Status{"Ready": status.CurrentStatus, "Stalled": status.FailedStatus, "Progressing": status.InProgressStatus}
	for _, r := range recordings(t) {
		t.Run(r.Name, func(t *testing.T) {
			t.Parallel()
			u := &unstructured.Unstructured{Object: r.Object}
			result, err := status.Compute(u)
			if err != nil {
				t.Fatal(err)
			}
			want := words[r.Health]
			switch {
			case u.GetDeletionTimestamp() != nil:
				want = status.TerminatingStatus
			case r.Object["status"] == nil:
				want = status.CurrentStatus // the only wrong result, which the expressions correct
			}
			if result.Status != want {
				t.Errorf("it is %s (%s), want %s", result.Status, result.Message, want)
			}
		})
	}
}
