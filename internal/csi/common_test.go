package csi_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"k8s.io/client-go/rest"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/keyconvoy/keyconvoy/internal/csi"
	"github.com/keyconvoy/keyconvoy/internal/fetch"
	"github.com/keyconvoy/keyconvoy/internal/testenv"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
	"github.com/keyconvoy/keyconvoy/internal/testenv/pods"
)

// inNamespace marks the process that has a mount namespace of its own.
const inNamespace = "KEYCONVOY_TEST_OWN_MOUNTS"

// The tests mount file systems, in a mount namespace of their own, so that nothing remains on the machine.
func TestMain(m *testing.M) {
	ctrl.SetLogger(logr.Discard())
	if os.Getenv(inNamespace) != "" {
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			fmt.Fprintln(os.Stderr, "making the mounts private:", err)
			os.Exit(1)
		}
		testenv.Main(m)
	}
	self := exec.Command("/proc/self/exe", os.Args[1:]...)
	self.Args[0], self.Env = os.Args[0], append(os.Environ(), inNamespace+"=1")
	self.Stdin, self.Stdout, self.Stderr = os.Stdin, os.Stdout, os.Stderr
	self.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if err := self.Run(); err != nil && self.ProcessState == nil {
		fmt.Fprintln(os.Stderr, "these tests mount file systems, so they run as root:", err)
		os.Exit(1)
	}
	os.Exit(self.ProcessState.ExitCode())
}

// driver is a driver that runs, as the kubelet sees it.
type driver struct {
	csispec.NodeClient
	identity     csispec.IdentityClient
	registration registration.RegistrationClient
	dir          string
	log          *harness.Buffer
	stop         func() error
}

// start starts a driver with a directory that a former one may have had.
func start(t testing.TB, dir string, cluster *rest.Config, change ...func(*csi.Options)) *driver {
	t.Helper()
	d := &driver{dir: dir, log: &harness.Buffer{}}
	o := csi.Options{
		Version: "test", Node: "node", Socket: filepath.Join(dir, "csi.sock"), Endpoint: "/of/the/kubelet/csi.sock",
		RegistrationSocket: filepath.Join(dir, "reg.sock"), Timeout: 2 * time.Minute, Cluster: cluster, Pairs: fetch.Generate,
		Log: funcr.New(func(prefix, line string) { _, _ = d.log.Write([]byte(prefix + line + "\n")) }, funcr.Options{}),
	}
	for _, c := range change {
		c(&o)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- csi.Run(ctx, o) }()
	d.stop = sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	t.Cleanup(func() {
		if err := d.stop(); err != nil {
			t.Errorf("the driver ended with %v", err)
		}
	})
	ours, theirs := connect(t, o.Socket), connect(t, o.RegistrationSocket)
	d.NodeClient, d.identity, d.registration = csispec.NewNodeClient(ours), csispec.NewIdentityClient(ours), registration.NewRegistrationClient(theirs)
	return d
}

func connect(t testing.TB, socket string) *grpc.ClientConn {
	t.Helper()
	c, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// node is a cluster with a driver on a node.
type node struct {
	*pods.Cluster
	*driver
}

func startNode(t *testing.T) node {
	t.Helper()
	c := pods.Start(t)
	return node{c, start(t, t.TempDir(), c.Env.Config)}
}

// mounting is a request as the kubelet makes it for a pod.
func (n node) mounting(t testing.TB, pod fetch.Pod, account string, attributes map[string]string) *csispec.NodePublishVolumeRequest {
	t.Helper()
	tokens, err := json.Marshal(map[string]any{"": map[string]string{"token": n.Token(account), "expirationTimestamp": "2099-01-01T00:00:00Z"}})
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{
		"csi.storage.k8s.io/ephemeral": "true", "csi.storage.k8s.io/serviceAccount.tokens": string(tokens), "csi.storage.k8s.io/serviceAccount.name": account,
		"csi.storage.k8s.io/pod.name": pod.Name, "csi.storage.k8s.io/pod.uid": string(pod.UID), "csi.storage.k8s.io/pod.namespace": pod.Namespace,
		"dataKey": pods.DataKey,
	}
	for name, value := range attributes {
		all[name] = value
	}
	parent := filepath.Join(n.dir, "pods", string(pod.UID))
	if err := os.MkdirAll(parent, 0o750); err != nil {
		t.Fatal(err)
	}
	return &csispec.NodePublishVolumeRequest{
		VolumeId: "csi-" + string(pod.UID), TargetPath: filepath.Join(parent, "mount"), VolumeContext: all,
		VolumeCapability: &csispec.VolumeCapability{
			AccessType: &csispec.VolumeCapability_Mount{Mount: &csispec.VolumeCapability_MountVolume{}},
			AccessMode: &csispec.VolumeCapability_AccessMode{Mode: csispec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
		},
	}
}

// permitted makes a pod with the documented permissions, and the request for its volume.
func (n node) permitted(t testing.TB, name string, attributes map[string]string) *csispec.NodePublishVolumeRequest {
	t.Helper()
	account := n.Account(pods.MayExport, pods.MayRequest)
	return n.mounting(t, n.Pod(name, account), account, attributes)
}

func (n node) publish(t testing.TB, r *csispec.NodePublishVolumeRequest) {
	t.Helper()
	if _, err := n.NodePublishVolume(t.Context(), r); err != nil {
		t.Fatal(err)
	}
}

func (n node) unpublish(t testing.TB, r *csispec.NodePublishVolumeRequest) {
	t.Helper()
	if _, err := n.NodeUnpublishVolume(t.Context(), &csispec.NodeUnpublishVolumeRequest{VolumeId: r.VolumeId, TargetPath: r.TargetPath}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(r.TargetPath); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory of the volume still exists: %v", err)
	}
}

// isRejected checks the code of a request's error, and what the pod's event says.
func (n node) isRejected(t testing.TB, r *csispec.NodePublishVolumeRequest, code codes.Code, words ...string) {
	t.Helper()
	_, err := n.NodePublishVolume(t.Context(), r)
	if status.Code(err) != code {
		t.Fatalf("the error is %v, want %s", err, code)
	}
	harness.WantWords(t, status.Convert(err).Message(), words)
	if mounts(t, r.TargetPath) != nil {
		t.Error("a volume was mounted")
	}
}

// mounts returns the lines of the mounts on a directory.
func mounts(t testing.TB, dir string) (all []string) {
	t.Helper()
	text, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if strings.Fields(line)[1] == dir {
			all = append(all, line)
		}
	}
	return all
}

func read(t testing.TB, r *csispec.NodePublishVolumeRequest, name string) []byte {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(r.TargetPath, name))
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// noneLeft waits until no ExportedDataKey is left.
func (n node) noneLeft(t testing.TB) {
	t.Helper()
	harness.Eventually(t, func() string {
		if all := n.Exports(); len(all) != 0 {
			return fmt.Sprintf("%d ExportedDataKeys are left", len(all))
		}
		return ""
	})
}

// noToken checks that the log contains no token.
func (n node) noToken(t testing.TB, r *csispec.NodePublishVolumeRequest) {
	t.Helper()
	var tokens map[string]struct{ Token string }
	if err := json.Unmarshal([]byte(r.VolumeContext["csi.storage.k8s.io/serviceAccount.tokens"]), &tokens); err != nil {
		t.Fatal(err)
	}
	if log := n.log.String(); log == "" || strings.Contains(log, tokens[""].Token) {
		t.Errorf("the log is empty, or contains a token:\n%s", log)
	}
}
