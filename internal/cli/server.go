package cli

import (
	"flag"
	"fmt"
	"os"
	"runtime/debug"

	"github.com/spf13/pflag"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/keyconvoy/keyconvoy/internal/audit"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/secrets"
)

// serverFlags are the flags of the commands that serve a cluster: the operator and the gateway.
type serverFlags struct {
	kubeconfig     string
	metricsAddress string
	probeAddress   string
	libraries      libraryFlags
	auditLog       string
	log            zap.Options
}

// add adds the flags. audited is what has a line in the audit log.
func (f *serverFlags) add(flags *pflag.FlagSet, audited string) {
	f.log = logOptions()
	flags.StringVar(&f.kubeconfig, "kubeconfig", "", "kubeconfig of the cluster (default: $KUBECONFIG, or in a pod its service account)")
	flags.StringVar(&f.metricsAddress, "metrics-bind-address", ":8443", "address of the HTTPS metrics endpoint (requires permission to get /metrics); 0 disables it")
	flags.StringVar(&f.probeAddress, "health-probe-bind-address", ":8081", "address of the /healthz and /readyz endpoints; 0 disables them")
	f.libraries.add(flags)
	flags.StringVar(&f.auditLog, "audit-log", audit.Stdout, "destination of the audit log, one JSON line for "+audited+": stdout, a `PATH` to append to, or off")
	logFlags := flag.NewFlagSet("log", flag.ContinueOnError)
	f.log.BindFlags(logFlags)
	flags.AddGoFlagSet(logFlags)
}

// modules returns what opens the modules of key stores, and what reads their PINs.
func (f *serverFlags) modules(libraries libraries) (hsm.Provider, secrets.EntryReader, error) {
	if f.libraries.inProcess { // which has the PINs then, and runs where a process of ours cannot be started
		return libraries.inProcess(), nil, nil
	}
	children := libraries.inChildren(ctrl.Log.WithName("modules"))
	return children, pinReader(f.kubeconfig), metrics.Registry.Register(children.Metrics())
}

// spareMemory collects garbage when the heap, which holds the caches, has grown by half instead of by its size. This
// takes CPU time only while there is work. The environment variable GOGC overrides it.
func spareMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}
}

// restConfig returns the configuration of a kubeconfig; "" means the default.
func restConfig(kubeconfig string) (*rest.Config, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = kubeconfig
	cfg, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("finding the cluster: %w", err)
	}
	// The API server's Priority and Fairness is the limit, not the client.
	cfg.QPS = -1
	return cfg, nil
}
