package inprocess_test

import (
	"errors"
	"testing"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/hsm/inprocess"
)

func TestOpen_noLibrary_opensASoftwareStore(t *testing.T) {
	t.Parallel()
	var provider hsm.Provider = inprocess.Provider(func(name string) (inprocess.Library, error) {
		t.Errorf("the provider looks for library %q", name)
		return inprocess.Library{}, nil
	})
	m, err := provider.Open(t.Context(), hsm.Config{Storage: &hsmtest.Storage{}})
	if err != nil {
		t.Fatal(err)
	}
	described, err := m.Describe(t.Context())
	if err != nil || described.Info.Library != "software" {
		t.Errorf("Open returns %+v, %v", described.Info, err)
	}
	if err := m.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestOpen_libraryNotAllowed_returnsItsError(t *testing.T) {
	t.Parallel()
	refused := hsm.Errorf(hsm.Misconfigured, "there is no such library")
	provider := inprocess.Provider(func(string) (inprocess.Library, error) { return inprocess.Library{}, refused })
	m, err := provider.Open(t.Context(), hsm.Config{Library: "softhsm", Token: hsm.TokenSelector{Label: "x"}})
	if m != nil || !errors.Is(err, refused) {
		t.Errorf("Open returns %v, %v", m, err)
	}
}
