package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// KeyReference names a master key in the same namespace.
type KeyReference struct {
	// Kind is ImportedKey or GeneratedKey.
	// +required
	// +kubebuilder:validation:Enum=ImportedKey;GeneratedKey
	Kind string `json:"kind"`
	// Name of the key.
	// +required
	Name ObjectName `json:"name"`
}

// ReencryptionPolicy is when a data key is re-encrypted under another version of its master key.
// +kubebuilder:validation:Enum=OnRotation
type ReencryptionPolicy string

// ReencryptOnRotation re-encrypts a data key when its master key has a new primary version.
const ReencryptOnRotation ReencryptionPolicy = "OnRotation"

// ReencryptionSpec is when a data key is re-encrypted.
type ReencryptionSpec struct {
	// Policy is OnRotation: when the master key has a new primary version, the module re-encrypts the data key under it.
	// +required
	Policy ReencryptionPolicy `json:"policy"`
}

// DataKeySpec holds the parameters of GenerateDataKeyWithoutPlaintext.
// +kubebuilder:validation:XValidation:rule="has(self.keySpec) == has(oldSelf.keySpec) && (!has(self.keySpec) || self.keySpec == oldSelf.keySpec)",message="keySpec cannot be changed: create another DataKey"
// +kubebuilder:validation:XValidation:rule="has(self.numberOfBytes) == has(oldSelf.numberOfBytes) && (!has(self.numberOfBytes) || self.numberOfBytes == oldSelf.numberOfBytes)",message="numberOfBytes cannot be changed: create another DataKey"
// +kubebuilder:validation:XValidation:rule="has(self.encryptionContext) == has(oldSelf.encryptionContext) && (!has(self.encryptionContext) || self.encryptionContext == oldSelf.encryptionContext)",message="encryptionContext cannot be changed: create another DataKey"
// +kubebuilder:validation:XValidation:rule="!has(oldSelf.ciphertextBlob) || (has(self.ciphertextBlob) && self.ciphertextBlob == oldSelf.ciphertextBlob)",message="ciphertextBlob cannot be changed once set: create another DataKey"
// +kubebuilder:validation:XValidation:rule="(has(self.target) && has(self.target.name)) == (has(oldSelf.target) && has(oldSelf.target.name)) && (!has(self.target) || !has(self.target.name) || self.target.name == oldSelf.target.name)",message="target.name cannot be changed: create another DataKey"
type DataKeySpec struct {
	// KeyRef names the master key. If you change it to another key of the same key store, the module re-encrypts the data
	// key under that key, and the exportPolicy of that key decides about its exports. This requires the verb use on both
	// keys, and the verb export on the former one.
	// +required
	KeyRef KeyReference `json:"keyRef"`
	// KeySpec is the length of the data key: AES_256 (32 bytes) or AES_128 (16 bytes). It has no effect if numberOfBytes
	// is set. Defaults to AES_256. It cannot be changed.
	// +optional
	// +kubebuilder:validation:Enum=AES_256;AES_128
	KeySpec string `json:"keySpec,omitempty"`
	// NumberOfBytes is the length of the data key in bytes, from 1 to 1024. It takes precedence over keySpec. Defaults
	// to the length that keySpec states. It cannot be changed.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1024
	NumberOfBytes int32 `json:"numberOfBytes,omitempty"`
	// EncryptionContext is authenticated data, for example {app: ledger}: the data key can be decrypted with the same
	// context only. It is not secret, cannot be changed, and has at most 8192 characters as JSON. (This schema counts
	// a character that JSON escapes as one; the operation counts its escaped form.) Defaults to an empty context.
	// +optional
	// +kubebuilder:validation:MaxProperties=1170
	// +kubebuilder:validation:XValidation:rule="self.map(k, size(k) + size(self[k]) + 6).sum() <= 8191",message="the EncryptionContext must be at most 8192 characters long as JSON"
	EncryptionContext map[string]ContextValue `json:"encryptionContext,omitempty"`
	// CiphertextBlob is an existing data key to take over, in Base64, for example status.ciphertextBlob of a DataKey in
	// another cluster. If numberOfBytes or keySpec is set, the data key must have that length. By default the operator
	// generates a data key. Setting this field requires the verb export on the key that keyRef names.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=4096
	CiphertextBlob string `json:"ciphertextBlob,omitempty"`
	// Reencryption is when the module re-encrypts the data key under the primary version of its master key. The data key
	// stays the same, and so do its exports. Defaults to never.
	// +optional
	Reencryption *ReencryptionSpec `json:"reencryption,omitempty"`
	// Target is the Secret in which the operator stores the blob. Defaults to a Secret with the name of this object.
	// The Secret remains when this object is deleted, because a lost data key cannot be generated again.
	// +optional
	Target *SecretTarget `json:"target,omitempty"`
}

// DataKeyStatus is the observed state of the data key.
type DataKeyStatus struct {
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
	// KeyRef is spec.keyRef at the time when the data key was put under its master key. Only a later change of
	// spec.keyRef moves the data key under another one.
	// +optional
	KeyRef *KeyReference `json:"keyRef,omitempty"`
	// KeyVersionID is the identifier of the master key's version under which the data key is encrypted.
	// +optional
	// +kubebuilder:validation:MaxLength=36
	KeyVersionID string `json:"keyVersionID,omitempty"`
	// CiphertextBlob is the data key, encrypted under the master key, in Base64.
	// +optional
	// +kubebuilder:validation:MaxLength=2048
	CiphertextBlob string `json:"ciphertextBlob,omitempty"`
	// DataKeyDigest identifies a data key that was re-encrypted: it is the hexadecimal SHA-256 of its first
	// ciphertextBlob. It is not set before the first re-encryption.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	DataKeyDigest string `json:"dataKeyDigest,omitempty"`
	// AcceptedDigest is the hexadecimal SHA-256 of spec.ciphertextBlob, if that was set to the ciphertextBlob of a
	// data key that was re-encrypted before.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	AcceptedDigest string `json:"acceptedDigest,omitempty"`
	// BlobTag is the module's message authentication code over CiphertextBlob and the namespace and name of this
	// object, and over DataKeyDigest, AcceptedDigest and Custody if DataKeyDigest is set. The operator takes over a blob from a Secret only if the Secret has a valid tag.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	BlobTag string `json:"blobTag,omitempty"`
	// Custody is where the data key existed in plaintext when it was generated or re-encrypted, whichever was weaker:
	// Module, Host or Software. It is Unknown if the data key was taken over from a Secret or from spec.ciphertextBlob.
	// +optional
	Custody Custody `json:"custody,omitempty"`
	// SecretRef is the Secret that holds the blob.
	// +optional
	SecretRef *SecretReference `json:"secretRef,omitempty"`
	// GenerationTime is when the operator generated the data key. It is not set if the data key was taken over from a
	// Secret or from spec.ciphertextBlob.
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Schemaless
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:Pattern=`^((197[1-9]|19[89][0-9]|[2-9][0-9]{3})-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))|(19(7[26]|8[048]|9[26])|[2-9][0-9](0[48]|[2468][048]|[13579][26])|([2468][048]|[3579][26])00)-02-29)T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]Z$`
	GenerationTime *metav1.Time `json:"generationTime,omitempty"`
	// VerificationTime is when the operator last verified that the blob opens: when it took the data key over, or after a
	// time in which the module may have returned wrong results.
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Schemaless
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:Pattern=`^((197[1-9]|19[89][0-9]|[2-9][0-9]{3})-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))|(19(7[26]|8[048]|9[26])|[2-9][0-9](0[48]|[2468][048]|[13579][26])|([2468][048]|[3579][26])00)-02-29)T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]Z$`
	VerificationTime *metav1.Time `json:"verificationTime,omitempty"`
}

// DataKey is a data key that is generated without ever revealing its plaintext (GenerateDataKeyWithoutPlaintext).
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:categories=keyconvoy,shortName=dk
// +kubebuilder:printcolumn:name="Key",type=string,JSONPath=`.spec.keyRef.name`
// +kubebuilder:printcolumn:name="Custody",type=string,JSONPath=`.status.custody`
// +kubebuilder:printcolumn:name="Secret",type=string,JSONPath=`.status.secretRef.name`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Message",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].message`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type DataKey struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +required
	Spec DataKeySpec `json:"spec"`
	// +optional
	Status DataKeyStatus `json:"status,omitempty"`

	Decoding `json:"-"`
}

// ReencryptsOnRotation reports whether the data key follows the primary version of its master key.
func (s *DataKeySpec) ReencryptsOnRotation() bool {
	return s.Reencryption != nil && s.Reencryption.Policy == ReencryptOnRotation
}

// DataKeyList is a list of DataKeys.
// +kubebuilder:object:root=true
type DataKeyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []DataKey `json:"items"`
}
