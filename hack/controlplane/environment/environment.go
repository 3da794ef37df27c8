// Package environment describes the control plane that tests, the demo and the node of make e2e run: envtest's etcd and
// kube-apiserver, with places for their data and logs.
package environment

import (
	"io"
	"os"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/envtest"
)

// Places are where a control plane keeps what it writes.
type Places struct {
	EtcdDir      string    // etcd's data
	APIServerDir string    // certificates
	EtcdLog      io.Writer // both outputs of etcd
	APIServerLog io.Writer // both outputs of kube-apiserver
}

// New returns a control plane that is not started. Its binaries are those in $KUBEBUILDER_ASSETS.
func New(places Places) (*envtest.Environment, error) {
	for _, dir := range []string{places.EtcdDir, places.APIServerDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	// Ignore USE_EXISTING_CLUSTER: the callers must not use another cluster.
	useExisting := false
	env := &envtest.Environment{
		UseExistingCluster: &useExisting,
		// On a busy machine both take longer than the 20 seconds of envtest.
		ControlPlaneStartTimeout: 2 * time.Minute,
		ControlPlaneStopTimeout:  2 * time.Minute,
	}
	env.ControlPlane.Etcd = &envtest.Etcd{DataDir: places.EtcdDir, Out: places.EtcdLog, Err: places.EtcdLog}
	env.ControlPlane.APIServer = &envtest.APIServer{CertDir: places.APIServerDir, Out: places.APIServerLog, Err: places.APIServerLog}
	return env, nil
}
