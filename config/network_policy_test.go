package config_test

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// The policy is for the operator's pod, opens exactly its ports, and lets it reach names and the API server.
func TestNetworkPolicy_fitsTheManager(t *testing.T) {
	t.Parallel()
	objects := build(t, "default")
	policy := find[networkingv1.NetworkPolicy](t, objects, "NetworkPolicy", "keyconvoy-controller-manager")
	pod := managerPod(t, objects)
	selector, err := metav1.LabelSelectorAsSelector(&policy.Spec.PodSelector)
	if err != nil || policy.Namespace != pod.Namespace || !selector.Matches(labels.Set(pod.Labels)) {
		t.Errorf("the policy does not select the operator's pod: %v", err)
	}
	if want := []networkingv1.PolicyType{"Ingress", "Egress"}; !slices.Equal(policy.Spec.PolicyTypes, want) {
		t.Errorf("the policy is for %v", policy.Spec.PolicyTypes)
	}

	var opened, served []string
	for _, rule := range policy.Spec.Ingress {
		for _, port := range rule.Ports {
			opened = append(opened, port.Port.String())
		}
	}
	for _, port := range pod.Spec.Containers[0].Ports {
		served = append(served, port.Name)
	}
	if !slices.Equal(opened, served) {
		t.Errorf("the policy opens %q, the operator serves %q", opened, served)
	}

	var reached []int32
	for _, rule := range policy.Spec.Egress {
		if len(rule.Ports) == 0 {
			t.Error("a rule lets the operator reach every port")
		}
		for _, port := range rule.Ports {
			if port.Protocol == nil || *port.Protocol == corev1.ProtocolTCP {
				reached = append(reached, port.Port.IntVal)
			}
		}
	}
	for _, want := range []int32{53, 443, 6443} {
		if !slices.Contains(reached, want) {
			t.Errorf("the operator does not reach port %d", want)
		}
	}
}
