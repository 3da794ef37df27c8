package csi_test

import (
	"bytes"
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/go-logr/logr"
	"google.golang.org/grpc/codes"
	"k8s.io/client-go/rest"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"github.com/keyconvoy/keyconvoy/internal/csi"
)

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
