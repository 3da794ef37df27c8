package v1alpha1

// Types of condition.
const (
	// ConditionReady is True when the object matches its spec.
	ConditionReady = "Ready"
	// ConditionReconciling is True after a reconcile that did not finish: the operator waits for something else or
	// retries. Otherwise it is absent.
	ConditionReconciling = "Reconciling"
	// ConditionStalled is True when the operator cannot continue until the object, or something that it refers to, is
	// changed. Otherwise it is absent.
	ConditionStalled = "Stalled"
	// ConditionKeysMissing is True while a key store's module does not have all keys that ImportedKeys hold in the
	// key store. Otherwise it is absent. It does not change Ready: the module works with the keys that it has.
	ConditionKeysMissing = "KeysMissing"
	// ConditionModuleCrashed is True for ten minutes after the process of a key store's PKCS#11 library ended by itself,
	// or was ended because a call did not return. It is absent otherwise.
	ConditionModuleCrashed = "ModuleCrashed"
)

// Reasons of conditions other than the error codes of the operations. Those are the error codes
// without their dots (Forbidden.KeyNotFound is ForbiddenKeyNotFound).
const (
	// ReasonSucceeded: the object matches its spec.
	ReasonSucceeded = "Succeeded"
	// ReasonPendingImport: the key waits for its material.
	ReasonPendingImport = "PendingImport"
	// ReasonKeyStoreNotFound: the key store that the object refers to does not exist.
	ReasonKeyStoreNotFound = "KeyStoreNotFound"
	// ReasonKeyStoreNotReady: the key store exists but is not ready.
	ReasonKeyStoreNotReady = "KeyStoreNotReady"
	// ReasonKeyNotReady: the key that the object refers to does not exist or is not ready.
	ReasonKeyNotReady = "KeyNotReady"
	// ReasonSourceNotFound: a Secret or ConfigMap, or the entry in it, does not exist.
	ReasonSourceNotFound = "SourceNotFound"
	// ReasonServiceAccountNotFound: the ServiceAccount of the access key does not exist.
	ReasonServiceAccountNotFound = "ServiceAccountNotFound"
	// ReasonTargetNotOwned: a Secret with the target's name exists and is not managed by this object.
	ReasonTargetNotOwned = "TargetNotOwned"
	// ReasonInputReplaced: the DataKey, ImportedKey or ServiceAccount that the object names was replaced by another with the
	// same name.
	ReasonInputReplaced = "InputReplaced"
	// ReasonKeyStoreInUse: the key store is being deleted, but ImportedKeys still have keys or key pairs in its module.
	ReasonKeyStoreInUse = "KeyStoreInUse"
	// ReasonLeftInModule: the object is being deleted, but its key or key pairs can no longer be removed from the
	// module.
	ReasonLeftInModule = "LeftInModule"
	// ReasonKeyVersionTaken: another object already holds a key version that this one is to adopt.
	ReasonKeyVersionTaken = "KeyVersionTaken"
	// ReasonSeveralFormerKeys: the module has several keys of former objects with the name of this one, which adopts by
	// name.
	ReasonSeveralFormerKeys = "SeveralFormerKeys"
	// ReasonNamespacesFailed: the export failed in at least one of the selected namespaces.
	ReasonNamespacesFailed = "NamespacesFailed"
	// ReasonNamespacesPending: the export is not ready yet in at least one of the selected namespaces.
	ReasonNamespacesPending = "NamespacesPending"
	// ReasonModuleMisconfigured: the module cannot be opened as configured.
	ReasonModuleMisconfigured = "ModuleMisconfigured"
	// ReasonWrongResult: a check found that a result of the module was wrong.
	ReasonWrongResult = "WrongResult"
	// ReasonDataKeyDamaged: the data key was generated while the module may have returned wrong results, and does not open.
	ReasonDataKeyDamaged = "DataKeyDamaged"
	// ReasonPINRefused: the module rejected the PIN, or the operator must not try it.
	ReasonPINRefused = "PINRefused"
	// ReasonAPIServer: the Kubernetes API rejected the request or did not respond.
	ReasonAPIServer = "APIServer"
	// ReasonNamespaceTerminating: the namespace is being deleted, so nothing is created in it.
	ReasonNamespaceTerminating = "NamespaceTerminating"
)

// Labels and annotations.
const (
	// LabelManagedBy marks the Secrets that Keyconvoy writes.
	LabelManagedBy = "app.kubernetes.io/managed-by"
	// ManagedBy is LabelManagedBy's value, and the field manager of every write.
	ManagedBy = "keyconvoy"
	// AnnotationRenewImportParameters, with any new value, requests a new import key pair and token.
	AnnotationRenewImportParameters = "keyconvoy.io/renew-import-parameters"
	// AnnotationDeleteKeyMaterial, with any new value, destroys a key's material in the module. The key remains, and
	// the same material can be imported again.
	AnnotationDeleteKeyMaterial = "keyconvoy.io/delete-key-material"
	// AnnotationRotate, with any new value, requests a new version of a GeneratedKey.
	AnnotationRotate = "keyconvoy.io/rotate"
	// AnnotationDataKeyMade is the key version under which the operator made or took over the data key of
	// a DataKey. The operator never generates a new data key for an object that has it.
	AnnotationDataKeyMade = "keyconvoy.io/data-key-made"
)

// Types of the Secrets that Keyconvoy writes.
const (
	// SecretTypeDataKey: entry ciphertextBlob.
	SecretTypeDataKey = "keyconvoy.io/data-key" //nolint:gosec // a type, not a credential
	// SecretTypeExportedDataKey: entries exportedDataKey (raw bytes), keyId, keyVersionId,
	// wrappingKeySpec, wrappingAlgorithm, recipientFingerprint.
	SecretTypeExportedDataKey = "keyconvoy.io/exported-data-key" //nolint:gosec // a type, not a credential
	// SecretTypeAccessKey: entries accessKeyId, accessKeySecret.
	SecretTypeAccessKey = "keyconvoy.io/access-key" //nolint:gosec // a type, not a credential
)

// Custody is where plaintext key bytes existed: Module (only inside the cryptographic module), Host (in the
// operator's memory, during one call), Software (in the embedded store) or Unknown (the key was created elsewhere).
// +kubebuilder:validation:Enum=Module;Host;Software;Unknown
type Custody string

// CustodyUnknown is the custody of a data key that was taken over as a blob.
const CustodyUnknown Custody = "Unknown"

// KeySpec is the type of a master key: AES_128, AES_192, AES_256 or SM4.
// +kubebuilder:validation:Enum=AES_128;AES_192;AES_256;SM4
type KeySpec string

// WrappingKeySpec is the type of a public key: RSA_2048, RSA_3072, RSA_4096 or EC_SM2.
// +kubebuilder:validation:Enum=RSA_2048;RSA_3072;RSA_4096;EC_SM2
type WrappingKeySpec string

// ObjectName is the name of a Kubernetes object.
// +kubebuilder:validation:MinLength=1
// +kubebuilder:validation:MaxLength=253
// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$`
type ObjectName string

// NamespaceName is the name of a namespace.
// +kubebuilder:validation:MinLength=1
// +kubebuilder:validation:MaxLength=63
// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
type NamespaceName string

// EntryKey is the key of an entry in a Secret or ConfigMap.
// +kubebuilder:validation:MinLength=1
// +kubebuilder:validation:MaxLength=253
// +kubebuilder:validation:Pattern=`^[-._a-zA-Z0-9]+$`
type EntryKey string

// EntryReference names an entry in a Secret or ConfigMap in the same namespace.
type EntryReference struct {
	// Name of the Secret or ConfigMap.
	// +required
	Name ObjectName `json:"name"`
	// Key of the entry.
	// +required
	Key EntryKey `json:"key"`
}

// LocalReference names an object in the same namespace.
type LocalReference struct {
	// Name of the object.
	// +required
	Name ObjectName `json:"name"`
}

// SourceType is which field of a source is set.
type SourceType string

// The types of source.
const (
	// SourceBlob is a value in the object itself.
	SourceBlob SourceType = "Blob"
	// SourceSecret is an entry of a Secret.
	SourceSecret SourceType = "SecretKeyRef"
	// SourceConfigMap is an entry of a ConfigMap.
	SourceConfigMap SourceType = "ConfigMapKeyRef"
	// SourceImportedKey is the import public key of an ImportedKey.
	SourceImportedKey SourceType = "ImportedKeyRef"
)

// EntrySource is where a text is read from.
// +kubebuilder:validation:XValidation:rule="has(self.secretKeyRef) == (self.type == 'SecretKeyRef')",message="secretKeyRef must be set if type is SecretKeyRef, and only then"
// +kubebuilder:validation:XValidation:rule="has(self.configMapKeyRef) == (self.type == 'ConfigMapKeyRef')",message="configMapKeyRef must be set if type is ConfigMapKeyRef, and only then"
type EntrySource struct {
	// Type is the field that is set: SecretKeyRef or ConfigMapKeyRef.
	// +required
	// +unionDiscriminator
	// +kubebuilder:validation:Enum=SecretKeyRef;ConfigMapKeyRef
	Type SourceType `json:"type"`
	// SecretKeyRef reads an entry of a Secret.
	// +optional
	// +unionMember
	SecretKeyRef *EntryReference `json:"secretKeyRef,omitempty"`
	// ConfigMapKeyRef reads an entry of a ConfigMap.
	// +optional
	// +unionMember
	ConfigMapKeyRef *EntryReference `json:"configMapKeyRef,omitempty"`
}

// KeyStoreReference names a KeyStore in the same namespace, or a ClusterKeyStore.
type KeyStoreReference struct {
	// Kind is KeyStore or ClusterKeyStore.
	// +required
	// +kubebuilder:validation:Enum=KeyStore;ClusterKeyStore
	Kind string `json:"kind"`
	// Name of the key store.
	// +required
	Name ObjectName `json:"name"`
}

// MetadataValue is the value of a label or annotation.
// +kubebuilder:validation:MaxLength=1024
type MetadataValue string

// SecretTarget is the Secret that the operator writes for an object.
type SecretTarget struct {
	// Name of the Secret. Defaults to the name of this object. It cannot be changed.
	// +optional
	Name ObjectName `json:"name,omitempty"`
	// Labels to put on the Secret, at most 32. Setting them requires the verb create on Secrets.
	// +optional
	// +kubebuilder:validation:MaxProperties=32
	// +kubebuilder:validation:XValidation:rule="self.all(name, size(name) <= 317 && size(self[name]) <= 63)",message="the name of a label has at most 317 characters, and its value 63"
	Labels map[string]MetadataValue `json:"labels,omitempty"`
	// Annotations to put on the Secret, at most 32. Setting them requires the verb create on Secrets.
	// +optional
	// +kubebuilder:validation:MaxProperties=32
	// +kubebuilder:validation:XValidation:rule="self.all(name, size(name) <= 317)",message="the name of an annotation has at most 317 characters"
	Annotations map[string]MetadataValue `json:"annotations,omitempty"`
}

// ContextValue is a value of an EncryptionContext.
// +kubebuilder:validation:MaxLength=8185
type ContextValue string

// SecretReference identifies the Secret and the content that the operator wrote.
type SecretReference struct {
	// Name of the Secret.
	// +required
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name"`
	// UID of the Secret.
	// +required
	// +kubebuilder:validation:MaxLength=64
	UID string `json:"uid"`
	// ResourceVersion of the Secret when the operator last verified its content.
	// +required
	// +kubebuilder:validation:MaxLength=64
	ResourceVersion string `json:"resourceVersion"`
	// Digest of the Secret's data (SHA-256, hexadecimal), with which the operator detects changes made by others.
	// +required
	// +kubebuilder:validation:MaxLength=64
	Digest string `json:"digest"`
}
