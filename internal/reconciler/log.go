package reconciler

import (
	"context"
	"errors"
	"sync"

	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/kms"
)

// Logged wraps, for controller-runtime, a reconciler whose reconciles end in Result. It logs each failure of an
// object once, and again if the failure changes or recurs: as an error with the private cause if an administrator
// must fix it, and as information if a user must.
func Logged(inner reconcile.Reconciler) reconcile.Reconciler {
	return &logged{inner: inner, last: map[reconcile.Request]failure{}}
}

type logged struct {
	inner reconcile.Reconciler

	mu   sync.Mutex
	last map[reconcile.Request]failure // of the failing objects
}

// failure identifies a failure. It does not include the cause, which can vary between attempts.
type failure struct {
	reason, message string
	refusal         string // the reason of the API server, if it rejected a request
	administrators  bool
}

// Reconcile implements reconcile.Reconciler.
func (l *logged) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	result, err := l.inner.Reconcile(ctx, req)
	if deletedMeanwhile(err, req) {
		result, err = ctrl.Result{}, nil
	}
	e := From(err)
	l.note(ctx, req, e)
	switch {
	case e == nil:
		return result, nil
	case e.Class == Transient:
		return ctrl.Result{}, e
	case e.Class == Terminal && result.RequeueAfter == 0:
		return ctrl.Result{}, reconcile.TerminalError(e) // not retried; the metrics count it
	}
	return result, nil
}

// deletedMeanwhile reports whether a write failed because the reconciled object no longer exists.
func deletedMeanwhile(err error, req reconcile.Request) bool {
	var refused apierrors.APIStatus
	if !apierrors.IsNotFound(err) || !errors.As(err, &refused) {
		return false
	}
	about := refused.Status().Details
	return about != nil && about.Group == v1alpha1.GroupVersion.Group && about.Name == req.Name
}

func (l *logged) note(ctx context.Context, req reconcile.Request, e *Error) {
	log := ctrl.LoggerFrom(ctx)
	if e != nil && (errors.Is(e, context.Canceled) && ctx.Err() != nil || apierrors.IsConflict(e)) {
		log.V(1).Info("The reconcile was interrupted", "cause", e.Error())
		return // the operator ends, or the object has changed: not a failure of the object
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	was, failed := l.last[req]
	if e == nil {
		delete(l.last, req)
		if failed && was.administrators {
			log.Info("The failure is over", "reason", was.reason)
		}
		return
	}
	is := failure{e.Reason, e.Message, string(apierrors.ReasonForError(e.Err)), e.forAdministrators()}
	if is == was {
		return
	}
	l.last[req] = is
	e.log(log, is.administrators)
}

func (e *Error) log(log logr.Logger, administrators bool) {
	switch {
	case administrators:
		log.Error(e.cause(), "The operator failed to reconcile the object", "reason", e.Reason, "message", e.Message)
	case e.Class == Terminal:
		log.Info("The object is stalled until it is changed", "reason", e.Reason, "message", e.Message)
	default:
		log.V(1).Info("The object waits", "reason", e.Reason, "message", e.Message)
	}
}

// forAdministrators reports whether the failure is in the module, its configuration, the API server or the operator.
// Users of the object must fix all others, or they end without intervention.
func (e *Error) forAdministrators() bool {
	switch e.Reason {
	case v1alpha1.ReasonPINRefused, v1alpha1.ReasonModuleMisconfigured:
		return true
	}
	var module *hsm.Error
	if errors.As(e.Err, &module) {
		switch module.Kind {
		case hsm.Misconfigured, hsm.Unavailable, hsm.Locked, hsm.PINUntried, hsm.WrongResult, hsm.Internal:
			return true
		}
	}
	return e.Class == Transient
}

// cause returns the private cause below Keyconvoy's own errors, whose text is in the message. It may be nil.
func (e *Error) cause() error {
	for err := e.Err; ; err = errors.Unwrap(err) {
		switch err.(type) { //nolint:errorlint // each error of the chain separately
		case *kms.Error, *hsm.Error:
		default:
			return err
		}
	}
}
