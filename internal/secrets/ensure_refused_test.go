package secrets_test

import (
	"context"
	"errors"
	"testing"

	. "github.com/onsi/gomega"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/internal/secrets"
)

func TestEnsure_reportsThatTheAPIServerRefused(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		prepare func(f fixture)
		as      string // a user without permissions; empty for the administrator
		says    string
	}{
		"a quota":             {prepare: fixture.limitSecrets, says: "exceeded quota: few-secrets"},
		"an admission policy": {prepare: fixture.denySecrets, says: "there are no Secrets here"},
		"no permission":       {as: "guest", says: "guest"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			cl := f.env.Client
			if c.as != "" {
				cl = f.env.As(t, c.as)
			}
			if c.prepare != nil {
				c.prepare(f)
			}
			d := f.desired(controlledClass, "s", appLedger)
			_, err := secrets.New(cl, cl, nil, f.ns).Ensure(t.Context(), d, nil)
			var refused *secrets.RefusedError
			f.Expect(errors.As(err, &refused)).To(BeTrue(), "%v", err)
			f.Expect(refused.Ref).To(Equal(d.Ref))
			f.Expect(refused.Err).To(MatchError(ContainSubstring(c.says)))
			f.Expect(f.secrets.Read(t.Context(), d.Ref)).To(BeNil())
		})
	}
}

func TestEnsure_returnsTheAPIServersError_whenTheNamespaceIsBeingDeleted(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.Expect(f.env.Client.Delete(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: f.ns}})).To(Succeed())
	_, err := f.secrets.Ensure(t.Context(), f.desired(controlledClass, "s", appLedger), nil)
	f.Expect(apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause)).To(BeTrue(), "%v", err)
	var refused *secrets.RefusedError
	f.Expect(errors.As(err, &refused)).To(BeFalse())
}

// limitSecrets sets a quota that permits no Secrets, and returns when it is in force.
func (f fixture) limitSecrets() {
	f.t.Helper()
	none := corev1.ResourceList{"secrets": resource.MustParse("0")}
	quota := &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Name: "few-secrets"}, Spec: corev1.ResourceQuotaSpec{Hard: none}}
	f.make(quota)
	quota.Status = corev1.ResourceQuotaStatus{Hard: none, Used: none} // no controller does that here
	f.Expect(f.env.Client.Status().Update(f.t.Context(), quota)).To(Succeed())
	f.untilRefused()
}

// denySecrets sets a policy that permits no Secrets, and returns when it is in force.
func (f fixture) denySecrets() {
	f.t.Helper()
	name := metav1.ObjectMeta{Name: f.ns}
	here := &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelMetadataName: f.ns}}
	policy := &admissionregistrationv1.ValidatingAdmissionPolicy{ObjectMeta: name, Spec: admissionregistrationv1.ValidatingAdmissionPolicySpec{
		MatchConstraints: &admissionregistrationv1.MatchResources{ResourceRules: []admissionregistrationv1.NamedRuleWithOperations{{
			RuleWithOperations: admissionregistrationv1.RuleWithOperations{
				Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Create},
				Rule:       admissionregistrationv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"secrets"}},
			},
		}}},
		Validations: []admissionregistrationv1.Validation{{Expression: "false", Message: "there are no Secrets here"}},
	}}
	binding := &admissionregistrationv1.ValidatingAdmissionPolicyBinding{ObjectMeta: name, Spec: admissionregistrationv1.ValidatingAdmissionPolicyBindingSpec{
		PolicyName: f.ns, ValidationActions: []admissionregistrationv1.ValidationAction{admissionregistrationv1.Deny},
		MatchResources: &admissionregistrationv1.MatchResources{NamespaceSelector: here},
	}}
	for _, o := range []client.Object{policy, binding} {
		f.Expect(f.env.Client.Create(f.t.Context(), o)).To(Succeed())
		f.t.Cleanup(func() { _ = f.env.Client.Delete(context.Background(), o) })
	}
	f.untilRefused()
}

func (f fixture) untilRefused() {
	f.t.Helper()
	f.Eventually(func() error {
		probe := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: f.ns, Name: "probe"}}
		return f.env.Client.Create(f.t.Context(), probe, client.DryRunAll)
	}).WithTimeout(untilInForce).ShouldNot(Succeed())
}
