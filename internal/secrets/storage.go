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
	corev1ac "k8s.io/client-go/applyconfigurations/core/v1"
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

// Storage stores the sealed records of a software store: one Secret for each record and one for the root key, all in
// the operator's namespace. It implements software.Storage.
type Storage struct {
	secrets *Client
	store   string // identifies the store in labels and names
	// onRootKey is called with the name of the Secret that contains a new root key.
	onRootKey func(secret string)
	// opened is true once a root key existed: from then on none is created.
	opened atomic.Bool
}

// Storage returns the storage of one software store. Its name is derived from the key store's kind, namespace and
// name, so that a key store that is deleted and created again finds its keys.
func (c *Client) Storage(store v1alpha1.KeyStoreReference, storeNamespace string, onRootKey func(secret string)) *Storage {
	sum := sha256.Sum256([]byte(store.Kind + "/" + storeNamespace + "/" + string(store.Name)))
	return &Storage{secrets: c, store: hex.EncodeToString(sum[:8]), onRootKey: onRootKey}
}

func (s *Storage) ref(record string) Ref {
	return s.secrets.operatorRef("keyconvoy-" + s.store + "-" + record)
}

// RootKey returns the root key and creates it on first use. It never creates one if sealed records exist, because
// they need the missing one.
func (s *Storage) RootKey(ctx context.Context) (redact.Bytes, error) {
	ref := s.ref("root")
	if root, err := s.readRootKey(ctx, ref); err != nil || root != nil {
		s.opened.Store(s.opened.Load() || root != nil)
		return root, err
	}
	if s.opened.Load() {
		return nil, hsm.Errorf(hsm.Misconfigured, "%s with the root key of the store no longer exists. Restore it from a backup.", ref)
	}
	records, err := s.Load(ctx)
	if err != nil {
		return nil, err
	}
	if len(records) > 0 {
		return nil, hsm.Errorf(hsm.Misconfigured,
			"%s with the root key of the store does not exist, but %d keys are sealed under it. Restore it from a backup.", ref, len(records))
	}
	root := make(redact.Bytes, rootKeyLen)
	_, _ = rand.Read(root) // never fails: crypto/rand crashes the process instead
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: ref.Namespace(), Name: ref.Name(), Labels: map[string]string{
			v1alpha1.LabelManagedBy: v1alpha1.ManagedBy,
		}},
		Type: typeRootKey,
		Data: map[string][]byte{rootKeyEntry: root},
	}
	err = s.secrets.client.Create(ctx, secret, client.FieldOwner(v1alpha1.ManagedBy), live)
	if apierrors.IsAlreadyExists(err) { // another operator was faster: use its key
		root.Wipe()
		return s.readRootKey(ctx, ref)
	}
	if err != nil {
		return nil, hsm.Wrap(hsm.Unavailable, err, "")
	}
	s.opened.Store(true)
	s.onRootKey(ref.Name())
	return root, nil
}

func (s *Storage) readRootKey(ctx context.Context, ref Ref) (redact.Bytes, error) {
	secret, err := s.secrets.Read(ctx, ref)
	if err != nil {
		return nil, hsm.Wrap(hsm.Unavailable, err, "")
	}
	if secret == nil {
		return nil, nil
	}
	root := secret.Data[rootKeyEntry]
	if len(root) != rootKeyLen {
		return nil, hsm.Errorf(hsm.Misconfigured,
			"%s must contain a root key of %d bytes in the entry %s. Restore it from a backup.", ref, rootKeyLen, rootKeyEntry)
	}
	return root, nil
}

// Load returns all sealed records by name. It lists Secrets, so use it only when a store is opened.
func (s *Storage) Load(ctx context.Context) (map[string][]byte, error) {
	var list corev1.SecretList
	err := s.secrets.client.List(ctx, &list, client.InNamespace(s.secrets.operatorNamespace), client.MatchingLabels{labelStore: s.store}, live)
	if err != nil {
		return nil, hsm.Wrap(hsm.Unavailable, err, "")
	}
	records := make(map[string][]byte, len(list.Items))
	for _, item := range list.Items {
		records[strings.TrimPrefix(item.Name, s.ref("").Name())] = item.Data[sealedKeyEntry]
	}
	return records, nil
}

// Create writes a sealed record, or returns the existing one.
func (s *Storage) Create(ctx context.Context, name string, sealed []byte) (existing []byte, err error) {
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.secrets.operatorNamespace, Name: s.ref(name).Name(), Labels: map[string]string{
			v1alpha1.LabelManagedBy: v1alpha1.ManagedBy, labelStore: s.store,
		}},
		Type: typeSealedKey,
		Data: map[string][]byte{sealedKeyEntry: sealed},
	}
	err = s.secrets.client.Create(ctx, secret, client.FieldOwner(v1alpha1.ManagedBy), live)
	if !apierrors.IsAlreadyExists(err) {
		if err != nil {
			err = hsm.Wrap(hsm.Unavailable, err, "")
		}
		return nil, err
	}
	existing, err = s.Read(ctx, name)
	if err == nil && existing == nil { // it was deleted meanwhile
		err = hsm.Errorf(hsm.Unavailable, "")
	}
	return existing, err
}

// Read returns a sealed record, or nil if it does not exist.
func (s *Storage) Read(ctx context.Context, name string) ([]byte, error) {
	found, err := s.secrets.Read(ctx, s.ref(name))
	if err != nil {
		return nil, hsm.Wrap(hsm.Unavailable, err, "")
	}
	if found == nil {
		return nil, nil
	}
	return found.Data[sealedKeyEntry], nil
}

// Save writes a sealed record.
func (s *Storage) Save(ctx context.Context, name string, sealed []byte) error {
	secret := corev1ac.Secret(s.ref(name).Name(), s.secrets.operatorNamespace).WithType(typeSealedKey).
		WithLabels(map[string]string{labelStore: s.store}).WithData(map[string][]byte{sealedKeyEntry: sealed})
	if err := s.secrets.apply(ctx, secret); err != nil {
		return hsm.Wrap(hsm.Unavailable, err, "")
	}
	return nil
}

// DeleteRootKey deletes the root key, unless sealed records exist.
func (s *Storage) DeleteRootKey(ctx context.Context) error {
	records, err := s.Load(ctx)
	if err != nil {
		return err
	}
	if len(records) > 0 {
		return hsm.Errorf(hsm.Internal, "%s with the root key was not deleted, because %d records are sealed under it.", s.ref("root"), len(records))
	}
	return s.Delete(ctx, "root")
}

// Delete deletes a sealed record. It is not an error if the record no longer exists.
func (s *Storage) Delete(ctx context.Context, name string) error {
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: s.secrets.operatorNamespace, Name: s.ref(name).Name()}}
	err := s.secrets.client.Delete(ctx, secret, live)
	if client.IgnoreNotFound(err) != nil {
		return hsm.Wrap(hsm.Unavailable, err, "")
	}
	return nil
}
