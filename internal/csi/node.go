package csi

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/go-logr/logr"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/client-go/rest"

	"github.com/keyconvoy/keyconvoy/internal/fetch"
	"github.com/keyconvoy/keyconvoy/internal/redact"
)

// node implements csispec.NodeServer.
type node struct {
	csispec.UnimplementedNodeServer
	name    string
	timeout time.Duration
	cluster *rest.Config
	pairs   fetch.KeyPairs
	log     logr.Logger
	busy    locks
	removed removals
}

func newNode(o Options) *node {
	return &node{name: o.Node, timeout: o.Timeout, cluster: rest.AnonymousClientConfig(o.Cluster), pairs: o.Pairs, log: o.Log}
}

// NodeGetInfo implements csispec.NodeServer.
func (n *node) NodeGetInfo(context.Context, *csispec.NodeGetInfoRequest) (*csispec.NodeGetInfoResponse, error) {
	return &csispec.NodeGetInfoResponse{NodeId: n.name}, nil
}

// NodeGetCapabilities implements csispec.NodeServer. With VOLUME_MOUNT_GROUP the kubelet passes the fsGroup of the pod, and
// does not change the permissions of the files itself.
func (n *node) NodeGetCapabilities(context.Context, *csispec.NodeGetCapabilitiesRequest) (*csispec.NodeGetCapabilitiesResponse, error) {
	return &csispec.NodeGetCapabilitiesResponse{Capabilities: []*csispec.NodeServiceCapability{{
		Type: &csispec.NodeServiceCapability_Rpc{Rpc: &csispec.NodeServiceCapability_RPC{Type: csispec.NodeServiceCapability_RPC_VOLUME_MOUNT_GROUP}},
	}}}, nil
}

// NodePublishVolume implements csispec.NodeServer. The kubelet repeats it until it succeeds, and may repeat it afterwards. A
// volume that is complete stays as it is.
func (n *node) NodePublishVolume(ctx context.Context, req *csispec.NodePublishVolumeRequest) (*csispec.NodePublishVolumeResponse, error) {
	v, err := parse(req)
	if err != nil {
		return nil, err
	}
	defer n.busy.lock(v.target)()
	log := n.log.WithValues("pod", v.request.Pod.Name, "namespace", v.request.Pod.Namespace, "dataKey", v.request.DataKey.String(), "volume", req.GetVolumeId())
	complete, err := v.isComplete()
	if err == nil && !complete {
		err = n.fill(ctx, v)
	}
	if err == nil {
		err = v.protect()
	}
	if err != nil {
		log.Error(err, "Publishing a volume failed")
		return nil, asStatus(err)
	}
	if !complete {
		log.Info("Published a volume")
	}
	return &csispec.NodePublishVolumeResponse{}, nil
}

// fill fetches the data key and puts it into the volume. Nothing is mounted before the data key is there.
func (n *node) fill(ctx context.Context, v *volume) error {
	dataKey, err := n.fetch(ctx, v)
	if err != nil {
		return err
	}
	defer dataKey.Wipe()
	return v.write(dataKey)
}

// fetch gets the data key with the pod's token.
func (n *node) fetch(ctx context.Context, v *volume) (redact.Bytes, error) {
	asPod := rest.CopyConfig(n.cluster)
	asPod.BearerToken = v.token
	client, err := fetch.NewClient(asPod, n.pairs)
	if err != nil {
		return nil, err
	}
	client.RemoveLater(n.removed.add)
	ctx, cancel := context.WithTimeout(ctx, n.timeout)
	defer cancel()
	return client.DataKey(ctx, v.request)
}

// NodeUnpublishVolume implements csispec.NodeServer. It needs neither the API server nor anything that the plugin remembers.
func (n *node) NodeUnpublishVolume(_ context.Context, req *csispec.NodeUnpublishVolumeRequest) (*csispec.NodeUnpublishVolumeResponse, error) {
	target := filepath.Clean(req.GetTargetPath())
	if !filepath.IsAbs(target) {
		return nil, invalid("the target path is not absolute")
	}
	defer n.busy.lock(target)()
	log := n.log.WithValues("volume", req.GetVolumeId())
	if err := remove(target, log); err != nil {
		log.Error(err, "Removing a volume failed")
		return nil, status.Error(codes.Internal, err.Error())
	}
	log.Info("Removed a volume")
	return &csispec.NodeUnpublishVolumeResponse{}, nil
}

// asStatus gives an error the code of gRPC that says who can do something about it. Its text is shown in an event of the pod.
func asStatus(err error) error {
	var explained *fetch.Error
	if !errors.As(err, &explained) {
		return status.Error(codes.Internal, err.Error())
	}
	text := explained.Problem
	if explained.Hint != "" {
		text += "; " + explained.Hint
	}
	code := map[fetch.Kind]codes.Code{
		fetch.Denied: codes.PermissionDenied, fetch.Refused: codes.FailedPrecondition,
		fetch.Absent: codes.FailedPrecondition, fetch.Late: codes.DeadlineExceeded,
	}[explained.Kind]
	return status.Error(code, text)
}
