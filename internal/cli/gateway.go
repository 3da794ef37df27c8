package cli

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/certwatcher"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/keyconvoy/keyconvoy/internal/audit"
	"github.com/keyconvoy/keyconvoy/internal/gateway"
	"github.com/keyconvoy/keyconvoy/internal/gateway/wire"
)

const gatewayLong = `Serve the documented key management API (version 2016-01-20) over HTTPS, on the same keys as the objects in
the cluster, so that its official clients work with your own HSM. docs/gateway.md shows how to point them
at it. Clients sign their requests with an AccessKey; the gateway authorizes each as its ServiceAccount.

The gateway opens the modules of the key stores that the operator reports as ready, in sessions of its own.
It needs the same --pkcs11 flags as the operator. Several replicas can serve at the same time.

The environment variable POD_NAMESPACE must be the operator's namespace.`

const gatewayExample = `  # In a pod, with a certificate from a Secret:
  keyconvoy gateway --tls-dir /etc/keyconvoy/tls

  # For a trial:
  POD_NAMESPACE=keyconvoy-system keyconvoy gateway --kubeconfig ~/.kube/config --tls-self-signed`

// The limits of a connection. A header is longer than any client's, with an EncryptionContext of 8192 characters in the query, each of
// which takes up to 9 bytes.
const (
	maxHeader         = 128 << 10
	readHeaderTimeout = 5 * time.Second
	readTimeout       = 10 * time.Second
	writeTimeout      = readTimeout + wire.RequestTime + 5*time.Second
	idleTimeout       = 2 * time.Minute
)

// gatewayOptions are the gateway's flags.
type gatewayOptions struct {
	serverFlags

	address    string
	tlsDir     string
	selfSigned bool
}

func newGatewayCommand() *cobra.Command {
	var o gatewayOptions
	cmd := &cobra.Command{
		Use:     "gateway",
		Short:   "Serve the documented key management API to its official clients",
		Long:    gatewayLong,
		Example: gatewayExample,
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	flags := cmd.Flags()
	o.add(flags, "each request")
	flags.StringVar(&o.address, "bind-address", ":8444", "address of the API")
	flags.StringVar(&o.tlsDir, "tls-dir", "", "`DIRECTORY` with the certificate (tls.crt) and its key (tls.key), which are read again when they change")
	flags.BoolVar(&o.selfSigned, "tls-self-signed", false, "for trials: generate a certificate at each start, which clients must be told to trust")
	return cmd
}

func (o *gatewayOptions) run(cmd *cobra.Command) error {
	libraries, err := o.libraries.parse()
	if err != nil {
		return usageError{err}
	}
	if (o.tlsDir == "") != o.selfSigned {
		return usagef("either --tls-dir or --tls-self-signed is required")
	}
	namespace := os.Getenv(namespaceVariable)
	if namespace == "" {
		return usagef("the environment variable %s must name the operator's namespace", namespaceVariable)
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
	scheme, err := gateway.Scheme()
	if err != nil {
		return err
	}
	caches, err := gateway.CacheOptions(namespace)
	if err != nil {
		return err
	}
	mgr, err := ctrl.NewManager(cfg, ctrl.Options{
		Scheme: scheme, Cache: caches, Client: gateway.ClientOptions(),
		Metrics:                metricsserver.Options{BindAddress: o.metricsAddress, SecureServing: true, FilterProvider: onlyMetricsReaders},
		HealthProbeBindAddress: "0", // addProbes serves them
	})
	if err != nil {
		return err
	}
	modules, readPIN, err := o.modules(libraries)
	if err != nil {
		return err
	}
	ctx := cmd.Context()
	handler, err := gateway.Setup(ctx, mgr, gateway.Options{
		Modules: modules, OperatorNamespace: namespace, ReadPIN: readPIN, Metrics: metrics.Registry, Audit: auditLog,
	})
	if err != nil {
		return err
	}
	filled := newCachesFilled()
	if err := errors.Join(o.serve(mgr, handler), addProbes(mgr, o.probeAddress, filled.check), mgr.Add(filled)); err != nil {
		return err
	}
	ctrl.Log.Info("Starting the gateway", "version", version, "namespace", namespace, "address", o.address, "metrics", o.metricsAddress, "auditLog", o.auditLog)
	return filled.run(ctx, mgr)
}

// serve adds the server of the API.
func (o *gatewayOptions) serve(mgr ctrl.Manager, handler http.Handler) error {
	config := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}}
	if o.selfSigned {
		certificate, err := selfSigned()
		if err != nil {
			return fmt.Errorf("generating a certificate: %w", err)
		}
		config.Certificates = []tls.Certificate{certificate}
	} else {
		watcher, err := certwatcher.New(filepath.Join(o.tlsDir, "tls.crt"), filepath.Join(o.tlsDir, "tls.key"))
		if err != nil {
			return fmt.Errorf("reading the certificate: %w", err)
		}
		if err := mgr.Add(watcher); err != nil {
			return err
		}
		config.GetCertificate = watcher.GetCertificate
	}
	listener, err := net.Listen("tcp", o.address)
	if err != nil {
		return fmt.Errorf("serving the API: %w", err)
	}
	return mgr.Add(&manager.Server{
		Name: "gateway", Listener: tls.NewListener(listener, config),
		Server: &http.Server{
			Handler: handler, MaxHeaderBytes: maxHeader, ReadHeaderTimeout: readHeaderTimeout, ReadTimeout: readTimeout,
			WriteTimeout: writeTimeout, IdleTimeout: idleTimeout,
		},
	})
}
