package csi_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keyconvoy/keyconvoy/internal/csi"
	"github.com/keyconvoy/keyconvoy/internal/fetch"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
	"github.com/keyconvoy/keyconvoy/internal/testenv/pods"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

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
