package hsmtest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
)

// Recorder passes calls on to a module, counts them, and fails when it is told to. Methods go by the
// names that hsm.Module gives them; a name that it does not have makes it panic, so that a
// misspelling does not pass a test. Info and Capabilities are neither counted nor failed: they are
// fixed when a module is opened, and no call to it.
type Recorder struct {
	module hsm.Module

	mu     sync.Mutex
	calls  map[string]int
	next   map[string][]error
	always map[string]error
	before map[string]func()
	after  map[string]func()
}

var _ hsm.Module = (*Recorder)(nil)

// Wrap returns a Recorder around a module.
func Wrap(module hsm.Module) *Recorder {
	return &Recorder{
		module: module,
		calls:  map[string]int{},
		next:   map[string][]error{},
		always: map[string]error{},
		before: map[string]func(){},
		after:  map[string]func(){},
	}
}

// Calls returns how often each method was called, failed calls included; methods that were not
// called are absent.
func (r *Recorder) Calls() map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.calls)
}

// Total returns how many calls there were.
func (r *Recorder) Total() int {
	total := 0
	for _, n := range r.Calls() {
		total += n
	}
	return total
}

// Reset sets the counts to zero. What was told about failures and hooks stays.
func (r *Recorder) Reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.calls)
}

// FailNext makes the next call of the method fail with err, without reaching the module. Told
// several times, it fails as many calls, in that order.
func (r *Recorder) FailNext(method string, err error) {
	r.tell(method, func() { r.next[method] = append(r.next[method], err) })
}

// FailAll makes every further call of the method fail with err, without reaching the module; nil
// ends it.
func (r *Recorder) FailAll(method string, err error) {
	r.tell(method, func() { r.always[method] = err })
}

// Before has hook run before each further call of the method, failing ones included; nil ends it. It
// runs in the caller's goroutine and may block, or call the module.
func (r *Recorder) Before(method string, hook func()) {
	r.tell(method, func() { r.before[method] = hook })
}

// After has hook run after each further call of the method, failing ones included; nil ends it.
func (r *Recorder) After(method string, hook func()) {
	r.tell(method, func() { r.after[method] = hook })
}

var methods = []string{
	"Check", "CreateWrappingKey", "ListWrappingKeys", "DestroyWrappingKey", "Authenticate", "ImportKey",
	"FindKey", "DestroyKey", "GenerateDataKey", "VerifyDataKey", "ExportDataKey", "Close",
}

func (r *Recorder) tell(method string, change func()) {
	if !slices.Contains(methods, method) {
		panic(fmt.Sprintf("hsm.Module has no method %q that can be recorded", method))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	change()
}

// begin counts a call and returns what it has to fail with, and its hooks.
func (r *Recorder) begin(method string) (before, after func(), err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls[method]++
	err = r.always[method]
	if queue := r.next[method]; len(queue) > 0 {
		err, r.next[method] = queue[0], queue[1:]
	}
	return r.before[method], r.after[method], err
}

func record[T any](r *Recorder, method string, call func() (T, error)) (T, error) {
	before, after, err := r.begin(method)
	if before != nil {
		before()
	}
	if after != nil {
		defer after()
	}
	if err != nil {
		var none T
		return none, err
	}
	return call()
}

func recordError(r *Recorder, method string, call func() error) error {
	_, err := record(r, method, func() (struct{}, error) { return struct{}{}, call() })
	return err
}

// Info implements hsm.Module.
func (r *Recorder) Info() hsm.Info { return r.module.Info() }

// Capabilities implements hsm.Module.
func (r *Recorder) Capabilities() []hsm.Capability { return r.module.Capabilities() }

// Check implements hsm.Module.
func (r *Recorder) Check(ctx context.Context) error {
	return recordError(r, "Check", func() error { return r.module.Check(ctx) })
}

// CreateWrappingKey implements hsm.Module.
func (r *Recorder) CreateWrappingKey(ctx context.Context, req hsm.WrappingKeyRequest) (hsm.WrappingKey, error) {
	return record(r, "CreateWrappingKey", func() (hsm.WrappingKey, error) { return r.module.CreateWrappingKey(ctx, req) })
}

// ListWrappingKeys implements hsm.Module.
func (r *Recorder) ListWrappingKeys(ctx context.Context, owner uuid.UUID) ([]hsm.WrappingKey, error) {
	return record(r, "ListWrappingKeys", func() ([]hsm.WrappingKey, error) { return r.module.ListWrappingKeys(ctx, owner) })
}

// DestroyWrappingKey implements hsm.Module.
func (r *Recorder) DestroyWrappingKey(ctx context.Context, id uuid.UUID) error {
	return recordError(r, "DestroyWrappingKey", func() error { return r.module.DestroyWrappingKey(ctx, id) })
}

// Authenticate implements hsm.Module.
func (r *Recorder) Authenticate(ctx context.Context, message []byte) ([]byte, error) {
	return record(r, "Authenticate", func() ([]byte, error) { return r.module.Authenticate(ctx, message) })
}

// ImportKey implements hsm.Module.
func (r *Recorder) ImportKey(ctx context.Context, req hsm.ImportRequest) (hsm.Key, error) {
	return record(r, "ImportKey", func() (hsm.Key, error) { return r.module.ImportKey(ctx, req) })
}

// FindKey implements hsm.Module.
func (r *Recorder) FindKey(ctx context.Context, id uuid.UUID) (hsm.Key, error) {
	return record(r, "FindKey", func() (hsm.Key, error) { return r.module.FindKey(ctx, id) })
}

// DestroyKey implements hsm.Module.
func (r *Recorder) DestroyKey(ctx context.Context, id uuid.UUID) error {
	return recordError(r, "DestroyKey", func() error { return r.module.DestroyKey(ctx, id) })
}

// GenerateDataKey implements hsm.Module.
func (r *Recorder) GenerateDataKey(ctx context.Context, req hsm.GenerateRequest) (hsm.DataKey, error) {
	return record(r, "GenerateDataKey", func() (hsm.DataKey, error) { return r.module.GenerateDataKey(ctx, req) })
}

// VerifyDataKey implements hsm.Module.
func (r *Recorder) VerifyDataKey(ctx context.Context, req hsm.OpenRequest) error {
	return recordError(r, "VerifyDataKey", func() error { return r.module.VerifyDataKey(ctx, req) })
}

// ExportDataKey implements hsm.Module.
func (r *Recorder) ExportDataKey(ctx context.Context, req hsm.ExportRequest) (hsm.ExportedDataKey, error) {
	return record(r, "ExportDataKey", func() (hsm.ExportedDataKey, error) { return r.module.ExportDataKey(ctx, req) })
}

// Close implements hsm.Module.
func (r *Recorder) Close() error { return recordError(r, "Close", r.module.Close) }
