package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// PublicKeySource is where a recipient's public key is read from. The key is a SubjectPublicKeyInfo (Base64 DER or
// PEM) or an X.509 certificate; of a certificate chain, the leaf is used.
// +kubebuilder:validation:XValidation:rule="has(self.blob) == (self.type == 'Blob')",message="blob must be set if type is Blob, and only then"
// +kubebuilder:validation:XValidation:rule="has(self.secretKeyRef) == (self.type == 'SecretKeyRef')",message="secretKeyRef must be set if type is SecretKeyRef, and only then"
// +kubebuilder:validation:XValidation:rule="has(self.configMapKeyRef) == (self.type == 'ConfigMapKeyRef')",message="configMapKeyRef must be set if type is ConfigMapKeyRef, and only then"
// +kubebuilder:validation:XValidation:rule="has(self.importedKeyRef) == (self.type == 'ImportedKeyRef')",message="importedKeyRef must be set if type is ImportedKeyRef, and only then"
type PublicKeySource struct {
	// Type is the field that is set: Blob, SecretKeyRef, ConfigMapKeyRef or ImportedKeyRef.
	// +required
	// +unionDiscriminator
	// +kubebuilder:validation:Enum=Blob;SecretKeyRef;ConfigMapKeyRef;ImportedKeyRef
	Type SourceType `json:"type"`
	// Blob is the public key itself, as PEM or Base64 DER, for example the output of "openssl pkey -pubout".
	// +optional
	// +unionMember
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=16384
	Blob string `json:"blob,omitempty"`
	// SecretKeyRef reads the public key from a Secret, for example from the entry tls.crt of a Secret that
	// cert-manager renews.
	// +optional
	// +unionMember
	SecretKeyRef *EntryReference `json:"secretKeyRef,omitempty"`
	// ConfigMapKeyRef reads the public key from a ConfigMap.
	// +optional
	// +unionMember
	ConfigMapKeyRef *EntryReference `json:"configMapKeyRef,omitempty"`
	// ImportedKeyRef uses the import public key (status.importParameters.publicKey) of an ImportedKey in the same
	// namespace, to move a key from one module to another.
	// +optional
	// +unionMember
	ImportedKeyRef *LocalReference `json:"importedKeyRef,omitempty"`
}

// DataKeyReference names a DataKey.
type DataKeyReference struct {
	// Name of the DataKey.
	// +required
	Name ObjectName `json:"name"`
	// Namespace of the DataKey. Defaults to the namespace of this object. Exporting from another namespace requires
	// the key owner's consent (exportPolicy).
	// +optional
	Namespace NamespaceName `json:"namespace,omitempty"`
	// Digest is the DataKey's status.dataKeyDigest or, if that is not set, the hexadecimal SHA-256 of its
	// status.ciphertextBlob. If it is set, the operator exports only
	// the data key with this digest, even if the DataKey is replaced by another one with the same name. A
	// ClusterExportedDataKey sets it in the objects that it creates.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:Pattern=`^[0-9a-f]{64}$`
	Digest string `json:"digest,omitempty"`
}

// ApprovedInputs identify the data key and the recipient that the names in the spec had when the operator first found
// them. If one of the names is given to another object later, the operator does not export until the spec is changed.
type ApprovedInputs struct {
	// Generation of the spec.
	// +required
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=9007199254740991
	Generation int64 `json:"generation"`
	// DataKeyDigest is the hexadecimal SHA-256 of the data key's first ciphertextBlob.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	DataKeyDigest string `json:"dataKeyDigest,omitempty"`
	// RecipientKeyID is the UID of the ImportedKey that is the recipient.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	RecipientKeyID string `json:"recipientKeyID,omitempty"`
}

// MasterKeyReference names a master key, in any namespace.
type MasterKeyReference struct {
	// Kind is ImportedKey or GeneratedKey.
	// +required
	// +kubebuilder:validation:Enum=ImportedKey;GeneratedKey
	Kind string `json:"kind"`
	// Name of the key.
	// +required
	Name ObjectName `json:"name"`
	// Namespace of the key. Defaults to the namespace of this object. Exporting from another namespace requires the key
	// owner's consent (exportPolicy).
	// +optional
	Namespace NamespaceName `json:"namespace,omitempty"`
}

// ExportTarget is the Secret that the operator writes for an export.
type ExportTarget struct {
	SecretTarget `json:",inline"`

	// Immutable makes the Secret immutable. When the inputs change, the operator deletes the Secret and creates it
	// again. Defaults to false.
	// +optional
	Immutable bool `json:"immutable,omitempty"`
}

// ExportedDataKeySpec holds the parameters of ExportDataKey.
// +kubebuilder:validation:XValidation:rule="has(self.dataKeyRef) != has(self.ciphertextBlob)",message="exactly one of dataKeyRef and ciphertextBlob must be set"
// +kubebuilder:validation:XValidation:rule="has(self.keyRef) == has(self.ciphertextBlob)",message="ciphertextBlob requires keyRef, the master key that the blob was made under; dataKeyRef excludes it"
// +kubebuilder:validation:XValidation:rule="!has(self.encryptionContext) || has(self.ciphertextBlob)",message="encryptionContext requires ciphertextBlob: a DataKey has its own context"
// +kubebuilder:validation:XValidation:rule="(self.wrappingKeySpec == 'EC_SM2') == (self.wrappingAlgorithm == 'SM2PKE')",message="EC_SM2 requires SM2PKE; RSA key specs require RSAES_OAEP_SHA_256 or RSAES_OAEP_SHA_1"
// +kubebuilder:validation:XValidation:rule="!has(self.sm2CiphertextFormat) || self.wrappingAlgorithm == 'SM2PKE'",message="sm2CiphertextFormat requires wrappingAlgorithm SM2PKE"
// +kubebuilder:validation:XValidation:rule="!has(self.target) || !has(self.delivery) || self.delivery != 'Status'",message="target must not be set if delivery is Status, which writes no Secret"
// +kubebuilder:validation:XValidation:rule="(has(self.delivery) && self.delivery == 'Status') == (has(oldSelf.delivery) && oldSelf.delivery == 'Status')",message="delivery cannot be changed: create another ExportedDataKey"
// +kubebuilder:validation:XValidation:rule="(has(self.target) && has(self.target.name)) == (has(oldSelf.target) && has(oldSelf.target.name)) && (!has(self.target) || !has(self.target.name) || self.target.name == oldSelf.target.name)",message="target.name cannot be changed: create another ExportedDataKey"
type ExportedDataKeySpec struct {
	// DataKeyRef names the DataKey to export. Exactly one of dataKeyRef and ciphertextBlob must be set.
	// +optional
	DataKeyRef *DataKeyReference `json:"dataKeyRef,omitempty"`
	// CiphertextBlob is the data key to export, in Base64, at most 4096 characters. As with dataKeyRef, the exportPolicy
	// of its master key must allow the export.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=4096
	CiphertextBlob string `json:"ciphertextBlob,omitempty"`
	// KeyRef names the master key under which ciphertextBlob is encrypted. It must be set with ciphertextBlob, and
	// only then. Setting it requires the verb export on that key.
	// +optional
	KeyRef *MasterKeyReference `json:"keyRef,omitempty"`
	// EncryptionContext is the context with which the data key was generated, at most 8192 characters as JSON. Only with
	// ciphertextBlob. Defaults to an empty context.
	// +optional
	// +kubebuilder:validation:MaxProperties=1170
	// +kubebuilder:validation:XValidation:rule="self.map(k, size(k) + size(self[k]) + 6).sum() <= 8191",message="the EncryptionContext must be at most 8192 characters long as JSON"
	EncryptionContext map[string]ContextValue `json:"encryptionContext,omitempty"`
	// PublicKey is the public key of the recipient.
	// +required
	PublicKey PublicKeySource `json:"publicKey"`
	// WrappingKeySpec is the type of the public key: RSA_2048, RSA_3072, RSA_4096 or EC_SM2.
	// +required
	WrappingKeySpec WrappingKeySpec `json:"wrappingKeySpec"`
	// WrappingAlgorithm is the algorithm that encrypts the data key under the public key: RSAES_OAEP_SHA_256 or
	// RSAES_OAEP_SHA_1 with RSA keys, SM2PKE with EC_SM2.
	// +required
	// +kubebuilder:validation:Enum=RSAES_OAEP_SHA_256;RSAES_OAEP_SHA_1;SM2PKE
	WrappingAlgorithm string `json:"wrappingAlgorithm"`
	// SM2CiphertextFormat is the format of an SM2 ciphertext: C1C3C2 (raw), C1C2C3 (raw, older) or ASN1 (GM/T 0009, which
	// openssl reads). Only with SM2PKE. Defaults to C1C3C2.
	// +optional
	// +kubebuilder:validation:Enum=C1C3C2;C1C2C3;ASN1
	SM2CiphertextFormat string `json:"sm2CiphertextFormat,omitempty"`
	// DryRun checks whether the export would succeed, without writing an export. The result is in status.dryRunResult.
	// Ready is False also if the export would succeed; its reason is then DryRunOperationError, and otherwise
	// ValidationError or AccessDeniedError. With dryRun, target has no effect. Defaults to false.
	// +optional
	DryRun bool `json:"dryRun,omitempty"`
	// Delivery is where the operator writes the exported data key: Secret or Status (status.exportedDataKey). With Status,
	// a recipient that has the private key needs no permission to read Secrets. It cannot be changed. Defaults to Secret.
	// +optional
	// +kubebuilder:validation:Enum=Secret;Status
	Delivery Delivery `json:"delivery,omitempty"`
	// Target is the Secret that the operator writes. It must not be set if delivery is Status. Defaults to a Secret with
	// the name of this object.
	// +optional
	Target *ExportTarget `json:"target,omitempty"`
}

// Delivery is where an exported data key is written.
type Delivery string

// The places where an exported data key is written.
const (
	// DeliverySecret means a Secret, the target.
	DeliverySecret Delivery = "Secret"
	// DeliveryStatus means status.exportedDataKey.
	DeliveryStatus Delivery = "Status"
)

// DeliversInStatus reports whether the exported data key is written to the status, and not to a Secret.
func (s *ExportedDataKeySpec) DeliversInStatus() bool { return s.Delivery == DeliveryStatus }

// DryRunResult is the result of a dry run.
// +kubebuilder:validation:Enum=WouldSucceed;WouldFail
type DryRunResult string

// The results of a dry run.
const (
	// DryRunWouldSucceed means that the export would succeed.
	DryRunWouldSucceed DryRunResult = "WouldSucceed"
	// DryRunWouldFail means that the export would fail.
	DryRunWouldFail DryRunResult = "WouldFail"
)

// ExportedDataKeyStatus is the observed state of the export.
type ExportedDataKeyStatus struct {
	// ObservedGeneration is the generation of the spec that this status describes.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=9007199254740991
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Conditions: Ready, Reconciling, Stalled.
	// +optional
	// +listType=map
	// +listMapKey=type
	// +kubebuilder:validation:MaxItems=8
	// +kubebuilder:validation:XValidation:rule="self.all(c, c.lastTransitionTime > timestamp('1970-01-01T00:00:00Z') && c.lastTransitionTime <= timestamp('9999-12-31T23:59:59Z') && (!has(c.observedGeneration) || c.observedGeneration <= 9007199254740991))",message="a lastTransitionTime or observedGeneration is invalid"
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// KeyID is the identifier of the master key.
	// +optional
	// +kubebuilder:validation:MaxLength=36
	KeyID string `json:"keyID,omitempty"`
	// KeyVersionID is the identifier of the master key's version.
	// +optional
	// +kubebuilder:validation:MaxLength=36
	KeyVersionID string `json:"keyVersionID,omitempty"`
	// RequestID identifies, in the operator's log, the call that created the export.
	// +optional
	// +kubebuilder:validation:MaxLength=36
	RequestID string `json:"requestID,omitempty"`
	// Parent is the UID of the ClusterExportedDataKey that created this object. The operator recognizes its exports
	// by it, even if their ownerReferences change.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	Parent string `json:"parent,omitempty"`
	// Approved are the data key and the recipient that the names in the spec had when the operator first found them.
	// +optional
	Approved *ApprovedInputs `json:"approved,omitempty"`
	// Custody is where the data key existed in plaintext during the export: Module, Host or Software. It is Unknown
	// if the operator found the export in the Secret but not in the status.
	// +optional
	Custody Custody `json:"custody,omitempty"`
	// RecipientFingerprint is "SHA256:" followed by the hexadecimal SHA-256 of the recipient's SubjectPublicKeyInfo
	// (DER).
	// +optional
	// +kubebuilder:validation:MaxLength=128
	RecipientFingerprint string `json:"recipientFingerprint,omitempty"`
	// RecipientVersion is the version of the object from which the public key was last read.
	// +optional
	// +kubebuilder:validation:MaxLength=512
	RecipientVersion string `json:"recipientVersion,omitempty"`
	// InputsDigest is the digest of all inputs of the export. When it changes, the operator exports again.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	InputsDigest string `json:"inputsDigest,omitempty"`
	// DryRunResult is the result of the dry run: WouldSucceed, or WouldFail for the reason in the Ready condition. It is
	// not set if dryRun is false, and while the operator waits or retries.
	// +optional
	DryRunResult DryRunResult `json:"dryRunResult,omitempty"`
	// ExportedDataKey is the data key encrypted under the recipient's public key, in Base64. It is set if delivery is
	// Status.
	// +optional
	// +kubebuilder:validation:MaxLength=2048
	ExportedDataKey string `json:"exportedDataKey,omitempty"`
	// SecretRef is the Secret that holds the export. It is set if delivery is Secret.
	// +optional
	SecretRef *SecretReference `json:"secretRef,omitempty"`
	// ExportTime is the time of the export.
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Schemaless
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:Pattern=`^((197[1-9]|19[89][0-9]|[2-9][0-9]{3})-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))|(19(7[26]|8[048]|9[26])|[2-9][0-9](0[48]|[2468][048]|[13579][26])|([2468][048]|[3579][26])00)-02-29)T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]Z$`
	ExportTime *metav1.Time `json:"exportTime,omitempty"`
}

// ExportedDataKey is a data key encrypted under a recipient's public key (ExportDataKey).
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:categories=keyconvoy,shortName=edk
// +kubebuilder:printcolumn:name="DataKey",type=string,JSONPath=`.spec.dataKeyRef.name`
// +kubebuilder:printcolumn:name="Algorithm",type=string,JSONPath=`.spec.wrappingAlgorithm`
// +kubebuilder:printcolumn:name="Custody",type=string,JSONPath=`.status.custody`
// +kubebuilder:printcolumn:name="Secret",type=string,JSONPath=`.status.secretRef.name`
// +kubebuilder:printcolumn:name="DryRun",type=string,JSONPath=`.status.dryRunResult`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Exported",type=date,JSONPath=`.status.exportTime`,priority=1
// +kubebuilder:printcolumn:name="Recipient",type=string,JSONPath=`.status.recipientFingerprint`,priority=1
// +kubebuilder:printcolumn:name="Message",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].message`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type ExportedDataKey struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +required
	Spec ExportedDataKeySpec `json:"spec"`
	// +optional
	Status ExportedDataKeyStatus `json:"status,omitempty"`

	Decoding `json:"-"`
}

// ExportedDataKeyList is a list of ExportedDataKeys.
// +kubebuilder:object:root=true
type ExportedDataKeyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []ExportedDataKey `json:"items"`
}
