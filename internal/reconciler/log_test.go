package reconciler_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr/funcr"
	. "github.com/onsi/gomega"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/reconciler"
)

// ending is a reconciler whose reconciles end as a test says, with its log.
type ending struct {
	t      *testing.T
	err    error
	after  time.Duration
	logged reconcile.Reconciler
	lines  []string
}

func newEnding(t *testing.T) *ending {
	e := &ending{t: t}
	e.logged = reconciler.Logged(reconcile.Func(func(context.Context, reconcile.Request) (reconcile.Result, error) {
		return reconciler.Result(e.err, e.after)
	}))
	return e
}

// of reconciles an object to that end, and returns what was logged.
func (e *ending) of(name string, err error) []string {
	e.t.Helper()
	e.err, e.lines = err, nil
	log := funcr.New(func(_, line string) { e.lines = append(e.lines, line) }, funcr.Options{})
	request := reconcile.Request{NamespacedName: types.NamespacedName{Namespace: "n", Name: name}}
	_, _ = e.logged.Reconcile(ctrl.LoggerInto(e.t.Context(), log), request)
	return e.lines
}

// misconfigured is how a library that does not load ends a reconcile: looked at again, and no error for
// controller-runtime.
func misconfigured(cause string) error {
	return &reconciler.Error{
		Class: reconciler.Terminal, Reason: v1alpha1.ReasonModuleMisconfigured, After: time.Minute,
		Message: "The module cannot be used as it is configured. The library does not load.",
		Err:     hsm.Wrap(hsm.Misconfigured, errors.New(cause), "The library does not load."),
	}
}

func TestLogged_logsAFailureOnceWithItsCause(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	e := newEnding(t)
	lines := e.of("a", misconfigured("libcrypto.so.3: cannot open shared object file"))
	g.Expect(lines).To(HaveLen(1))
	g.Expect(lines[0]).To(And(ContainSubstring(`"error"="libcrypto.so.3: cannot open`), ContainSubstring(`"reason"="ModuleMisconfigured"`)))
	g.Expect(strings.Count(lines[0], "The library does not load.")).To(Equal(1), "nothing is said twice")

	g.Expect(e.of("a", misconfigured("libcrypto.so.3: cannot open shared object file"))).To(BeEmpty(), "the same again")
	g.Expect(e.of("a", misconfigured("another address"))).To(BeEmpty(), "causes vary from try to try")
	g.Expect(e.of("b", misconfigured("libcrypto.so.3"))).To(HaveLen(1), "another object")
	g.Expect(e.of("a", &kms.Error{Code: kms.ServiceUnavailableTemporary})).To(HaveLen(1), "another failure")
	g.Expect(e.of("a", misconfigured("libcrypto.so.3"))).To(HaveLen(1), "the first failure, come back")
	g.Expect(e.of("a", nil)).To(ConsistOf(ContainSubstring("The failure is over")))
	g.Expect(e.of("a", nil)).To(BeEmpty())
	g.Expect(e.of("a", misconfigured("libcrypto.so.3"))).To(HaveLen(1), "the same after it was over")
}

// Each failure that an administrator must fix is an error of the log, and no other is.
func TestLogged_saysWhoMustFixIt(t *testing.T) {
	t.Parallel()
	resource := schema.GroupResource{Group: v1alpha1.GroupVersion.Group, Resource: "datakeys"}
	for sentence, tc := range map[string]struct {
		err    error
		errors int
		infos  int
	}{
		"a library that does not load":         {misconfigured("dlopen"), 1, 0},
		"a refused PIN":                        {reconciler.Stall(v1alpha1.ReasonPINRefused, "The PIN is not accepted."), 1, 0},
		"a module that does not answer":        {kms.FromModule(hsm.Wrap(hsm.Unavailable, errSecret, "")), 1, 0},
		"a module out of order":                {kms.FromModule(hsm.Wrap(hsm.Internal, errSecret, "")), 1, 0},
		"an opening that hangs":                {&reconciler.Error{Class: reconciler.Waiting, Reason: "R", Message: "m", Err: hsm.Wrap(hsm.Unavailable, errSecret, "")}, 1, 0},
		"anything unknown":                     {errSecret, 1, 0},
		"the API server":                       {apierrors.NewInternalError(errSecret), 1, 0},
		"a permission that the operator lacks": {apierrors.NewForbidden(resource, "a", errSecret), 1, 0},

		"material that does not unwrap":        {kms.FromModule(hsm.Errorf(hsm.InvalidMaterial, "It does not unwrap.")), 0, 1},
		"a parameter that is wrong":            {&kms.Error{Code: kms.InvalidParameter, Parameter: "PublicKeyBlob"}, 0, 1},
		"consent that is missing":              {&kms.Error{Code: kms.ForbiddenNoPermission}, 0, 1},
		"waiting for a Secret":                 {reconciler.Wait(v1alpha1.ReasonSourceNotFound, "m"), 0, 0},
		"a key that is disabled":               {&kms.Error{Code: kms.RejectedDisabled}, 0, 0},
		"an object that was deleted meanwhile": {fmt.Errorf("patching: %w", apierrors.NewNotFound(resource, "a")), 0, 0},
		"an object that was changed meanwhile": {apierrors.NewConflict(resource, "a", errSecret), 0, 0},
		"a namespace that is being deleted":    {terminating(), 0, 0},
		"a dry run that would have succeeded":  {&kms.Error{Code: kms.DryRunOperationError}, 0, 0},
	} {
		t.Run(sentence, func(t *testing.T) {
			t.Parallel()
			var errs, infos int
			for _, line := range newEnding(t).of("a", tc.err) {
				if strings.Contains(line, `"msg"="The operator failed to reconcile the object"`) {
					errs++
				} else {
					infos++
				}
			}
			if errs != tc.errors || infos != tc.infos {
				t.Errorf("%d errors and %d lines of information, want %d and %d", errs, infos, tc.errors, tc.infos)
			}
		})
	}
}

// A write to an object that does not exist any more is the end of its reconcile, but only to that object.
func TestLogged_anObjectThatWasDeletedIsNoFailure(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	of := func(group, name string) error {
		inner := reconcile.Func(func(context.Context, reconcile.Request) (reconcile.Result, error) {
			return ctrl.Result{}, apierrors.NewNotFound(schema.GroupResource{Group: group, Resource: "anything"}, name)
		})
		_, err := reconciler.Logged(inner).Reconcile(t.Context(), reconcile.Request{NamespacedName: types.NamespacedName{Namespace: "n", Name: "a"}})
		return err
	}
	g.Expect(of(v1alpha1.GroupVersion.Group, "a")).To(Succeed())
	g.Expect(of(v1alpha1.GroupVersion.Group, "b")).NotTo(Succeed())
	g.Expect(of("", "a")).NotTo(Succeed(), "a Secret of that name")
}
