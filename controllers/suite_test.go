package controllers_test

import (
	"fmt"
	"os"
	"testing"

	"github.com/go-logr/logr"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
	"github.com/keyconvoy/keyconvoy/internal/hsm/inprocess"
	hsmprocess "github.com/keyconvoy/keyconvoy/internal/hsm/process"
	"github.com/keyconvoy/keyconvoy/internal/testenv"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
)

// childArgument has this program be the process of a library.
const childArgument = "be-a-library"

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == childArgument {
		if err := hsmprocess.Serve(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	ctrl.SetLogger(logr.Discard()) // each operator has a log of its own
	testenv.Main(m, process.end)
}

// operator is an operator on the tokens that the tests of this package share, with what they do in common.
type operator struct{ *harness.Operator }

// startOperator starts an operator of the test's own.
func startOperator(t *testing.T, options ...harness.Option) *operator {
	t.Helper()
	return startOperatorOn(t, testenv.Start(t), options...)
}

// startOperatorOn starts an operator on that API server.
func startOperatorOn(t *testing.T, env *testenv.Env, options ...harness.Option) *operator {
	t.Helper()
	return &operator{harness.Run(t, env, append([]harness.Option{onTokens(commonToken)}, options...)...)}
}

// inChild gives an operator a library in a process of its own, as the product does.
func inChild(library string, token tokens.Token) harness.Option {
	return harness.WithLibraries(hsmprocess.New(hsmprocess.Options{
		Find: func(name string) (hsmprocess.Library, error) {
			if name != library {
				return hsmprocess.Library{}, hsm.Errorf(hsm.Misconfigured, "PKCS#11 module %q is not allowed.", name)
			}
			return hsmprocess.Library{Path: token.Path, Parameters: token.Parameters, Paths: []hsmprocess.Path{{Name: token.Dir, Writable: true}}}, nil
		},
		Command: []string{hsmprocess.SelfCommand, childArgument},
	}))
}

// onTokens gives an operator the libraries of these tokens.
func onTokens(tokenOf func(library string) tokens.Token) harness.Option {
	return harness.WithLibraries(inprocess.Provider(func(name string) (inprocess.Library, error) {
		if name != onSoftHSM && name != onNSS {
			return inprocess.Library{}, hsm.Errorf(hsm.Misconfigured, "PKCS#11 module %q is not allowed.", name)
		}
		token := tokenOf(name)
		return inprocess.Library{Path: token.Path, Parameters: token.Parameters}, nil
	}))
}
