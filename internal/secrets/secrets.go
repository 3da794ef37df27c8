// Package secrets is the only code that reads or writes Secrets and ConfigMaps.
//
// Their content is never cached: the caches hold metadata (names and versions), and content is read
// live, one object at a time. A reference is always read in the namespace that the caller gives, which
// is the object's own, or the operator's for cluster-wide kinds; there is no way to name another.
package secrets

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"maps"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	corev1ac "k8s.io/client-go/applyconfigurations/core/v1"
	metav1ac "k8s.io/client-go/applyconfigurations/meta/v1"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
)

// Client reads and writes Secrets and ConfigMaps.
type Client struct {
	client client.Client
	cache  client.Reader

	mu sync.Mutex
	// written are the versions of the Secrets that this process made, by UID, until a watch shows them.
	written map[types.UID]string
}

// New makes a Client. c must read Secrets and ConfigMaps live; cache knows their metadata.
//
// Metadata is read from the cache itself: a client that reads a kind live reads its metadata live too.
func New(c client.Client, cache client.Reader) *Client {
	return &Client{client: c, cache: cache, written: map[types.UID]string{}}
}

// live is for every read of content. Waiting for the cache to see earlier writes would start a cache of
// whole objects.
const live = client.DisableReadYourWritesConsistency

// Kind is Secret or ConfigMap.
type Kind string

// The kinds.
const (
	Secret    Kind = "Secret"
	ConfigMap Kind = "ConfigMap"
)

// Metadata returns the object to watch for that kind: its metadata only.
func (k Kind) Metadata() *metav1.PartialObjectMetadata {
	m := &metav1.PartialObjectMetadata{}
	m.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind(string(k)))
	return m
}

// Look returns an object's metadata from the cache, or nil when there is no such object.
func (c *Client) Look(ctx context.Context, kind Kind, key types.NamespacedName) (*metav1.PartialObjectMetadata, error) {
	m := kind.Metadata()
	if err := c.cache.Get(ctx, key, m); err != nil {
		return nil, client.IgnoreNotFound(err)
	}
	return m, nil
}

// Version names the content of an object: another content has another version. An absent object's
// version is "".
func Version(object client.Object) string {
	if object == nil || object.GetUID() == "" {
		return ""
	}
	return string(object.GetUID()) + "/" + object.GetResourceVersion()
}

// Entry reads one entry live, and the version of the object that it was read from. The value is nil when
// the object or the entry does not exist. The caller wipes a secret value.
func (c *Client) Entry(ctx context.Context, kind Kind, key types.NamespacedName, entry string) (value []byte, version string, err error) {
	if kind == ConfigMap {
		var m corev1.ConfigMap
		if err := c.client.Get(ctx, key, &m, live); err != nil {
			return nil, "", client.IgnoreNotFound(err)
		}
		if text, ok := m.Data[entry]; ok {
			return []byte(text), Version(&m), nil
		}
		return m.BinaryData[entry], Version(&m), nil
	}
	s, err := c.Read(ctx, key)
	if err != nil || s == nil {
		return nil, "", err
	}
	return s.Data[entry], Version(s), nil
}

// Read returns a Secret live, or nil when there is none.
func (c *Client) Read(ctx context.Context, key types.NamespacedName) (*corev1.Secret, error) {
	var s corev1.Secret
	if err := c.client.Get(ctx, key, &s, live); err != nil {
		return nil, client.IgnoreNotFound(err)
	}
	return &s, nil
}

// Target is a Secret as it shall be.
type Target struct {
	Key         types.NamespacedName
	Type        corev1.SecretType
	Data        map[string][]byte
	Labels      map[string]string
	Annotations map[string]string
	Immutable   bool
	// Owner controls the Secret, so that it goes when the owner goes; nil for a Secret that stays.
	Owner *metav1ac.OwnerReferenceApplyConfiguration
	// UID of the Secret that is replaced; empty to make one. Either way a Secret that took the name in
	// between is not touched.
	UID types.UID
	// Overwrite replaces whatever has the name, without a look at UID: for names that are the
	// operator's own.
	Overwrite bool
}

// neverVersion is a resourceVersion that no object ever has: etcd's first write makes 2. An apply with
// it makes an object, and is refused with a Conflict where there is one.
const neverVersion = "1"

// Apply writes a Secret by server-side apply and says how it is now, with the digest of what was written:
// entries that others add stay, and are theirs. A Conflict or Invalid error means
// that the name belongs to another Secret.
func (c *Client) Apply(ctx context.Context, t Target) (v1alpha1.SecretReference, error) {
	labels := map[string]string{v1alpha1.LabelManagedBy: v1alpha1.ManagedBy}
	maps.Copy(labels, t.Labels)
	s := corev1ac.Secret(t.Key.Name, t.Key.Namespace).
		WithType(t.Type).WithData(t.Data).WithLabels(labels).WithAnnotations(t.Annotations)
	if t.Immutable {
		s.WithImmutable(true)
	}
	if t.Owner != nil {
		s.WithOwnerReferences(t.Owner)
	}
	switch {
	case t.Overwrite:
	case t.UID != "":
		s.WithUID(t.UID)
	default:
		s.WithResourceVersion(neverVersion)
	}
	// Secrets are read live, so there is no cache to wait for; waiting would start one of whole Secrets.
	err := c.client.Apply(ctx, s, client.FieldOwner(v1alpha1.ManagedBy), client.ForceOwnership, client.DisableReadYourWritesConsistency)
	if err != nil {
		return v1alpha1.SecretReference{}, err
	}
	if t.UID == "" && !t.Overwrite {
		c.mu.Lock()
		c.written[*s.UID] = *s.ResourceVersion
		c.mu.Unlock()
	}
	return v1alpha1.SecretReference{
		Name: t.Key.Name, UID: string(*s.UID), ResourceVersion: *s.ResourceVersion, Digest: Digest(t.Data),
	}, nil
}

// Made says, once, whether a Secret is as this process has just made it: whoever made it need not be told. It must be
// asked for Secrets that a watch shows as new or as deleted. Shown before Apply has returned, one is taken for
// somebody else's.
func (c *Client) Made(o client.Object) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	version, ok := c.written[o.GetUID()]
	delete(c.written, o.GetUID())
	return ok && version == o.GetResourceVersion()
}

// Delete deletes a Secret if it is still the one with that UID. One that is gone is no error.
func (c *Client) Delete(ctx context.Context, key types.NamespacedName, uid types.UID) error {
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name}}
	err := c.client.Delete(ctx, s, client.Preconditions{UID: &uid}, client.DisableReadYourWritesConsistency)
	return client.IgnoreNotFound(err)
}

// IsTaken says whether an Apply failed because the name belongs to another Secret.
func IsTaken(err error) bool {
	return apierrors.IsConflict(err) || apierrors.IsInvalid(err) || apierrors.IsAlreadyExists(err)
}

// Digest is the SHA-256 of a Secret's data in an injective encoding, in hexadecimal. What Keyconvoy
// writes is ciphertext, so its digest may be seen.
func Digest(data map[string][]byte) string {
	var buf []byte
	part := func(b []byte) {
		buf = binary.BigEndian.AppendUint64(buf, uint64(len(b)))
		buf = append(buf, b...)
	}
	for _, key := range slices.Sorted(maps.Keys(data)) {
		part([]byte(key))
		part(data[key])
	}
	sum := sha256.Sum256(buf)
	return hex.EncodeToString(sum[:])
}

// StripMetadata is a cache transform that keeps what is needed of an object's metadata: there may be very many. Of
// others' objects annotations and labels go: they are large, and kubectl keeps whole Secrets in an annotation. Of
// ours go the owner and what the operator itself has noted on them, which is read live, but for
// the annotation keptNote.
func StripMetadata(keptNote string) toolscache.TransformFunc {
	return func(in any) (any, error) {
		if m, ok := in.(metav1.Object); ok {
			strip(m, keptNote)
		}
		return in, nil
	}
}

func strip(m metav1.Object, keptNote string) {
	// It may be called again for an object that is in the cache, which nobody may write to any more: so it writes
	// only what is not yet as it should be.
	if m.GetManagedFields() != nil {
		m.SetManagedFields(nil)
	}
	if m.GetOwnerReferences() != nil {
		m.SetOwnerReferences(nil)
	}
	ours := m.GetLabels()[v1alpha1.LabelManagedBy] == v1alpha1.ManagedBy
	if !ours && m.GetLabels() != nil {
		m.SetLabels(nil)
	}
	var kept map[string]string
	for name, value := range m.GetAnnotations() {
		noted := strings.HasPrefix(name, v1alpha1.GroupVersion.Group+"/") && name != keptNote
		if !ours || noted || name == corev1.LastAppliedConfigAnnotation {
			continue
		}
		if kept == nil {
			kept = map[string]string{} // a new one: the old one would keep its size
		}
		kept[name] = value
	}
	if len(kept) != len(m.GetAnnotations()) {
		m.SetAnnotations(kept)
	}
}

// Reference says how a Secret is that was read live.
func Reference(s *corev1.Secret) v1alpha1.SecretReference {
	return v1alpha1.SecretReference{Name: s.Name, UID: string(s.UID), ResourceVersion: s.ResourceVersion, Digest: Digest(s.Data)}
}
