// Package e2e tests Keyconvoy as it is installed: its image on a real node, with all parts of Kubernetes that it meets in
// production. make e2e runs the tests, on the node of the package node.
package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
)

// api is the API of the cluster, as its administrator.
var api client.WithWatch

func TestMain(m *testing.M) {
	if err := prepare(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		os.Exit(1)
	}
	code := m.Run()
	printFigures()
	os.Exit(code)
}

// prepare connects to the cluster and gives the node all images that the tests use.
func prepare(ctx context.Context) error {
	if os.Getenv("NODE_LOGS") == "" {
		return errors.New("these tests need a node; run them with make e2e")
	}
	config, err := ctrl.GetConfig()
	if err != nil {
		return err
	}
	config.QPS = -1 // the API server limits clients itself
	scheme := runtime.NewScheme()
	utilruntime.Must(clientgoscheme.AddToScheme(scheme))
	utilruntime.Must(v1alpha1.AddToScheme(scheme))
	if api, err = client.NewWithWatch(config, client.Options{Scheme: scheme}); err != nil {
		return err
	}
	if err := api.List(ctx, &corev1.NamespaceList{}); err != nil {
		return err
	}
	return importImages(ctx)
}
