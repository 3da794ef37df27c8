package reconciler_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/reconciler"
)

// patches counts the status patches, and fails them with err.
type patches struct {
	client.Client
	n   int
	err error
}

func (p *patches) Status() client.SubResourceWriter { return statusWriter{p} }

type statusWriter struct{ *patches }

func (w statusWriter) Create(context.Context, client.Object, client.Object, ...client.SubResourceCreateOption) error {
	return errors.New("a status is patched")
}

func (w statusWriter) Update(context.Context, client.Object, ...client.SubResourceUpdateOption) error {
	return errors.New("a status is patched")
}

func (w statusWriter) Patch(context.Context, client.Object, client.Patch, ...client.SubResourcePatchOption) error {
	w.n++
	return w.err
}

func (w statusWriter) Apply(context.Context, runtime.ApplyConfiguration, ...client.SubResourceApplyOption) error {
	return errors.New("a status is patched")
}

// waitsFor is an error of another package that names what the object waits for.
type waitsFor struct{ settled bool }

func (waitsFor) Error() string   { return "waits" }
func (waitsFor) Reason() string  { return v1alpha1.ReasonKeyStoreNotReady }
func (waitsFor) Message() string { return "It is not ready." }
func (w waitsFor) Settled() bool { return w.settled }

func (waitsFor) RetryAfter() time.Duration { return 0 }

func frame(err error) (*patches, *events.FakeRecorder, reconciler.Frame) {
	p, recorder := &patches{err: err}, events.NewFakeRecorder(8)
	return p, recorder, reconciler.Frame{Client: p, Recorder: recorder}
}

func ready() *v1alpha1.DataKey {
	return &v1alpha1.DataKey{
		ObjectMeta: metav1.ObjectMeta{Namespace: "team-a", Name: "dek", UID: "u", Generation: 1},
		Status: v1alpha1.DataKeyStatus{
			ObservedGeneration: 1,
			Conditions:         reconciler.Summarize(nil, 1, nil, "Done."),
		},
	}
}

func TestRun_endsWithTheFirstPhaseThatIsDoneOrFails(t *testing.T) {
	t.Parallel()
	failed := errors.New("failed")
	for name, c := range map[string]struct {
		second error
		ran    []string
		want   error
	}{
		"every phase goes well": {nil, []string{"first", "second", "third"}, nil},
		"nothing is left to do": {reconciler.ErrDone, []string{"first", "second"}, nil},
		"a phase fails":         {failed, []string{"first", "second"}, failed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, _, f := frame(nil)
			var ran []string
			phase := func(name string, err error) reconciler.Phase[*[]string] {
				return func(_ context.Context, scope *[]string) error {
					*scope = append(*scope, name)
					return err
				}
			}
			var got error
			_, _ = reconciler.Run(t.Context(), f, ready(), &ran, []reconciler.Phase[*[]string]{
				phase("first", nil), phase("second", c.second), phase("third", nil),
			}, func(err error) reconciler.Outcome {
				got = err
				return reconciler.Outcome{Err: err, ReadyMessage: "Done."}
			})
			if !slices.Equal(ran, c.ran) || !errors.Is(got, c.want) {
				t.Errorf("%v ran and ended in %v", ran, got)
			}
		})
	}
}

func TestFinish_writesOnceAndOnlyWhatChanged(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		outcome reconciler.Outcome
		writes  int
		after   time.Duration // at least
	}{
		"nothing has changed":              {reconciler.Outcome{ReadyMessage: "Done."}, 0, 0},
		"it looks again in a minute":       {reconciler.Outcome{ReadyMessage: "Done.", After: time.Minute}, 0, time.Minute},
		"the key store is being opened":    {reconciler.Outcome{Err: waitsFor{settled: false}}, 0, time.Second},
		"and something else is news":       {reconciler.Outcome{Err: waitsFor{settled: false}, Write: true}, 1, time.Second},
		"the key store is no longer ready": {reconciler.Outcome{Err: waitsFor{settled: true}}, 1, time.Second},
		"it stalls":                        {reconciler.Outcome{Err: reconciler.Stall("R", "m")}, 1, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, _, f := frame(nil)
			object := ready()
			result, _ := f.Finish(t.Context(), object.DeepCopy(), object, c.outcome)
			if p.n != c.writes || result.RequeueAfter < c.after || (c.after == 0) != (result.RequeueAfter == 0) {
				t.Errorf("%d writes, and it looks again after %s", p.n, result.RequeueAfter)
			}
		})
	}
}

// People hear of nothing that the status does not say.
func TestFinish_whoseStatusIsNotWritten_emitsNothing(t *testing.T) {
	t.Parallel()
	for name, err := range map[string]error{"the API server fails": errors.New("down"), "it is written": nil} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, recorder, f := frame(err)
			object, written := ready(), false
			_, got := f.Finish(t.Context(), object.DeepCopy(), object, reconciler.Outcome{
				Err:     reconciler.Stall("R", "m"),
				Events:  []reconciler.Event{{Type: "Normal", Reason: "Noted", Action: "Note", Message: "n"}},
				Written: func() { written = true },
			})
			if err != nil && (!errors.Is(got, err) || written || len(recorder.Events) != 0) {
				t.Errorf("written: %t, %d events, error %v", written, len(recorder.Events), got)
			}
			if err == nil && (!written || len(recorder.Events) != 2) { // the note, and the stall
				t.Errorf("written: %t, %d events, error %v", written, len(recorder.Events), got)
			}
		})
	}
}
