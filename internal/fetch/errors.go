package fetch

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
)

// Kind says who can do something about an Error.
type Kind int

// The kinds of errors.
const (
	Denied  Kind = iota + 1 // the pod's ServiceAccount lacks a permission
	Refused                 // the operator cannot export as things are
	Absent                  // the cluster has no Keyconvoy
	Late                    // the time was over; another attempt may succeed
)

// Error is a failure, and what to do about it. It contains messages of the API server and of conditions, which contain no
// secrets.
type Error struct {
	Kind    Kind
	Problem string
	Hint    string // empty if there is nothing to add
}

// Error implements error. It does not contain the hint.
func (e *Error) Error() string { return e.Problem }

// errWatchEnded has the watch begun again.
var errWatchEnded = errors.New("the watch ended")

// maxWait is the longest time between two attempts.
const maxWait = 5 * time.Second

// interrupted is the end of a context, with the error of the last attempt that it did not cut short, if there is one.
type interrupted struct{ context, last error }

func (e *interrupted) Error() string { return e.context.Error() }

func (e *interrupted) Unwrap() error { return e.context }

// retry calls work until it succeeds, fails with an error that does not pass, or ctx ends; the error is then *interrupted.
func retry(ctx context.Context, work func(context.Context) error) error {
	backoff := wait.Backoff{Duration: 50 * time.Millisecond, Factor: 2, Jitter: 0.5, Steps: math.MaxInt32, Cap: maxWait}
	var last error
	for {
		err := work(ctx)
		if err == nil || !isTransient(err) {
			return err
		}
		if ctx.Err() == nil {
			last = err
		}
		pause := backoff.Step()
		if seconds, ok := apierrors.SuggestsClientDelay(err); ok {
			pause = max(pause, time.Duration(seconds)*time.Second)
		}
		select {
		case <-ctx.Done():
			return &interrupted{ctx.Err(), last}
		case <-time.After(pause):
		}
	}
}

// requestTimeout limits one attempt of a request, so that a connection that is dead does not take all of the time.
const requestTimeout = 10 * time.Second

// briefly limits the time of each attempt.
func briefly(work func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, requestTimeout)
		defer cancel()
		return work(ctx)
	}
}

// isTransient reports whether another attempt may succeed. An API server that cannot be reached has no status.
func isTransient(err error) bool {
	var ours *Error
	if errors.As(err, &ours) {
		return false
	}
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return true
	}
	code := status.Status().Code
	return code >= 500 || code == 429 || apierrors.IsResourceExpired(err) || apierrors.IsGone(err)
}

// explainCreate says what an answer of the API server means to those who run the pod.
func explainCreate(err error, r Request) error {
	if ended, late := isLate(err); late {
		return lateCreate(ended)
	}
	switch {
	case apierrors.IsNotFound(err):
		return notInstalled(r.Pod.Namespace)
	case apierrors.IsUnauthorized(err):
		return unauthorized()
	case apierrors.IsForbidden(err) && strings.Contains(err.Error(), "exceeded quota"):
		return &Error{Kind: Denied, Problem: err.Error(), Hint: "raise the ResourceQuota of namespace " + r.Pod.Namespace}
	case apierrors.IsForbidden(err):
		return &Error{Kind: Denied, Problem: err.Error(), Hint: fmt.Sprintf("grant the pod's ServiceAccount the verbs create, watch and delete on "+
			"exporteddatakeys in namespace %s, and the verb export on the DataKey %s in namespace %s", r.Pod.Namespace, r.DataKey.Name, r.DataKey.Namespace)}
	case isStatus(err):
		return &Error{Kind: Refused, Problem: err.Error()}
	}
	return err
}

// explainWatch is explainCreate for a watch. Errors that may pass stay as they are.
func explainWatch(err error, list client.ObjectList, name types.NamespacedName) error {
	resource := "exporteddatakeys"
	if _, ok := list.(*v1alpha1.DataKeyList); ok {
		resource = "the DataKey " + name.Name
	}
	switch {
	case isTransient(err):
		return err
	case apierrors.IsNotFound(err):
		return notInstalled(name.Namespace)
	case apierrors.IsUnauthorized(err):
		return unauthorized()
	case apierrors.IsForbidden(err):
		return &Error{Kind: Denied, Problem: err.Error(),
			Hint: fmt.Sprintf("grant the pod's ServiceAccount the verb watch on %s in namespace %s", resource, name.Namespace)}
	case isStatus(err):
		return &Error{Kind: Refused, Problem: err.Error()}
	}
	return err
}

func notInstalled(namespace string) error {
	return &Error{Kind: Absent, Problem: "the cluster has no Keyconvoy, or namespace " + namespace + " does not exist",
		Hint: "install a version of Keyconvoy that has ExportedDataKeys with delivery Status"}
}

func unauthorized() error {
	return &Error{Kind: Denied, Problem: "the API server does not accept the token of the pod's ServiceAccount",
		Hint: "the pod or its ServiceAccount may have been deleted"}
}

// lateCreate says why the object could not be created in time.
func lateCreate(err *interrupted) error {
	problem := "the API server did not answer in time"
	if err.last != nil {
		problem += ": " + err.last.Error()
	}
	return &Error{Kind: Late, Problem: problem, Hint: "check that the pod can reach the API server"}
}

// lateExport says what the export waited for when the time was over.
func lateExport(err *interrupted, waitsFor string) error {
	const problem = "the data key was not exported in time: "
	switch {
	case waitsFor != "":
		return &Error{Kind: Late, Problem: problem + waitsFor}
	case err.last != nil && !errors.Is(err.last, errWatchEnded):
		return &Error{Kind: Late, Problem: problem + err.last.Error(), Hint: "check that the pod can reach the API server"}
	}
	return &Error{Kind: Late, Problem: problem + "the operator has not answered",
		Hint: "check that the operator runs and serves the pod's namespace"}
}

// isLate reports whether an error is the end of the time, and not that someone canceled the work.
func isLate(err error) (*interrupted, bool) {
	var ended *interrupted
	return ended, errors.As(err, &ended) && errors.Is(ended.context, context.DeadlineExceeded)
}

func isStatus(err error) bool {
	var status apierrors.APIStatus
	return errors.As(err, &status)
}
