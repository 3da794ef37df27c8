package cli

import (
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"runtime/debug"

	"github.com/spf13/cobra"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/keyconvoy/keyconvoy/controllers"
)

// namespaceVariable is the environment variable with the operator's own namespace.
const namespaceVariable = "POD_NAMESPACE"

const managerLong = `manager is the operator: it serves KeyStores, ClusterKeyStores, ImportedKeys, DataKeys,
ExportedDataKeys and ClusterExportedDataKeys until it is told to end.

The environment variable POD_NAMESPACE names its own namespace: the keys of software stores, the PINs of
ClusterKeyStores and the lease of the leader are there.

A PKCS#11 library is code that runs inside the operator. So key stores cannot name a file, only a name that
is allowed here. What the libraries read themselves (SOFTHSM2_CONF, a vendor's configuration) is given to
the process as usual.`

const managerExample = `  # Against the cluster of a kubeconfig, with SoftHSM allowed:
  POD_NAMESPACE=keyconvoy-system keyconvoy manager --kubeconfig ~/.kube/config \
    --pkcs11-module softhsm=/usr/lib/softhsm/libsofthsm2.so

  # NSS wants to be told where its database is:
  keyconvoy manager --pkcs11-module nss=/usr/lib/x86_64-linux-gnu/libsoftokn3.so \
    --pkcs11-parameters "nss=configdir='sql:/var/lib/nss' certPrefix='' keyPrefix='' secmod='secmod.db' flags="`

// managerOptions are the manager's flags.
type managerOptions struct {
	kubeconfig     string
	leaderElect    bool
	metricsAddress string
	probeAddress   string
	profiling      string
	libraries      []string
	parameters     []string
	log            zap.Options
}

func newManagerCommand() *cobra.Command {
	var o managerOptions
	cmd := &cobra.Command{
		Use:     "manager",
		Short:   "Run the operator",
		Long:    managerLong,
		Example: managerExample,
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	flags := cmd.Flags()
	flags.StringVar(&o.kubeconfig, "kubeconfig", "", "the cluster to serve; without it $KUBECONFIG, and in a pod the pod's own")
	flags.BoolVar(&o.leaderElect, "leader-elect", false, "let one of several replicas work at a time")
	flags.StringVar(&o.metricsAddress, "metrics-bind-address", ":8443", "where metrics are served by HTTPS to whoever may get /metrics; 0 for nowhere")
	flags.StringVar(&o.probeAddress, "health-probe-bind-address", ":8081", "where /healthz and /readyz are served; 0 for nowhere")
	flags.StringVar(&o.profiling, "profiling", "", "`ADDRESS` on the loopback interface where profiles of the process are served (net/http/pprof), such as 127.0.0.1:6060; otherwise nowhere")
	flags.StringArrayVar(&o.libraries, "pkcs11-module", nil, "`NAME=PATH`: allow key stores to use the PKCS#11 library at PATH by NAME (may be repeated)")
	flags.StringArrayVar(&o.parameters, "pkcs11-parameters", nil, "`NAME=STRING`: the reserved string that the library NAME wants when it is initialised, as NSS does (may be repeated)")
	logFlags := flag.NewFlagSet("log", flag.ContinueOnError)
	o.log.BindFlags(logFlags)
	flags.AddGoFlagSet(logFlags)
	return cmd
}

func (o *managerOptions) run(cmd *cobra.Command) error {
	libraries, err := parseLibraries(o.libraries, o.parameters)
	if err != nil {
		return usageError{err}
	}
	if o.profiling != "" && !onLoopback(o.profiling) {
		return usagef("--profiling %q: profiles show what is in memory; write an IP address of the loopback interface and a port, such as 127.0.0.1:6060", o.profiling)
	}
	namespace := os.Getenv(namespaceVariable)
	if namespace == "" {
		return usagef("the environment variable %s must name the operator's own namespace", namespaceVariable)
	}
	cfg, err := o.restConfig()
	if err != nil {
		return err
	}
	ctrl.SetLogger(zap.New(zap.UseFlagOptions(&o.log)))

	spareMemory()
	ctx := cmd.Context()
	mgr, err := o.manager(cfg, namespace)
	if err != nil {
		return err
	}
	err = errors.Join(
		controllers.Setup(ctx, mgr, controllers.Options{
			OpenModule: libraries.open, OperatorNamespace: namespace, Metrics: metrics.Registry,
		}),
		mgr.AddHealthzCheck("ping", healthz.Ping),
		mgr.AddReadyzCheck("ping", healthz.Ping),
	)
	if err != nil {
		return err
	}
	ctrl.Log.Info("Starting", "version", version)
	return mgr.Start(ctx)
}

// spareMemory collects garbage when the heap, which holds the caches, has grown by half, not by all of its size. That
// costs time only while there is work. GOGC says otherwise.
func spareMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}
}

// onLoopback says whether only processes of this machine, or pod, can reach an address. Whoever may forward a
// port into the pod can, too. A name is not asked for: it may mean another address tomorrow.
func onLoopback(address string) bool {
	a, err := netip.ParseAddrPort(address)
	return err == nil && a.Addr().Unmap().IsLoopback()
}

func (o *managerOptions) restConfig() (*rest.Config, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = o.kubeconfig
	cfg, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("finding the cluster: %w", err)
	}
	// The API server's Priority and Fairness is the limit, not the client.
	cfg.QPS = -1
	return cfg, nil
}

func (o *managerOptions) manager(cfg *rest.Config, namespace string) (ctrl.Manager, error) {
	scheme, err := controllers.Scheme()
	if err != nil {
		return nil, err
	}
	return ctrl.NewManager(cfg, ctrl.Options{
		Scheme: scheme,
		Cache:  controllers.CacheOptions(),
		Client: controllers.ClientOptions(),
		Metrics: metricsserver.Options{
			BindAddress:    o.metricsAddress,
			SecureServing:  true,
			FilterProvider: onlyMetricsReaders,
		},
		HealthProbeBindAddress:  o.probeAddress,
		PprofBindAddress:        o.profiling,
		LeaderElection:          o.leaderElect,
		LeaderElectionID:        "manager.keyconvoy.io",
		LeaderElectionNamespace: namespace,
		// The process ends with the manager, so the lease can be given back at once.
		LeaderElectionReleaseOnCancel: true,
	})
}
