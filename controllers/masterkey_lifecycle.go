package controllers

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/audit"
	"github.com/keyconvoy/keyconvoy/internal/keyring"
	"github.com/keyconvoy/keyconvoy/internal/keystore"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/reconciler"
)

// finalizerKey holds a master key's object until what it made in the module is cleaned up.
const finalizerKey = "keyconvoy.io/key"

// masterKey is what ImportedKeys and GeneratedKeys have in common: their object, what its owner wants, and pointers to the
// fields of its status that follow from that.
type masterKey struct {
	reconciler.Object

	desired  v1alpha1.DesiredKeyState
	window   int32 // in days; 0 for the default
	deletion v1alpha1.DeletionPolicy

	state                     *v1alpha1.KeyState
	requestTime, deletionTime **metav1.Time
	token                     *string
	material                  *bool // whether the module has the material; nil for a generated key, which always has it
}

func masterKeyOf(object reconciler.Object) masterKey {
	if k, ok := object.(*v1alpha1.GeneratedKey); ok {
		return masterKey{
			Object: k, desired: k.Spec.DesiredState, window: k.Spec.PendingWindowInDays, deletion: k.Spec.DeletionPolicy,
			state: &k.Status.KeyState, requestTime: &k.Status.DeletionRequestTime, deletionTime: &k.Status.DeletionTime, token: &k.Status.Token,
		}
	}
	k := object.(*v1alpha1.ImportedKey)
	return masterKey{
		Object: k, desired: k.Spec.DesiredState, window: k.Spec.PendingWindowInDays, deletion: k.Spec.DeletionPolicy,
		state: &k.Status.KeyState, requestTime: &k.Status.DeletionRequestTime, deletionTime: &k.Status.DeletionTime, token: &k.Status.Token,
		material: &k.Status.HasMaterial,
	}
}

// key returns the master key that the object says now.
func (m masterKey) key() *keyring.Key { return keyring.Of(m.Object) }

// destroys reports whether the key is destroyed with the object. A key whose adoption never succeeded belongs to someone
// else: deletionPolicy does not apply.
func (m masterKey) destroys() bool { return m.deletion == v1alpha1.DeletionDelete && m.key().Holds() }

// storeName names the key store for a message.
func (m masterKey) storeName() string {
	ref := m.key().StoreRef()
	return fmt.Sprintf("%s %q", ref.Kind, ref.Name)
}

// keyScope is what the phases of a master key's reconcile hand on.
type keyScope struct {
	masterKey

	now   time.Time
	key   kms.Key            // set by identify, and again after each change of the status
	after time.Duration      // when to look again
	notes []reconciler.Event // what people must know, once the status says it too
}

// happen moves the key to its next state.
func (s *keyScope) happen(event kms.Event) error {
	next, err := kms.Next(s.key.Origin, s.key.State, event, s.material == nil || *s.material)
	if err != nil {
		return err
	}
	*s.state = v1alpha1.KeyState(next)
	s.key, err = s.masterKey.key().KMS()
	return err
}

// lookAgain asks for another reconcile at a time.
func (s *keyScope) lookAgain(at time.Time) {
	d := max(at.Sub(s.now), time.Second)
	if s.after == 0 || d < s.after {
		s.after = d
	}
}

// lookAgainAt is lookAgain for those of some times that are to come.
func (s *keyScope) lookAgainAt(times ...*metav1.Time) {
	for _, at := range times {
		if at != nil && at.After(s.now) {
			s.lookAgain(at.Time)
		}
	}
}

// noteState reports every change of state. A new key that waits for its material, or was made, has not changed.
func (s *keyScope) noteState(was v1alpha1.KeyState) {
	is := *s.state
	if is == was || (was == "" && (kms.KeyState(is) == kms.StatePendingImport || s.material == nil)) {
		return
	}
	kind := corev1.EventTypeNormal
	if kms.KeyState(is) == kms.StatePendingImport || kms.KeyState(is) == kms.StateDeleted {
		kind = corev1.EventTypeWarning
	}
	s.notes = append(s.notes, reconciler.Event{Type: kind, Reason: "KeyState", Action: "ChangeState", Message: changeOfState(was, is)})
}

func changeOfState(was, is v1alpha1.KeyState) string {
	if was == "" {
		return fmt.Sprintf("The key is %s.", is)
	}
	return fmt.Sprintf("The key was %s and is %s.", was, is)
}

// readyMessages are the messages of the condition Ready, by key state.
var readyMessages = map[kms.KeyState]string{
	kms.StateEnabled:         "The key is in the module and Enabled.",
	kms.StateDisabled:        "The key is in the module and Disabled, as its owner wants: no operation uses it.",
	kms.StatePendingDeletion: "The key is destroyed at status.deletionTime, unless desiredState becomes another before.",
}

// errDeleted is the error of an object whose key was destroyed.
var errDeleted = &kms.Error{Code: kms.ForbiddenKeyNotFound, Detail: "The key was destroyed at the end of its deletion window. Delete this object."}

// windowOver reports whether the window of a pending deletion has passed. A deletion that was called off while the operator was
// down is not carried out, however late: the key still exists, and its owner wants it.
func (s *keyScope) windowOver() bool {
	at := *s.deletionTime
	return s.desired == v1alpha1.DesiredPendingDeletion && at != nil && !s.now.Before(at.Time) && s.key.State == kms.StatePendingDeletion
}

// followDesire brings the key into the state that its owner wants, as far as it can be. It needs no
// module.
func (r *shared) followDesire(ctx context.Context, s *keyScope) error {
	switch {
	case s.key.State == kms.StateDeleted:
		return nil
	case s.desired == v1alpha1.DesiredPendingDeletion:
		return r.scheduleDeletion(ctx, s)
	case s.key.State == kms.StatePendingDeletion:
		*s.deletionTime, *s.requestTime = nil, nil
		if err := s.happen(kms.EventCancelKeyDeletion); err != nil {
			return err
		}
		return r.followDesire(ctx, s)
	case s.desired == v1alpha1.DesiredDisabled && s.key.State == kms.StateEnabled:
		return s.happen(kms.EventDisableKey)
	case s.desired != v1alpha1.DesiredDisabled && s.key.State == kms.StateDisabled:
		return s.happen(kms.EventEnableKey)
	}
	return nil
}

// scheduleDeletion begins a pending deletion, or follows another window.
func (r *shared) scheduleDeletion(ctx context.Context, s *keyScope) error {
	if s.key.State != kms.StatePendingDeletion {
		if err := s.happen(kms.EventScheduleKeyDeletion); err != nil {
			return err
		}
		asked := metav1.NewTime(s.now.UTC().Truncate(time.Second))
		*s.requestTime = &asked
		s.notes = append(s.notes, r.noteUse(ctx, s.masterKey)...)
	}
	days := s.window
	if days == 0 {
		days = kms.DefaultPendingWindowInDays
	}
	at := metav1.NewTime((*s.requestTime).AddDate(0, 0, int(days)))
	*s.deletionTime = &at
	return nil
}

// noteUse warns that data keys still depend on a key that is about to be destroyed.
func (r *shared) noteUse(ctx context.Context, m masterKey) []reconciler.Event {
	if len(r.dataKeysUnder(ctx, m.key(), nil)) == 0 {
		return nil
	}
	return []reconciler.Event{{Type: corev1.EventTypeWarning, Reason: "KeyInUse", Action: "Delete", Message: "DataKeys still depend on this key " +
		"and will be permanently lost when it is destroyed. kubectl get datakeys shows them."}}
}

// destroyVersions destroys versions of a key in its module, except those that its object does not hold or that another object holds
// there. It reports whether it destroyed one that the object's status knows. If the key store has another token than the one with
// the key, an event says what may be left in that one.
func (r *shared) destroyVersions(ctx context.Context, ops keystore.Session, m masterKey, key kms.Key, versions []uuid.UUID, operation audit.Operation) (destroyed bool, err error) {
	if !m.key().Holds() { // what it asked to adopt belongs to someone else
		return false, nil
	}
	var known []string
	for _, version := range versions {
		other, err := r.keys.Rival(ctx, m.key(), version.String(), ops.Token)
		if err != nil {
			return false, err
		}
		if other != nil {
			continue
		}
		line := keyLine(operation, m.Object, key)
		line.KeyVersionID = version.String()
		if err := r.recorded(line, func(*audit.Record) error { return ops.DestroyKeyVersion(ctx, version) }); err != nil {
			return false, err
		}
		if m.key().Recorded() && slices.Contains(m.key().Versions(), version.String()) {
			known = append(known, version.String())
		}
	}
	if former := *m.token; len(known) > 0 && former != "" && former != ops.Token {
		r.noteFormerToken(ctx, m, known)
	}
	return len(known) > 0, nil
}

// noteFormerToken says that versions that were destroyed in the key store's token may be left in the one that had them.
func (r *shared) noteFormerToken(ctx context.Context, m masterKey, versions []string) {
	r.leftInModule.Inc()
	log.FromContext(ctx).Info("Destroyed a key in another token than the one that it was created in, which may still have it",
		"keyStore", m.storeName(), "keyVersionIDs", versions, "token", *m.token)
	r.Announce(m.Object, []reconciler.Event{{Type: corev1.EventTypeWarning, Reason: "LeftInModule", Action: "Destroy", Message: fmt.Sprintf(
		"%s now has another token, so the token in which the key was created may still have key versions %s.", m.storeName(), listed(versions))}})
}

// stillSo returns an error when an object's spec is no longer as the cache has it. A key that is destroyed cannot be made
// again, so the API server decides, and not the cache, which may lag behind.
func (r *shared) stillSo(ctx context.Context, m masterKey) error {
	same, err := r.keys.UnchangedLive(ctx, m.key())
	if err != nil || same {
		return err
	}
	resource := "importedkeys"
	if m.key().Ref().Kind == keyring.KindGeneratedKey {
		resource = "generatedkeys"
	}
	return apierrors.NewConflict(v1alpha1.GroupVersion.WithResource(resource).GroupResource(), m.GetName(),
		errors.New("it changed while its key was about to be destroyed"))
}

func (r *shared) addFinalizer(ctx context.Context, object client.Object) error {
	before := object.DeepCopyObject().(client.Object)
	if !controllerutil.AddFinalizer(object, finalizerKey) {
		return nil
	}
	return r.Client.Patch(ctx, object, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
}

func (r *shared) removeFinalizer(ctx context.Context, object client.Object) error {
	before := object.DeepCopyObject().(client.Object)
	controllerutil.RemoveFinalizer(object, finalizerKey)
	err := r.Client.Patch(ctx, object, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
	return client.IgnoreNotFound(err)
}
