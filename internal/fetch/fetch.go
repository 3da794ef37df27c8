// Package fetch gets a data key for a pod. It has the operator export the data key to a key pair that exists only in the
// memory of this process, so that what passes through the API server is of no use to those who read it.
//
// All requests are made as the pod's ServiceAccount, which needs the verb export on the DataKey, and create and watch on
// exporteddatakeys in the pod's namespace.
package fetch

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/redact"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// Pod is the pod that gets the data key. It owns the ExportedDataKey.
type Pod struct {
	Namespace, Name string
	UID             types.UID
}

// Request says which data key is exported to which type of key pair.
type Request struct {
	DataKey types.NamespacedName
	// Digest is that of the only data key that is wanted, even if the DataKey was replaced: see Client.Next. Empty for
	// whichever has the name.
	Digest    string
	Pod       Pod
	KeySpec   wrapping.KeySpec
	Algorithm wrapping.Algorithm
}

// DefaultAlgorithm returns the wrapping algorithm for a type of key pair, if none is given.
func DefaultAlgorithm(spec wrapping.KeySpec) wrapping.Algorithm {
	if spec == wrapping.ECSM2 {
		return wrapping.SM2PKE
	}
	return wrapping.RSAESOAEPSHA256
}

// KeyPairs returns a new key pair, which is used once.
type KeyPairs func(ctx context.Context, spec wrapping.KeySpec) (*wrapping.PrivateKey, error)

// Generate is the KeyPairs that generates each on request.
func Generate(_ context.Context, spec wrapping.KeySpec) (*wrapping.PrivateKey, error) {
	return wrapping.GeneratePrivateKey(rand.Reader, spec)
}

// Client makes the requests of one pod.
type Client struct {
	api   client.WithWatch
	pairs KeyPairs
	later func(remove func()) // nil for at once
}

// NewClient returns a Client with the credentials in cfg. It makes no request.
func NewClient(cfg *rest.Config, pairs KeyPairs) (*Client, error) {
	options, err := clientOptions()
	if err != nil {
		return nil, err
	}
	cfg = rest.CopyConfig(cfg)
	cfg.QPS = -1 // the API server's Priority and Fairness is the limit
	api, err := client.NewWithWatch(cfg, options)
	if err != nil {
		return nil, err
	}
	return &Client{api: api, pairs: pairs}, nil
}

// clientOptions have the kinds and resources that a Client uses. All Clients of a process share them. A fixed mapping avoids
// discovery, which takes more requests than the fetch itself.
var clientOptions = sync.OnceValues(func() (client.Options, error) {
	scheme, mapper := runtime.NewScheme(), meta.NewDefaultRESTMapper(nil)
	for kind, name := range map[string]string{"ExportedDataKey": "exporteddatakey", "DataKey": "datakey"} {
		group := v1alpha1.GroupVersion
		mapper.AddSpecific(group.WithKind(kind), group.WithResource(name+"s"), group.WithResource(name), meta.RESTScopeNamespace)
	}
	return client.Options{Scheme: scheme, Mapper: mapper}, v1alpha1.AddToScheme(scheme)
})

// RemoveLater has the objects of a Client deleted by another goroutine, so that a pod need not wait for that. later must not
// block.
func (c *Client) RemoveLater(later func(remove func())) { c.later = later }

// DataKey has the data key exported and returns it. Errors of the API server that may pass are retried until ctx ends. The
// object that it creates is deleted before it returns, unless RemoveLater was called; if that fails, Kubernetes deletes it with
// the pod.
//
// Errors are *Error, or that of a canceled ctx. The caller must wipe the data key.
func (c *Client) DataKey(ctx context.Context, r Request) (redact.Bytes, error) {
	key, err := c.pairs(ctx, r.KeySpec)
	if err != nil {
		return nil, err
	}
	defer key.Wipe()
	object := newExport(r, key.Public())
	mayExist, err := c.create(ctx, r, object)
	if mayExist {
		defer c.removeOrLater(ctx, object)
	}
	if err != nil {
		return nil, err
	}
	exported, err := c.await(ctx, object)
	if err != nil {
		return nil, err
	}
	return open(key, r.Algorithm, exported)
}

// newExport returns the object that asks for the export. Its name is chosen here and not by the API server, so that it is
// known even if the answer to the request is lost.
func newExport(r Request, recipient *wrapping.PublicKey) *v1alpha1.ExportedDataKey {
	const maxPrefix = 200
	prefix := r.Pod.Name[:min(len(r.Pod.Name), maxPrefix)]
	e := &v1alpha1.ExportedDataKey{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: r.Pod.Namespace, Name: strings.TrimRight(prefix, "-.") + "-" + strings.ToLower(rand.Text()),
			// blockOwnerDeletion is not set, because it would require a permission on pods.
			OwnerReferences: []metav1.OwnerReference{{
				APIVersion: corev1.SchemeGroupVersion.String(), Kind: "Pod", Name: r.Pod.Name, UID: r.Pod.UID,
			}},
		},
		Spec: v1alpha1.ExportedDataKeySpec{
			DataKeyRef:      &v1alpha1.DataKeyReference{Name: v1alpha1.ObjectName(r.DataKey.Name), Digest: r.Digest},
			PublicKey:       v1alpha1.PublicKeySource{Type: v1alpha1.SourceBlob, Blob: recipient.Base64()},
			WrappingKeySpec: v1alpha1.WrappingKeySpec(r.KeySpec), WrappingAlgorithm: string(r.Algorithm),
			Delivery: v1alpha1.DeliveryStatus,
		},
	}
	if r.DataKey.Namespace != r.Pod.Namespace {
		e.Spec.DataKeyRef.Namespace = v1alpha1.NamespaceName(r.DataKey.Namespace)
	}
	return e
}

// create creates the object, and fills in the metadata that the API server adds to it. With an error, the object may exist all
// the same: if the API server changed it, or if an answer was lost.
func (c *Client) create(ctx context.Context, r Request, object *v1alpha1.ExportedDataKey) (mayExist bool, err error) {
	err = retry(ctx, briefly(func(ctx context.Context) error {
		created := object.DeepCopy()
		err := c.api.Create(ctx, created)
		mayExist = mayExist || !isRejected(err)
		switch {
		case err == nil:
			object.ObjectMeta = created.ObjectMeta
			return checkUnchanged(object, created)
		case apierrors.IsAlreadyExists(err):
			return nil // by a request of ours whose answer was lost: only this process knows the name
		}
		return err
	}))
	return mayExist, explainCreate(err, r)
}

// isRejected reports whether an error says that a request had no effect: it was not sent, or the API server has rejected it.
func isRejected(err error) bool {
	var network *net.OpError
	if errors.As(err, &network) && network.Op == "dial" {
		return true
	}
	var status apierrors.APIStatus
	return errors.As(err, &status) && status.Status().Code < http.StatusInternalServerError && !apierrors.IsAlreadyExists(err)
}

// checkUnchanged checks that an object is the one that was created, and still asks for the same export: otherwise, others
// choose which data key the pod gets. The spec has no fields with defaults of the API server. The UID is not known if the
// answer to the creation was lost.
func checkUnchanged(created, is *v1alpha1.ExportedDataKey) error {
	switch {
	case created.UID != "" && is.UID != created.UID:
		return changed(is, "it was deleted and created again")
	case is.Spec.Delivery != created.Spec.Delivery:
		return &Error{Kind: Absent, Problem: "the cluster's definition of ExportedDataKeys has no delivery Status: it is older than this program",
			Hint: "upgrade Keyconvoy in the cluster, first its CustomResourceDefinitions"}
	case !equality.Semantic.DeepEqual(is.Spec, created.Spec):
		return changed(is, "its spec is another one")
	}
	return nil
}

func changed(is *v1alpha1.ExportedDataKey, how string) error {
	return &Error{Kind: Refused, Problem: fmt.Sprintf("the ExportedDataKey %s was changed: %s", is.Name, how),
		Hint: "find out who changes ExportedDataKeys in namespace " + is.Namespace}
}

// removeOrLater deletes the object, or has it deleted later.
func (c *Client) removeOrLater(ctx context.Context, object *v1alpha1.ExportedDataKey) {
	remove := func() { c.remove(ctx, object) }
	if c.later == nil {
		remove()
	} else {
		c.later(remove)
	}
}

// removeWithin limits the deletion of the object, which need not succeed.
const removeWithin = 10 * time.Second

// remove deletes the object, also if ctx has ended.
func (c *Client) remove(ctx context.Context, object *v1alpha1.ExportedDataKey) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeWithin)
	defer cancel()
	_ = retry(ctx, func(ctx context.Context) error { return c.api.Delete(ctx, object) })
}

// open decrypts an export. Its fingerprint shows whether it is for another recipient.
func open(key *wrapping.PrivateKey, algorithm wrapping.Algorithm, exported *v1alpha1.ExportedDataKey) (redact.Bytes, error) {
	if is := exported.Status.RecipientFingerprint; is != key.Public().Fingerprint() {
		return nil, changed(exported, "its recipient is "+is)
	}
	wrapped, err := base64.StdEncoding.DecodeString(exported.Status.ExportedDataKey)
	if err != nil {
		return nil, &Error{Kind: Refused, Problem: "status.exportedDataKey of ExportedDataKey " + exported.Name + " is not Base64"}
	}
	dataKey, err := key.Unwrap(algorithm, "", wrapped)
	if err == nil && len(dataKey) == 0 {
		err = wrapping.ErrUnwrap // a data key is never empty
	}
	if errors.Is(err, wrapping.ErrUnwrap) {
		return nil, &Error{Kind: Refused, Problem: "the exported data key cannot be decrypted",
			Hint: "the module may have returned a wrong result; see the conditions of the key store"}
	}
	return dataKey, err
}
