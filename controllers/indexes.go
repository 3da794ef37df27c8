package controllers

import (
	"context"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/secrets"
)

// Field indexes of the cache: who must be woken when something that is referred to changes.
const (
	// indexStore: ImportedKeys by key store.
	indexStore = "keyStore"
	// indexVersion: ImportedKeys by key version; ExportedDataKeys by the version that they were
	// exported from, and the one that their inline blob names.
	indexVersion = "keyVersion"
	// indexKey: DataKeys by ImportedKey; ExportedDataKeys by the ImportedKey that is their recipient.
	indexKey = "importedKey"
	// indexDataKey: ExportedDataKeys by the namespace and name of their DataKey.
	indexDataKey = "dataKey"
	// indexController: ExportedDataKeys by the UID of the ClusterExportedDataKey that made them.
	indexController = "controller"
	// indexContent: every kind by the Secrets and ConfigMaps that it reads or writes.
	indexContent = "content"
)

func addIndexes(ctx context.Context, indexer client.FieldIndexer) error {
	for _, index := range []struct {
		object client.Object
		field  string
		values client.IndexerFunc
	}{
		{&v1alpha1.ImportedKey{}, indexStore, importedKeyStore},
		{&v1alpha1.ImportedKey{}, indexVersion, importedKeyVersion},
		{&v1alpha1.ImportedKey{}, indexContent, importedKeyContent},
		{&v1alpha1.DataKey{}, indexKey, dataKeyKey},
		{&v1alpha1.DataKey{}, indexContent, dataKeyContent},
		{&v1alpha1.ExportedDataKey{}, indexDataKey, exportDataKey},
		{&v1alpha1.ExportedDataKey{}, indexKey, exportRecipientKey},
		{&v1alpha1.ExportedDataKey{}, indexVersion, exportVersion},
		{&v1alpha1.ExportedDataKey{}, indexContent, exportContent},
		{&v1alpha1.ExportedDataKey{}, indexController, exportController},
	} {
		if err := indexer.IndexField(ctx, index.object, index.field, index.values); err != nil {
			return err
		}
	}
	return nil
}

func (id storeID) String() string { return id.kind + "/" + id.namespace + "/" + id.name }

func contentIndex(kind secrets.Kind, name string) string { return string(kind) + "/" + name }

func importedKeyStore(o client.Object) []string {
	return []string{idOf(o.GetNamespace(), o.(*v1alpha1.ImportedKey).Spec.KeyStoreRef).String()}
}

func importedKeyVersion(o client.Object) []string {
	key, err := keyOf(o.(*v1alpha1.ImportedKey))
	if err != nil {
		return nil // a UID that is no UUID: the reconciler says so
	}
	return []string{key.VersionID().String()}
}

func importedKeyContent(o client.Object) []string {
	m := o.(*v1alpha1.ImportedKey).Spec.Material
	if m == nil {
		return nil
	}
	var out []string
	for _, from := range []*v1alpha1.EntrySource{m.EncryptedKeyMaterialFrom, m.ImportTokenFrom} {
		if from != nil {
			kind, ref := entryOf(from)
			out = append(out, contentIndex(kind, string(ref.Name)))
		}
	}
	return out
}

func dataKeyKey(o client.Object) []string {
	return []string{string(o.(*v1alpha1.DataKey).Spec.KeyRef.Name)}
}

func dataKeyContent(o client.Object) []string {
	name := o.GetName()
	if t := o.(*v1alpha1.DataKey).Spec.Target; t != nil && t.Name != "" {
		name = string(t.Name)
	}
	return []string{contentIndex(secrets.Secret, name)}
}

func exportDataKey(o client.Object) []string {
	e := o.(*v1alpha1.ExportedDataKey)
	if e.Spec.DataKeyRef == nil {
		return nil
	}
	return []string{dataKeyOf(e).String()}
}

func exportController(o client.Object) []string {
	if owner := metav1.GetControllerOf(o); owner != nil {
		return []string{string(owner.UID)}
	}
	return nil
}

// dataKeyOf names the DataKey that an object exports.
func dataKeyOf(e *v1alpha1.ExportedDataKey) types.NamespacedName {
	ref := e.Spec.DataKeyRef
	if ref.Namespace == "" {
		return inNamespace(e, string(ref.Name))
	}
	return types.NamespacedName{Namespace: string(ref.Namespace), Name: string(ref.Name)}
}

func exportRecipientKey(o client.Object) []string {
	if ref := o.(*v1alpha1.ExportedDataKey).Spec.PublicKey.ImportedKeyRef; ref != nil {
		return []string{string(ref.Name)}
	}
	return nil
}

func exportVersion(o client.Object) []string {
	e := o.(*v1alpha1.ExportedDataKey)
	var versions []string
	if e.Status.KeyVersionID != "" {
		versions = append(versions, e.Status.KeyVersionID)
	}
	if e.Spec.CiphertextBlob == "" {
		return versions
	}
	version, err := kms.KeyVersionOf(e.Spec.CiphertextBlob)
	if err != nil || version.String() == e.Status.KeyVersionID {
		return versions // no key can make it valid, or it is there already
	}
	return append(versions, version.String())
}

func exportContent(o client.Object) []string {
	spec := o.(*v1alpha1.ExportedDataKey).Spec
	target := o.GetName()
	if spec.Target != nil && spec.Target.Name != "" {
		target = string(spec.Target.Name)
	}
	out := []string{contentIndex(secrets.Secret, target)}
	if ref := spec.PublicKey.SecretKeyRef; ref != nil {
		out = append(out, contentIndex(secrets.Secret, string(ref.Name)))
	}
	if ref := spec.PublicKey.ConfigMapKeyRef; ref != nil {
		out = append(out, contentIndex(secrets.ConfigMap, string(ref.Name)))
	}
	return out
}

// find lists objects by an index and asks for those that are wanted. The items are the cache's own and
// must not be changed. An error means that the cache is gone, and the operator with it.
func find[L client.ObjectList, T any, P interface {
	*T
	client.Object
}](ctx context.Context, c client.Reader, list L, items func(L) []T, want func(P) bool, options ...client.ListOption) []reconcile.Request {
	if err := c.List(ctx, list, append(options, client.UnsafeDisableDeepCopy, client.DisableReadYourWritesConsistency)...); err != nil {
		return nil
	}
	var requests []reconcile.Request
	found := items(list)
	for i := range found {
		if o := P(&found[i]); want == nil || want(o) {
			requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(o)})
		}
	}
	return requests
}
