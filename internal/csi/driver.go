// Package csi is a CSI node plugin: it gives pods ephemeral inline volumes, in memory, with a data key. It gets the data key as
// the pod, with the token of the pod's ServiceAccount that the kubelet passes to it, and has no permissions of its own.
//
// It keeps no state. A volume is a mount of the kernel, so it outlives the plugin; whether it is complete, and whether there
// is something to remove, is read from the mount. Neither needs the API server.
package csi

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"time"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/go-logr/logr"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
	"k8s.io/client-go/rest"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"github.com/keyconvoy/keyconvoy/internal/fetch"
)

// Name is the driver's name, as in the CSIDriver object and in the volumes of pods.
const Name = "csi.keyconvoy.io"

// Options are what a driver needs.
type Options struct {
	// Version is the driver's version.
	Version string
	// Node is the name of the node.
	Node string
	// Socket is where the kubelet calls the driver, and Endpoint is the same socket as the kubelet sees it.
	Socket, Endpoint string
	// RegistrationSocket is where the kubelet finds out that the driver is there.
	RegistrationSocket string
	// Timeout is how long a pod waits for its data key before its event says why. The kubelet then tries again.
	Timeout time.Duration
	// Cluster is the API server. Its credentials are not used.
	Cluster *rest.Config
	// Pairs generates key pairs.
	Pairs fetch.KeyPairs
	Log   logr.Logger
}

// errNotRegistered ends the driver, so that it is started again and registers again.
var errNotRegistered = errors.New("the kubelet rejected the registration")

// Run serves the kubelet until ctx ends.
func Run(ctx context.Context, o Options) error {
	survive := grpc.UnaryInterceptor(recovering(o.Log))
	driver, registrar := grpc.NewServer(survive), grpc.NewServer(survive)
	csispec.RegisterIdentityServer(driver, identity{version: o.Version})
	node := newNode(o)
	csispec.RegisterNodeServer(driver, node)
	rejected := make(chan error, 1)
	registration.RegisterRegistrationServer(registrar, registrant{endpoint: o.Endpoint, rejected: rejected, log: o.Log})

	// The kubelet calls the driver as soon as it has found the second socket.
	ours, err := listen(o.Socket)
	if err != nil {
		return err
	}
	theirs, err := listen(o.RegistrationSocket)
	if err != nil {
		_ = ours.Close()
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return driver.Serve(ours) })
	group.Go(func() error { return registrar.Serve(theirs) })
	group.Go(func() error {
		var err error
		select {
		case <-ctx.Done():
		case err = <-rejected:
		}
		registrar.GracefulStop()
		driver.GracefulStop()
		node.removed.wait()
		return err
	})
	o.Log.Info("Serving the kubelet", "socket", o.Socket, "registration", o.RegistrationSocket, "node", o.Node)
	return group.Wait()
}

// recovering has a request that panics fail, and not the driver, whose other requests are of other pods. What the panic says
// is logged only if it is an error of the runtime: others may contain anything.
func recovering(log logr.Logger) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (answer any, err error) {
		defer func() {
			if cause := recover(); cause != nil {
				says, _ := cause.(runtime.Error)
				log.Error(says, "A request panicked", "method", info.FullMethod, "panic", fmt.Sprintf("%T", cause), "stack", string(debug.Stack()))
				answer, err = nil, status.Error(codes.Internal, "an internal error: see the log of the driver")
			}
		}()
		return handle(ctx, req)
	}
}

// listen listens on a socket, in place of one that a former process has left.
func listen(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listening for the kubelet: %w", err)
	}
	return l, nil
}

// identity implements csispec.IdentityServer.
type identity struct {
	csispec.UnimplementedIdentityServer
	version string
}

// GetPluginInfo implements csispec.IdentityServer.
func (i identity) GetPluginInfo(context.Context, *csispec.GetPluginInfoRequest) (*csispec.GetPluginInfoResponse, error) {
	return &csispec.GetPluginInfoResponse{Name: Name, VendorVersion: i.version}, nil
}

// GetPluginCapabilities implements csispec.IdentityServer.
func (identity) GetPluginCapabilities(context.Context, *csispec.GetPluginCapabilitiesRequest) (*csispec.GetPluginCapabilitiesResponse, error) {
	return &csispec.GetPluginCapabilitiesResponse{}, nil
}

// Probe implements csispec.IdentityServer.
func (identity) Probe(context.Context, *csispec.ProbeRequest) (*csispec.ProbeResponse, error) {
	return &csispec.ProbeResponse{Ready: wrapperspb.Bool(true)}, nil
}

// registrant implements registration.RegistrationServer, so that no other container has to register the driver.
type registrant struct {
	registration.UnimplementedRegistrationServer
	endpoint string
	rejected chan<- error
	log      logr.Logger
}

// GetInfo implements registration.RegistrationServer.
func (r registrant) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{Type: registration.CSIPlugin, Name: Name, Endpoint: r.endpoint, SupportedVersions: []string{"1.0.0"}}, nil
}

// NotifyRegistrationStatus implements registration.RegistrationServer.
func (r registrant) NotifyRegistrationStatus(_ context.Context, status *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	if status.PluginRegistered {
		r.log.Info("The kubelet has registered the driver")
	} else {
		select {
		case r.rejected <- fmt.Errorf("%w: %s", errNotRegistered, status.Error):
		default: // one is enough
		}
	}
	return &registration.RegistrationStatusResponse{}, nil
}
