package controllers

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/reconciler"
	"github.com/keyconvoy/keyconvoy/internal/redact"
	"github.com/keyconvoy/keyconvoy/internal/secrets"
)

// findPIN sets pinVersion. Reasons: SourceNotFound, PINRefused.
func (r *keyStoreReconciler) findPIN(ctx context.Context, s *keyStoreScope) error {
	ref := pinRef(s.spec)
	if ref == nil {
		return nil
	}
	key := r.pinKey(s.storeObject)
	m, err := r.secrets.Look(ctx, secrets.Secret, key)
	if err != nil {
		return err
	}
	if m == nil {
		r.modules.drop(s.id)
		return missingPIN(key, ref)
	}
	s.pinVersion = secrets.Version(m)
	if s.attempt() == s.status.RefusedPINSecret {
		return s.stillRefused()
	}
	return nil
}

// openAgainAfter is when an opening that hung is tried again.
const openAgainAfter = 5 * time.Minute

// openModule opens the module, or opens it again when its configuration or PIN is another. It sets
// rootKey and opened. Reasons: SourceNotFound, PINRefused, ModuleMisconfigured,
// ServiceUnavailableTemporary.
func (r *keyStoreReconciler) openModule(ctx context.Context, s *keyStoreScope) error {
	config := string(s.GetUID()) + "/" + s.attempt()
	if r.modules.config(s.id) == config {
		return nil
	}
	// The former module goes first: two on one token would need the token's sessions twice.
	r.modules.drop(s.id)
	pin, err := r.readPIN(ctx, s)
	if err != nil {
		return err
	}
	defer pin.Wipe()
	ref := v1alpha1.KeyStoreReference{Kind: s.id.kind, Name: v1alpha1.ObjectName(s.id.name)}
	module, err := r.open(ctx, ModuleRequest{
		Spec: *s.spec,
		PIN:  pin,
		Storage: r.secrets.Storage(r.operatorNamespace, ref, s.id.namespace, func(secret string) {
			s.rootKey = secret
		}),
		unavailable: func() { r.modules.suspect(s.id) },
	})
	if err != nil && ctx.Err() != nil {
		// What hangs in a library stays there: it is not tried often.
		return &reconciler.Error{Class: reconciler.Waiting, Reason: kms.ServiceUnavailableTemporary.Reason(), After: openAgainAfter, Err: err,
			Message: string(kms.ServiceUnavailableTemporary) + ": The module did not answer in time when it was opened. It is tried again in some minutes."}
	}
	if err != nil {
		return s.openError(err)
	}
	s.status.RefusedPINSecret = ""
	s.opened = true
	r.modules.put(s.id, module, config)
	return nil
}

// attempt names what was tried: this PIN with what else a module is opened with. The generation would not do: it
// counts who may use the key store, too.
func (s *keyStoreScope) attempt() string {
	spec, _ := json.Marshal(s.spec) // strings, numbers and flags: it cannot fail
	return digest(string(spec), s.pinVersion)
}

// openError gives a module's refusal to open its reason. A refused PIN is remembered as the attempt
// that it was, so that not even a restart makes it again.
func (s *keyStoreScope) openError(err error) error {
	var e *hsm.Error
	if !errors.As(err, &e) {
		return err
	}
	switch e.Kind {
	case hsm.Locked:
		s.status.RefusedPINSecret = s.attempt()
		return refusedPIN(e.Detail)
	case hsm.PINUntried:
		// Nothing was tried, and nothing in the cluster tells when it may be.
		return &reconciler.Error{Class: reconciler.Terminal, Reason: v1alpha1.ReasonPINRefused, After: healthInterval, Err: err,
			Message: withDetail("The PIN was not tried.", e.Detail)}
	case hsm.Misconfigured, hsm.NotSupported:
		// What is wrong may be outside the cluster (a token that is not plugged in), where nothing
		// can be watched.
		return &reconciler.Error{Class: reconciler.Terminal, Reason: v1alpha1.ReasonModuleMisconfigured, After: healthInterval, Err: err,
			Message: withDetail("The module cannot be used as it is configured.", e.Detail)}
	}
	return kms.FromModule(err)
}

// readPIN reads the PIN. Reasons: SourceNotFound.
func (r *keyStoreReconciler) readPIN(ctx context.Context, s *keyStoreScope) (redact.Bytes, error) {
	ref := pinRef(s.spec)
	if ref == nil {
		return nil, nil
	}
	key := r.pinKey(s.storeObject)
	value, version, err := r.secrets.Entry(ctx, secrets.Secret, key, string(ref.Key))
	if err != nil {
		return nil, err
	}
	if value == nil {
		return nil, missingPIN(key, ref)
	}
	s.pinVersion = version
	// Secrets made from a file end in a newline that no PIN has.
	return bytes.TrimRight(value, "\r\n"), nil
}

// checkModule asks the module whether it works, and publishes what it is and can. It sets opened. Reasons:
// ServiceUnavailableTemporary.
func (r *keyStoreReconciler) checkModule(ctx context.Context, s *keyStoreScope) error {
	module, giveBack, ok := r.modules.borrow(s.id)
	if !ok {
		return &kms.Error{Code: kms.ServiceUnavailableTemporary}
	}
	defer giveBack()
	err := module.Check(ctx)
	failedBefore := r.modules.checked(s.id, err)
	if err != nil {
		return s.openError(err)
	}
	s.opened = s.opened || failedBefore
	info := module.Info()
	s.status.Module = &v1alpha1.ModuleInfo{
		Library: info.Library, Manufacturer: info.Manufacturer, Model: info.Model, Serial: info.Serial, Firmware: info.Firmware,
	}
	s.status.Capabilities = nil
	for _, c := range module.Capabilities() {
		s.status.Capabilities = append(s.status.Capabilities, v1alpha1.Capability{
			Operation: string(c.Operation), Algorithm: c.Algorithm, Custody: v1alpha1.Custody(c.Custody),
		})
	}
	return nil
}

func pinRef(spec *v1alpha1.KeyStoreSpec) *v1alpha1.EntryReference {
	if spec.PKCS11 == nil {
		return nil
	}
	return spec.PKCS11.PINSecretRef
}

// pinKey is where the PIN is: a cluster-wide key store reads it from the operator's namespace only.
func (r *keyStoreReconciler) pinKey(store storeObject) types.NamespacedName {
	namespace := store.id.namespace
	if store.id.kind == kindClusterKeyStore {
		namespace = r.operatorNamespace
	}
	return types.NamespacedName{Namespace: namespace, Name: string(pinRef(store.spec).Name)}
}

func missingPIN(key types.NamespacedName, ref *v1alpha1.EntryReference) error {
	return reconciler.Wait(v1alpha1.ReasonSourceNotFound, fmt.Sprintf(
		"The PIN is missing: there is no entry %s in Secret %s. It is read when it is created.", ref.Key, key))
}

func refusedPIN(detail string) error {
	return reconciler.Stall(v1alpha1.ReasonPINRefused, withDetail("The PIN is not accepted.", detail))
}

// stillRefused says again what was said when the PIN was refused: how the module did that nobody knows
// any more, and other words would be another write.
func (s *keyStoreScope) stillRefused() error {
	c := meta.FindStatusCondition(s.status.Conditions, v1alpha1.ConditionStalled)
	if c != nil && c.Reason == v1alpha1.ReasonPINRefused {
		return reconciler.Stall(c.Reason, c.Message)
	}
	return refusedPIN("it is not tried again, because tries lock the token: put the right PIN into the Secret")
}

// withDetail adds a module's detail, which is no whole sentence, to a message.
func withDetail(message, detail string) string {
	if detail == "" {
		return message
	}
	first, size := utf8.DecodeRuneInString(detail)
	return message + " " + string(unicode.ToUpper(first)) + strings.TrimSuffix(detail[size:], ".") + "."
}
