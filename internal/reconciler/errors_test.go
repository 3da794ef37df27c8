package reconciler_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/reconciler"
)

// errSecret stands for what only the log may have.
var errSecret = errors.New("dial tcp 10.0.0.7:443: token eyJhbGciOi")

// classes has each code of the operations: who can repair it.
var classes = map[kms.Code]reconciler.Class{
	kms.InvalidParameter:            reconciler.Terminal,
	kms.MissingParameter:            reconciler.Terminal,
	kms.InvalidKeyMaterial:          reconciler.Terminal,
	kms.InvalidImportToken:          reconciler.Terminal,
	kms.ExpiredImportToken:          reconciler.Terminal,
	kms.UnsupportedOrigin:           reconciler.Terminal,
	kms.UnsupportedOperation:        reconciler.Terminal,
	kms.ForbiddenNoPermission:       reconciler.Terminal,
	kms.ForbiddenKeyNotFound:        reconciler.Terminal,
	kms.ForbiddenKeyVersionNotFound: reconciler.Waiting,
	kms.RejectedStateModifiedFailed: reconciler.Terminal,
	kms.RejectedDisabled:            reconciler.Waiting,
	kms.RejectedPendingDeletion:     reconciler.Waiting,
	kms.RejectedPendingImport:       reconciler.Waiting,
	kms.RejectedUnavailable:         reconciler.Waiting,
	kms.InternalFailure:             reconciler.Transient,
	kms.ServiceUnavailableTemporary: reconciler.Transient,
	kms.RejectedThrottling:          reconciler.Waiting,
	kms.DryRunOperationError:        reconciler.Terminal,
	kms.ValidationError:             reconciler.Terminal,
	kms.AccessDeniedError:           reconciler.Terminal,
}

func TestFrom_givesEveryCodeAClass(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	for _, code := range kms.Codes() {
		class, listed := classes[code]
		g.Expect(listed).To(BeTrue(), "%s is not in this table: who can repair it?", code)
		op := &kms.Error{Code: code, Detail: "Do this.", Err: errSecret}
		got := reconciler.From(fmt.Errorf("reconciling: %w", op))
		g.Expect(got.Class).To(Equal(class), string(code))
		g.Expect(got.Reason).To(Equal(strings.ReplaceAll(string(code), ".", "")))
		g.Expect(got.Message).To(Equal(op.Public()))
		g.Expect(got).To(MatchError(errSecret), "the log has the cause")
	}
}

func TestFrom_neverShowsTheTextOfAnUnknownError(t *testing.T) {
	t.Parallel()
	resource := schema.GroupResource{Resource: "secrets"}
	for sentence, tc := range map[string]struct {
		err    error
		reason string
	}{
		"anything":                                 {errSecret, "InternalFailure"},
		"anything, wrapped":                        {fmt.Errorf("reading: %w", errSecret), "InternalFailure"},
		"a module's own error":                     {hsm.Wrap(hsm.Unavailable, errSecret, "words of a module"), "InternalFailure"},
		"a refusal of the API server":              {apierrors.NewForbidden(resource, "s", errSecret), v1alpha1.ReasonAPIServer},
		"a conflict, wrapped":                      {fmt.Errorf("writing: %w", apierrors.NewConflict(resource, "s", errSecret)), v1alpha1.ReasonAPIServer},
		"an API server that does not answer":       {fmt.Errorf("%w: %w", errSecret, context.DeadlineExceeded), v1alpha1.ReasonAPIServer},
		"a namespace that is being deleted":        {terminating(), v1alpha1.ReasonNamespaceTerminating},
		"the operator's end":                       {context.Canceled, v1alpha1.ReasonAPIServer},
		"an API server out of order":               {apierrors.NewInternalError(errSecret), v1alpha1.ReasonAPIServer},
		"an operation's failure with a cause":      {&kms.Error{Code: kms.InternalFailure, Err: errSecret}, "InternalFailure"},
		"a wait with a cause":                      {&reconciler.Error{Class: reconciler.Waiting, Reason: "Reason", Message: "Wait.", Err: errSecret}, "Reason"},
		"two errors at once, neither of them ours": {errors.Join(errSecret, context.Canceled), v1alpha1.ReasonAPIServer},
	} {
		t.Run(sentence, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			got := reconciler.From(tc.err)
			g.Expect(got.Reason).To(Equal(tc.reason))
			g.Expect(got.Message).NotTo(Or(ContainSubstring("eyJ"), ContainSubstring("10.0.0.7"), ContainSubstring("words of a module")))
			g.Expect(got.Message).NotTo(BeEmpty())
			if tc.reason != "Reason" && tc.reason != v1alpha1.ReasonNamespaceTerminating {
				g.Expect(got.Class).To(Equal(reconciler.Transient), "what is unknown is retried")
			}
			// The log has everything.
			g.Expect(errors.Is(got, tc.err) || errors.Is(tc.err, got)).To(BeTrue())
			if errors.Is(tc.err, errSecret) {
				g.Expect(got.Error()).To(ContainSubstring("eyJ"))
			}
		})
	}
}

// terminating is how the API server refuses to create something in such a namespace.
func terminating() error {
	err := apierrors.NewForbidden(schema.GroupResource{Resource: "secrets"}, "s", errSecret)
	err.ErrStatus.Details.Causes = []metav1.StatusCause{{Type: corev1.NamespaceTerminatingCause}}
	return err
}

func TestError_saysAnOperationsWordsOnce(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	op := &kms.Error{Code: kms.ForbiddenNoPermission, Detail: "Ask the owner.", Err: errSecret}
	g.Expect(reconciler.From(op).Error()).To(Equal(op.Public() + ": " + errSecret.Error()))
}

func TestFrom_keepsOurOwn(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	g.Expect(reconciler.From(nil)).To(BeNil())
	own := reconciler.Wait("SourceNotFound", "The Secret s is not there.")
	g.Expect(reconciler.From(own)).To(BeIdenticalTo(own))
	g.Expect(reconciler.From(fmt.Errorf("phase: %w", own))).To(BeIdenticalTo(own))
	g.Expect(own.Error()).To(Equal("SourceNotFound: The Secret s is not there."))
	// What is outside speaks: a phase that knew better than the operation which failed.
	outer := &reconciler.Error{Class: reconciler.Waiting, Reason: "KeyNotReady", Message: "Wait.", Err: &kms.Error{Code: kms.RejectedPendingImport}}
	g.Expect(reconciler.From(outer)).To(BeIdenticalTo(outer))
}

func TestResult(t *testing.T) {
	t.Parallel()
	const minute, hour = time.Minute, time.Hour
	waiting := func(after time.Duration) error {
		return &reconciler.Error{Class: reconciler.Waiting, Reason: "R", Message: "m", After: after}
	}
	stalled := func(after time.Duration) error {
		return &reconciler.Error{Class: reconciler.Terminal, Reason: "R", Message: "m", After: after}
	}
	for sentence, tc := range map[string]struct {
		err      error
		after    time.Duration
		want     time.Duration // 0: it is not looked at again by itself
		retried  bool          // with backoff
		terminal bool
	}{
		"well and nothing to come":                      {nil, 0, 0, false, false},
		"well and a deadline":                           {nil, hour, hour, false, false},
		"well and a deadline in a year":                 {nil, 365 * 24 * hour, 365 * 24 * hour, false, false},
		"well and a deadline that has passed":           {nil, -hour, 0, false, false},
		"waiting for a watch":                           {waiting(0), 0, 0, false, false},
		"waiting for a time":                            {waiting(minute), 0, minute, false, false},
		"waiting and an earlier deadline":               {waiting(hour), minute, minute, false, false},
		"waiting and a later deadline":                  {waiting(minute), hour, minute, false, false},
		"waiting for a watch and a deadline":            {waiting(0), hour, hour, false, false},
		"stalled":                                       {stalled(0), 0, 0, false, true},
		"stalled and a deadline":                        {stalled(0), hour, hour, false, false},
		"stalled until a time":                          {stalled(minute), 0, minute, false, false},
		"an operation's error that the user can repair": {&kms.Error{Code: kms.InvalidKeyMaterial}, 0, 0, false, true},
		"a dry run that would have succeeded":           {&kms.Error{Code: kms.DryRunOperationError}, 0, 0, false, false},
		"a dry run that would have failed":              {&kms.Error{Code: kms.ValidationError}, 0, 0, false, true},
		"an operation's error that passes":              {&kms.Error{Code: kms.ServiceUnavailableTemporary}, 0, 0, true, false},
		"an unknown error":                              {errSecret, 0, 0, true, false},
		"an unknown error and a deadline":               {errSecret, hour, 0, true, false},
	} {
		t.Run(sentence, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			for range 50 { // the jitter is random
				result, err := endsIn(t, tc.err, tc.after)
				g.Expect(err != nil).To(Equal(tc.retried || tc.terminal), "%v", err)
				g.Expect(errors.Is(err, reconcile.TerminalError(nil))).To(Equal(tc.terminal))
				// Never early, for a deadline has then not passed; at most a tenth late, and never
				// more than a minute.
				late := min(tc.want/10, minute)
				g.Expect(result.RequeueAfter).To(And(BeNumerically(">=", tc.want), BeNumerically("<=", tc.want+late)))
				g.Expect(result).To(Equal(ctrl.Result{RequeueAfter: result.RequeueAfter}))
			}
		})
	}
}

// endsIn is what controller-runtime gets of a reconcile with that end.
func endsIn(t *testing.T, err error, after time.Duration) (ctrl.Result, error) {
	t.Helper()
	inner := reconcile.Func(func(context.Context, reconcile.Request) (reconcile.Result, error) {
		return reconciler.Result(err, after)
	})
	return reconciler.Logged(inner).Reconcile(t.Context(), reconcile.Request{})
}

// Objects that were made together do not come back together.
func TestResult_spreads(t *testing.T) {
	t.Parallel()
	seen := map[time.Duration]bool{}
	for range 100 {
		result, _ := reconciler.Result(nil, time.Hour)
		seen[result.RequeueAfter] = true
	}
	if len(seen) < 90 {
		t.Errorf("a hundred objects come back at %d times", len(seen))
	}
}

func TestPhaseContext_leavesTimeForTheStatus(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		whole, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		phases, cancelPhases := reconciler.PhaseContext(whole)
		defer cancelPhases()

		<-phases.Done()
		if took := time.Since(start); took != 90*time.Second || !errors.Is(phases.Err(), context.DeadlineExceeded) {
			t.Errorf("the phases' context ends after %v with %v, want 1m30s and its deadline", took, phases.Err())
		}
		if err := whole.Err(); err != nil {
			t.Errorf("the reconcile's context ends with %v, and nothing is left for the status", err)
		}
	})
}

func TestPhaseContext_ofAReconcileWithoutDeadline_endsWithIt(t *testing.T) {
	t.Parallel()
	whole, cancel := context.WithCancel(t.Context())
	phases, cancelPhases := reconciler.PhaseContext(whole)
	defer cancelPhases()
	if _, ok := phases.Deadline(); ok || phases.Err() != nil {
		t.Errorf("the phases' context ends by itself: %v", phases.Err())
	}
	cancel()
	if !errors.Is(phases.Err(), context.Canceled) {
		t.Errorf("the phases' context goes on: %v", phases.Err())
	}
}

func TestFrom_aModuleThatDoesNotRespondInTime_saysSoAndThatTheOperatorRetries(t *testing.T) {
	t.Parallel()
	err := kms.FromModule(hsm.Wrap(hsm.Unavailable, fmt.Errorf("waiting: %w", context.DeadlineExceeded), ""))
	e := reconciler.From(fmt.Errorf("phase: %w", err))
	const want = "The cryptographic module did not respond in time. The operator retries."
	if e.Class != reconciler.Transient || e.Reason != "ServiceUnavailableTemporary" || !strings.HasSuffix(e.Message, want) {
		t.Errorf("it says %v %s %q, want %q at the end", e.Class, e.Reason, e.Message, want)
	}
	other := reconciler.From(kms.FromModule(hsm.Errorf(hsm.Unavailable, "the device is away")))
	if strings.Contains(other.Message, "in time") {
		t.Errorf("of another failure it says %q", other.Message)
	}
}
