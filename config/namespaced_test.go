package config_test

import (
	"slices"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
)

// What the operator needs for objects without a namespace, it has in this installation, too. It has nothing else
// in all namespaces: its role is bound in single ones.
func TestNamespaced_bindsEverywhereOnlyWhatHasNoNamespace(t *testing.T) {
	t.Parallel()
	objects := build(t, "namespaced")
	everywhere := find[rbacv1.ClusterRole](t, objects, "ClusterRole", "keyconvoy-manager-cluster-role")
	usual := find[rbacv1.ClusterRole](t, objects, "ClusterRole", "keyconvoy-manager-role")
	withoutNamespace := []string{
		"namespaces", "events", "clusterkeystores", "clusterkeystores/status", "clusterexporteddatakeys", "clusterexporteddatakeys/status",
	}
	for _, rule := range everywhere.Rules {
		for _, resource := range rule.Resources {
			if !slices.Contains(withoutNamespace, resource) {
				t.Errorf("it may %q all %s", rule.Verbs, resource)
			}
		}
	}
	for _, resource := range withoutNamespace {
		for _, verb := range verbsOn(usual, resource) {
			if !slices.Contains(verbsOn(everywhere, resource), verb) {
				t.Errorf("it may not %s %s, as the usual role does", verb, resource)
			}
		}
	}
	for _, u := range objects {
		if u.GetKind() != "ClusterRoleBinding" {
			continue
		}
		binding := find[rbacv1.ClusterRoleBinding](t, objects, "ClusterRoleBinding", u.GetName())
		if binding.RoleRef.Name == usual.Name {
			t.Errorf("%s binds the role in all namespaces", binding.Name)
		}
	}
}

func verbsOn(role *rbacv1.ClusterRole, resource string) (verbs []string) {
	for _, rule := range role.Rules {
		if slices.Contains(rule.Resources, resource) {
			verbs = append(verbs, rule.Verbs...)
		}
	}
	return verbs
}
