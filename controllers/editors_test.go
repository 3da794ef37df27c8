package controllers_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	authorizationv1 "k8s.io/api/authorization/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/internal/testenv"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
)

var editors atomic.Int64

// editor is a user who has the shipped editor roles of all kinds in some namespaces, and nothing else.
type editor struct {
	client.Client
	operator *operator
}

// editor makes such a user. Its objects carry the operator's mark.
func (o *operator) editor(t testing.TB, namespaces ...string) editor {
	t.Helper()
	name := fmt.Sprintf("editor-%d", editors.Add(1))
	for _, namespace := range namespaces {
		for _, role := range shippedEditorRoles(t, o.Env) {
			binding := &rbacv1.RoleBinding{
				Subjects: []rbacv1.Subject{{Kind: rbacv1.UserKind, Name: name, APIGroup: rbacv1.GroupName}},
				RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role.name},
			}
			binding.Namespace, binding.Name = namespace, name+"-"+role.name
			if err := o.Create(t.Context(), binding); err != nil {
				t.Fatal(err)
			}
			o.untilAllowed(t, name, namespace, role.resource)
		}
	}
	return editor{o.Env.As(t, name), o}
}

// untilAllowed waits until the API server knows of a binding.
func (o *operator) untilAllowed(t testing.TB, user, namespace, resource string) {
	t.Helper()
	harness.Eventually(t, func() string {
		review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
			User: user, ResourceAttributes: &authorizationv1.ResourceAttributes{
				Namespace: namespace, Verb: "create", Group: "keyconvoy.io", Resource: resource,
			},
		}}
		if err := o.Create(t.Context(), review); err != nil {
			t.Fatal(err)
		}
		if !review.Status.Allowed {
			return user + " may not yet create " + resource + " in " + namespace
		}
		return ""
	})
}

// makes creates objects as the user.
func (e editor) makes(t testing.TB, objects ...client.Object) {
	t.Helper()
	for _, object := range objects {
		if object.GetNamespace() == "" {
			object.SetNamespace(e.operator.Namespace)
		}
		all := e.operator.Mark()
		maps.Copy(all, object.GetLabels())
		object.SetLabels(all)
		if err := e.Create(t.Context(), object); err != nil {
			t.Fatalf("Making a %T as an editor: %v", object, err)
		}
	}
}

// removes deletes an object as the user.
func (e editor) removes(t testing.TB, object client.Object) {
	t.Helper()
	if err := e.Delete(t.Context(), object); err != nil {
		t.Fatalf("Deleting a %T as an editor: %v", object, err)
	}
}

// release removes an object's finalizers as the user, which everyone may do who may change the object.
func (e editor) release(t testing.TB, object client.Object) {
	t.Helper()
	patch := client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"finalizers":null}}`))
	if err := e.Patch(t.Context(), object, patch); client.IgnoreNotFound(err) != nil {
		t.Fatalf("Removing the finalizers of a %T as an editor: %v", object, err)
	}
}

type shippedRole struct{ name, resource string }

// shippedEditorRoles installs the editor roles of the namespaced kinds, as config/rbac has them.
func shippedEditorRoles(t testing.TB, env *testenv.Env) []shippedRole {
	t.Helper()
	root, err := testenv.Root()
	if err != nil {
		t.Fatal(err)
	}
	var roles []shippedRole
	for kind, resource := range map[string]string{
		"keystore": "keystores", "importedkey": "importedkeys", "datakey": "datakeys", "exporteddatakey": "exporteddatakeys",
	} {
		text, err := os.ReadFile(filepath.Join(root, "config", "rbac", kind+"_roles.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 4096)
		for {
			role := &rbacv1.ClusterRole{}
			if err := decoder.Decode(role); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			if role.Name != kind+"-editor-role" {
				continue
			}
			if err := env.Client.Create(t.Context(), role); client.IgnoreAlreadyExists(err) != nil {
				t.Fatal(err)
			}
			roles = append(roles, shippedRole{role.Name, resource})
		}
	}
	if len(roles) != 4 {
		t.Fatalf("config/rbac has the editor roles %v", roles)
	}
	return roles
}
