package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/keyconvoy/keyconvoy/hack/e2e/image"
)

const (
	containerdSocket = "/run/containerd/containerd.sock"
	pauseImage       = "registry.example.com/pause:v1"
	cniConfigDir     = stateDir + "/cni"
	cniBinaryDir     = "/usr/lib/cni" // of Debian's package
)

// containerdConfig lets the CRI plugin use only what is on the node.
const containerdConfig = `version = 3
disabled_plugins = ["io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing"]
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = '` + pauseImage + `'
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true # a machine may not permit lower scores
[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ['` + cniBinaryDir + `']
  conf_dir = '` + cniConfigDir + `'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = 'io.containerd.runc.v2'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
  SystemdCgroup = false
`

// cniConfig connects each pod to the node by a pair of interfaces.
const cniConfig = `{
  "cniVersion": "1.0.0",
  "name": "pods",
  "plugins": [{
    "type": "ptp",
    "ipam": {"type": "host-local", "ranges": [[{"subnet": "` + podNetwork + `"}]], "routes": [{"dst": "0.0.0.0/0"}],
      "dataDir": "` + stateDir + `/cni-addresses"}
  }]
}
`

// startContainerd starts containerd with the image of pods' sandboxes.
func (n *node) startContainerd(ctx context.Context) error {
	if err := os.MkdirAll(cniConfigDir, 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(cniConfigDir, "10-pods.conflist"), []byte(cniConfig), 0o600); err != nil {
		return err
	}
	config := filepath.Join(stateDir, "containerd.toml")
	if err := os.WriteFile(config, []byte(containerdConfig), 0o600); err != nil {
		return err
	}
	if err := n.run("containerd", "--config="+config); err != nil {
		return err
	}
	if err := waitFor(ctx, func() error {
		return exec.CommandContext(ctx, filepath.Join(n.binaries, "ctr"), "version").Run()
	}); err != nil {
		return fmt.Errorf("containerd is not ready: %w", err)
	}
	pause := image.Image{
		Name:       pauseImage,
		Files:      map[string]string{"/pause": filepath.Join(n.binaries, "pause")},
		Entrypoint: []string{"/pause"},
		User:       "65535:65535",
	}
	return pause.Import(ctx, filepath.Join(n.binaries, "ctr"))
}

// waitFor calls check until it returns nil. It allows for a busy machine.
func waitFor(ctx context.Context, check func() error) error {
	ticker := time.NewTicker(200 * time.Millisecond)
	defer ticker.Stop()
	timeout := time.After(3 * time.Minute)
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-timeout:
			return err
		case <-ticker.C:
		}
	}
}
