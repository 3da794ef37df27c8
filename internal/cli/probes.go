package cli

import (
	"fmt"
	"net"
	"net/http"
	"time"

	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/manager"
)

// addProbes serves /healthz, which always succeeds, and /readyz, which fails while check fails and reports the
// reason. (The server of controller-runtime does not report reasons.)
func addProbes(mgr ctrl.Manager, address string, check func() error) error {
	if address == "" || address == "0" {
		return nil
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("serving health probes: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := check(); err != nil {
			http.Error(w, "not ready:\n"+err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	return mgr.Add(&manager.Server{
		Name: "health probes", Listener: listener,
		Server: &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second},
	})
}
