package secrets

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
)

// TakenError says that a Secret has the name of a target, but does not belong to its object. It is never changed.
type TakenError struct{ Ref Ref }

// Error implements error.
func (e *TakenError) Error() string { return e.Ref.String() + " belongs to another object" }

// RefusedError says that the API server refused to write a Secret, because of a quota or an admission policy.
type RefusedError struct {
	Ref Ref
	Err error
}

// Error implements error.
func (e *RefusedError) Error() string {
	return fmt.Sprintf("the API server refused to write %s: %v", e.Ref, e.Err)
}

// Unwrap returns the API server's error.
func (e *RefusedError) Unwrap() error { return e.Err }

// Own returns a target's Secret live, or nil if it does not exist. The error is a *TakenError if the name belongs to
// another Secret.
func (c *Client) Own(ctx context.Context, t Target) (*corev1.Secret, error) {
	s, err := c.Read(ctx, t.Ref)
	if err != nil || s == nil {
		return nil, err
	}
	if !t.Owns(s) {
		return nil, &TakenError{t.Ref}
	}
	return s, nil
}

// Ensure makes a Secret as desired, and returns what the status says of it. known is the Secret that Own or Left returned, nil
// for none. Ensure creates the Secret if there is none, and otherwise writes it only if it is not as desired. An
// immutable one with other content is deleted and created again, unless Secrets of its Class remain.
//
// Only the Secret known is changed, and only while it is as it was read: otherwise an error says so. Errors are a *TakenError, a
// *RefusedError, and those of the API server.
func (c *Client) Ensure(ctx context.Context, d Desired, known *corev1.Secret) (v1alpha1.SecretReference, error) {
	var uid types.UID
	version := neverVersion
	if known != nil {
		if !d.Owns(known) {
			return v1alpha1.SecretReference{}, &TakenError{d.Ref}
		}
		if d.isIn(known) {
			return d.reference(known.UID, known.ResourceVersion), nil
		}
		uid, version = known.UID, known.ResourceVersion
		if isImmutable(known) && !d.isContentOf(known) && d.class.Owner != "" {
			if err := c.delete(ctx, known); err != nil {
				return v1alpha1.SecretReference{}, err
			}
			uid, version = "", neverVersion
		}
	}
	s := d.empty().WithLabels(d.labels).WithAnnotations(d.annotations).WithAnnotations(d.notes()).WithData(d.Data)
	if uid != "" {
		s.WithUID(uid)
	}
	s.WithResourceVersion(version)
	if err := c.apply(ctx, s); err != nil {
		return v1alpha1.SecretReference{}, c.explain(ctx, d.Ref, uid, err)
	}
	if uid == "" {
		c.mu.Lock()
		c.written[*s.UID] = *s.ResourceVersion
		c.mu.Unlock()
	}
	return d.reference(*s.UID, *s.ResourceVersion), nil
}

// reference is what the status says of the Secret. Its digest leaves out what others added.
func (d Desired) reference(uid types.UID, version string) v1alpha1.SecretReference {
	return v1alpha1.SecretReference{Name: d.Name(), UID: string(uid), ResourceVersion: version, Digest: Digest(d.Data)}
}

// explain finds out why the API server did not write a Secret: it answers with the same errors if the name is taken and
// if an admission policy refuses the Secret. uid is empty for a new Secret.
func (c *Client) explain(ctx context.Context, ref Ref, uid types.UID, err error) error {
	if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		return err // no Secret would be accepted
	}
	refused := apierrors.IsForbidden(err)
	if uid == "" && (apierrors.IsConflict(err) || apierrors.IsInvalid(err) || apierrors.IsAlreadyExists(err)) {
		there, readErr := c.Read(ctx, ref)
		if readErr != nil {
			return readErr
		}
		if there != nil {
			return &TakenError{ref}
		}
		refused = apierrors.IsInvalid(err)
	}
	if refused {
		return &RefusedError{ref, err}
	}
	return err
}

// Destroy deletes a Secret with the name of a target, whether the target owns it or not. A finalizer would keep the
// content readable, so it is removed first.
func (c *Client) Destroy(ctx context.Context, t Target, s *corev1.Secret) error {
	if len(s.Finalizers) > 0 && !isImmutable(s) {
		if err := c.apply(ctx, t.empty().WithUID(s.UID)); err != nil {
			return err
		}
	}
	return c.delete(ctx, s)
}

func isImmutable(s *corev1.Secret) bool { return ptr.Deref(s.Immutable, false) }
