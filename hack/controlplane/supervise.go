package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/keyconvoy/keyconvoy/hack/controlplane/environment"
)

// superviseCommand is the command that up starts in the background. It is not documented for users.
const superviseCommand = "supervise"

// ready is the text that the supervisor writes to its standard output, a pipe to up, when the API server is ready.
const ready = "ready"

// supervise runs the control plane until it receives SIGTERM or one of the two processes ends.
func supervise(p plane, fsync bool) (err error) {
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	// If up has ended, writing to the pipe must return an error instead of killing this process, which would leave etcd
	// and the API server running.
	signal.Ignore(syscall.SIGPIPE)
	log.SetLogger(logr.FromSlogHandler(slog.NewTextHandler(os.Stderr, nil)))

	if err := p.claim(); err != nil {
		return err
	}
	env, err := newEnvironment(p, fsync)
	if err != nil {
		return err
	}
	defer func() {
		if stopErr := env.Stop(); err == nil {
			err = stopErr
		}
	}()
	if _, err := env.Start(); err != nil {
		return err
	}
	if err := writeKubeconfig(p.kubeconfig, env.KubeConfig); err != nil {
		return err
	}
	if _, err := os.Stdout.WriteString(ready); err != nil {
		return fmt.Errorf("up was interrupted: %w", err)
	}
	if err := os.Stdout.Close(); err != nil {
		return err
	}
	return watch(ctx, map[string]string{
		"etcd":           env.ControlPlane.Etcd.URL.Host,
		"kube-apiserver": env.ControlPlane.APIServer.SecureServing.HostPort(),
	}, p)
}

// newEnvironment returns a control plane with data, certificates and logs in the directory of the plane.
func newEnvironment(p plane, fsync bool) (*envtest.Environment, error) {
	etcdLog, err := p.openLog("etcd")
	if err != nil {
		return nil, err
	}
	apiServerLog, err := p.openLog("kube-apiserver")
	if err != nil {
		return nil, err
	}
	env, err := environment.New(environment.Places{
		EtcdDir: p.etcdDir(), APIServerDir: p.apiServerDir(), EtcdLog: etcdLog, APIServerLog: apiServerLog,
	})
	if err != nil {
		return nil, err
	}
	if fsync {
		env.ControlPlane.Etcd.Configure().Set("unsafe-no-fsync", "false")
	}
	return env, nil
}

// writeKubeconfig replaces the file atomically.
func writeKubeconfig(path string, content []byte) error {
	partial := path + ".partial"
	if err := os.WriteFile(partial, content, 0o600); err != nil {
		return err
	}
	return os.Rename(partial, path)
}

// watch returns nil when the context ends, and an error when a process no longer accepts connections. It connects to
// their addresses because envtest does not report that a process has ended.
func watch(ctx context.Context, addresses map[string]string, p plane) error {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	dialer := net.Dialer{}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		for process, address := range addresses {
			connection, err := dialer.DialContext(ctx, "tcp", address)
			if err == nil {
				connection.Close()
			} else if ctx.Err() == nil {
				return fmt.Errorf("%s has ended, see its log %s: %w", process, p.log(process), err)
			}
		}
	}
}
