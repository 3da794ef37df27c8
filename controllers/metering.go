package controllers

import (
	"context"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
)

// newModuleCalls makes the histogram of module calls. result is "OK" or the kind of error.
func newModuleCalls() *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "keyconvoy_module_call_duration_seconds",
		Help:    "How long calls into cryptographic modules took, by operation and result.",
		Buckets: []float64{0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5, 30},
	}, []string{"operation", "result"})
}

// meteredModule measures the calls into a module.
type meteredModule struct {
	hsm.Module // Info, Capabilities and Close go by unmeasured

	calls *prometheus.HistogramVec
	// unavailable is told of a call that the module did not answer. Checks are not told of: whoever checks knows.
	unavailable func()
}

// metered measures every module that is opened.
func metered(open OpenModule, calls *prometheus.HistogramVec) OpenModule {
	return func(ctx context.Context, req ModuleRequest) (hsm.Module, error) {
		module, err := open(ctx, req)
		if err != nil {
			return nil, err
		}
		return &meteredModule{module, calls, req.unavailable}, nil
	}
}

func measure[T any](m *meteredModule, operation string, call func() (T, error)) (T, error) {
	start := time.Now()
	out, err := call()
	result := "OK"
	if err != nil {
		result = string(hsm.KindOf(err))
	}
	if result == string(hsm.Unavailable) && operation != "Check" && m.unavailable != nil {
		m.unavailable()
	}
	m.calls.WithLabelValues(operation, result).Observe(time.Since(start).Seconds())
	return out, err
}

func measureError(m *meteredModule, operation string, call func() error) error {
	_, err := measure(m, operation, func() (struct{}, error) { return struct{}{}, call() })
	return err
}

// Check implements hsm.Module.
func (m *meteredModule) Check(ctx context.Context) error {
	return measureError(m, "Check", func() error { return m.Module.Check(ctx) })
}

// CreateWrappingKey implements hsm.Module.
func (m *meteredModule) CreateWrappingKey(ctx context.Context, req hsm.WrappingKeyRequest) (hsm.WrappingKey, error) {
	return measure(m, "CreateWrappingKey", func() (hsm.WrappingKey, error) { return m.Module.CreateWrappingKey(ctx, req) })
}

// ListWrappingKeys implements hsm.Module.
func (m *meteredModule) ListWrappingKeys(ctx context.Context, owner uuid.UUID) ([]hsm.WrappingKey, error) {
	return measure(m, "ListWrappingKeys", func() ([]hsm.WrappingKey, error) { return m.Module.ListWrappingKeys(ctx, owner) })
}

// DestroyWrappingKey implements hsm.Module.
func (m *meteredModule) DestroyWrappingKey(ctx context.Context, id uuid.UUID) error {
	return measureError(m, "DestroyWrappingKey", func() error { return m.Module.DestroyWrappingKey(ctx, id) })
}

// Authenticate implements hsm.Module.
func (m *meteredModule) Authenticate(ctx context.Context, message []byte) ([]byte, error) {
	return measure(m, "Authenticate", func() ([]byte, error) { return m.Module.Authenticate(ctx, message) })
}

// ImportKey implements hsm.Module.
func (m *meteredModule) ImportKey(ctx context.Context, req hsm.ImportRequest) (hsm.Key, error) {
	return measure(m, "ImportKey", func() (hsm.Key, error) { return m.Module.ImportKey(ctx, req) })
}

// FindKey implements hsm.Module.
func (m *meteredModule) FindKey(ctx context.Context, id uuid.UUID) (hsm.Key, error) {
	return measure(m, "FindKey", func() (hsm.Key, error) { return m.Module.FindKey(ctx, id) })
}

// DestroyKey implements hsm.Module.
func (m *meteredModule) DestroyKey(ctx context.Context, id uuid.UUID) error {
	return measureError(m, "DestroyKey", func() error { return m.Module.DestroyKey(ctx, id) })
}

// GenerateDataKey implements hsm.Module.
func (m *meteredModule) GenerateDataKey(ctx context.Context, req hsm.GenerateRequest) (hsm.DataKey, error) {
	return measure(m, "GenerateDataKey", func() (hsm.DataKey, error) { return m.Module.GenerateDataKey(ctx, req) })
}

// VerifyDataKey implements hsm.Module.
func (m *meteredModule) VerifyDataKey(ctx context.Context, req hsm.OpenRequest) error {
	return measureError(m, "VerifyDataKey", func() error { return m.Module.VerifyDataKey(ctx, req) })
}

// ExportDataKey implements hsm.Module.
func (m *meteredModule) ExportDataKey(ctx context.Context, req hsm.ExportRequest) (hsm.ExportedDataKey, error) {
	return measure(m, "ExportDataKey", func() (hsm.ExportedDataKey, error) { return m.Module.ExportDataKey(ctx, req) })
}
