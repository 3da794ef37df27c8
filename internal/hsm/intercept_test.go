package hsm_test

import (
	"context"
	"errors"
	"reflect"
	"testing"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
)

type passedOn struct{}

// A new method of Module must not bypass interceptors.
func TestIntercept_callsTheInterceptorForEveryMethod(t *testing.T) {
	t.Parallel()
	refused := errors.New("refused")
	module := reflect.TypeFor[hsm.Module]()
	for i := range module.NumMethod() {
		name := module.Method(i).Name
		var reached bool
		// The module below fails every call, and checks the context.
		below := hsm.Intercept(nil, func(ctx context.Context, method string, _ func(context.Context) error) error {
			reached = method == name && ctx.Value(passedOn{}) != nil
			return refused
		})
		above := hsm.Intercept(below, func(ctx context.Context, method string, next func(context.Context) error) error {
			if method != name {
				t.Errorf("the interceptor gets %[2]s for %[1]s", name, method)
			}
			return next(context.WithValue(ctx, passedOn{}, true))
		})
		method := reflect.ValueOf(above).MethodByName(name)
		arguments := []reflect.Value{reflect.ValueOf(t.Context())}
		for i := 1; i < method.Type().NumIn(); i++ {
			arguments = append(arguments, reflect.Zero(method.Type().In(i)))
		}
		results := method.Call(arguments)
		if err, _ := results[len(results)-1].Interface().(error); !errors.Is(err, refused) {
			t.Errorf("%s fails with %v; want %v", name, err, refused)
		}
		if !reached {
			t.Errorf("%s does not reach the module with the interceptor's context", name)
		}
	}
}
