package controllers

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/keystore"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/reconciler"
	"github.com/keyconvoy/keyconvoy/internal/redact"
	"github.com/keyconvoy/keyconvoy/internal/secrets"
)

// findPIN sets pinVersion. Reasons: InvalidParameter, SourceNotFound.
func (r *keyStoreReconciler) findPIN(ctx context.Context, s *keyStoreScope) error {
	if err := readable(s); err != nil {
		return err
	}
	ref := pinRef(s.Spec)
	if ref == nil {
		return nil
	}
	secret := r.pinSecret(s.Store)
	m, err := r.secrets.Look(ctx, secret)
	if err != nil {
		return err
	}
	if m == nil {
		return r.withdraw(ctx, s.Store, missingPIN(secret, ref))
	}
	s.pinVersion = secrets.Version(m)
	return nil
}

// openAgainAfter is when an opening that hung is tried again.
const openAgainAfter = 5 * time.Minute

// openRightAfter returns when a module that returned a wrong result is opened again. Each time, everything since the last check is
// done again. So a module whose self-test succeeds and whose checks fail is opened less and less often.
func openRightAfter(periods []v1alpha1.SuspectPeriod, now time.Time) time.Duration {
	const (
		first, last = 5 * time.Second, 10 * time.Minute
		forgotten   = time.Hour
	)
	delay := first
	for _, p := range periods {
		if p.To != nil && now.Sub(p.To.Time) < forgotten {
			delay = min(4*delay, last)
		}
	}
	return delay
}

// openModule opens the module, or opens it again when its configuration or PIN is another. It sets
// rootKey and opened. Reasons: SourceNotFound, PINRefused, ModuleMisconfigured,
// ServiceUnavailableTemporary.
func (r *keyStoreReconciler) openModule(ctx context.Context, s *keyStoreScope) error {
	config := string(s.GetUID()) + "/" + s.attempt()
	if r.stores.Config(s.ID) == config {
		return nil
	}
	// The former module goes first: two on one token would need the token's sessions twice.
	r.stores.Close(s.ID)
	pin, err := r.readPIN(ctx, s)
	if err != nil {
		return err
	}
	defer pin.Wipe()
	config = string(s.GetUID()) + "/" + s.attempt() // of the Secret as it was read
	cfg := keystore.ModuleConfig(s.Spec)
	cfg.PIN, cfg.PINOrigin, cfg.PINs = redact.WireBytes(pin.Bytes), pin.origin, r.pins
	cfg.Storage = r.storage(s.ID, func(secret string) { s.rootKey = secret })
	err = r.stores.Open(ctx, s.ID, config, cfg, s.checkProtection)
	if err != nil && ctx.Err() != nil {
		// What hangs in a library of this process stays there: it is not tried often.
		return &reconciler.Error{Class: reconciler.Waiting, Reason: kms.ServiceUnavailableTemporary.Reason(), After: cmp.Or(afterOf(err), openAgainAfter), Err: err,
			Message: string(kms.ServiceUnavailableTemporary) + ": The module did not respond in time when it was opened. The operator tries again."}
	}
	if err != nil {
		return pin.hint(r.openError(s, err))
	}
	s.opened = true
	return nil
}

// checkProtection publishes whether the module protects its keys, and refuses one that does not where the key
// store asks for it. Reasons: ModuleMisconfigured.
func (s *keyStoreScope) checkProtection(module hsm.Description) error {
	found := module.KeyProtection
	s.Status.KeyProtection = &v1alpha1.KeyProtection{State: v1alpha1.KeyProtectionState(found.State), Methods: found.Methods}
	if len(found.Methods) == 0 || s.Spec.KeyProtection != v1alpha1.KeyProtectionEnforcedOnly {
		return nil
	}
	return &reconciler.Error{Class: reconciler.Waiting, Reason: v1alpha1.ReasonModuleMisconfigured, After: lookAgainInterval, Warn: true,
		Message: fmt.Sprintf("The module does not protect its keys from someone who holds its PIN, and spec.keyProtection is EnforcedOnly. "+
			"An attempt of the self-test succeeded: %s. status.keyProtection lists all. Use another module, configure this one to refuse them, or set spec.keyProtection to NotEnforcedAllowed.",
			found.Methods[0])}
}

// attempt names what was tried: this PIN with what else a module is opened with. The generation would not do: it
// counts who may use the key store, too.
func (s *keyStoreScope) attempt() string {
	spec, _ := json.Marshal(s.Spec) // strings, numbers and flags: it cannot fail
	return secrets.DigestOf(string(spec), s.pinVersion)
}

// openError gives a module's refusal to open its reason.
func (r *keyStoreReconciler) openError(s *keyStoreScope, err error) error {
	var e *hsm.Error
	if !errors.As(err, &e) {
		return err
	}
	switch e.Kind {
	case hsm.Locked:
		refused := refusedPIN(e.Detail)
		refused.Err = err
		return refused
	case hsm.PINUntried:
		// Nothing was tried, and nothing in the cluster tells when it may be.
		return &reconciler.Error{Class: reconciler.Waiting, Reason: v1alpha1.ReasonPINRefused, After: lookAgainInterval, Warn: true, Err: err,
			Message: withDetail("The PIN was not tried.", e.Detail)}
	case hsm.WrongResult:
		return &reconciler.Error{Class: reconciler.Waiting, Reason: v1alpha1.ReasonWrongResult, After: cmp.Or(e.After, openRightAfter(s.Status.SuspectPeriods, r.clock.Now())), Warn: true, Err: err,
			Message: withDetail("The results of the module are wrong.", e.Detail) + " The operator opens it again, and repeats the exports since the last check. See status.suspectPeriods."}
	case hsm.Misconfigured, hsm.NotSupported:
		// What is wrong may be outside the cluster (a token that is not plugged in), where nothing
		// can be watched.
		return &reconciler.Error{Class: reconciler.Waiting, Reason: v1alpha1.ReasonModuleMisconfigured, After: lookAgainInterval, Warn: true, Err: err,
			Message: withDetail("The module cannot be used as it is configured.", e.Detail)}
	}
	if e.After > 0 {
		return &reconciler.Error{Class: reconciler.Waiting, Reason: kms.ServiceUnavailableTemporary.Reason(), After: e.After, Err: err,
			Message: withDetail(string(kms.ServiceUnavailableTemporary)+":", e.Detail)}
	}
	return kms.FromModule(err)
}

// afterOf returns when the error of a module asks for the next try, or 0.
func afterOf(err error) time.Duration {
	var e *hsm.Error
	if errors.As(err, &e) {
		return e.After
	}
	return 0
}

// checkModule asks the module whether it works, and publishes what it is and can. It sets opened. Reasons: WrongResult,
// ServiceUnavailableTemporary.
func (r *keyStoreReconciler) checkModule(ctx context.Context, s *keyStoreScope) error {
	module, failedBefore, err := r.stores.Check(ctx, s.ID)
	if err != nil {
		return r.openError(s, err)
	}
	s.opened = s.opened || failedBefore
	s.describe(module)
	return nil
}

// describe publishes what a module is and can.
func (s *keyStoreScope) describe(module hsm.Description) {
	info := module.Info
	s.Status.Module = &v1alpha1.ModuleInfo{
		Library: info.Library, Manufacturer: info.Manufacturer, Model: info.Model, Serial: info.Serial, Firmware: info.Firmware,
	}
	s.Status.Capabilities = nil
	for _, c := range module.Capabilities {
		s.Status.Capabilities = append(s.Status.Capabilities, v1alpha1.Capability{
			Operation: string(c.Operation), Algorithm: c.Algorithm, Custody: v1alpha1.Custody(c.Custody),
		})
	}
}

// withDetail adds a module's detail, which is no whole sentence, to a message.
func withDetail(message, detail string) string {
	if detail == "" {
		return message
	}
	return message + " " + sentence(detail)
}

// sentence makes a sentence of a module's detail.
func sentence(detail string) string {
	first, size := utf8.DecodeRuneInString(detail)
	return string(unicode.ToUpper(first)) + strings.TrimSuffix(detail[size:], ".") + "."
}
