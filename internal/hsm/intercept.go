package hsm

import (
	"context"

	"github.com/google/uuid"
)

// Interceptor runs around each call of a module. method is the name of the method in Module. It calls next at most once, which
// runs the call, and returns the error of the call.
type Interceptor func(ctx context.Context, method string, next func(context.Context) error) error

// Intercept returns a module with an interceptor around each call.
func Intercept(module Module, around Interceptor) Module { return &intercepted{module, around} }

// intercepted does not embed its module, so that a new method of Module does not bypass the interceptor.
type intercepted struct {
	module Module
	around Interceptor
}

// through calls a method through the interceptor. If the interceptor does not call next, the result is the zero value.
func through[T any](ctx context.Context, m *intercepted, method string, call func(context.Context) (T, error)) (T, error) {
	var out T
	err := m.around(ctx, method, func(ctx context.Context) (err error) {
		out, err = call(ctx)
		return err
	})
	return out, err
}

// Describe implements Module.
func (m *intercepted) Describe(ctx context.Context) (Description, error) {
	return through(ctx, m, "Describe", func(ctx context.Context) (Description, error) { return m.module.Describe(ctx) })
}

// Check implements Module.
func (m *intercepted) Check(ctx context.Context) error {
	return m.around(ctx, "Check", func(ctx context.Context) error { return m.module.Check(ctx) })
}

// CreateWrappingKey implements Module.
func (m *intercepted) CreateWrappingKey(ctx context.Context, req WrappingKeyRequest) (WrappingKey, error) {
	return through(ctx, m, "CreateWrappingKey", func(ctx context.Context) (WrappingKey, error) { return m.module.CreateWrappingKey(ctx, req) })
}

// ListWrappingKeys implements Module.
func (m *intercepted) ListWrappingKeys(ctx context.Context) ([]WrappingKey, error) {
	return through(ctx, m, "ListWrappingKeys", func(ctx context.Context) ([]WrappingKey, error) { return m.module.ListWrappingKeys(ctx) })
}

// DestroyWrappingKey implements Module.
func (m *intercepted) DestroyWrappingKey(ctx context.Context, id uuid.UUID) error {
	return m.around(ctx, "DestroyWrappingKey", func(ctx context.Context) error { return m.module.DestroyWrappingKey(ctx, id) })
}

// Authenticate implements Module.
func (m *intercepted) Authenticate(ctx context.Context, message []byte) ([]byte, error) {
	return through(ctx, m, "Authenticate", func(ctx context.Context) ([]byte, error) { return m.module.Authenticate(ctx, message) })
}

// ImportKey implements Module.
func (m *intercepted) ImportKey(ctx context.Context, req ImportRequest) (Key, error) {
	return through(ctx, m, "ImportKey", func(ctx context.Context) (Key, error) { return m.module.ImportKey(ctx, req) })
}

// GenerateKey implements Module.
func (m *intercepted) GenerateKey(ctx context.Context, req GenerateKeyRequest) (Key, error) {
	return through(ctx, m, "GenerateKey", func(ctx context.Context) (Key, error) { return m.module.GenerateKey(ctx, req) })
}

// FindKey implements Module.
func (m *intercepted) FindKey(ctx context.Context, id uuid.UUID) (Key, error) {
	return through(ctx, m, "FindKey", func(ctx context.Context) (Key, error) { return m.module.FindKey(ctx, id) })
}

// ListKeys implements Module.
func (m *intercepted) ListKeys(ctx context.Context) ([]Key, error) {
	return through(ctx, m, "ListKeys", func(ctx context.Context) ([]Key, error) { return m.module.ListKeys(ctx) })
}

// DestroyKey implements Module.
func (m *intercepted) DestroyKey(ctx context.Context, id uuid.UUID) error {
	return m.around(ctx, "DestroyKey", func(ctx context.Context) error { return m.module.DestroyKey(ctx, id) })
}

// GenerateDataKey implements Module.
func (m *intercepted) GenerateDataKey(ctx context.Context, req GenerateRequest) (DataKey, error) {
	return through(ctx, m, "GenerateDataKey", func(ctx context.Context) (DataKey, error) { return m.module.GenerateDataKey(ctx, req) })
}

// VerifyDataKey implements Module.
func (m *intercepted) VerifyDataKey(ctx context.Context, req OpenRequest) error {
	return m.around(ctx, "VerifyDataKey", func(ctx context.Context) error { return m.module.VerifyDataKey(ctx, req) })
}

// ReencryptDataKey implements Module.
func (m *intercepted) ReencryptDataKey(ctx context.Context, req ReencryptRequest) (DataKey, error) {
	return through(ctx, m, "ReencryptDataKey", func(ctx context.Context) (DataKey, error) { return m.module.ReencryptDataKey(ctx, req) })
}

// ExportDataKey implements Module.
func (m *intercepted) ExportDataKey(ctx context.Context, req ExportRequest) (ExportedDataKey, error) {
	return through(ctx, m, "ExportDataKey", func(ctx context.Context) (ExportedDataKey, error) { return m.module.ExportDataKey(ctx, req) })
}

// Close implements Module.
func (m *intercepted) Close(ctx context.Context) error {
	return m.around(ctx, "Close", func(ctx context.Context) error { return m.module.Close(ctx) })
}
