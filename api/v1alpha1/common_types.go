package v1alpha1

// Types of condition.
const (
	// ConditionReady is True when the object is what its spec asks for.
	ConditionReady = "Ready"
	// ConditionReconciling is True while the operator works on the object or waits for something
	// else; it is absent otherwise.
	ConditionReconciling = "Reconciling"
	// ConditionStalled is True when nothing will happen until somebody changes the object or
	// something that it refers to; it is absent otherwise.
	ConditionStalled = "Stalled"
)

// Reasons of conditions that are no error code of an operation. The others are the error codes
// without their dots (Forbidden.KeyNotFound is ForbiddenKeyNotFound).
const (
	// ReasonSucceeded: the object is what its spec asks for.
	ReasonSucceeded = "Succeeded"
	// ReasonPendingImport: the key waits for its material.
	ReasonPendingImport = "PendingImport"
	// ReasonKeyStoreNotFound: the key store that the object refers to does not exist.
	ReasonKeyStoreNotFound = "KeyStoreNotFound"
	// ReasonKeyStoreNotReady: the key store exists and does not serve yet.
	ReasonKeyStoreNotReady = "KeyStoreNotReady"
	// ReasonKeyNotReady: the key that the object refers to does not exist or is not usable yet.
	ReasonKeyNotReady = "KeyNotReady"
	// ReasonSourceNotFound: a Secret or ConfigMap, or the entry in it, does not exist.
	ReasonSourceNotFound = "SourceNotFound"
	// ReasonTargetNotOwned: a Secret of the target's name exists and belongs to somebody else.
	ReasonTargetNotOwned = "TargetNotOwned"
	// ReasonKeyVersionTaken: another ImportedKey holds the key that this one would adopt.
	ReasonKeyVersionTaken = "KeyVersionTaken"
	// ReasonNamespacesFailed: the export has failed in some of the selected namespaces.
	ReasonNamespacesFailed = "NamespacesFailed"
	// ReasonNamespacesPending: the export is on its way in some of the selected namespaces.
	ReasonNamespacesPending = "NamespacesPending"
	// ReasonModuleMisconfigured: the module cannot be opened as configured.
	ReasonModuleMisconfigured = "ModuleMisconfigured"
	// ReasonPINRefused: the module refused the PIN, or it may not be tried.
	ReasonPINRefused = "PINRefused"
	// ReasonAPIServer: the Kubernetes API refused or did not answer.
	ReasonAPIServer = "APIServer"
)

// Labels and annotations.
const (
	// LabelManagedBy marks the Secrets that Keyconvoy writes.
	LabelManagedBy = "app.kubernetes.io/managed-by"
	// ManagedBy is LabelManagedBy's value, and the field manager of every write.
	ManagedBy = "keyconvoy"
	// AnnotationRenewImportParameters, with any new value, asks for a new import key pair and token.
	AnnotationRenewImportParameters = "keyconvoy.io/renew-import-parameters"
	// AnnotationDeleteKeyMaterial, with any new value, destroys a key's material in the module. The key
	// stays, and takes the same material again.
	AnnotationDeleteKeyMaterial = "keyconvoy.io/delete-key-material"
	// AnnotationDataKeyMade is the key version under which the operator made or took over the data key of
	// a DataKey. An object that has it gets no new data key.
	AnnotationDataKeyMade = "keyconvoy.io/data-key-made"
)

// Types of the Secrets that Keyconvoy writes.
const (
	// SecretTypeDataKey: entry ciphertextBlob.
	SecretTypeDataKey = "keyconvoy.io/data-key" //nolint:gosec // a type, not a credential
	// SecretTypeExportedDataKey: entries exportedDataKey (raw bytes), keyId, keyVersionId,
	// wrappingKeySpec, wrappingAlgorithm, recipientFingerprint.
	SecretTypeExportedDataKey = "keyconvoy.io/exported-data-key" //nolint:gosec // a type, not a credential
)

// Custody says where plaintext key bytes existed: Module (only inside the cryptographic module), Host
// (for the time of one call in the operator's memory), Software (the embedded store) or Unknown (the
// key was brought in and its past is not known).
// +kubebuilder:validation:Enum=Module;Host;Software;Unknown
type Custody string

// CustodyUnknown is the custody of a data key that was brought in as a blob.
const CustodyUnknown Custody = "Unknown"

// KeySpec is the type of a master key (Aliyun_ before it in the seeds).
// +kubebuilder:validation:Enum=AES_128;AES_192;AES_256;SM4
type KeySpec string

// WrappingKeySpec is the type of a public key.
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

// EntryReference names an entry in a Secret or ConfigMap of the same namespace.
type EntryReference struct {
	// Name of the Secret or ConfigMap.
	// +required
	Name ObjectName `json:"name"`
	// Key of the entry.
	// +required
	Key EntryKey `json:"key"`
}

// LocalReference names an object of the same namespace.
type LocalReference struct {
	// Name of the object.
	// +required
	Name ObjectName `json:"name"`
}

// EntrySource says where a text comes from. Exactly one field is set.
// +kubebuilder:validation:XValidation:rule="has(self.secretKeyRef) != has(self.configMapKeyRef)",message="exactly one of secretKeyRef and configMapKeyRef is needed"
type EntrySource struct {
	// SecretKeyRef reads an entry of a Secret.
	// +optional
	SecretKeyRef *EntryReference `json:"secretKeyRef,omitempty"`
	// ConfigMapKeyRef reads an entry of a ConfigMap.
	// +optional
	ConfigMapKeyRef *EntryReference `json:"configMapKeyRef,omitempty"`
}

// KeyStoreReference names a KeyStore of the same namespace or a ClusterKeyStore.
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

// SecretTarget is the Secret that an object writes.
type SecretTarget struct {
	// Name of the Secret; absent means the object's own name. It cannot be changed.
	// +optional
	Name ObjectName `json:"name,omitempty"`
	// Labels to put on the Secret.
	// +optional
	// +kubebuilder:validation:MaxProperties=32
	Labels map[string]MetadataValue `json:"labels,omitempty"`
	// Annotations to put on the Secret.
	// +optional
	// +kubebuilder:validation:MaxProperties=32
	Annotations map[string]MetadataValue `json:"annotations,omitempty"`
}

// ContextValue is a value of an EncryptionContext.
// +kubebuilder:validation:MaxLength=8192
type ContextValue string

// SecretReference is the Secret that was written, as it was then.
type SecretReference struct {
	// Name of the Secret.
	// +required
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name"`
	// UID of the Secret.
	// +required
	// +kubebuilder:validation:MaxLength=64
	UID string `json:"uid"`
	// ResourceVersion of the Secret when its content was last known to be right.
	// +required
	// +kubebuilder:validation:MaxLength=64
	ResourceVersion string `json:"resourceVersion"`
	// Digest of the Secret's data (SHA-256, hexadecimal), by which a foreign change is noticed.
	// +required
	// +kubebuilder:validation:MaxLength=64
	Digest string `json:"digest"`
}
