// Package reconciler is what every reconciler does in the same way: errors that say who can repair
// them, conditions written in one place, one status patch.
package reconciler

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/kms"
)

// Class says who can repair an error, and so what happens next.
type Class int

const (
	// Transient errors pass by themselves: try again, later and later.
	Transient Class = iota
	// Waiting means for time or another object, which will wake us.
	Waiting
	// Terminal errors are the user's to repair; a change of something watched wakes us.
	Terminal
)

// Error has two texts: one for everybody, which is stable and says what to do, and a cause for the log.
type Error struct {
	Class   Class
	Reason  string
	Message string
	// After is when to look again although the error is Waiting or Terminal; zero means that only a
	// watch will wake us.
	After time.Duration
	Err   error
}

// Error implements error: it is for logs.
func (e *Error) Error() string {
	if e.Err == nil {
		return e.Reason + ": " + e.Message
	}
	cause := e.Err.Error()
	if e.Message != "" && strings.Contains(cause, e.Message) { // an operation's error, which names its code, too
		return cause
	}
	return e.Reason + ": " + e.Message + ": " + cause
}

// Unwrap returns the private cause.
func (e *Error) Unwrap() error { return e.Err }

// Stall makes an error that only a person can repair.
func Stall(reason, message string) *Error {
	return &Error{Class: Terminal, Reason: reason, Message: message}
}

// Wait makes an error that a watched object will repair.
func Wait(reason, message string) *Error {
	return &Error{Class: Waiting, Reason: reason, Message: message}
}

// classOf says who can repair an operation's error. The others are the user's.
var classOf = map[kms.Code]Class{
	kms.ServiceUnavailableTemporary: Transient,
	kms.InternalFailure:             Transient,
	kms.RejectedPendingImport:       Waiting,
	kms.RejectedDisabled:            Waiting,
	kms.RejectedPendingDeletion:     Waiting,
	kms.RejectedUnavailable:         Waiting,
	kms.RejectedThrottling:          Waiting,
}

// afterOf says when to look again after an error that no watch can tell the end of: what is in a module
// cannot be watched, and pairs end by themselves.
var afterOf = map[kms.Code]time.Duration{
	kms.ForbiddenKeyVersionNotFound: time.Minute,
	kms.RejectedThrottling:          10 * time.Minute,
}

// From gives any error a class, a reason and a public message. It returns nil for nil.
func From(err error) *Error {
	if err == nil {
		return nil
	}
	var own *Error
	if errors.As(err, &own) {
		return own
	}
	var op *kms.Error
	if errors.As(err, &op) {
		class, listed := classOf[op.Code]
		if !listed {
			class = Terminal
		}
		return &Error{Class: class, Reason: op.Code.Reason(), Message: op.Public(), After: afterOf[op.Code], Err: err}
	}
	if apierrors.ReasonForError(err) != "" || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return &Error{Class: Transient, Reason: v1alpha1.ReasonAPIServer, Err: err,
			Message: "The Kubernetes API refused or did not answer; the operator's log has its words. It is tried again."}
	}
	return &Error{Class: Transient, Reason: kms.InternalFailure.Reason(), Err: err,
		Message: string(kms.InternalFailure) + ": " + kms.InternalFailure.Message() + " The operator's log says more. It is tried again."}
}

// Result turns the end of a reconcile into what controller-runtime does next. A reconcile that ended
// well, or in an error that is not tried again by itself, looks again after the given time, if that is
// not zero: a deadline comes, whatever else is wrong.
func Result(err error, after time.Duration) (ctrl.Result, error) {
	e := From(err)
	// A dry run that ends as it should is an error by name only: nothing for the log.
	if e == nil || e.Reason == kms.DryRunOperationError.Reason() {
		return ctrl.Result{RequeueAfter: jitter(after)}, nil
	}
	if e.Class == Transient {
		return ctrl.Result{}, e
	}
	if after = earliest(after, e.After); after <= 0 && e.Class == Terminal {
		return ctrl.Result{}, reconcile.TerminalError(e)
	}
	return ctrl.Result{RequeueAfter: jitter(after)}, nil
}

// maxJitter bounds how late a wake-up may be: a year's deadline must not be missed by a month.
const maxJitter = time.Minute

// jitter adds up to a tenth, so that objects made together do not come back together. It never takes
// away: a wake-up for a deadline must not come before it.
func jitter(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return d + time.Duration(rand.Int64N(int64(min(d/10, maxJitter))+1)) //nolint:gosec // spreads load, guards nothing
}

func earliest(a, b time.Duration) time.Duration {
	if a <= 0 || (b > 0 && b < a) {
		return b
	}
	return a
}
