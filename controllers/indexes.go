package controllers

import (
	"context"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/keyring"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/secrets"
)

// Field indexes of the cache: who must be woken when something that is referred to changes.
const (
	// indexVersion: DataKeys by the version that they are under; ExportedDataKeys by the version that they were exported
	// from, and the one that their inline blob names.
	indexVersion = keyring.IndexVersion
	// indexKey: DataKeys by the kind and name of their master key.
	indexKey = "masterKey"
	// indexRecipient: ExportedDataKeys by the ImportedKey that is their recipient.
	indexRecipient = "recipientKey"
	// indexDataKey: ExportedDataKeys by the namespace and name of their DataKey.
	indexDataKey = "dataKey"
	// indexController: ExportedDataKeys by the UID of the ClusterExportedDataKey that made them, as the status and
	// the owner reference say.
	indexController = "controller"
	// indexContent: every kind by the Secrets and ConfigMaps that it reads or writes.
	indexContent = "content"
)

func addIndexes(ctx context.Context, indexer client.FieldIndexer) error {
	if err := keyring.AddIndexes(ctx, indexer); err != nil {
		return err
	}
	for _, index := range []struct {
		object client.Object
		field  string
		values client.IndexerFunc
	}{
		{&v1alpha1.ImportedKey{}, indexContent, importedKeyContent},
		{&v1alpha1.DataKey{}, indexKey, dataKeyKey},
		{&v1alpha1.DataKey{}, indexVersion, dataKeyVersion},
		{&v1alpha1.DataKey{}, indexContent, dataKeyContent},
		{&v1alpha1.ExportedDataKey{}, indexDataKey, exportDataKey},
		{&v1alpha1.ExportedDataKey{}, indexRecipient, exportRecipientKey},
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

func contentIndex(kind secrets.Kind, name string) string { return string(kind) + "/" + name }

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
	ref := o.(*v1alpha1.DataKey).Spec.KeyRef
	return []string{keyIndex(ref.Kind, string(ref.Name))}
}

func keyIndex(kind, name string) string { return kind + "/" + name }

func dataKeyVersion(o client.Object) []string {
	if version := o.(*v1alpha1.DataKey).Status.KeyVersionID; version != "" {
		return []string{version}
	}
	return nil
}

func dataKeyContent(o client.Object) []string {
	return []string{contentIndex(secrets.Secret, secrets.TargetName(o, o.(*v1alpha1.DataKey).Spec.Target))}
}

func exportDataKey(o client.Object) []string {
	e := o.(*v1alpha1.ExportedDataKey)
	if e.Spec.DataKeyRef == nil {
		return nil
	}
	return []string{dataKeyOf(e).String()}
}

func exportController(o client.Object) []string {
	var parents []string
	if parent := o.(*v1alpha1.ExportedDataKey).Status.Parent; parent != "" {
		parents = append(parents, parent)
	}
	if owner := metav1.GetControllerOf(o); owner != nil && !slices.Contains(parents, string(owner.UID)) {
		parents = append(parents, string(owner.UID))
	}
	return parents
}

// dataKeyOf names the DataKey that an object exports.
func dataKeyOf(e *v1alpha1.ExportedDataKey) types.NamespacedName {
	ref := e.Spec.DataKeyRef
	if ref.Namespace == "" {
		return inNamespace(e, string(ref.Name))
	}
	return types.NamespacedName{Namespace: string(ref.Namespace), Name: string(ref.Name)}
}

// masterRefOfBlob names the master key of an object's inline blob.
func masterRefOfBlob(e *v1alpha1.ExportedDataKey) keyring.Ref {
	ref := e.Spec.KeyRef
	if ref.Namespace == "" {
		return keyring.Ref{Kind: ref.Kind, NamespacedName: inNamespace(e, string(ref.Name))}
	}
	return keyring.Ref{Kind: ref.Kind, NamespacedName: types.NamespacedName{Namespace: string(ref.Namespace), Name: string(ref.Name)}}
}

// masterRefOf names the master key of a DataKey.
func masterRefOf(k *v1alpha1.DataKey) keyring.Ref {
	return keyring.Ref{Kind: k.Spec.KeyRef.Kind, NamespacedName: inNamespace(k, string(k.Spec.KeyRef.Name))}
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
	blob, err := kms.ParseBlob(e.Spec.CiphertextBlob)
	version := blob.KeyVersionID().String()
	if err != nil || version == e.Status.KeyVersionID {
		return versions // no key can make it valid, or it is there already
	}
	return append(versions, version)
}

func exportContent(o client.Object) []string {
	e := o.(*v1alpha1.ExportedDataKey)
	var out []string
	if !e.Spec.DeliversInStatus() {
		out = append(out, contentIndex(secrets.Secret, secrets.TargetName(e, secretTarget(e))))
	}
	if ref := e.Spec.PublicKey.SecretKeyRef; ref != nil {
		out = append(out, contentIndex(secrets.Secret, string(ref.Name)))
	}
	if ref := e.Spec.PublicKey.ConfigMapKeyRef; ref != nil {
		out = append(out, contentIndex(secrets.ConfigMap, string(ref.Name)))
	}
	return out
}
