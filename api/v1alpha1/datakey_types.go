package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// KeyReference names a master key of the same namespace.
type KeyReference struct {
	// Kind is ImportedKey.
	// +required
	// +kubebuilder:validation:Enum=ImportedKey
	Kind string `json:"kind"`
	// Name of the key.
	// +required
	Name ObjectName `json:"name"`
}

// DataKeySpec is what GenerateDataKeyWithoutPlaintext is asked for.
// +kubebuilder:validation:XValidation:rule="self.keyRef == oldSelf.keyRef",message="keyRef cannot be changed: make another DataKey"
// +kubebuilder:validation:XValidation:rule="has(self.keySpec) == has(oldSelf.keySpec) && (!has(self.keySpec) || self.keySpec == oldSelf.keySpec)",message="keySpec cannot be changed: make another DataKey"
// +kubebuilder:validation:XValidation:rule="has(self.numberOfBytes) == has(oldSelf.numberOfBytes) && (!has(self.numberOfBytes) || self.numberOfBytes == oldSelf.numberOfBytes)",message="numberOfBytes cannot be changed: make another DataKey"
// +kubebuilder:validation:XValidation:rule="has(self.encryptionContext) == has(oldSelf.encryptionContext) && (!has(self.encryptionContext) || self.encryptionContext == oldSelf.encryptionContext)",message="encryptionContext cannot be changed: make another DataKey"
// +kubebuilder:validation:XValidation:rule="!has(oldSelf.ciphertextBlob) || (has(self.ciphertextBlob) && self.ciphertextBlob == oldSelf.ciphertextBlob)",message="ciphertextBlob cannot be changed once set: make another DataKey"
// +kubebuilder:validation:XValidation:rule="(has(self.target) && has(self.target.name)) == (has(oldSelf.target) && has(oldSelf.target.name)) && (!has(self.target) || !has(self.target.name) || self.target.name == oldSelf.target.name)",message="target.name cannot be changed: make another DataKey"
type DataKeySpec struct {
	// KeyRef names the master key.
	// +required
	KeyRef KeyReference `json:"keyRef"`
	// KeySpec is AES_256 (32 bytes) or AES_128 (16 bytes).
	// +optional
	// +kubebuilder:validation:Enum=AES_256;AES_128
	KeySpec string `json:"keySpec,omitempty"`
	// NumberOfBytes is the length of the data key; it wins over keySpec. With neither it is 32.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1024
	NumberOfBytes int32 `json:"numberOfBytes,omitempty"`
	// EncryptionContext is bound to the data key: it opens under the same context only. It is not
	// secret. At most 8192 characters as JSON.
	// +optional
	// +kubebuilder:validation:MaxProperties=64
	EncryptionContext map[string]ContextValue `json:"encryptionContext,omitempty"`
	// CiphertextBlob is an existing data key to take over, in Base64. It must have the length that
	// numberOfBytes or keySpec says, where one of them does.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=4096
	CiphertextBlob string `json:"ciphertextBlob,omitempty"`
	// Target is the Secret that keeps the blob. It stays when this object is deleted: a data key
	// that is lost cannot be made again.
	// +optional
	Target *SecretTarget `json:"target,omitempty"`
}

// DataKeyStatus is the data key as it is.
type DataKeyStatus struct {
	// ObservedGeneration is the generation that the status speaks of.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Conditions: Ready, Reconciling, Stalled.
	// +optional
	// +listType=map
	// +listMapKey=type
	// +kubebuilder:validation:MaxItems=8
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// KeyID is the master key's.
	// +optional
	// +kubebuilder:validation:MaxLength=36
	KeyID string `json:"keyID,omitempty"`
	// KeyVersionID is the master key's.
	// +optional
	// +kubebuilder:validation:MaxLength=36
	KeyVersionID string `json:"keyVersionID,omitempty"`
	// CiphertextBlob is the data key, encrypted under the master key, in Base64.
	// +optional
	// +kubebuilder:validation:MaxLength=2048
	CiphertextBlob string `json:"ciphertextBlob,omitempty"`
	// Custody says where the data key was in plaintext when it was made.
	// +optional
	Custody Custody `json:"custody,omitempty"`
	// SecretRef is the Secret that keeps the blob.
	// +optional
	SecretRef *SecretReference `json:"secretRef,omitempty"`
}

// DataKey is a data key that nobody has seen (GenerateDataKeyWithoutPlaintext).
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:categories=keyconvoy,shortName=dk
// +kubebuilder:printcolumn:name="Key",type=string,JSONPath=`.spec.keyRef.name`
// +kubebuilder:printcolumn:name="Custody",type=string,JSONPath=`.status.custody`
// +kubebuilder:printcolumn:name="Secret",type=string,JSONPath=`.status.secretRef.name`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type DataKey struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +required
	Spec DataKeySpec `json:"spec"`
	// +optional
	Status DataKeyStatus `json:"status,omitempty"`
}

// DataKeyList is a list of DataKeys.
// +kubebuilder:object:root=true
type DataKeyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []DataKey `json:"items"`
}
