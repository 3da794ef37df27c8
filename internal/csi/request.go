package csi

import (
	"encoding/json"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/types"

	"github.com/keyconvoy/keyconvoy/internal/fetch"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// What the kubelet adds to the attributes of a volume (CSIDriver.spec.podInfoOnMount and tokenRequests).
const (
	kubeletPrefix    = "csi.storage.k8s.io/"
	contextEphemeral = kubeletPrefix + "ephemeral"
	contextPodName   = kubeletPrefix + "pod.name"
	contextPodUID    = kubeletPrefix + "pod.uid"
	contextNamespace = kubeletPrefix + "pod.namespace"
	contextTokens    = kubeletPrefix + "serviceAccount.tokens"
)

// The attributes of a volume, in the pod.
const (
	attributeDataKey   = "dataKey"
	attributeNamespace = "dataKeyNamespace"
	attributeFile      = "fileName"
	attributeKeySpec   = "wrappingKeySpec"
	attributeAlgorithm = "wrappingAlgorithm"
)

// defaultFile is the name of the file with the data key.
const defaultFile = "key"

// volume is a volume that is to be published.
type volume struct {
	target   string
	file     string
	group    int // of the file; -1 for none
	readOnly bool
	request  fetch.Request
	token    string
}

func invalid(format string, args ...any) error {
	return status.Errorf(codes.InvalidArgument, format, args...)
}

// parse reads a request to publish a volume.
func parse(req *csispec.NodePublishVolumeRequest) (*volume, error) {
	given := req.GetVolumeContext()
	switch {
	case !filepath.IsAbs(req.GetTargetPath()):
		return nil, invalid("the target path is not absolute")
	case given[contextEphemeral] != "true":
		return nil, invalid("%s offers ephemeral inline volumes only: use the volume in a pod, without a PersistentVolume", Name)
	case req.GetVolumeCapability().GetMount() == nil:
		return nil, invalid("%s offers no block volumes", Name)
	}
	v := &volume{target: filepath.Clean(req.GetTargetPath()), readOnly: req.GetReadonly(), group: -1}
	if group := req.GetVolumeCapability().GetMount().GetVolumeMountGroup(); group != "" {
		number, err := strconv.Atoi(group)
		if err != nil || number < 0 {
			return nil, invalid("the group of the volume is not a number")
		}
		v.group = number
	}
	if err := v.readAttributes(given); err != nil {
		return nil, err
	}
	if err := v.readToken(given[contextTokens], req.GetSecrets()[contextTokens]); err != nil {
		return nil, err
	}
	return v, nil
}

// readAttributes reads what the pod asks for, and who it is.
func (v *volume) readAttributes(given map[string]string) error {
	known := []string{attributeDataKey, attributeNamespace, attributeFile, attributeKeySpec, attributeAlgorithm}
	for name := range given {
		if !strings.HasPrefix(name, kubeletPrefix) && !slices.Contains(known, name) {
			return invalid("volumeAttributes: %s is unknown; there are %s", name, strings.Join(known, ", "))
		}
	}
	or := func(name, byDefault string) string {
		if given[name] == "" {
			return byDefault
		}
		return given[name]
	}
	r := &v.request
	r.Pod = fetch.Pod{Namespace: given[contextNamespace], Name: given[contextPodName], UID: types.UID(given[contextPodUID])}
	r.DataKey = types.NamespacedName{Namespace: or(attributeNamespace, r.Pod.Namespace), Name: given[attributeDataKey]}
	r.KeySpec = wrapping.KeySpec(or(attributeKeySpec, string(wrapping.RSA2048)))
	r.Algorithm = wrapping.Algorithm(or(attributeAlgorithm, string(fetch.DefaultAlgorithm(r.KeySpec))))
	v.file = or(attributeFile, defaultFile)
	switch {
	case r.DataKey.Name == "":
		return invalid("volumeAttributes: %s is missing; it is the name of the DataKey", attributeDataKey)
	case strings.Contains(v.file, "/") || strings.HasPrefix(v.file, ".") || len(v.file) > maxFileName:
		return invalid("volumeAttributes: %s must be the name of a file, without a directory or a dot in front, of at most %d characters", attributeFile, maxFileName)
	case r.Pod.Name == "" || r.Pod.Namespace == "" || r.Pod.UID == "":
		return status.Errorf(codes.FailedPrecondition, "the kubelet does not say which pod it is: set podInfoOnMount in the CSIDriver %s", Name)
	}
	if err := wrapping.CheckFit(r.KeySpec, r.Algorithm); err != nil || r.Algorithm == wrapping.RSAESPKCS1V15 {
		return invalid("volumeAttributes: %s and %s: EC_SM2 requires SM2PKE; RSA_2048, RSA_3072 and RSA_4096 require RSAES_OAEP_SHA_256 or RSAES_OAEP_SHA_1",
			attributeKeySpec, attributeAlgorithm)
	}
	return nil
}

// maxFileName is shorter than what file systems permit, because a temporary name is longer.
const maxFileName = 200

// readToken takes the token for the API server from those that the kubelet has requested, by their audiences.
func (v *volume) readToken(all ...string) error {
	for _, text := range all {
		var tokens map[string]struct{ Token string }
		if json.Unmarshal([]byte(text), &tokens) == nil && tokens[""].Token != "" {
			v.token = tokens[""].Token
			return nil
		}
	}
	return status.Errorf(codes.FailedPrecondition, "the kubelet passes no token of the pod's ServiceAccount: set tokenRequests in the CSIDriver %s to the audience \"\"", Name)
}
