package controllers_test

import (
	"testing"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
)

// An impostor asks to adopt a key that is somebody else's. Key versions are no secret: blobs name them.

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
			t.Parallel()
			o := startOperator(t)
			store := o.clusterStore(t, onSoftware)
			key := o.enabledKey(t, "key", nil, inClusterStore(store.Name))
			impostor := adopting(key, withDeletionPolicy(v1alpha1.DeletionDelete))
			if c.elsewhere {
				impostor.Namespace = o.env.Namespace(t)
			}
			o.create(t, impostor)
			o.condition(t, impostor, v1alpha1.ConditionReady, "False", c.reason)
			o.remove(t, impostor)
			o.gone(t, impostor)
			if !o.inModule(t, key) {
				t.Fatal("the key was destroyed by somebody who never held it")
			}
		})
	}
}

func TestImportedKey_impostorOfAnotherNamespace_doesNotKeepTheOwnerFromAdopting(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	store := o.clusterStore(t, onSoftware)
	key := o.enabledKey(t, "key", nil, inClusterStore(store.Name))
	o.remove(t, key)
	o.gone(t, key)

	impostor := adopting(key)
	impostor.Namespace = o.env.Namespace(t)
	o.create(t, impostor)
	o.waits(t, impostor, "ForbiddenKeyVersionNotFound")

	restored := adopting(key)
	restored.Name = "restored"
	o.create(t, restored)
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
	o.ready(t, dataKey)
	consumer := o.env.Namespace(t)
	export := newExport("export", ofBlobUnder(o.namespace, "key", dataKey.Status.CiphertextBlob, dataKey.Spec.EncryptionContext))
	export.Namespace = consumer
	o.create(t, export)
	o.ready(t, export)

	impostor := adopting(key)
	impostor.Namespace = consumer
	o.create(t, impostor)
	o.waits(t, impostor, "ForbiddenKeyVersionNotFound")

	o.change(t, key, func() { key.Spec.ExportPolicy = nil })
	o.stalls(t, export, "ForbiddenNoPermission")
}
