package secrets

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"sync/atomic"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/redact"
)

const (
	labelStore     = "keyconvoy.io/software-store"
	sealedKeyEntry = "sealed"
	rootKeyEntry   = "rootKey"
	rootKeyLen     = 32

	typeSealedKey corev1.SecretType = "keyconvoy.io/sealed-key"
	typeRootKey   corev1.SecretType = "keyconvoy.io/root-key"
)

// Storage keeps what a software store seals: one Secret for each record and one for the root key, all in
// the operator's namespace. It implements software.Storage.
type Storage struct {
	secrets   *Client
	namespace string
	store     string // names the store in labels and names
	// onRootKey is told the name of the Secret in which a new root key was put.
	onRootKey func(secret string)
	// opened says that there was a root key: from then on none is made.
	opened atomic.Bool
}

// Storage makes the storage of one software store. Its name is derived from the key store's kind,
// namespace and name, so that a key store which is deleted and made again finds its keys.
func (c *Client) Storage(namespace string, store v1alpha1.KeyStoreReference, storeNamespace string, onRootKey func(secret string)) *Storage {
	sum := sha256.Sum256([]byte(store.Kind + "/" + storeNamespace + "/" + string(store.Name)))
	return &Storage{secrets: c, namespace: namespace, store: hex.EncodeToString(sum[:8]), onRootKey: onRootKey}
}

func (s *Storage) key(record string) types.NamespacedName {
	return types.NamespacedName{Namespace: s.namespace, Name: "keyconvoy-" + s.store + "-" + record}
}

// RootKey returns the root key and makes it on first use. It never makes one beside sealed records: they
// need the one that is missing.
func (s *Storage) RootKey(ctx context.Context) (redact.Bytes, error) {
	key := s.key("root")
	if root, err := s.readRootKey(ctx, key); err != nil || root != nil {
		s.opened.Store(s.opened.Load() || root != nil)
		return root, err
	}
	if s.opened.Load() {
		return nil, hsm.Errorf(hsm.Misconfigured, "The Secret %s with the store's root key is gone: restore it from a backup.", key)
	}
	records, err := s.Load(ctx)
	if err != nil {
		return nil, err
	}
	if len(records) > 0 {
		return nil, hsm.Errorf(hsm.Misconfigured,
			"The Secret %s with the store's root key is missing, and %d keys are sealed under it: restore it from a backup.", key, len(records))
	}
	root := make(redact.Bytes, rootKeyLen)
	_, _ = rand.Read(root) // never fails: crypto/rand ends the process instead
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name, Labels: map[string]string{
			v1alpha1.LabelManagedBy: v1alpha1.ManagedBy,
		}},
		Type: typeRootKey,
		Data: map[string][]byte{rootKeyEntry: root},
	}
	err = s.secrets.client.Create(ctx, secret, client.FieldOwner(v1alpha1.ManagedBy), client.DisableReadYourWritesConsistency)
	if apierrors.IsAlreadyExists(err) { // another operator was faster, and its key counts
		root.Wipe()
		return s.readRootKey(ctx, key)
	}
	if err != nil {
		return nil, hsm.Wrap(hsm.Unavailable, err, "")
	}
	s.opened.Store(true)
	s.onRootKey(key.Name)
	return root, nil
}

func (s *Storage) readRootKey(ctx context.Context, key types.NamespacedName) (redact.Bytes, error) {
	secret, err := s.secrets.Read(ctx, key)
	if err != nil {
		return nil, hsm.Wrap(hsm.Unavailable, err, "")
	}
	if secret == nil {
		return nil, nil
	}
	root := secret.Data[rootKeyEntry]
	if len(root) != rootKeyLen {
		return nil, hsm.Errorf(hsm.Misconfigured,
			"The Secret %s should hold a root key of %d bytes in %s: restore it from a backup.", key, rootKeyLen, rootKeyEntry)
	}
	return root, nil
}

// Load returns every sealed record by its name. It lists, so it is for opening a store only.
func (s *Storage) Load(ctx context.Context) (map[string][]byte, error) {
	var list corev1.SecretList
	err := s.secrets.client.List(ctx, &list, client.InNamespace(s.namespace), client.MatchingLabels{labelStore: s.store}, live)
	if err != nil {
		return nil, hsm.Wrap(hsm.Unavailable, err, "")
	}
	records := make(map[string][]byte, len(list.Items))
	for _, item := range list.Items {
		records[strings.TrimPrefix(item.Name, s.key("").Name)] = item.Data[sealedKeyEntry]
	}
	return records, nil
}

// Save writes a sealed record.
func (s *Storage) Save(ctx context.Context, name string, sealed []byte) error {
	_, err := s.secrets.Apply(ctx, Target{
		Key: s.key(name), Type: typeSealedKey,
		Data:      map[string][]byte{sealedKeyEntry: sealed},
		Labels:    map[string]string{labelStore: s.store},
		Overwrite: true,
	})
	if err != nil {
		return hsm.Wrap(hsm.Unavailable, err, "")
	}
	return nil
}

// Delete deletes a sealed record. One that is gone is no error.
func (s *Storage) Delete(ctx context.Context, name string) error {
	key := s.key(name)
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name}}
	err := s.secrets.client.Delete(ctx, secret, client.DisableReadYourWritesConsistency)
	if client.IgnoreNotFound(err) != nil {
		return hsm.Wrap(hsm.Unavailable, err, "")
	}
	return nil
}
