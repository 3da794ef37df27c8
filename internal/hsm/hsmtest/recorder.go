package hsmtest

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"sync"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
)

// Recorder calls a module, counts the calls, and fails on demand. Its methods take names of methods of hsm.Module, and panic for
// an unknown name, so that a misspelled name does not go unnoticed. Recorder does not count Describe, which makes no call to the
// device.
type Recorder struct {
	hsm.Module // with intercept around each call

	mu     sync.Mutex
	calls  map[string]int
	next   map[string][]error
	always map[string]error
	before map[string]func()
	after  map[string]func()
	hang   map[string]<-chan struct{}
}

// Wrap returns a Recorder around a module.
func Wrap(module hsm.Module) *Recorder {
	r := &Recorder{
		calls:  map[string]int{},
		next:   map[string][]error{},
		always: map[string]error{},
		before: map[string]func(){},
		after:  map[string]func(){},
		hang:   map[string]<-chan struct{}{},
	}
	r.Module = hsm.Intercept(module, r.intercept)
	return r
}

// Calls returns the number of calls of each method, including failed ones, without methods that were not called.
func (r *Recorder) Calls() map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.calls)
}

// Total returns the number of calls.
func (r *Recorder) Total() int {
	total := 0
	for _, n := range r.Calls() {
		total += n
	}
	return total
}

// Reset sets the counts to zero. Failures and hooks remain.
func (r *Recorder) Reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.calls)
}

// FailNext makes the next call of the method fail with err, without calling the module. After several calls of FailNext, as many
// calls fail, in that order.
func (r *Recorder) FailNext(method string, err error) {
	r.set(method, func() { r.next[method] = append(r.next[method], err) })
}

// FailAll makes every further call of the method fail with err, without calling the module. nil ends that.
func (r *Recorder) FailAll(method string, err error) {
	r.set(method, func() { r.always[method] = err })
}

// Before runs hook before each further call of the method, including failed ones. nil ends that. hook runs in the caller's
// goroutine. It may block or call the module.
func (r *Recorder) Before(method string, hook func()) {
	r.set(method, func() { r.before[method] = hook })
}

// After runs hook after each further call of the method, including failed ones. nil ends that.
func (r *Recorder) After(method string, hook func()) {
	r.set(method, func() { r.after[method] = hook })
}

// Hang makes further calls of the method hang until the channel is closed. As in a module whose library hangs, a call whose
// context is done fails with Unavailable, without calling the module.
func (r *Recorder) Hang(method string, until <-chan struct{}) {
	r.set(method, func() { r.hang[method] = until })
}

func (r *Recorder) set(method string, change func()) {
	if _, ok := reflect.TypeFor[hsm.Module]().MethodByName(method); !ok {
		panic(fmt.Sprintf("hsm.Module has no method %q", method))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	change()
}

// begin counts a call and returns its error and its hooks.
func (r *Recorder) begin(method string) (before, after func(), hang <-chan struct{}, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if method != "Describe" {
		r.calls[method]++
	}
	err = r.always[method]
	if queue := r.next[method]; len(queue) > 0 {
		err, r.next[method] = queue[0], queue[1:]
	}
	return r.before[method], r.after[method], r.hang[method], err
}

// intercept is the hsm.Interceptor of the module.
func (r *Recorder) intercept(ctx context.Context, method string, next func(context.Context) error) error {
	before, after, hang, err := r.begin(method)
	if before != nil {
		before()
	}
	if after != nil {
		defer after()
	}
	if err == nil && hang != nil {
		select {
		case <-hang:
		case <-ctx.Done():
			err = hsm.Wrap(hsm.Unavailable, ctx.Err(), "")
		}
	}
	if err != nil {
		return err
	}
	return next(ctx)
}
