package reconciler

import (
	"context"
	"errors"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
)

// Object is an object whose status says how its last reconcile ended.
type Object interface {
	client.Object
	GetConditions() []metav1.Condition
	SetConditions(conditions []metav1.Condition)
	SetObservedGeneration(generation int64)
	GetStatus() any
}

// Phase is one step of a reconcile. It works on a scope, whose fields it fills for the phases after it. An error ends the
// reconcile; ErrDone ends it well.
type Phase[S any] func(ctx context.Context, scope S) error

// ErrDone is returned by a phase that finds that nothing is left to do.
var ErrDone = errors.New("nothing is left to do")

// Outcome is how the phases of a reconcile ended, as the object's kind puts it.
type Outcome struct {
	// Err is what went wrong; nil when the object is ready.
	Err error
	// ReadyMessage is the message of the condition Ready when nothing went wrong.
	ReadyMessage string
	// After is when to look again although nothing is wrong, or although only a watch would tell; zero for never.
	After time.Duration
	// Write asks for a status although its error would not be worth one (Error.Unsettled).
	Write bool
	// OnlyIfUnchanged is set for a status that follows from the former one, as a list that grows does: it must not be written over
	// that of another operator, which this one has not read.
	OnlyIfUnchanged bool
	// Events are emitted once the status is written.
	Events []Event
	// Written is called once the status is written.
	Written func()
}

// Event is for people who look at an object. Its message does not vary between tries.
type Event struct{ Type, Reason, Action, Message string }

// Frame is what the end of every reconcile needs.
type Frame struct {
	Client   client.Client
	Recorder events.EventRecorder
}

// Run reconciles an object that exists and stays: it runs the phases until one returns an error, asks conclude what that
// means for the kind, and finishes with that (Finish).
func Run[S any](ctx context.Context, f Frame, object Object, scope S, phases []Phase[S], conclude func(error) Outcome) (ctrl.Result, error) {
	before := object.DeepCopyObject().(Object)
	return f.Finish(ctx, before, object, conclude(runPhases(ctx, scope, phases)))
}

func runPhases[S any](ctx context.Context, scope S, phases []Phase[S]) error {
	ctx, cancel := PhaseContext(ctx)
	defer cancel()
	for _, phase := range phases {
		if err := phase(ctx, scope); errors.Is(err, ErrDone) {
			return nil
		} else if err != nil {
			return err
		}
	}
	return nil
}

// Finish is the only code that ends a reconcile: it sets the conditions, writes what has changed in the status since before,
// then emits events, and returns when to look again.
func (f Frame) Finish(ctx context.Context, before, object Object, o Outcome) (ctrl.Result, error) {
	e := From(o.Err)
	after := o.After
	if e != nil && losesStore(before, e) {
		after = earliest(after, lookAgainAfter)
	}
	if e != nil && e.Unsettled && !o.Write {
		return Result(e, after)
	}
	object.SetObservedGeneration(object.GetGeneration())
	object.SetConditions(Summarize(object.GetConditions(), object.GetGeneration(), o.Err, o.ReadyMessage))
	if err := patchStatus(ctx, f.Client, before, object, o.OnlyIfUnchanged); err != nil {
		return ctrl.Result{}, err
	}
	f.Announce(object, o.Events)
	f.warn(object, before.GetConditions(), e)
	if o.Written != nil {
		o.Written()
	}
	return Result(o.Err, after)
}

// lookAgainAfter is how long after it lost its key store an object looks again by itself.
const lookAgainAfter = 2 * time.Second

// losesStore reports whether an object that was ready waits for its key store now. Objects that wait are told when it
// becomes ready; but this one is not known as waiting yet at that moment, and so looks again once by itself.
func losesStore(before Object, e *Error) bool {
	return meta.IsStatusConditionTrue(before.GetConditions(), v1alpha1.ConditionReady) &&
		(e.Reason == v1alpha1.ReasonKeyStoreNotReady || e.Reason == v1alpha1.ReasonKeyStoreNotFound)
}

// Announce emits events.
func (f Frame) Announce(o client.Object, events []Event) {
	for _, e := range events {
		f.Recorder.Eventf(o, nil, e.Type, e.Reason, e.Action, "%s", e.Message)
	}
}

// warn emits an event for a failure that people must repair, when it is new or has another reason than before.
func (f Frame) warn(o client.Object, before []metav1.Condition, e *Error) {
	if e == nil || !e.ForPeople() {
		return
	}
	was := meta.FindStatusCondition(before, v1alpha1.ConditionReady)
	if was == nil || was.Reason != e.Reason {
		f.Recorder.Eventf(o, nil, corev1.EventTypeWarning, e.Reason, "Reconcile", "%s", bounded(e.Message))
	}
}
