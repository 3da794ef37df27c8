package hsmtest_test

import (
	"context"
	"errors"
	"maps"
	"testing"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/hsm/software"
)

func newRecorder(t *testing.T) *hsmtest.Recorder {
	t.Helper()
	m, err := software.Open(t.Context(), software.Config{Storage: &hsmtest.Storage{}})
	if err != nil {
		t.Fatal(err)
	}
	return hsmtest.Wrap(m)
}

// calls has all methods of hsm.Module that a Recorder counts.
func calls(ctx context.Context, m hsm.Module) map[string]func() error {
	return map[string]func() error{
		"Check":              func() error { return m.Check(ctx) },
		"CreateWrappingKey":  func() error { _, err := m.CreateWrappingKey(ctx, hsm.WrappingKeyRequest{}); return err },
		"ListWrappingKeys":   func() error { _, err := m.ListWrappingKeys(ctx); return err },
		"ListKeys":           func() error { _, err := m.ListKeys(ctx); return err },
		"DestroyWrappingKey": func() error { return m.DestroyWrappingKey(ctx, uuid.Nil) },
		"Authenticate":       func() error { _, err := m.Authenticate(ctx, nil); return err },
		"ImportKey":          func() error { _, err := m.ImportKey(ctx, hsm.ImportRequest{}); return err },
		"FindKey":            func() error { _, err := m.FindKey(ctx, uuid.Nil); return err },
		"DestroyKey":         func() error { return m.DestroyKey(ctx, uuid.Nil) },
		"GenerateDataKey":    func() error { _, err := m.GenerateDataKey(ctx, hsm.GenerateRequest{}); return err },
		"VerifyDataKey":      func() error { return m.VerifyDataKey(ctx, hsm.OpenRequest{}) },
		"GenerateKey":        func() error { _, err := m.GenerateKey(ctx, hsm.GenerateKeyRequest{}); return err },
		"ReencryptDataKey":   func() error { _, err := m.ReencryptDataKey(ctx, hsm.ReencryptRequest{}); return err },
		"ExportDataKey":      func() error { _, err := m.ExportDataKey(ctx, hsm.ExportRequest{}); return err },
		"Close":              func() error { return m.Close(ctx) },
	}
}

func TestRecorder_countsEveryMethodAndFailsItOnDemand(t *testing.T) {
	t.Parallel()
	r := newRecorder(t)
	once, always := hsm.Errorf(hsm.Unavailable, "once"), hsm.Errorf(hsm.Locked, "always")
	want := map[string]int{}
	for method, call := range calls(t.Context(), r) {
		r.FailAll(method, always)
		r.FailNext(method, once)
		for _, expected := range []error{once, always, always} {
			if err := call(); !errors.Is(err, expected) {
				t.Errorf("%s fails with %v; want %v", method, err, expected)
			}
		}
		r.FailAll(method, nil)
		if err := call(); errors.Is(err, always) {
			t.Errorf("%s still fails with %v", method, err)
		}
		want[method] = 4
	}
	if got := r.Calls(); !maps.Equal(got, want) {
		t.Errorf("Calls = %v; want %v", got, want)
	}
	if r.Total() != 60 {
		t.Errorf("Total = %d", r.Total())
	}
	r.Reset()
	if r.Total() != 0 || len(r.Calls()) != 0 {
		t.Errorf("after Reset: %v", r.Calls())
	}
}

func TestRecorder_failedCallDoesNotReachTheModule(t *testing.T) {
	t.Parallel()
	r := newRecorder(t)
	r.FailNext("Close", errors.New("no"))
	if err := r.Close(t.Context()); err == nil {
		t.Fatal("Close succeeded")
	}
	if err := r.Check(t.Context()); err != nil {
		t.Errorf("the module was closed: %v", err)
	}
}

func TestRecorder_hooksRunAroundTheCall(t *testing.T) {
	t.Parallel()
	r := newRecorder(t)
	var order []string
	r.Before("DestroyKey", func() {
		order = append(order, "before")
		if _, err := r.Authenticate(t.Context(), nil); err != nil { // a hook may call the module
			t.Error(err)
		}
	})
	r.After("DestroyKey", func() { order = append(order, "after") })
	if err := r.DestroyKey(t.Context(), uuid.New()); err != nil {
		t.Fatal(err)
	}
	r.FailNext("DestroyKey", errors.New("no"))
	_ = r.DestroyKey(t.Context(), uuid.New())
	r.Before("DestroyKey", nil)
	r.After("DestroyKey", nil)
	_ = r.DestroyKey(t.Context(), uuid.New())
	if len(order) != 4 || order[0] != "before" || order[1] != "after" {
		t.Errorf("hooks ran in the order %v", order)
	}
}

func TestRecorder_misspelledMethodPanics(t *testing.T) {
	t.Parallel()
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	newRecorder(t).FailAll("Import", errors.New("no"))
}
