package crd_test

import (
	"context"
	"strings"
	"testing"

	. "github.com/onsi/gomega"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// kinds are all kinds by their plural.
var kinds = map[string]string{
	"clusterkeystores":        "ClusterKeyStore",
	"keystores":               "KeyStore",
	"importedkeys":            "ImportedKey",
	"generatedkeys":           "GeneratedKey",
	"datakeys":                "DataKey",
	"exporteddatakeys":        "ExportedDataKey",
	"clusterexporteddatakeys": "ClusterExportedDataKey",
	"accesskeys":              "AccessKey",
}

// object makes an object from its spec as YAML. Tests share cluster-wide names, so the name is made of the
// namespace, which is one test's own.
func object(t testing.TB, plural, namespace, spec string) *unstructured.Unstructured {
	t.Helper()
	u := &unstructured.Unstructured{Object: map[string]any{}}
	u.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind(kinds[plural]))
	u.SetName(namespace)
	if !strings.HasPrefix(plural, "cluster") {
		u.SetNamespace(namespace)
	}
	var s map[string]any
	if err := yaml.Unmarshal([]byte(spec), &s); err != nil {
		t.Fatalf("%v in %s", err, spec)
	}
	u.Object["spec"] = s
	return u
}

// strict refuses fields that the schema does not know, which the server would otherwise drop.
func strict(c client.Client) client.Client {
	return client.WithFieldValidation(c, metav1.FieldValidationStrict)
}

// tryCreate asks the server whether it would take an object.
func tryCreate(ctx context.Context, c client.Client, u *unstructured.Unstructured) error {
	return strict(c).Create(ctx, u.DeepCopy(), client.DryRunAll)
}

// causes are why the server refused an object, as "field: message".
func causes(g Gomega, err error) []string {
	g.ExpectWithOffset(1, apierrors.IsInvalid(err)).To(BeTrue(), "refused as invalid: %v", err)
	var status *apierrors.StatusError
	g.ExpectWithOffset(1, err).To(BeAssignableToTypeOf(status))
	var all []string
	for _, cause := range err.(*apierrors.StatusError).ErrStatus.Details.Causes { //nolint:errorlint // the type was just asserted
		// The server adds a note of its own where it could not check further.
		if strings.Contains(cause.Message, "some validation rules were not checked") {
			continue
		}
		all = append(all, cause.Field+": "+cause.Message)
	}
	return all
}
