package csi_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
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
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
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

func TestDriver_registersWithTheKubelet(t *testing.T) {
	t.Parallel()
	d := start(t, t.TempDir(), &rest.Config{Host: "http://127.0.0.1:1"}) // it needs no API server for that
	info, err := d.registration.GetInfo(t.Context(), &registration.InfoRequest{})
	if err != nil || info.Type != "CSIPlugin" || info.Name != "csi.keyconvoy.io" || info.Endpoint != "/of/the/kubelet/csi.sock" || len(info.SupportedVersions) != 1 {
		t.Errorf("the registration is %v, %v", info, err)
	}
	if _, err := d.registration.NotifyRegistrationStatus(t.Context(), &registration.RegistrationStatus{PluginRegistered: true}); err != nil {
		t.Error(err)
	}
	plugin, err := d.identity.GetPluginInfo(t.Context(), &csispec.GetPluginInfoRequest{})
	if err != nil || plugin.Name != info.Name || plugin.VendorVersion != "test" {
		t.Errorf("the plugin is %v, %v", plugin, err)
	}
	if ready, err := d.identity.Probe(t.Context(), &csispec.ProbeRequest{}); err != nil || !ready.Ready.GetValue() {
		t.Errorf("the plugin is not ready: %v", err)
	}
	if all, err := d.identity.GetPluginCapabilities(t.Context(), &csispec.GetPluginCapabilitiesRequest{}); err != nil || len(all.Capabilities) != 0 {
		t.Errorf("the capabilities are %v, %v", all, err)
	}
	if node, err := d.NodeGetInfo(t.Context(), &csispec.NodeGetInfoRequest{}); err != nil || node.NodeId != "node" {
		t.Errorf("the node is %v, %v", node, err)
	}
	if all, err := d.NodeGetCapabilities(t.Context(), &csispec.NodeGetCapabilitiesRequest{}); err != nil || len(all.Capabilities) != 1 ||
		all.Capabilities[0].GetRpc().Type != csispec.NodeServiceCapability_RPC_VOLUME_MOUNT_GROUP {
		t.Errorf("the capabilities of the node are %v, %v", all, err)
	}
}

func TestDriver_thatTheKubeletRejects_ends(t *testing.T) {
	t.Parallel()
	dir, ended := t.TempDir(), make(chan error, 1)
	go func() {
		ended <- csi.Run(context.Background(), csi.Options{
			Socket: filepath.Join(dir, "csi.sock"), RegistrationSocket: filepath.Join(dir, "reg.sock"), Cluster: &rest.Config{}, Log: logr.Discard(),
		})
	}()
	kubelet := registration.NewRegistrationClient(connect(t, filepath.Join(dir, "reg.sock")))
	if _, err := kubelet.NotifyRegistrationStatus(t.Context(), &registration.RegistrationStatus{Error: "no such version"}); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "no such version") {
		t.Errorf("the driver ended with %v", err)
	}
}

func TestPublish_givesThePodAFileInMemory_andUnpublishWipesIt(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	want := n.Plaintext()
	for sentence, test := range map[string]struct {
		attributes map[string]string
		group      string
		file       string
		mode, dir  fs.FileMode
	}{
		"by default":      {nil, "", "key", 0o444, 0o755},
		"with an fsGroup": {map[string]string{"fileName": "ledger.key"}, "2000", "ledger.key", 0o440, 0o750},
		"with SM2":        {map[string]string{"wrappingKeySpec": "EC_SM2"}, "", "key", 0o444, 0o755},
		"with SHA-1":      {map[string]string{"wrappingAlgorithm": "RSAES_OAEP_SHA_1", "wrappingKeySpec": "RSA_3072", "dataKeyNamespace": n.Namespace}, "", "key", 0o444, 0o755},
	} {
		r := n.permitted(t, "pod-"+strings.ReplaceAll(strings.ToLower(sentence), " ", "-"), test.attributes)
		r.VolumeCapability.GetMount().VolumeMountGroup = test.group
		n.publish(t, r)
		if got := read(t, r, test.file); !bytes.Equal(got, want) {
			t.Errorf("%s: the file has another data key", sentence)
		}
		checkModes(t, r.TargetPath, test.file, test.mode, test.dir, test.group)
		if lines := mounts(t, r.TargetPath); len(lines) != 1 || !strings.Contains(lines[0], "tmpfs rw,nosuid,nodev,noexec") || !strings.Contains(lines[0], "size=64k") {
			t.Errorf("%s: the mounts are %q", sentence, lines)
		}
		held, err := os.Open(filepath.Join(r.TargetPath, test.file))
		if err != nil {
			t.Fatal(err)
		}
		n.unpublish(t, r)
		kept := make([]byte, len(want))
		if _, err := held.Read(kept); err != nil || !bytes.Equal(kept, make([]byte, len(want))) {
			t.Errorf("%s: a process that has the file open can still read the data key: %v", sentence, err)
		}
		held.Close()
		n.unpublish(t, r) // again, as the kubelet may
		n.noToken(t, r)
	}
	n.noneLeft(t)
}

func checkModes(t testing.TB, dir, file string, fileMode, dirMode fs.FileMode, group string) {
	t.Helper()
	for path, mode := range map[string]fs.FileMode{dir: dirMode, filepath.Join(dir, file): fileMode} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		is := info.Sys().(*syscall.Stat_t)
		if group == "" {
			group = "0"
		}
		if info.Mode().Perm() != mode || is.Uid != 0 || fmt.Sprint(is.Gid) != group {
			t.Errorf("%s has mode %o, owner %d and group %d", path, info.Mode().Perm(), is.Uid, is.Gid)
		}
	}
	if all, err := os.ReadDir(dir); err != nil || len(all) != 1 {
		t.Errorf("the volume contains %v, %v", all, err)
	}
}

func TestPublish_readOnly(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	r := n.permitted(t, "pod", map[string]string{"wrappingKeySpec": "EC_SM2"})
	r.Readonly = true
	n.publish(t, r)
	if err := os.WriteFile(filepath.Join(r.TargetPath, "other"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("writing ends with %v", err)
	}
	n.publish(t, r)
	read(t, r, "key")
	n.unpublish(t, r)
	if log := n.log.String(); strings.Contains(log, "failed") {
		t.Errorf("the log is\n%s", log)
	}
}

// The pod has filled the volume, and left a file with a hole that is longer than any memory.
func TestUnpublish_ofAVolumeThatCannotBeOverwritten_unmountsIt(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	r := n.permitted(t, "pod", map[string]string{"wrappingKeySpec": "EC_SM2"})
	n.publish(t, r)
	held, err := os.Open(filepath.Join(r.TargetPath, "key"))
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	long := filepath.Join(r.TargetPath, "a-long-file") // before the data key, in the order of the directory
	if err := errors.Join(os.WriteFile(long, nil, 0o600), os.Truncate(long, 1<<60), unix.Mkfifo(filepath.Join(r.TargetPath, "fifo"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(r.TargetPath, "filler"), make([]byte, 1<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("filling the volume ended with %v", err)
	}
	n.unpublish(t, r)
	harness.WantWords(t, n.log.String(), []string{"Overwriting the files of a volume failed", "a-long-file: no space left on device"})
	kept, err := io.ReadAll(held)
	if err != nil || len(kept) == 0 || !bytes.Equal(kept, make([]byte, len(kept))) {
		t.Errorf("a process that has the file open can still read the data key: %v", err)
	}
}

func TestPublish_thatPanics_endsWithAnError_andTheDriverGoesOn(t *testing.T) {
	t.Parallel()
	c := pods.Start(t)
	var calls atomic.Int32
	n := node{c, start(t, t.TempDir(), c.Env.Config, func(o *csi.Options) {
		o.Pairs = func(ctx context.Context, spec wrapping.KeySpec) (*wrapping.PrivateKey, error) {
			if calls.Add(1) == 1 {
				panic("a secret")
			}
			return fetch.Generate(ctx, spec)
		}
	})}
	r := n.permitted(t, "pod", map[string]string{"wrappingKeySpec": "EC_SM2"})
	n.isRejected(t, r, codes.Internal, "see the log of the driver")
	if log := n.log.String(); !strings.Contains(log, "NodePublishVolume") || strings.Contains(log, "a secret") {
		t.Errorf("the log is\n%s", log)
	}
	n.publish(t, r)
	n.unpublish(t, r)
}

func TestPublish_again_exportsNothing(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	r := n.permitted(t, "pod", map[string]string{"wrappingKeySpec": "EC_SM2"})
	n.publish(t, r)
	exports := n.Calls()["ExportDataKey"]
	n.publish(t, r)
	n.publish(t, r)
	if now := n.Calls()["ExportDataKey"]; now != exports {
		t.Errorf("%d more exports were made", now-exports)
	}
	if all := mounts(t, r.TargetPath); len(all) != 1 {
		t.Errorf("the mounts are %q", all)
	}
	n.unpublish(t, r)
}

// The plugin ended between the mount and the file.
func TestPublish_ofAVolumeWithoutItsFile_completesIt(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	want := n.Plaintext()
	r := n.permitted(t, "pod", map[string]string{"wrappingKeySpec": "EC_SM2"})
	if err := os.Mkdir(r.TargetPath, 0o750); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("t", r.TargetPath, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	n.publish(t, r)
	if !bytes.Equal(read(t, r, "key"), want) || len(mounts(t, r.TargetPath)) != 1 {
		t.Error("the volume is not complete")
	}
	n.unpublish(t, r)
}

func TestDriver_restartedWhileTheAPIServerIsUnavailable_keepsVolumes(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	want := n.Plaintext()
	kept, ended, later := n.permitted(t, "kept", nil), n.permitted(t, "ended", nil), n.permitted(t, "later", nil)
	n.publish(t, kept)
	n.publish(t, ended)
	if err := n.stop(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(read(t, kept, "key"), want) {
		t.Error("the volume did not outlive the plugin")
	}

	n.noneLeft(t)
	n.driver = start(t, n.dir, &rest.Config{Host: "http://127.0.0.1:1"}, func(o *csi.Options) { o.Timeout = time.Second })
	n.publish(t, kept) // as the kubelet does when it was restarted, too
	if !bytes.Equal(read(t, kept, "key"), want) {
		t.Error("the volume has another data key")
	}
	n.unpublish(t, ended)
	n.isRejected(t, later, codes.DeadlineExceeded, "the API server did not answer in time", "check that the pod can reach the API server")
	if err := n.stop(); err != nil {
		t.Fatal(err)
	}

	n.driver = start(t, n.dir, n.Env.Config)
	n.publish(t, later)
	if !bytes.Equal(read(t, later, "key"), want) {
		t.Error("the volume has another data key")
	}
	n.unpublish(t, later)
	n.unpublish(t, kept)
}

func TestPublish_thatCannotSucceed_saysWhatToDo(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	full := n.Account(pods.MayExport, pods.MayRequest)
	pod := n.Pod("pod", full)
	without := func(name string) func(*csispec.NodePublishVolumeRequest) {
		return func(r *csispec.NodePublishVolumeRequest) { delete(r.VolumeContext, name) }
	}
	with := func(name, value string) func(*csispec.NodePublishVolumeRequest) {
		return func(r *csispec.NodePublishVolumeRequest) { r.VolumeContext[name] = value }
	}
	for sentence, test := range map[string]struct {
		account string
		change  func(*csispec.NodePublishVolumeRequest)
		code    codes.Code
		says    []string
	}{
		"without the verb export":        {n.Account(pods.MayRequest), nil, codes.PermissionDenied, []string{"requires the verb export", "export on the DataKey ledger in namespace " + n.Namespace}},
		"without the verb create":        {n.Account(pods.MayExport), nil, codes.PermissionDenied, []string{"cannot create resource", "create, watch and delete on exporteddatakeys in namespace " + n.Namespace}},
		"without the name of a data key": {full, without("dataKey"), codes.InvalidArgument, []string{"volumeAttributes: dataKey is missing"}},
		"with a typing error":            {full, with("datakey", "ledger"), codes.InvalidArgument, []string{"volumeAttributes: datakey is unknown", "dataKeyNamespace"}},
		"with a path for a file":         {full, with("fileName", "../../etc/passwd"), codes.InvalidArgument, []string{"fileName must be the name of a file"}},
		"with a hidden file":             {full, with("fileName", ".."), codes.InvalidArgument, []string{"fileName must be the name of a file"}},
		"with algorithms of two kinds":   {full, with("wrappingAlgorithm", "SM2PKE"), codes.InvalidArgument, []string{"EC_SM2 requires SM2PKE"}},
		"with an algorithm of no export": {full, with("wrappingAlgorithm", "RSAES_PKCS1_V1_5"), codes.InvalidArgument, []string{"RSAES_OAEP_SHA_256"}},
		"without a token":                {full, without("csi.storage.k8s.io/serviceAccount.tokens"), codes.FailedPrecondition, []string{"tokenRequests"}},
		"without the pod":                {full, without("csi.storage.k8s.io/pod.uid"), codes.FailedPrecondition, []string{"podInfoOnMount"}},
		"as a persistent volume":         {full, with("csi.storage.k8s.io/ephemeral", "false"), codes.InvalidArgument, []string{"ephemeral inline volumes only"}},
		"as a block volume": {full, func(r *csispec.NodePublishVolumeRequest) {
			r.VolumeCapability.AccessType = &csispec.VolumeCapability_Block{Block: &csispec.VolumeCapability_BlockVolume{}}
		}, codes.InvalidArgument, []string{"no block volumes"}},
		"with a group that is no number": {full, func(r *csispec.NodePublishVolumeRequest) { r.VolumeCapability.GetMount().VolumeMountGroup = "staff" }, codes.InvalidArgument, []string{"not a number"}},
		"with a relative path":           {full, func(r *csispec.NodePublishVolumeRequest) { r.TargetPath = "mount" }, codes.InvalidArgument, []string{"not absolute"}},
	} {
		r := n.mounting(t, pod, test.account, map[string]string{"wrappingKeySpec": "EC_SM2"})
		if strings.Contains(sentence, "algorithm") {
			delete(r.VolumeContext, "wrappingKeySpec")
		}
		if test.change != nil {
			test.change(r)
		}
		t.Log(sentence)
		n.isRejected(t, r, test.code, test.says...)
	}
}

// With serviceAccountTokenInSecrets, the kubelet passes tokens as secrets.
func TestPublish_acceptsTokensInSecrets(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	r := n.permitted(t, "pod", map[string]string{"wrappingKeySpec": "EC_SM2"})
	const tokens = "csi.storage.k8s.io/serviceAccount.tokens"
	r.Secrets = map[string]string{tokens: r.VolumeContext[tokens]}
	delete(r.VolumeContext, tokens)
	n.publish(t, r)
	n.unpublish(t, r)
}

func TestUnpublish_leavesOtherFileSystemsAlone(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	dir := t.TempDir()
	target := filepath.Join(dir, "mount")
	if err := os.Mkdir(target, 0o750); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("proc", target, "proc", 0, ""); err != nil {
		t.Fatal(err)
	}
	_, err := n.NodeUnpublishVolume(t.Context(), &csispec.NodeUnpublishVolumeRequest{VolumeId: "v", TargetPath: target})
	if status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "another file system is mounted") {
		t.Errorf("the error is %v", err)
	}
	if err := unix.Unmount(target, 0); err != nil {
		t.Fatal(err)
	}
}

// Many pods start at once, each volume is asked for twice, and the plugin is stopped in between.
func TestPublish_ofManyPodsAtOnce_withARestart(t *testing.T) {
	t.Parallel()
	const many = 50
	n := startNode(t)
	want := n.Plaintext()
	account := n.Account(pods.MayExport, pods.MayRequest)
	requests := make([]*csispec.NodePublishVolumeRequest, many)
	for i := range requests {
		requests[i] = n.mounting(t, n.Pod(fmt.Sprintf("pod-%d", i), account), account, nil)
	}
	var published sync.WaitGroup
	for i, r := range requests {
		for range 2 {
			published.Go(func() {
				harness.Eventually(t, func() string { // as the kubelet tries again
					if _, err := n.NodePublishVolume(t.Context(), r); err != nil {
						return err.Error()
					}
					return ""
				})
			})
		}
		if i == many/2 {
			if err := n.stop(); err != nil {
				t.Error(err)
			}
			again := start(t, n.dir, n.Env.Config)
			t.Cleanup(func() { _ = again.stop() })
		}
	}
	published.Wait()
	for _, r := range requests {
		if !bytes.Equal(read(t, r, "key"), want) || len(mounts(t, r.TargetPath)) != 1 {
			t.Errorf("the volume of %s is not as it should be", r.VolumeId)
		}
		n.unpublish(t, r)
	}
	n.noneLeft(t)
}
