package cli

import (
	"errors"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/keyconvoy/keyconvoy/controllers"
	"github.com/keyconvoy/keyconvoy/internal/audit"
	"github.com/keyconvoy/keyconvoy/internal/lease"
)

const (
	// namespaceVariable is the environment variable with the operator's own namespace.
	namespaceVariable = "POD_NAMESPACE"
	// podVariable is the environment variable with the UID of its pod. A container that restarts in a pod continues
	// under the lease of its predecessor.
	podVariable = "POD_UID"
)

const managerLong = `Run the operator. It reconciles KeyStores, ClusterKeyStores, ImportedKeys, GeneratedKeys, DataKeys,
ExportedDataKeys and ClusterExportedDataKeys.

The environment variable POD_NAMESPACE must be the operator's own namespace, which contains the keys of
software stores, the PINs of ClusterKeyStores and the leader's lease. POD_UID, if set, identifies the pod in
that lease, so that a container that restarts in its pod continues at once.

A PKCS#11 library is code of its vendor. Therefore key stores do not name a file, but a name that
--pkcs11-module allows, and each library runs in a process of its own. If it crashes or a call hangs, the
operator starts the process again, and nothing else is affected. The process gets no other environment
variables than well-known ones and those of --pkcs11-env, and may use no other files than its own
directory, the system's libraries and what --pkcs11-allow-path names.`

const managerExample = `  # With a kubeconfig and SoftHSM:
  POD_NAMESPACE=keyconvoy-system keyconvoy manager --kubeconfig ~/.kube/config \
    --pkcs11-module softhsm=/usr/lib/softhsm/libsofthsm2.so \
    --pkcs11-allow-path softhsm=/etc/softhsm --pkcs11-allow-path softhsm=/var/lib/softhsm:rw

  # With NSS, which needs the location of its database:
  keyconvoy manager --pkcs11-module nss=/usr/lib/x86_64-linux-gnu/libsoftokn3.so \
    --pkcs11-parameters "nss=configdir='sql:/var/lib/nss' certPrefix='' keyPrefix='' secmod='secmod.db' flags=" \
    --pkcs11-allow-path nss=/var/lib/nss:rw`

// managerOptions are the manager's flags.
type managerOptions struct {
	serverFlags

	leaderElect bool
	profiling   string
	namespaces  []string
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
	o.add(flags, "each operation on a key")
	flags.BoolVar(&o.leaderElect, "leader-elect", false, "enable leader election, so that one of several replicas works at a time")
	flags.StringVar(&o.profiling, "profiling", "", "loopback `ADDRESS` of the profiling endpoint (net/http/pprof), such as 127.0.0.1:6060; disabled by default")
	flags.StringSliceVar(&o.namespaces, "namespaces", nil, "`NAMES` of the namespaces to watch, separated by commas (default: all). With it, the operator needs permissions in these namespaces and its own only (config/namespaced)")
	return cmd
}

func (o *managerOptions) run(cmd *cobra.Command) error {
	libraries, err := o.libraries.parse()
	if err != nil {
		return usageError{err}
	}
	if o.profiling != "" && !onLoopback(o.profiling) {
		return usagef("--profiling %q: profiles reveal the contents of memory, so the address must be a loopback IP address and a port, such as 127.0.0.1:6060", o.profiling)
	}
	for _, name := range o.namespaces {
		if problems := validation.IsDNS1123Label(name); len(problems) > 0 {
			return usagef("--namespaces: %q is not the name of a namespace", name)
		}
	}
	namespace := os.Getenv(namespaceVariable)
	if namespace == "" {
		return usagef("the environment variable %s must name the operator's own namespace", namespaceVariable)
	}
	cfg, err := restConfig(o.kubeconfig)
	if err != nil {
		return err
	}
	setLogger(&o.log)
	auditLog, err := audit.Open(o.auditLog, cmd.OutOrStdout(), ctrl.Log.WithName("audit"))
	if err != nil {
		return err
	}

	spareMemory()
	ctx := cmd.Context()
	mgr, err := o.manager(cfg, namespace)
	if err != nil {
		return err
	}
	modules, readPIN, err := o.modules(libraries)
	if err != nil {
		return err
	}
	caches, filled := controllers.NewCaches(), newCachesFilled()
	err = errors.Join(
		controllers.Setup(ctx, mgr, controllers.Options{
			Modules: modules, ReadPIN: readPIN, OperatorNamespace: namespace, Namespaces: o.served(namespace), Metrics: metrics.Registry, Audit: auditLog, Caches: caches,
		}),
		addProbes(mgr, o.probeAddress, caches.Check),
		mgr.Add(filled),
	)
	if err != nil {
		return err
	}
	o.logStart(namespace, libraries)
	return filled.run(ctx, mgr)
}

// logStart logs the version and settings, except the parameters of libraries, which can contain secrets.
func (o *managerOptions) logStart(namespace string, libraries libraries) {
	ctrl.Log.Info("Starting Keyconvoy", "version", version, "namespace", namespace, "namespaces", o.namespaces, "leaderElection", o.leaderElect,
		"metrics", o.metricsAddress, "healthProbes", o.probeAddress, "profiling", o.profiling != "", "auditLog", o.auditLog)
	for _, name := range slices.Sorted(maps.Keys(libraries)) {
		log := ctrl.Log.WithValues("module", name, "path", libraries[name].Path)
		resolved, err := filepath.EvalSymlinks(libraries[name].Path)
		if err != nil {
			log.Error(err, "The PKCS#11 library cannot be found")
			continue
		}
		log.Info("Key stores may use this PKCS#11 library", "resolvedPath", resolved)
	}
}

// onLoopback reports whether an address is reachable only from this machine or pod (and by users who may forward a
// port into the pod). It does not resolve names, because their addresses can change.
func onLoopback(address string) bool {
	a, err := netip.ParseAddrPort(address)
	return err == nil && a.Addr().Unmap().IsLoopback()
}

func (o *managerOptions) manager(cfg *rest.Config, namespace string) (ctrl.Manager, error) {
	scheme, err := controllers.Scheme()
	if err != nil {
		return nil, err
	}
	options := ctrl.Options{
		Scheme: scheme,
		Cache:  controllers.CacheOptions(),
		Client: controllers.ClientOptions(),
		Metrics: metricsserver.Options{
			BindAddress:    o.metricsAddress,
			SecureServing:  true,
			FilterProvider: onlyMetricsReaders,
		},
		HealthProbeBindAddress: "0", // addProbes serves them
		PprofBindAddress:       o.profiling,
	}
	// First, because the lease guards the client that this creates.
	o.served(namespace).Limit(&options)
	if o.leaderElect {
		elected := lease.Options{Namespace: namespace, Identity: os.Getenv(podVariable)}
		if err := lease.Elect(&options, cfg, elected); err != nil {
			return nil, err
		}
	}
	return ctrl.NewManager(cfg, options)
}

// served are the namespaces to which the operator is limited, including its own; empty means all.
func (o *managerOptions) served(own string) controllers.Namespaces {
	if len(o.namespaces) == 0 {
		return nil
	}
	return append(controllers.Namespaces{own}, o.namespaces...)
}
