// Package secrets is the only code that reads or writes Secrets and ConfigMaps.
//
// Their content is never cached: the caches hold metadata (names and versions), and content is read live, one object
// at a time. Of Secrets and ConfigMaps, an object can use those in its own namespace or, if it is cluster-scoped, those
// in the operator's namespace: every access takes a Ref, which is made from the object.
package secrets

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	corev1ac "k8s.io/client-go/applyconfigurations/core/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
)

// Client reads and writes Secrets and ConfigMaps.
type Client struct {
	client            client.Client
	cache             client.Reader
	operatorNamespace string
	readPIN           EntryReader

	mu sync.Mutex
	// written are the versions of the Secrets that this process wrote, by UID, until a watch reports them.
	written map[types.UID]string
}

// New returns a Client. c must read Secrets and ConfigMaps live; cache holds their metadata. readPIN reads PINs; nil means c.
//
// Metadata is read from the cache itself, because a client that reads a kind live also reads its metadata live.
func New(c client.Client, cache client.Reader, readPIN EntryReader, operatorNamespace string) *Client {
	return &Client{client: c, cache: cache, readPIN: readPIN, operatorNamespace: operatorNamespace, written: map[types.UID]string{}}
}

// live is used for every request for content. Waiting for the cache to contain earlier writes would start a cache of
// whole objects.
const live = client.DisableReadYourWritesConsistency

// Kind is Secret or ConfigMap.
type Kind string

// The kinds.
const (
	Secret    Kind = "Secret"
	ConfigMap Kind = "ConfigMap"
)

// Metadata returns the object to watch for a kind: metadata only.
func (k Kind) Metadata() *metav1.PartialObjectMetadata {
	m := &metav1.PartialObjectMetadata{}
	m.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind(string(k)))
	return m
}

// Ref names a Secret or ConfigMap that an object may use.
type Ref struct {
	kind Kind
	key  types.NamespacedName
}

// Ref names the Secret or ConfigMap that an object means by a name.
func (c *Client) Ref(object client.Object, kind Kind, name string) Ref {
	namespace := object.GetNamespace()
	if namespace == "" {
		namespace = c.operatorNamespace
	}
	return Ref{kind, types.NamespacedName{Namespace: namespace, Name: name}}
}

// operatorRef names a Secret in the operator's namespace.
func (c *Client) operatorRef(name string) Ref {
	return Ref{Secret, types.NamespacedName{Namespace: c.operatorNamespace, Name: name}}
}

// Namespace returns the namespace of the Secret or ConfigMap.
func (r Ref) Namespace() string { return r.key.Namespace }

// Name returns the name of the Secret or ConfigMap.
func (r Ref) Name() string { return r.key.Name }

// String returns the kind, the namespace and the name, for messages.
func (r Ref) String() string { return string(r.kind) + " " + r.key.String() }

// Look returns an object's metadata from the cache, or nil if the object does not exist.
func (c *Client) Look(ctx context.Context, ref Ref) (*metav1.PartialObjectMetadata, error) {
	m := ref.kind.Metadata()
	if err := c.cache.Get(ctx, ref.key, m); err != nil {
		return nil, client.IgnoreNotFound(err)
	}
	return m, nil
}

// Version identifies the content of an object: different content has a different version. The version of an object
// that does not exist is "".
func Version(object client.Object) string {
	if object == nil || object.GetUID() == "" {
		return ""
	}
	return string(object.GetUID()) + "/" + object.GetResourceVersion()
}

// Entry reads one entry live, and the version of the object that it was read from. The value is nil if the object or
// the entry does not exist. The caller must wipe a secret value.
func (c *Client) Entry(ctx context.Context, ref Ref, entry string) (value []byte, version string, err error) {
	if ref.kind == ConfigMap {
		var m corev1.ConfigMap
		if err := c.client.Get(ctx, ref.key, &m, live); err != nil {
			return nil, "", client.IgnoreNotFound(err)
		}
		if text, ok := m.Data[entry]; ok {
			return []byte(text), Version(&m), nil
		}
		return m.BinaryData[entry], Version(&m), nil
	}
	s, err := c.Read(ctx, ref)
	if err != nil || s == nil {
		return nil, "", err
	}
	return s.Data[entry], Version(s), nil
}

// Read returns a Secret live, or nil if it does not exist.
func (c *Client) Read(ctx context.Context, ref Ref) (*corev1.Secret, error) {
	var s corev1.Secret
	if err := c.client.Get(ctx, ref.key, &s, live); err != nil {
		return nil, client.IgnoreNotFound(err)
	}
	return &s, nil
}

// neverVersion is a resourceVersion that no object has, because the first write to etcd results in 2. An apply with
// it creates an object, and fails with a Conflict if the object exists.
const neverVersion = "1"

// apply writes a Secret by server-side apply and sets its UID and resourceVersion. Entries, labels and annotations that
// others added remain.
func (c *Client) apply(ctx context.Context, s *corev1ac.SecretApplyConfiguration) error {
	s.WithLabels(map[string]string{v1alpha1.LabelManagedBy: v1alpha1.ManagedBy})
	return c.client.Apply(ctx, s, client.FieldOwner(v1alpha1.ManagedBy), client.ForceOwnership, live)
}

// isManaged reports whether an object has the label of the Secrets that the operator writes. Anyone can set it.
func isManaged(o metav1.Object) bool {
	return o.GetLabels()[v1alpha1.LabelManagedBy] == v1alpha1.ManagedBy
}

// Made reports, once, whether a Secret is as this process has just written it, so that the event need not be handled.
// Call it for Secrets that a watch reports as new or deleted. A Secret that is reported before Ensure has returned
// counts as written by others.
func (c *Client) Made(o client.Object) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	version, ok := c.written[o.GetUID()]
	delete(c.written, o.GetUID())
	return ok && version == o.GetResourceVersion()
}

// delete deletes a Secret, unless another Secret has its name by now. It is not an error if the Secret no longer exists.
func (c *Client) delete(ctx context.Context, s *corev1.Secret) error {
	err := c.client.Delete(ctx, s, client.Preconditions{UID: &s.UID}, live)
	return client.IgnoreNotFound(err)
}

// Digest is the DigestOf a Secret's data. Keyconvoy writes ciphertext only, so the digest can be public.
func Digest(data map[string][]byte) string {
	parts := make([]string, 0, 2*len(data))
	for _, entry := range slices.Sorted(maps.Keys(data)) {
		parts = append(parts, entry, string(data[entry]))
	}
	return DigestOf(parts...)
}

// DigestOf is the SHA-256 of parts in an injective encoding, in hexadecimal. No part may be secret.
func DigestOf(parts ...string) string {
	var buf []byte
	for _, part := range parts {
		buf = binary.BigEndian.AppendUint64(buf, uint64(len(part)))
		buf = append(buf, part...)
	}
	sum := sha256.Sum256(buf)
	return hex.EncodeToString(sum[:])
}

// InputsDigest is status.inputsDigest of an ImportedKey, whose inputs are ciphertext and a token: what both front doors write.
func InputsDigest(material, token []byte, expires *int64) string {
	return DigestOf(string(material), string(token), ExpireText(expires))
}

// ExpireText is KeyMaterialExpireUnix in a digest. Digests of material that never ends have 0 for it, and no material
// is imported that ends at that time.
func ExpireText(expires *int64) string { return strconv.FormatInt(ptr.Deref(expires, 0), 10) }

// StripMetadata is a cache transform that keeps only the metadata that the operator uses, because there may be very
// many objects. It removes owners, finalizers and managed fields. From objects of others it also removes labels and
// annotations: they are large, and kubectl stores whole Secrets in an annotation. From Keyconvoy's Secrets it removes
// the operator's own annotations, which are read live, except annotationTarget.
func StripMetadata(in any) (any, error) {
	if m, ok := in.(metav1.Object); ok {
		strip(m)
	}
	return in, nil
}

func strip(m metav1.Object) {
	// It can be called again for an object that is already in the cache and must not be modified, so it writes only
	// what differs.
	if m.GetManagedFields() != nil {
		m.SetManagedFields(nil)
	}
	if m.GetOwnerReferences() != nil {
		m.SetOwnerReferences(nil)
	}
	if m.GetFinalizers() != nil {
		m.SetFinalizers(nil)
	}
	// No Secret of Keyconvoy has more metadata than a target allows.
	ours := isManaged(m) && sizeOf(m.GetLabels())+sizeOf(m.GetAnnotations()) <= maxMetadata
	if !ours && m.GetLabels() != nil {
		m.SetLabels(nil)
	}
	var kept map[string]string
	for name, value := range m.GetAnnotations() {
		noted := strings.HasPrefix(name, reservedPrefix) && name != annotationTarget
		if !ours || noted || name == corev1.LastAppliedConfigAnnotation {
			continue
		}
		if kept == nil {
			kept = map[string]string{} // a new map, because the old one would keep its size
		}
		kept[name] = value
	}
	if len(kept) != len(m.GetAnnotations()) {
		m.SetAnnotations(kept)
	}
}

// maxMetadata is larger, in bytes, than the labels and annotations of any target with those of the operator: 32 of
// each, with names of at most 317 and values of at most 63 and 1024 bytes.
const maxMetadata = 64 << 10

func sizeOf(values map[string]string) int {
	size := 0
	for name, value := range values {
		size += len(name) + len(value)
	}
	return size
}
