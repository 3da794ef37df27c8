package controllers_test

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/audit"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/testenv"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
)

// inGit returns an object as a Git repository contains it: with name, labels and spec.
func inGit(object client.Object) client.Object {
	out := bare(object)
	out.SetAnnotations(nil)
	out.SetFinalizers(nil)
	return out
}

// rebuilds has the objects of a Git repository, and the keys that the operator made for them.
type rebuilds struct {
	git       []client.Object
	keys      []*v1alpha1.ImportedKey
	generated *v1alpha1.GeneratedKey // with two versions
	plain     map[string][]byte      // data keys by the names of their exports
}

// fromGit makes objects for the first time, and puts into the repository what their owners add: wrapped material and
// blobs.
func (o *operator) fromGit(t testing.TB, kind string) rebuilds {
	t.Helper()
	rsa := under("RSA_2048", "RSAES_OAEP_SHA_1")
	r := rebuilds{plain: map[string][]byte{}}
	store := o.store(t, kind)
	for _, name := range []string{"key", "disabled"} {
		r.keys = append(r.keys, o.enabledKey(t, name, nil, rsa, byName))
	}
	o.desire(t, r.keys[1], v1alpha1.DesiredDisabled, 0)
	o.keyIs(t, r.keys[1], kms.StateDisabled)
	r.git = append(r.git, inGit(store), inGit(r.keys[0]), inGit(r.keys[1]))
	if store.Spec.PKCS11 != nil {
		r.git = append(r.git, pinSecret(o.Namespace, commonToken(kind).PIN))
	}
	r.generated = o.generated(t, "generated", adoptsVersionsByName, func(s *v1alpha1.GeneratedKeySpec) { s.ExportPolicy = r.keys[0].Spec.ExportPolicy })
	r.git = append(r.git, inGit(r.generated))
	for _, name := range []string{"dek", "ledger", "old", "new"} {
		under := underKey("key")
		switch name {
		case "new":
			o.rotate(t, r.generated, "now")
			fallthrough
		case "old":
			under = underGenerated("generated")
		}
		dataKey := o.dataKey(t, name, under, withContext(map[string]v1alpha1.ContextValue{"app": v1alpha1.ContextValue(name)}))
		export := o.export(t, name+"-export", ofDataKey(name), withRSA("RSAES_OAEP_SHA_1"))
		r.plain[export.Name] = o.openExport(t, export, rsaRecipient())
		o.Hide("data key "+name, r.plain[export.Name])
		o.Change(t, dataKey, func() { dataKey.Spec.CiphertextBlob = dataKey.Status.CiphertextBlob })
		r.git = append(r.git, inGit(dataKey), inGit(export))
	}
	return r
}

// isBack applies the repository to an empty cluster, and checks that every key is the former one.
func (r rebuilds) isBack(t *testing.T, o *operator) {
	t.Helper()
	o.ForgetCounts()
	for _, object := range r.git {
		if err := o.Create(t.Context(), object.DeepCopyObject().(client.Object)); err != nil {
			t.Fatal(err)
		}
	}
	for _, was := range r.keys {
		is := was.DeepCopy()
		o.keyIs(t, is, kms.KeyState(was.Status.KeyState))
		o.Ready(t, is)
		if s := is.Status; s.MaterialFingerprint != was.Status.MaterialFingerprint || s.KeyVersionID != was.Status.KeyVersionID || s.KeyID == was.Status.KeyID {
			t.Errorf("%s came back as another key: %s", was.Name, harness.JSON(s))
		}
		if note := o.Event(t, is, "KeyAdopted"); !strings.Contains(note, was.Status.KeyVersionID) {
			t.Errorf("the event does not name the key version: %q", note)
		}
		if !slices.ContainsFunc(o.auditLines(t), func(line audit.Record) bool {
			return line.Operation == audit.AdoptKey && line.Object.UID == string(is.UID) && line.KeyVersionID == was.Status.KeyVersionID && line.Outcome == audit.Success
		}) {
			t.Error("the audit log does not say that the key was adopted")
		}
	}
	is := r.generated.DeepCopy()
	o.hasVersions(t, is, 2)
	if got, want := fmt.Sprint(fingerprints(is)), fmt.Sprint(fingerprints(r.generated)); got != want || is.Status.PrimaryVersion != r.generated.Status.PrimaryVersion {
		t.Errorf("the versions of the generated key are %s, and were %s", got, want)
	}
	for name, plain := range r.plain {
		export := newExport(name)
		export.Namespace = o.Namespace
		o.Ready(t, export)
		if got := o.openExport(t, export, rsaRecipient()); !bytes.Equal(got, plain) {
			t.Errorf("the recipient of %s gets another data key", name)
		}
	}
	calls := o.Calls()
	for _, made := range []string{"GenerateDataKey", "GenerateKey", "ImportKey", "CreateWrappingKey", "DestroyKey"} {
		if calls[made] != 0 {
			t.Errorf("the rebuild calls %s %d times", made, calls[made])
		}
	}
}

// removeNamespace deletes the test's namespace with all that is in it, as a namespace controller does.
func (o *operator) removeNamespace(t testing.TB) {
	t.Helper()
	for _, object := range []client.Object{
		&v1alpha1.ExportedDataKey{}, &v1alpha1.DataKey{}, &v1alpha1.ImportedKey{}, &v1alpha1.GeneratedKey{}, &v1alpha1.KeyStore{}, &corev1.Secret{},
	} {
		if err := o.DeleteAllOf(t.Context(), object, client.InNamespace(o.Namespace)); err != nil {
			t.Fatal(err)
		}
		harness.Eventually(t, func() string {
			for _, left := range o.Objects(t) {
				if left.GetNamespace() == o.Namespace && left.GetDeletionTimestamp() != nil {
					return left.GetName() + " is still there"
				}
			}
			return ""
		})
	}
	namespace := &corev1.Namespace{ObjectMeta: named(o.Namespace)}
	if err := o.Delete(t.Context(), namespace); err != nil {
		t.Fatal(err)
	}
	namespace.Spec.Finalizers = nil
	if err := o.SubResource("finalize").Update(t.Context(), namespace); err != nil {
		t.Fatal(err)
	}
	namespace = &corev1.Namespace{ObjectMeta: named(o.Namespace)}
	if err := o.Create(t.Context(), namespace); err != nil {
		t.Fatal(err)
	}
}

func TestAdoptByName_namespaceDeletedAndAppliedFromGit_bringsEverythingBack(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{onSoftware, onSoftHSM, onNSS} {
		t.Run(kind, func(t *testing.T) {
			o := startOperator(t)
			was := o.fromGit(t, kind)
			o.removeNamespace(t)
			was.isBack(t, o)
			o.Restart(t)
			o.Settled(t, o.Objects(t)...)
			if w := o.Writes(); len(w) > 0 || len(o.Calls()) > 0 {
				t.Errorf("the next start wrote %v and called %v", w, o.Calls())
			}
		})
	}
}

// Only the key is pruned, and synchronised again. Its data keys and exports stay, and nothing about them changes.
func TestAdoptByName_keyPrunedAndAppliedAgain_exportsStayAsTheyAre(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftHSM)
	key := o.enabledKey(t, "key", nil, under("RSA_2048", "RSAES_OAEP_SHA_1"), byName)
	dataKey := o.dataKey(t, "dek")
	export := o.export(t, "export", withRSA("RSAES_OAEP_SHA_1"))
	blob, secret := dataKey.Status.CiphertextBlob, o.secretOf(t, "export")
	again := inGit(key).(*v1alpha1.ImportedKey)
	o.Remove(t, key)
	o.Gone(t, key)
	o.Make(t, again)
	o.enabled(t, again)
	o.Settled(t, dataKey, export)
	o.Ready(t, dataKey, export)
	if is := o.secretOf(t, "export"); dataKey.Status.CiphertextBlob != blob || is.ResourceVersion != secret.ResourceVersion {
		t.Error("a data key or an export was made again")
	}
	late := o.export(t, "late", withRSA("RSAES_OAEP_SHA_1"))
	if got, want := o.openExport(t, late, rsaRecipient()), o.openExport(t, export, rsaRecipient()); !bytes.Equal(got, want) {
		t.Error("a later export has another data key")
	}
}

func TestAdoptByName_clusterRebuiltFromGit_bringsEverythingBack(t *testing.T) {
	t.Parallel()
	env := testenv.Another(t)
	for _, kind := range []string{onSoftHSM, onNSS} {
		t.Run(kind, func(t *testing.T) {
			o := startOperator(t)
			was := o.fromGit(t, kind)
			o.Stop(t) // and with it the cluster
			o2 := startOperatorOn(t, env, restoredFrom(t, env, o))
			o2.HideAllOf(o.Operator)
			was.isBack(t, o2)
		})
	}
}
