package gateway

import (
	"context"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/gateway/wire"
	"github.com/keyconvoy/keyconvoy/internal/redact"
	"github.com/keyconvoy/keyconvoy/internal/secrets"
)

// indexAccessKey lists AccessKeys by their identifiers.
const indexAccessKey = "accessKeyID"

func accessKeyID(o client.Object) []string {
	if id := o.(*v1alpha1.AccessKey).Status.AccessKeyID; id != "" {
		return []string{id}
	}
	return nil
}

// accessKeys finds access keys. It implements wire.Keys.
type accessKeys struct {
	cached  client.Reader
	secrets *secrets.Client
	clock   clock.PassiveClock

	mu sync.Mutex
	// known are the secrets that were read, by the UID of the AccessKey.
	known map[types.UID]knownSecret
}

// knownSecret is a secret and the Secret that it was read from, as the status names it.
type knownSecret struct {
	from   v1alpha1.AccessKeySecret
	secret redact.Bytes
}

// follow forgets the secrets of AccessKeys that no longer exist.
func (a *accessKeys) follow(ctx context.Context, informers cache.Cache) error {
	informer, err := informers.GetInformer(ctx, &v1alpha1.AccessKey{}, cache.BlockUntilSynced(false))
	if err != nil {
		return err
	}
	_, err = informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{DeleteFunc: func(o any) {
		if last, missed := o.(toolscache.DeletedFinalStateUnknown); missed {
			o = last.Obj
		}
		if m, ok := o.(metav1.Object); ok {
			a.mu.Lock()
			defer a.mu.Unlock()
			delete(a.known, m.GetUID())
		}
	}})
	return err
}

// Find implements wire.Keys.
func (a *accessKeys) Find(ctx context.Context, id string) (*wire.AccessKey, error) {
	var list v1alpha1.AccessKeyList
	if err := a.cached.List(ctx, &list, client.MatchingFields{indexAccessKey: id}, client.UnsafeDisableDeepCopy); err != nil {
		return nil, err
	}
	if len(list.Items) != 1 || list.Items[0].Status.SecretRef == nil {
		return nil, nil
	}
	object := &list.Items[0]
	secret, err := a.secretOf(ctx, object)
	if err != nil || secret == nil {
		return nil, err
	}
	return &wire.AccessKey{ID: id, Secret: secret, Disabled: !object.Usable(a.clock.Now()), Tenant: object.Namespace, Holder: object}, nil
}

// secretOf returns the secret of an AccessKey, nil where its Secret does not exist, or is not its own.
func (a *accessKeys) secretOf(ctx context.Context, object *v1alpha1.AccessKey) (redact.Bytes, error) {
	from := *object.Status.SecretRef
	a.mu.Lock()
	known := a.known[object.UID]
	a.mu.Unlock()
	if known.from == from {
		return known.secret, nil
	}
	s, err := a.secrets.Read(ctx, a.secrets.Ref(object, secrets.Secret, from.Name))
	if err != nil || s == nil || !ownSecret(object, s) {
		return nil, unavailable(err)
	}
	secret := redact.Bytes(s.Data["accessKeySecret"])
	if string(s.UID) == from.UID && s.ResourceVersion == from.ResourceVersion {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.known[object.UID] = knownSecret{from, secret}
	}
	return secret, nil
}

// ownSecret reports whether a Secret is the one that the operator wrote for an AccessKey.
func ownSecret(object *v1alpha1.AccessKey, s *corev1.Secret) bool {
	return metav1.IsControlledBy(s, object) && s.Type == v1alpha1.SecretTypeAccessKey &&
		string(s.Data["accessKeyId"]) == object.Status.AccessKeyID && len(s.Data["accessKeySecret"]) > 0
}
