package keystore

import (
	"errors"
	"reflect"
	"slices"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
)

// unmetered are the methods that reach no device.
var unmetered = []string{"Describe", "Close"}

// A method that is added to the interface would be passed on unmeasured without a word.
func TestMetering_everyCall_isMeasuredByOperationAndResult(t *testing.T) {
	t.Parallel()
	module := reflect.TypeFor[hsm.Module]()
	for i := range module.NumMethod() {
		method := module.Method(i).Name
		if slices.Contains(unmetered, method) {
			continue
		}
		for result, err := range map[string]error{
			"Unavailable":     hsm.Wrap(hsm.Unavailable, errors.New("cable"), "the device does not answer"),
			"InvalidMaterial": hsm.Errorf(hsm.InvalidMaterial, "it does not unwrap"),
			"Internal":        errors.New("of no kind"),
		} {
			r := New(nil, nil, nil)
			recorder := hsmtest.Wrap(nil) // it never reaches the module
			recorder.FailAll(method, err)
			got := callMetered(t, recorder, r, method)
			if !errors.Is(got, err) {
				t.Errorf("%s fails with %v, want %v", method, got, err)
			}
			if n := observations(t, r.calls); len(n) != 1 || n[method+" "+result] != 1 {
				t.Errorf("%s that fails with %s is measured as %v", method, result, n)
			}
		}
	}
}

// callMetered calls a method of a metered module with no arguments to speak of, and returns its error.
func callMetered(t *testing.T, inner hsm.Module, r *Registry, method string) error {
	t.Helper()
	call := reflect.ValueOf(hsm.Intercept(inner, r.measure(ID{}, &module{calls: t.Context()}))).MethodByName(method)
	arguments := []reflect.Value{reflect.ValueOf(t.Context())}
	for i := 1; i < call.Type().NumIn(); i++ {
		arguments = append(arguments, reflect.Zero(call.Type().In(i)))
	}
	results := call.Call(arguments)
	err, _ := results[len(results)-1].Interface().(error)
	return err
}

// observations are how many calls were measured, by "operation result".
func observations(t *testing.T, calls *prometheus.HistogramVec) map[string]uint64 {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(calls)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]uint64{}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			labels := map[string]string{}
			for _, pair := range m.GetLabel() {
				labels[pair.GetName()] = pair.GetValue()
			}
			if n := m.GetHistogram().GetSampleCount(); n > 0 {
				found[labels["operation"]+" "+labels["result"]] = n
			}
		}
	}
	return found
}
