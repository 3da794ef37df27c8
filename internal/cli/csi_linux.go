package cli

import (
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/keyconvoy/keyconvoy/internal/csi"
)

const csiLong = `Run the CSI node plugin csi.keyconvoy.io, which gives pods volumes with a data key.

It runs on each node, as in config/csi. The kubelet calls it when a pod with such a volume starts. It
gets the data key with the token of the pod's ServiceAccount, as the command fetch does, and writes it
to a file in a volume in memory. It has no permissions of its own.`

type csiOptions struct {
	node         string
	kubeletDir   string
	timeout      time.Duration
	server       string
	certificates string
}

func newCSICommand() *cobra.Command {
	var o csiOptions
	cmd := &cobra.Command{
		Use:   "csi",
		Short: "Run the CSI node plugin",
		Long:  csiLong,
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	flags := cmd.Flags()
	flags.StringVar(&o.node, "node", os.Getenv("NODE_NAME"), "`NAME` of the node (default: $NODE_NAME)")
	flags.StringVar(&o.kubeletDir, "kubelet-dir", "/var/lib/kubelet", "`DIR` of the kubelet, the same in the container as on the node")
	flags.DurationVar(&o.timeout, "timeout", 30*time.Second, "how long a pod waits for its data key before an event of the pod says why")
	flags.StringVar(&o.server, "server", serverOfPod(), "`URL` of the API server (default: that of the cluster in which the plugin runs)")
	flags.StringVar(&o.certificates, "certificate-authority", "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt", "`FILE` with the certificates that the API server's is checked with")
	flags.Lookup("node").DefValue, flags.Lookup("server").DefValue = "", ""
	return cmd
}

// serverOfPod returns the address of the API server in a pod, or "".
func serverOfPod() string {
	host, port := os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT")
	if host == "" || port == "" {
		return ""
	}
	return "https://" + net.JoinHostPort(host, port)
}

func (o *csiOptions) run(cmd *cobra.Command) error {
	switch {
	case o.node == "":
		return usagef("the node is unknown\nhint: set the environment variable NODE_NAME from the field spec.nodeName of the pod, or --node")
	case o.server == "":
		return usagef("the API server is unknown\nhint: run the plugin in a pod, or set --server")
	case o.timeout <= 0:
		return usagef("--timeout must be positive")
	}
	options := logOptions()
	setLogger(&options)
	plugins := filepath.Join(o.kubeletDir, "plugins", csi.Name)
	if err := os.MkdirAll(plugins, 0o750); err != nil {
		return err
	}
	pairs := csi.NewPairs()
	group, ctx := errgroup.WithContext(cmd.Context())
	group.Go(func() error { return pairs.Fill(ctx) })
	group.Go(func() error {
		return csi.Run(ctx, csi.Options{
			Version: version, Node: o.node, Timeout: o.timeout, Pairs: pairs.Take, Log: ctrl.Log.WithName("csi"),
			Socket: filepath.Join(plugins, "csi.sock"), Endpoint: filepath.Join(plugins, "csi.sock"),
			RegistrationSocket: filepath.Join(o.kubeletDir, "plugins_registry", csi.Name+"-reg.sock"),
			Cluster:            &rest.Config{Host: o.server, TLSClientConfig: rest.TLSClientConfig{CAFile: o.certificates}},
		})
	})
	return group.Wait()
}
