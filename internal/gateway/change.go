package gateway

import (
	"context"
	"encoding/base64"
	"maps"
	"math"
	"strings"
	"time"

	"github.com/google/uuid"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/gateway/wire"
	"github.com/keyconvoy/keyconvoy/internal/keyring"
	"github.com/keyconvoy/keyconvoy/internal/keystore"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/secrets"
)

// The operations that change keys write the key's object, and respond when its controller is done.

// fieldManager marks what the gateway wrote.
const fieldManager = "keyconvoy-gateway"

// maxConflicts is how often a change is made again because someone else changed the object.
const maxConflicts = 5

// change reads the object of a key from the API server, changes it and writes what changed. It returns the object as it was written.
func (c *call) change(ctx context.Context, e *entry, apply func(client.Object) error) (client.Object, error) {
	for attempt := 1; ; attempt++ {
		o := objectOf(e.ref)
		if err := c.live.Get(ctx, e.ref.NamespacedName, o); err != nil {
			return nil, err
		}
		if o.GetUID() != e.uid() {
			return nil, keyNotFound()
		}
		before := o.DeepCopyObject().(client.Object)
		if err := apply(o); err != nil {
			return nil, err
		}
		err := c.writer.Patch(ctx, o, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}), client.FieldOwner(fieldManager))
		if !apierrors.IsConflict(err) || attempt == maxConflicts {
			return o, err
		}
	}
}

// await waits until this replica sees an object that is done. stopped returns the error in which the controller ended, or nil.
// Errors: that one, and ServiceUnavailableTemporary if the request's time is over.
func (c *call) await(ctx context.Context, e *entry, done func(client.Object) bool, stopped func(client.Object) error) error {
	var failure error
	finished := c.directory.wait(ctx, e.id, func() bool {
		o := objectOf(e.ref)
		err := c.cached.Get(ctx, e.ref.NamespacedName, o)
		switch {
		case err != nil || o.GetUID() != e.uid():
			failure = firstOf(client.IgnoreNotFound(err), nil)
			return failure != nil // the cache may not have it yet
		case done(o):
			return true
		}
		failure = stopped(o)
		return failure != nil
	})
	if !finished {
		return &kms.Error{Code: kms.ServiceUnavailableTemporary, Detail: "The operator has not made the change in time. It is made when the operator and the key store are ready."}
	}
	return failure
}

// observed reports whether the controller has seen the spec of a generation.
func observed(o client.Object, generation int64) bool {
	switch o := o.(type) {
	case *v1alpha1.ImportedKey:
		return o.Status.ObservedGeneration >= generation
	case *v1alpha1.GeneratedKey:
		return o.Status.ObservedGeneration >= generation
	}
	return false
}

func stateOfObject(o client.Object) kms.KeyState {
	switch o := o.(type) {
	case *v1alpha1.ImportedKey:
		return kms.KeyState(o.Status.KeyState)
	case *v1alpha1.GeneratedKey:
		return kms.KeyState(o.Status.KeyState)
	}
	return ""
}

// stalled returns the error that a controller cannot end by itself, as the conditions of a generation have it; nil for none.
func stalled(generation int64) func(client.Object) error {
	return func(o client.Object) error {
		if !observed(o, generation) {
			return nil
		}
		s := meta.FindStatusCondition(o.(interface{ GetConditions() []metav1.Condition }).GetConditions(), v1alpha1.ConditionStalled)
		if s == nil || s.Status != metav1.ConditionTrue {
			return nil
		}
		for _, code := range kms.Codes() {
			if code.Reason() == s.Reason {
				text := strings.TrimPrefix(s.Message, string(code)+": ")
				return &kms.Error{Code: code, Detail: strings.TrimSpace(strings.TrimPrefix(text, code.Message()))}
			}
		}
		return &kms.Error{Code: kms.RejectedUnavailable, Detail: s.Message}
	}
}

func never(client.Object) error { return nil }

// transition changes the desired state of a key, if the state machine has the event, and waits for the new state.
func (c *call) transition(ctx context.Context, event kms.Event, apply func(*v1alpha1.DesiredKeyState, *int32)) (wire.Object, error) {
	e, err := c.find(ctx, "KeyId", verbUpdate)
	if err != nil {
		return nil, err
	}
	c.line.KeyID = e.id
	var want kms.KeyState
	o, err := c.change(ctx, e, func(o client.Object) error {
		key, err := keyring.Of(o).KMS()
		if err != nil {
			return err
		}
		material := true
		if imported, ok := o.(*v1alpha1.ImportedKey); ok {
			material = imported.Status.HasMaterial
		}
		if want, err = kms.Next(key.Origin, key.StateAt(c.clock.Now()), event, material); err != nil {
			return err
		}
		switch o := o.(type) {
		case *v1alpha1.ImportedKey:
			apply(&o.Spec.DesiredState, &o.Spec.PendingWindowInDays)
		case *v1alpha1.GeneratedKey:
			apply(&o.Spec.DesiredState, &o.Spec.PendingWindowInDays)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	generation := o.GetGeneration()
	return nil, c.await(ctx, e, func(o client.Object) bool { return observed(o, generation) && stateOfObject(o) == want }, never)
}

func enableKey(ctx context.Context, c *call) (wire.Object, error) {
	return c.transition(ctx, kms.EventEnableKey, func(desired *v1alpha1.DesiredKeyState, _ *int32) { *desired = v1alpha1.DesiredEnabled })
}

func disableKey(ctx context.Context, c *call) (wire.Object, error) {
	return c.transition(ctx, kms.EventDisableKey, func(desired *v1alpha1.DesiredKeyState, _ *int32) { *desired = v1alpha1.DesiredDisabled })
}

func scheduleKeyDeletion(ctx context.Context, c *call) (wire.Object, error) {
	if _, err := c.Required("PendingWindowInDays"); err != nil {
		return nil, err
	}
	days, err := c.Int("PendingWindowInDays", 0, kms.MinPendingWindowInDays, kms.MaxPendingWindowInDays)
	if err != nil {
		return nil, err
	}
	return c.transition(ctx, kms.EventScheduleKeyDeletion, func(desired *v1alpha1.DesiredKeyState, window *int32) {
		*desired, *window = v1alpha1.DesiredPendingDeletion, int32(days) //nolint:gosec // at most 366
	})
}

func cancelKeyDeletion(ctx context.Context, c *call) (wire.Object, error) {
	return c.transition(ctx, kms.EventCancelKeyDeletion, func(desired *v1alpha1.DesiredKeyState, window *int32) {
		*desired, *window = v1alpha1.DesiredEnabled, 0
	})
}

// importKeyMaterial imports the material into the module first, and then writes it into the object, whose controller finds the same
// material there. So a refused import changes neither.
func importKeyMaterial(ctx context.Context, c *call) (wire.Object, error) {
	e, err := c.find(ctx, "KeyId", verbUpdate)
	if err != nil {
		return nil, err
	}
	req, err := c.importRequest()
	if err != nil {
		return nil, err
	}
	key, err := c.read(ctx, e)
	if err != nil {
		return nil, err
	}
	req.Key = key.kms
	o, err := c.objectFromCache(ctx, e)
	if err != nil {
		return nil, err
	}
	imported, isImported := o.(*v1alpha1.ImportedKey)
	if isImported && wasDeleted(imported, req) {
		return nil, &kms.Error{Code: kms.InvalidImportToken, Detail: "It was used for the same ciphertext before the material was deleted or expired. " +
			"Call GetParametersForImport, and wrap the material again."}
	}
	err = c.use(ctx, key, func(ops keystore.Session) error {
		version, err := ops.ImportKeyMaterial(ctx, req)
		c.line.Custody = version.Custody
		return err
	})
	if err != nil {
		return nil, err
	}
	return nil, c.publishMaterial(ctx, e, req)
}

func (c *call) importRequest() (req kms.ImportKeyMaterialRequest, err error) {
	if req.EncryptedKeyMaterial, err = c.Binary("EncryptedKeyMaterial"); err != nil {
		return req, err
	}
	if req.ImportToken, err = c.Binary("ImportToken"); err != nil {
		return req, err
	}
	expires, err := c.Int("KeyMaterialExpireUnix", 0, 0, 9007199254740991)
	if err == nil && expires != 0 {
		req.KeyMaterialExpireUnix = ptr.To(expires)
	}
	return req, err
}

// wasDeleted reports whether the controller imported the same inputs before, and the material has been deleted or has expired since:
// it does not import them again.
func wasDeleted(o *v1alpha1.ImportedKey, req kms.ImportKeyMaterialRequest) bool {
	return !o.Status.HasMaterial && o.Status.InputsDigest != "" && o.Status.InputsDigest == inputsDigest(req)
}

// inputsDigest is status.inputsDigest of an ImportedKey whose controller imported the inputs of a request.
func inputsDigest(req kms.ImportKeyMaterialRequest) string {
	return secrets.InputsDigest(req.EncryptedKeyMaterial, req.ImportToken, req.KeyMaterialExpireUnix)
}

// publishMaterial writes material that the module has into the object, and waits until its controller has seen it.
func (c *call) publishMaterial(ctx context.Context, e *entry, req kms.ImportKeyMaterialRequest) error {
	material := &v1alpha1.MaterialSpec{
		EncryptedKeyMaterial: base64.StdEncoding.EncodeToString(req.EncryptedKeyMaterial),
		ImportToken:          base64.StdEncoding.EncodeToString(req.ImportToken),
	}
	if at := req.KeyMaterialExpireUnix; at != nil {
		material.ExpireTime = &metav1.Time{Time: time.Unix(*at, 0).UTC()}
	}
	o, err := c.change(ctx, e, func(o client.Object) error {
		o.(*v1alpha1.ImportedKey).Spec.Material = material
		return nil
	})
	if err != nil {
		return err
	}
	generation, digest := o.GetGeneration(), inputsDigest(req)
	done := func(o client.Object) bool {
		status := o.(*v1alpha1.ImportedKey).Status
		return observed(o, generation) && status.HasMaterial && status.InputsDigest == digest
	}
	return c.await(ctx, e, done, stalled(generation))
}

func deleteKeyMaterial(ctx context.Context, c *call) (wire.Object, error) {
	e, err := c.find(ctx, "KeyId", verbUpdate)
	if err != nil {
		return nil, err
	}
	c.line.KeyID = e.id
	if e.ref.Kind != keyring.KindImportedKey {
		return nil, &kms.Error{Code: kms.UnsupportedOrigin}
	}
	request := uuid.NewString()
	_, err = c.change(ctx, e, func(o client.Object) error {
		annotate(o, v1alpha1.AnnotationDeleteKeyMaterial, request)
		return nil
	})
	if err != nil {
		return nil, err
	}
	done := func(o client.Object) bool {
		status := o.(*v1alpha1.ImportedKey).Status
		return status.MaterialDeletedFor == request && !status.HasMaterial
	}
	return nil, c.await(ctx, e, done, never)
}

// annotate sets an annotation, or removes it if the value is "".
func annotate(o client.Object, name, value string) {
	all := maps.Clone(o.GetAnnotations())
	if all == nil {
		all = map[string]string{}
	}
	if all[name] = value; value == "" {
		delete(all, name)
	}
	o.SetAnnotations(all)
}

// annotateKey changes an annotation that only the gateway reads, and waits until this replica sees it.
func (c *call) annotateKey(ctx context.Context, e *entry, name string, value func(client.Object) (string, error)) error {
	c.line.KeyID = e.id
	var want string
	_, err := c.change(ctx, e, func(o client.Object) (err error) {
		if stateOfObject(o) == kms.StateDeleted {
			return keyNotFound()
		}
		if want, err = value(o); err == nil {
			annotate(o, name, want)
		}
		return err
	})
	if err != nil {
		return err
	}
	return c.await(ctx, e, func(o client.Object) bool { return o.GetAnnotations()[name] == want }, never)
}

// maxDescription is the maximum length of a description in characters.
const maxDescription = 8192

func (c *call) description() (string, error) {
	text := c.Get("Description")
	if len([]rune(text)) > maxDescription {
		return "", invalid("Description", "It has more than %d characters.", maxDescription)
	}
	return text, nil
}

func updateKeyDescription(ctx context.Context, c *call) (wire.Object, error) {
	e, err := c.find(ctx, "KeyId", verbUpdate)
	if err != nil {
		return nil, err
	}
	text, err := c.description()
	if err != nil {
		return nil, err
	}
	return nil, c.annotateKey(ctx, e, annotationDescription, func(client.Object) (string, error) { return text, nil })
}

// hours is a RotationInterval as the kind has it. The documented form is a whole number and d, h, m or s.
func hours(parameter, text string) (time.Duration, error) {
	fault := invalid(parameter, "It must be 7 to 730 days in whole hours, such as 365d, 2160h or 604800s.")
	if text == "" {
		return 0, &kms.Error{Code: kms.MissingParameter, Parameter: parameter}
	}
	if days, ok := strings.CutSuffix(text, "d"); ok {
		n, err := time.ParseDuration(days + "h")
		if err != nil || n > math.MaxInt64/24 {
			return 0, fault
		}
		return inRange(24*n, fault)
	}
	n, err := time.ParseDuration(text)
	if err != nil {
		return 0, fault
	}
	return inRange(n, fault)
}

func inRange(interval time.Duration, fault error) (time.Duration, error) {
	if interval < kms.MinRotationInterval || interval > kms.MaxRotationInterval || interval%time.Hour != 0 {
		return 0, fault
	}
	return interval, nil
}
