package controllers

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm/pins"
	"github.com/keyconvoy/keyconvoy/internal/keystore"
	"github.com/keyconvoy/keyconvoy/internal/reconciler"
	"github.com/keyconvoy/keyconvoy/internal/redact"
	"github.com/keyconvoy/keyconvoy/internal/secrets"
)

// storePIN is the PIN of a key store, and where it is from. It is empty for a token without login.
type storePIN struct {
	redact.Bytes
	origin pins.Origin
}

// Wipe overwrites the PIN.
func (p storePIN) Wipe() { p.Bytes.Wipe() }

// readPIN reads the PIN, and refuses one that no token has before it costs a try. It sets pinVersion. Reasons:
// SourceNotFound, PINRefused.
func (r *keyStoreReconciler) readPIN(ctx context.Context, s *keyStoreScope) (storePIN, error) {
	ref := pinRef(s.Spec)
	if ref == nil {
		return storePIN{}, nil
	}
	from := r.pinSecret(s.Store)
	read, version, err := r.secrets.PIN(ctx, from, string(ref.Key))
	if err != nil {
		return storePIN{}, err
	}
	if read == nil || read.Value == nil {
		return storePIN{}, missingPIN(from, ref)
	}
	s.pinVersion = version
	value := read.Value
	// Secrets made from a file end in a newline that no PIN has.
	pin := redact.Bytes(bytes.TrimRight(value, "\r\n"))
	if len(pin) == 0 {
		return storePIN{}, reconciler.Wait(v1alpha1.ReasonSourceNotFound, fmt.Sprintf(
			"The PIN is missing: entry %s of %s is empty. The operator continues when it has a value.", ref.Key, from))
	}
	if fault := faultOfPIN(pin); fault != "" {
		value.Wipe()
		return storePIN{}, reconciler.Stall(v1alpha1.ReasonPINRefused, fmt.Sprintf(
			"The PIN was not tried: entry %s of %s %s. Write the PIN itself, in UTF-8, with no more than a newline after it.", ref.Key, from, fault))
	}
	return storePIN{Bytes: pin, origin: pins.Origin{
		Namespace: from.Namespace(), Source: string(read.UID), Administrator: from.Namespace() == r.operatorNamespace,
	}}, nil
}

// faultOfPIN says what a PIN has that comes from how the Secret was written, or "". Each would cost a try.
func faultOfPIN(pin []byte) string {
	switch {
	case len(pin) > secrets.MaxEntryLen:
		return fmt.Sprintf("is longer than %d bytes, the maximum", secrets.MaxEntryLen)
	case bytes.HasPrefix(pin, []byte("\xef\xbb\xbf")), bytes.HasPrefix(pin, []byte("\xff\xfe")), bytes.HasPrefix(pin, []byte("\xfe\xff")):
		return "begins with a byte-order mark, as some editors and shells for Windows write"
	case bytes.IndexByte(pin, 0) >= 0:
		return "contains a NUL byte, as UTF-16 text does"
	case bytes.ContainsAny(pin, "\r\n"):
		return "has several lines"
	}
	return ""
}

// hint adds to the refusal of a PIN what is easily overlooked in it.
func (p storePIN) hint(err error) error {
	var refused *reconciler.Error
	blank := len(bytes.TrimSpace(p.Bytes)) != len(p.Bytes)
	if blank && errors.As(err, &refused) && refused.Reason == v1alpha1.ReasonPINRefused {
		refused.Message += " The PIN in the Secret begins or ends with a blank."
	}
	return err
}

func pinRef(spec *v1alpha1.KeyStoreSpec) *v1alpha1.EntryReference {
	if spec.PKCS11 == nil {
		return nil
	}
	return spec.PKCS11.PINSecretRef
}

// pinSecret is where the PIN is: a cluster-wide key store reads it from the operator's namespace only.
func (s *shared) pinSecret(store keystore.Store) secrets.Ref {
	return s.secrets.Ref(store, secrets.Secret, string(pinRef(store.Spec).Name))
}

func missingPIN(secret secrets.Ref, ref *v1alpha1.EntryReference) error {
	return reconciler.Wait(v1alpha1.ReasonSourceNotFound, fmt.Sprintf(
		"The PIN is missing: entry %s of %s does not exist. The operator continues when it is created.", ref.Key, secret))
}

func refusedPIN(detail string) *reconciler.Error {
	return reconciler.Stall(v1alpha1.ReasonPINRefused, withDetail("The PIN is not accepted.", detail))
}
