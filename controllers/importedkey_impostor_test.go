package controllers_test

import (
	"testing"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
)

// An impostor asks to adopt a key of another owner. Key versions are no secret: blobs name them.

func adopting(key *v1alpha1.ImportedKey, change ...func(*v1alpha1.ImportedKeySpec)) *v1alpha1.ImportedKey {
	return importedKey("impostor", append(change, func(s *v1alpha1.ImportedKeySpec) {
		s.KeyStoreRef = key.Spec.KeyStoreRef
		s.Adopt = &v1alpha1.AdoptSpec{KeyVersionID: key.Status.KeyVersionID}
	})...)
}

func TestImportedKey_impostor_destroysNothingWhenItIsDeleted(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		elsewhere bool
		reason    string
	}{
		"in the key's namespace": {false, v1alpha1.ReasonKeyVersionTaken},
		"in another namespace":   {true, "ForbiddenKeyVersionNotFound"},
	} {
		t.Run(name, func(t *testing.T) {
			o := startOperator(t)
			store := o.clusterStore(t, onSoftware)
			key := o.enabledKey(t, "key", nil, inClusterStore(store.Name))
			impostor := adopting(key, withDeletionPolicy(v1alpha1.DeletionDelete))
			if c.elsewhere {
				impostor.Namespace = o.Env.Namespace(t)
			}
			o.Make(t, impostor)
			o.Condition(t, impostor, v1alpha1.ConditionReady, "False", c.reason)
			o.Remove(t, impostor)
			o.Gone(t, impostor)
			if !o.inModule(t, key) {
				t.Fatal("the key was destroyed by an object that never held it")
			}
		})
	}
}

func TestImportedKey_impostorOfAnotherNamespace_doesNotKeepTheOwnerFromAdopting(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	store := o.clusterStore(t, onSoftware)
	key := o.enabledKey(t, "key", nil, inClusterStore(store.Name))
	o.Remove(t, key)
	o.Gone(t, key)

	impostor := adopting(key)
	impostor.Namespace = o.Env.Namespace(t)
	o.Make(t, impostor)
	o.Waits(t, impostor, "ForbiddenKeyVersionNotFound")

	restored := adopting(key)
	restored.Name = "restored"
	o.Make(t, restored)
	o.enabled(t, restored)
}

// The impostor's policy is not the owner's, although it is nearer.
func TestExportedDataKey_impostorBesideIt_doesNotConsentForTheOwner(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	store := o.clusterStore(t, onSoftware)
	key := o.enabledKey(t, "key", nil, inClusterStore(store.Name), func(s *v1alpha1.ImportedKeySpec) {
		s.ExportPolicy = &v1alpha1.ExportPolicy{Namespaces: &v1alpha1.ExportNamespaces{From: "All"}}
	})
	dataKey := o.dataKey(t, "dek")
	o.Ready(t, dataKey)
	consumer := o.Env.Namespace(t)
	export := newExport("export", ofBlobUnder(o.Namespace, "key", dataKey.Status.CiphertextBlob, dataKey.Spec.EncryptionContext))
	export.Namespace = consumer
	o.Make(t, export)
	o.Ready(t, export)

	impostor := adopting(key)
	impostor.Namespace = consumer
	o.Make(t, impostor)
	o.Waits(t, impostor, "ForbiddenKeyVersionNotFound")

	o.Change(t, key, func() { key.Spec.ExportPolicy = nil })
	o.Stalls(t, export, "ForbiddenNoPermission")
}
