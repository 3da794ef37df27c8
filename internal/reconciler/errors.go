// Package reconciler contains what all reconcilers share: errors that state who can fix them, conditions that are
// written in one place, one status patch.
package reconciler

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/kms"
)

// Class is who can fix an error, and therefore what happens next.
type Class int

const (
	// Transient errors can end at any time: retry, with increasing delays.
	Transient Class = iota
	// Waiting errors end with time or when another object changes, which triggers a reconcile.
	Waiting
	// Terminal errors must be fixed by the user; a change of a watched object triggers a reconcile.
	Terminal
)

// Error has two texts: a public, stable message that says what to do, and a private cause for the log.
type Error struct {
	Class   Class
	Reason  string
	Message string
	// After is the time until the next reconcile of a Waiting error; zero means that only a watch
	// triggers one.
	After time.Duration
	// Warn says that people must repair a Waiting error, although the operator retries by itself.
	Warn bool
	// Unsettled errors are not worth a status: what the object waits for is happening now, and tells how it ended.
	Unsettled bool
	Err       error
}

// Error implements error. The text is for logs.
func (e *Error) Error() string {
	if e.Err == nil {
		return e.Reason + ": " + e.Message
	}
	cause := e.Err.Error()
	if e.Message != "" && strings.Contains(cause, e.Message) { // the error of an operation, which also contains its code
		return cause
	}
	return e.Reason + ": " + e.Message + ": " + cause
}

// Unwrap returns the private cause.
func (e *Error) Unwrap() error { return e.Err }

// Stall returns an error that only a person can fix.
func Stall(reason, message string) *Error {
	return &Error{Class: Terminal, Reason: reason, Message: message}
}

// Wait returns an error that ends when a watched object changes.
func Wait(reason, message string) *Error {
	return &Error{Class: Waiting, Reason: reason, Message: message}
}

// ForPeople reports whether people must repair the error: an event tells them.
func (e *Error) ForPeople() bool { return e.Class == Terminal || e.Warn }

// RetryAfter makes an error that people must repair one that the operator also retries after that time.
func RetryAfter(err error, after time.Duration) *Error {
	e := *From(err)
	if e.Class != Transient {
		e.Class, e.After, e.Warn = Waiting, after, true
	}
	return &e
}

// waiting is an error of another package that names what the object waits for, which will wake it.
type waiting interface {
	error
	Reason() string
	Message() string
	// Settled is false while what the object waits for is happening.
	Settled() bool
	// RetryAfter is when to try again even if nothing wakes the object; 0 for never.
	RetryAfter() time.Duration
}

// classes maps the repairs of internal/kms to classes.
var classes = map[kms.Repair]Class{kms.ByUser: Terminal, kms.ByWaiting: Waiting, kms.ByRetry: Transient}

// From returns an error with a class, a reason and a public message. It returns nil for nil.
func From(err error) *Error {
	if err == nil {
		return nil
	}
	var own *Error
	if errors.As(err, &own) {
		return own
	}
	var waits waiting
	if errors.As(err, &waits) {
		return &Error{Class: Waiting, Reason: waits.Reason(), Message: waits.Message(), Unsettled: !waits.Settled(), After: waits.RetryAfter(), Err: err}
	}
	var op *kms.Error
	if errors.As(err, &op) {
		class, message := classes[op.Code.Repair()], op.Public()
		if class == Transient && errors.Is(err, context.DeadlineExceeded) {
			message += " The operator retries."
		}
		return &Error{Class: class, Reason: op.Code.Reason(), Message: message, After: op.Code.RetryAfter(), Err: err}
	}
	if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		return &Error{Class: Waiting, Reason: v1alpha1.ReasonNamespaceTerminating, Err: err,
			Message: "The namespace is being deleted, so nothing can be created in it."}
	}
	if apierrors.ReasonForError(err) != "" || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return &Error{Class: Transient, Reason: v1alpha1.ReasonAPIServer, Err: err,
			Message: "The Kubernetes API rejected the request or did not respond. The operator retries. See its log."}
	}
	return &Error{Class: Transient, Reason: kms.InternalFailure.Reason(), Err: err,
		Message: string(kms.InternalFailure) + ": " + kms.InternalFailure.Message() + " The operator retries. See its log."}
}

// Result returns the result of a reconcile: the time until the next one, and the error with its class, for Logged. A
// reconcile that succeeds, or fails without a retry, is repeated after the given time, if that is not zero, because
// deadlines apply in spite of other errors.
func Result(err error, after time.Duration) (ctrl.Result, error) {
	e := From(err)
	switch {
	case e == nil || e.Reason == kms.DryRunOperationError.Reason():
		// A dry run that would have succeeded is not a failure.
		return ctrl.Result{RequeueAfter: jitter(after)}, nil
	case e.Class == Transient:
		return ctrl.Result{}, e
	}
	return ctrl.Result{RequeueAfter: jitter(earliest(after, e.After))}, e
}

// maxJitter limits the delay of a reconcile, so that a deadline in a year is not missed by a month.
const maxJitter = time.Minute

// jitter adds up to a tenth, so that objects that were created together are not reconciled together. It never
// subtracts, because a reconcile for a deadline must not run before it.
func jitter(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return d + time.Duration(rand.Int64N(int64(min(d/10, maxJitter))+1)) //nolint:gosec // spreads load; not security-relevant
}

func earliest(a, b time.Duration) time.Duration {
	if a <= 0 || (b > 0 && b < a) {
		return b
	}
	return a
}

// PhaseContext is the context of a reconcile's phases. It ends after three quarters of the reconcile's time. The rest
// is for the status, so that a reconcile that runs out of time still leaves a condition.
func PhaseContext(ctx context.Context) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, time.Until(deadline)*3/4)
}
