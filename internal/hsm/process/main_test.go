//go:build cgo && linux

package process_test

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/go-logr/logr/testr"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
	"github.com/keyconvoy/keyconvoy/internal/hsm/inprocess"
	"github.com/keyconvoy/keyconvoy/internal/hsm/process"
	"github.com/keyconvoy/keyconvoy/internal/redact"
)

// These arguments have this program be a child, or a parent of one.
const (
	childArgument  = "be-a-child"
	parentArgument = "be-a-parent"
)

func TestMain(m *testing.M) {
	var err error
	switch {
	case len(os.Args) == 3 && os.Args[1] == childArgument:
		err = process.Serve()
	case len(os.Args) == 6 && os.Args[1] == parentArgument:
		err = beParent(os.Args[2], os.Args[3], os.Args[4], os.Args[5])
	default:
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// libraries are the libraries of a test, by name.
type libraries map[string]process.Library

func (l libraries) find(name string) (process.Library, error) {
	library, ok := l[name]
	if !ok {
		return library, hsm.Errorf(hsm.Misconfigured, "no library %q", name)
	}
	return library, nil
}

// libraryOf is the library of a token, which may use the token's files.
func libraryOf(tok tokens.Token) process.Library {
	return process.Library{Path: tok.Path, Parameters: tok.Parameters, Paths: []process.Path{{Name: tok.Dir, Writable: true}}}
}

// here opens a token with its library in this process.
func here(tok tokens.Token) hsm.Provider {
	return inprocess.Provider(func(string) (inprocess.Library, error) {
		return inprocess.Library{Path: tok.Path, Parameters: tok.Parameters}, nil
	})
}

// newProvider returns a provider whose children are this program.
func newProvider(t testing.TB, l libraries, change ...func(*process.Options)) *process.Provider {
	t.Helper()
	options := process.Options{Find: l.find, Command: []string{process.SelfCommand, childArgument}}
	if t, ok := t.(*testing.T); ok {
		options.Log = testr.New(t)
	}
	for _, f := range change {
		f(&options)
	}
	return process.New(options)
}

// configOf opens a token with that library.
func configOf(library string, tok tokens.Token) hsm.Config {
	return hsm.Config{
		Library: library, Token: hsm.TokenSelector{Label: tok.Label}, PIN: redact.WireBytes(tok.PIN), Custody: hsm.CustodyHost,
	}
}

func mustOpen(t testing.TB, p hsm.Provider, cfg hsm.Config) hsm.Module {
	t.Helper()
	m, err := p.Open(t.Context(), cfg)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() {
		if err := m.Close(context.Background()); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return m
}
