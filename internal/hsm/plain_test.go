package hsm_test

import (
	"context"
	"encoding"
	"reflect"
	"slices"
	"testing"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
)

// Modules can run in another process. An encoding would silently drop unexported fields and cannot carry interfaces.
func TestModule_hasPlainParametersAndResults(t *testing.T) {
	t.Parallel()
	module := reflect.TypeFor[hsm.Module]()
	for i := range module.NumMethod() {
		method := module.Method(i)
		if method.Type.In(0) != reflect.TypeFor[context.Context]() || method.Type.Out(method.Type.NumOut()-1) != reflect.TypeFor[error]() {
			t.Errorf("%s has no context or no error", method.Name)
		}
		for i := 1; i < method.Type.NumIn(); i++ {
			mustBePlain(t, method.Name+" takes "+method.Type.In(i).String(), method.Type.In(i))
		}
		for i := range method.Type.NumOut() - 1 {
			mustBePlain(t, method.Name+" returns "+method.Type.Out(i).String(), method.Type.Out(i))
		}
	}
}

// PINs, Storage and Lost are what a module calls while it works.
func TestConfig_isPlainExceptForWhatAModuleCalls(t *testing.T) {
	t.Parallel()
	config := reflect.TypeFor[hsm.Config]()
	for i := range config.NumField() {
		if field := config.Field(i); !slices.Contains([]string{"PINs", "Storage", "Lost"}, field.Name) {
			mustBePlain(t, "Config."+field.Name, field.Type)
		}
	}
}

func TestLibraryInfo_isPlain(t *testing.T) {
	t.Parallel()
	mustBePlain(t, "LibraryInfo", reflect.TypeFor[hsm.LibraryInfo]())
}

// An error is sent with its cause as a text.
func TestError_isPlainExceptForItsCause(t *testing.T) {
	t.Parallel()
	e := reflect.TypeFor[hsm.Error]()
	for i := range e.NumField() {
		if field := e.Field(i); field.Name != "Err" {
			mustBePlain(t, "Error."+field.Name, field.Type)
		}
	}
}

func mustBePlain(t *testing.T, what string, of reflect.Type) {
	t.Helper()
	if reflect.PointerTo(of).Implements(reflect.TypeFor[encoding.BinaryUnmarshaler]()) {
		return // it encodes itself: time.Time, uuid.UUID
	}
	switch of.Kind() {
	case reflect.Struct:
		for i := range of.NumField() {
			field := of.Field(i)
			if !field.IsExported() {
				t.Errorf("%s, whose field %s is not exported", what, field.Name)
			}
			mustBePlain(t, what+"."+field.Name, field.Type)
		}
	case reflect.Pointer, reflect.Slice, reflect.Array:
		mustBePlain(t, what, of.Elem())
	case reflect.Map:
		mustBePlain(t, what, of.Key())
		mustBePlain(t, what, of.Elem())
	case reflect.Interface, reflect.Func, reflect.Chan, reflect.UnsafePointer, reflect.Uintptr:
		t.Errorf("%s, which is a %s", what, of.Kind())
	}
}
