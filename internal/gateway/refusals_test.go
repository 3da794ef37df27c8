package gateway

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/audit"
	"github.com/keyconvoy/keyconvoy/internal/gateway/wire"
	"github.com/keyconvoy/keyconvoy/internal/keyring"
	"github.com/keyconvoy/keyconvoy/internal/kms"
)

// Users who may write objects must not fill the gateway's memory with what it does not read.
func TestStripUnread_keepsWhatIsReadWithinItsLimits(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 100_000)
	meta := func() metav1.ObjectMeta {
		return metav1.ObjectMeta{Labels: map[string]string{"a": "b"}, Annotations: map[string]string{
			"other": "x", annotationDescription: long, annotationTags: long, annotationAliases: `["alias/a"]`,
			v1alpha1.AnnotationDeleteKeyMaterial: long,
		}}
	}
	for name, o := range map[string]client.Object{
		"namespace": &corev1.Namespace{ObjectMeta: meta()}, "access key": &v1alpha1.AccessKey{ObjectMeta: meta()},
		"key": &v1alpha1.ImportedKey{ObjectMeta: meta()},
	} {
		if _, err := stripUnread(o); err != nil {
			t.Fatal(err)
		}
		kept := o.GetAnnotations()
		if len(kept) != 4 || kept[annotationAliases] != `["alias/a"]` || len(kept[annotationDescription]) != 4*maxDescription ||
			len(kept[annotationTags]) >= len(long) || kept[v1alpha1.AnnotationDeleteKeyMaterial] != keyring.AnnotationValue(long) {
			t.Errorf("The %s keeps other annotations", name)
		}
		if is := o.GetLabels() != nil; is != (name == "namespace") {
			t.Errorf("The %s keeps its labels: %t", name, is)
		}
	}
}

// The audit log knows each operation, and each code in which the protocol refuses a request whose signature is right.
func TestAudit_knowsOperationsAndRefusals(t *testing.T) {
	t.Parallel()
	known := map[string]bool{}
	for _, operation := range audit.Operations() {
		known[string(operation)] = true
	}
	for action := range all {
		if !known[action] && !slices.Contains(withPlaintext, action) {
			t.Errorf("The audit log does not know %s", action)
		}
	}
	for _, code := range []wire.Code{
		wire.DisabledAccessKey, wire.ExpiredTimestamp, wire.NonceUsed, wire.InvalidVersion, wire.UnknownAction, wire.AliasNotFound,
		wire.AliasAlreadyExists, wire.LimitExceeded,
	} {
		var out bytes.Buffer
		audit.New(&out, logr.Discard()).Write(audit.Record{Operation: audit.UnknownOperation, Outcome: kms.Code(code)})
		if !strings.Contains(out.String(), `"outcome":"`+string(code)+`"`) {
			t.Errorf("%s is recorded as %s", code, out.String())
		}
	}
}
