package controllers

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/reconciler"
	"github.com/keyconvoy/keyconvoy/internal/secrets"
)

// shared is what every reconciler needs.
type shared struct {
	client   client.Client
	secrets  *secrets.Client
	modules  *modules
	recorder events.EventRecorder
	clock    clock.PassiveClock
}

// operations borrows the module of a key store for a namespace. giveBack must be called, unless there is
// an error. Reasons: KeyStoreNotFound, KeyStoreNotReady, ForbiddenNoPermission.
func (s *shared) operations(ctx context.Context, namespace string, ref v1alpha1.KeyStoreReference) (ops kms.Operations, giveBack func(), err error) {
	id := idOf(namespace, ref)
	store, err := getStore(ctx, s.client, id)
	if apierrors.IsNotFound(err) {
		return ops, nil, noStore(id)
	}
	if err != nil {
		return ops, nil, err
	}
	if err := s.allowed(ctx, store, namespace); err != nil {
		return ops, nil, err
	}
	return s.borrow(ctx, id)
}

// errOpening ends a reconcile whose key store has not been looked at since the operator's start. It is no news
// for a status: the module is opened just now, and however that ends, whoever is not Ready is told. Without it a
// start would write to every object that waits.
var errOpening = reconciler.Wait(v1alpha1.ReasonKeyStoreNotReady, "The key store is opened now.")

// opening returns errOpening for an ImportedKey whose key store has not been looked at yet.
func (s *shared) opening(ctx context.Context, key types.NamespacedName) error {
	imported := &v1alpha1.ImportedKey{}
	err := s.client.Get(ctx, key, imported, client.UnsafeDisableDeepCopy, client.DisableReadYourWritesConsistency)
	if err != nil {
		return client.IgnoreNotFound(err)
	}
	_, giveBack, err := s.borrow(ctx, idOf(imported.Namespace, imported.Spec.KeyStoreRef))
	switch {
	case err == nil:
		giveBack()
	case errors.Is(err, errOpening):
		return err
	}
	return nil
}

// borrow borrows the module of a key store, whoever asks. Reasons: KeyStoreNotFound, KeyStoreNotReady.
func (s *shared) borrow(ctx context.Context, id storeID) (ops kms.Operations, giveBack func(), err error) {
	if module, giveBack, ok := s.modules.serving(id); ok {
		return kms.Operations{Module: module, Now: s.clock.Now}, giveBack, nil
	}
	store, err := getStore(ctx, s.client, id)
	switch {
	case apierrors.IsNotFound(err):
		return ops, nil, noStore(id)
	case err != nil:
		return ops, nil, err
	case store.GetDeletionTimestamp().IsZero() && !s.modules.wasTried(id):
		return ops, nil, errOpening
	}
	return ops, nil, reconciler.Wait(v1alpha1.ReasonKeyStoreNotReady,
		fmt.Sprintf("The %s %s does not serve now: its conditions say why.", id.kind, id.name))
}

func noStore(id storeID) error {
	return reconciler.Wait(v1alpha1.ReasonKeyStoreNotFound,
		fmt.Sprintf("The %s %s does not exist. It is looked for again when it is created.", id.kind, id.name))
}

// lookAgainAfter is how long after it lost its key store an object looks again by itself.
const lookAgainAfter = 2 * time.Second

// result is the end of a reconcile. Who waits for a key store is told when it serves; but who was Ready until
// now may not be known as waiting yet at that moment, and so looks again once by itself.
func (s *shared) result(err error, after time.Duration, before []metav1.Condition) (ctrl.Result, error) {
	e := reconciler.From(err)
	if e != nil && ready(before) && (e.Reason == v1alpha1.ReasonKeyStoreNotReady || e.Reason == v1alpha1.ReasonKeyStoreNotFound) &&
		(after <= 0 || after > lookAgainAfter) {
		after = lookAgainAfter
	}
	return reconciler.Result(err, after)
}

// allowed is the one place that says which namespaces may use a cluster-wide key store.
func (s *shared) allowed(ctx context.Context, store storeObject, namespace string) error {
	if store.allowed == nil {
		return nil
	}
	selected, err := s.selects(ctx, store.allowed, namespace)
	if err != nil || selected {
		return err
	}
	return &kms.Error{Code: kms.ForbiddenNoPermission, Detail: fmt.Sprintf(
		"The ClusterKeyStore %s does not serve this namespace: ask its administrator, who decides with spec.allowedNamespaces.", store.id.name)}
}

// keyOf is an ImportedKey as the operations know it.
func keyOf(k *v1alpha1.ImportedKey) (kms.Key, error) {
	id, err := uuid.Parse(string(k.UID))
	if err != nil {
		return kms.Key{}, fmt.Errorf("the UID of %s: %w", client.ObjectKeyFromObject(k), err)
	}
	key := kms.Key{
		ID: id, Spec: hsm.KeySpec(k.Spec.KeySpec), Origin: kms.OriginExternal,
		State: kms.KeyState(k.Status.KeyState), Owner: k.Namespace,
	}
	if key.State == "" {
		key.State = kms.StatePendingImport
	}
	if k.Spec.Adopt != nil {
		if key.Adopted, err = uuid.Parse(k.Spec.Adopt.KeyVersionID); err != nil {
			return kms.Key{}, &kms.Error{Code: kms.InvalidParameter, Parameter: "adopt.keyVersionID", Detail: "It is not a UUID."}
		}
	}
	if k.Status.MaterialExpireTime != nil {
		key.MaterialExpireTime = k.Status.MaterialExpireTime.Time
	}
	if fp, ok := hsm.ParseFingerprint(k.Status.MaterialFingerprint); ok {
		key.Fingerprint = &fp
	}
	return key, nil
}

// encryptionContext converts the API's form of an EncryptionContext.
func encryptionContext(in map[string]v1alpha1.ContextValue) kms.EncryptionContext {
	out := make(kms.EncryptionContext, len(in))
	for k, v := range in {
		out[k] = string(v)
	}
	return out
}

// digest is the SHA-256 of parts in an injective encoding, in hexadecimal. No part is secret.
func digest(parts ...string) string {
	var buf []byte
	for _, p := range parts {
		buf = binary.BigEndian.AppendUint64(buf, uint64(len(p)))
		buf = append(buf, p...)
	}
	sum := sha256.Sum256(buf)
	return hex.EncodeToString(sum[:])
}

func inNamespace(o client.Object, name string) types.NamespacedName {
	return types.NamespacedName{Namespace: o.GetNamespace(), Name: name}
}

// note is an event that waits for the status patch. Its text does not vary between tries.
type note struct{ eventType, reason, action, text string }

func (s *shared) announce(o client.Object, notes []note) {
	for _, n := range notes {
		s.recorder.Eventf(o, nil, n.eventType, n.reason, n.action, "%s", n.text)
	}
}

// announceStall emits a warning when an object has stalled, or for another reason than before. It is
// called after the status patch went through.
func (s *shared) announceStall(o client.Object, before, after []metav1.Condition) {
	was := meta.FindStatusCondition(before, v1alpha1.ConditionStalled)
	is := meta.FindStatusCondition(after, v1alpha1.ConditionStalled)
	if is != nil && (was == nil || was.Reason != is.Reason) {
		s.recorder.Eventf(o, nil, corev1.EventTypeWarning, is.Reason, "Reconcile", "%s", is.Message)
	}
}

// entryOf says which entry a source names.
func entryOf(from *v1alpha1.EntrySource) (secrets.Kind, *v1alpha1.EntryReference) {
	if from.ConfigMapKeyRef != nil {
		return secrets.ConfigMap, from.ConfigMapKeyRef
	}
	return secrets.Secret, from.SecretKeyRef
}

func missingSource(kind secrets.Kind, key types.NamespacedName, ref *v1alpha1.EntryReference, what string) error {
	return reconciler.Wait(v1alpha1.ReasonSourceNotFound, fmt.Sprintf(
		"%s: there is no entry %s in %s %s. It is read when it is created.", what, ref.Key, kind, key))
}
