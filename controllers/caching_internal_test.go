package controllers

import (
	"fmt"
	"maps"
	"runtime"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/secrets"
)

// Anyone who may write an object fills the operator's memory by no more than the schema allows.
func TestCache_keepsTheAnnotationsThatAreRead_andNoOthers(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 200<<10)
	key := &v1alpha1.ImportedKey{ObjectMeta: metav1.ObjectMeta{
		ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "kubectl"}},
		Annotations: map[string]string{
			corev1.LastAppliedConfigAnnotation: "{}", "example.com/note": "n", "keyconvoy.io/unknown": "u",
			v1alpha1.AnnotationRenewImportParameters: "1", v1alpha1.AnnotationDeleteKeyMaterial: long, v1alpha1.AnnotationDataKeyMade: "v",
		},
	}}
	want := map[string]string{
		v1alpha1.AnnotationRenewImportParameters: "1", v1alpha1.AnnotationDeleteKeyMaterial: secrets.DigestOf(long), v1alpha1.AnnotationDataKeyMade: "v",
	}
	asked := annotationValue(key, v1alpha1.AnnotationDeleteKeyMaterial)
	for range 2 { // it may be called again for what is in the cache
		if _, err := stripUnread(key); err != nil {
			t.Fatal(err)
		}
		if !maps.Equal(key.Annotations, want) || key.ManagedFields != nil {
			t.Errorf("the cache keeps %v and %v", key.Annotations, key.ManagedFields)
		}
	}
	if is := annotationValue(key, v1alpha1.AnnotationDeleteKeyMaterial); is != asked {
		t.Errorf("the annotation asks for %s in the cache, and for %s without it", is, asked)
	}
}

// BenchmarkCache_ofTheLargestDataKeys reports what a data key with the longest context and annotations costs.
func BenchmarkCache_ofTheLargestDataKeys(b *testing.B) {
	for name, transform := range map[string]func(any) (any, error){
		"whole":    func(in any) (any, error) { return in, nil },
		"stripped": stripUnread,
	} {
		b.Run(name, func(b *testing.B) {
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			kept := make([]any, 0, b.N)
			for i := range b.N {
				key := &v1alpha1.DataKey{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint(i), Annotations: map[string]string{"a": strings.Repeat("x", 256<<10)}}}
				key.Spec.EncryptionContext = map[string]v1alpha1.ContextValue{"a": v1alpha1.ContextValue(strings.Repeat("x", 8184))}
				o, err := transform(key)
				if err != nil {
					b.Fatal(err)
				}
				kept = append(kept, o)
			}
			runtime.GC()
			runtime.ReadMemStats(&after)
			b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(b.N), "B/object")
			runtime.KeepAlive(kept)
		})
	}
}
