package cli_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

func TestCSI_usedWrongly_saysWhatToDo(t *testing.T) {
	t.Parallel()
	keyconvoy(t, "csi").fails(t, 2, "NODE_NAME", "spec.nodeName")
	keyconvoy(t, "csi", "--node", "n").fails(t, 2, "--server")
	keyconvoy(t, "csi", "--node", "n", "--server", "https://127.0.0.1", "--timeout", "0s").fails(t, 2, "--timeout")
}

// The plugin needs neither an API server nor a token to start.
func TestCSI_servesTheKubelet_untilItIsTerminated(t *testing.T) {
	t.Parallel()
	kubelet := memory(t) // the path of a socket must be short
	if err := os.Mkdir(filepath.Join(kubelet, "plugins_registry"), 0o750); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	cmd := call{args: []string{"csi", "--node", "n", "--server", "https://127.0.0.1:1", "--kubelet-dir", kubelet}}.commandContext(ctx, t)
	out := startLines(t, cmd)
	out.wants(t, "Serving the kubelet")
	dial := func(socket string) *grpc.ClientConn {
		c, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	info, err := registration.NewRegistrationClient(dial(filepath.Join(kubelet, "plugins_registry", "csi.keyconvoy.io-reg.sock"))).
		GetInfo(t.Context(), &registration.InfoRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := csispec.NewIdentityClient(dial(info.Endpoint)).Probe(t.Context(), &csispec.ProbeRequest{}); err != nil {
		t.Error(err)
	}
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("it ended with %v", err)
	}
}
