package controllers_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/controllers"
)

// The operator has 256 MiB for the objects of all tenants. Metadata that it does not use must not stay in its memory: some
// hundred objects with a megabyte of it each would end the operator again and again. What a DataKey can have of finalizers
// and owners, config/policy bounds.
func TestCache_largeMetadata_isNotKept(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	labels, annotations := map[string]string{}, map[string]string{"example.com/filler": strings.Repeat("x", 200<<10)}
	var finalizers []string
	for n := range 800 {
		long := fmt.Sprintf("%s.example.com/%060d", strings.TrimSuffix(strings.Repeat("abcdefghi.", 22), "."), n)
		labels[long] = strings.Repeat("v", 63)
		finalizers = append(finalizers, long)
	}
	ours := map[string]string{v1alpha1.LabelManagedBy: v1alpha1.ManagedBy}
	for name, object := range map[string]client.Object{
		"a ConfigMap's finalizers":             &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "finalizers", Finalizers: finalizers}},
		"a ConfigMap's labels, marked as ours": &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "labels", Labels: merged(labels, ours)}},
		"a ConfigMap's annotations, as ours":   &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "annotations", Labels: ours, Annotations: annotations}},
		"a DataKey's labels":                   withMetadata("labels", metav1.ObjectMeta{Labels: labels}),
		"a DataKey's annotations":              withMetadata("annotations", metav1.ObjectMeta{Annotations: annotations}),
	} {
		t.Run(name, func(t *testing.T) {
			object.SetNamespace(o.Namespace)
			if err := o.Create(t.Context(), object); err != nil { // the API server takes it
				t.Fatal(err)
			}
			if kept := sizeInCache(t, object); kept > 32<<10 {
				t.Errorf("the cache keeps %d bytes of one object", kept)
			}
		})
	}
}

func sizeInCache(t testing.TB, object client.Object) int {
	t.Helper()
	transform := controllers.CacheOptions().DefaultTransform
	var in any = object
	if m, ok := object.(*corev1.ConfigMap); ok {
		in = &metav1.PartialObjectMetadata{ObjectMeta: m.ObjectMeta}
		for kind, by := range controllers.CacheOptions().ByObject {
			if _, ok := kind.(*corev1.ConfigMap); ok {
				transform = by.Transform
			}
		}
	}
	out, err := toolscache.TransformFunc(transform)(in)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(out)
	if err != nil {
		t.Fatal(err)
	}
	return len(text)
}

func withMetadata(name string, m metav1.ObjectMeta) *v1alpha1.DataKey {
	k := newDataKey(name)
	k.ObjectMeta = m
	k.Name = name
	return k
}

func merged(a, b map[string]string) map[string]string {
	out := map[string]string{}
	for _, m := range []map[string]string{a, b} {
		for k, v := range m {
			out[k] = v
		}
	}
	return out
}
