package process

import (
	"slices"
	"testing"
)

// A library beside the operator's token must not be able to read it.
func TestLibraryPaths_neverContainTheServiceAccount(t *testing.T) {
	t.Setenv("LD_LIBRARY_PATH", "/opt/vendor/lib:relative:/run:/var/run/secrets/kubernetes.io/serviceaccount")
	for library, want := range map[string][]string{
		"/opt/vendor/lib/p11.so": {"/opt/vendor/lib", "/opt/vendor/lib", "/opt/vendor/lib/p11.so"},
		"/p11.so":                {"/opt/vendor/lib", "/p11.so"},
		"/run/p11.so":            {"/opt/vendor/lib", "/run/p11.so"},
		"p11.so":                 {"/opt/vendor/lib"},
	} {
		if got := libraryPaths(Library{Path: library}); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", library, got, want)
		}
	}
}
