package config_test

import (
	"testing"

	. "github.com/onsi/gomega"
	appsv1 "k8s.io/api/apps/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/utils/ptr"
)

// The gateway is stolen more easily than the operator, because clients reach it. It writes keys, and the Secrets of its own namespace.
func TestGatewayRole_isNarrow(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	role := find[rbacv1.ClusterRole](t, build(t, "gateway"), "ClusterRole", "keyconvoy-gateway-role")
	g.Expect(role.Rules).NotTo(BeEmpty())
	writable := map[string]bool{"importedkeys": true, "generatedkeys": true, "subjectaccessreviews": true, "tokenreviews": true}
	for _, rule := range role.Rules {
		for _, resource := range rule.Resources {
			g.Expect(resource).NotTo(ContainSubstring("/"), "it writes no status")
			g.Expect(rule.Verbs).NotTo(ContainElement(BeElementOf("*", "escalate", "bind", "impersonate", "deletecollection", "update")))
			if !writable[resource] {
				g.Expect(rule.Verbs).To(HaveEach(BeElementOf("get", "list", "watch")), resource)
			}
			if resource == "secrets" {
				g.Expect(rule.Verbs).To(Equal([]string{"get"}), "it reads the Secrets whose names it knows")
			}
		}
	}
}

func TestGateway_keepsAReplica(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	objects := build(t, "gateway")
	deployment := find[appsv1.Deployment](t, objects, "Deployment", "keyconvoy-gateway")
	budget := find[policyv1.PodDisruptionBudget](t, objects, "PodDisruptionBudget", "keyconvoy-gateway")
	g.Expect(ptr.Deref(deployment.Spec.Replicas, 1)).To(BeNumerically(">", budget.Spec.MinAvailable.IntValue()))
	g.Expect(labels.SelectorFromSet(budget.Spec.Selector.MatchLabels).Matches(labels.Set(deployment.Spec.Template.Labels))).To(BeTrue())
	for _, c := range deployment.Spec.Template.Spec.Containers {
		g.Expect(ptr.Deref(c.SecurityContext.ReadOnlyRootFilesystem, false)).To(BeTrue())
		g.Expect(ptr.Deref(c.SecurityContext.AllowPrivilegeEscalation, true)).To(BeFalse())
	}
}
