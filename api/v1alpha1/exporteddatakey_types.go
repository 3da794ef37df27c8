package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// PublicKeySource says where a recipient's public key comes from: SubjectPublicKeyInfo as Base64 DER,
// PEM, or an X.509 certificate. Exactly one field is set.
// +kubebuilder:validation:XValidation:rule="[has(self.blob), has(self.secretKeyRef), has(self.configMapKeyRef), has(self.importedKeyRef)].filter(x, x).size() == 1",message="exactly one of blob, secretKeyRef, configMapKeyRef and importedKeyRef is needed"
type PublicKeySource struct {
	// Blob is the public key itself.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=16384
	Blob string `json:"blob,omitempty"`
	// SecretKeyRef reads it from a Secret, e.g. the tls.crt that cert-manager keeps fresh.
	// +optional
	SecretKeyRef *EntryReference `json:"secretKeyRef,omitempty"`
	// ConfigMapKeyRef reads it from a ConfigMap.
	// +optional
	ConfigMapKeyRef *EntryReference `json:"configMapKeyRef,omitempty"`
	// ImportedKeyRef takes the import public key of an ImportedKey: from module to module.
	// +optional
	ImportedKeyRef *LocalReference `json:"importedKeyRef,omitempty"`
}

// DataKeyReference names a DataKey.
type DataKeyReference struct {
	// Name of the DataKey.
	// +required
	Name ObjectName `json:"name"`
	// Namespace of the DataKey; absent means this object's. Another one takes the consent of the key's
	// owner (exportPolicy).
	// +optional
	Namespace NamespaceName `json:"namespace,omitempty"`
}

// ExportTarget is the Secret that an ExportedDataKey writes.
type ExportTarget struct {
	SecretTarget `json:",inline"`

	// Immutable makes the Secret immutable; with new inputs it is deleted and made again.
	// +optional
	Immutable bool `json:"immutable,omitempty"`
}

// ExportedDataKeySpec is what ExportDataKey is asked for.
// +kubebuilder:validation:XValidation:rule="has(self.dataKeyRef) != has(self.ciphertextBlob)",message="exactly one of dataKeyRef and ciphertextBlob is needed"
// +kubebuilder:validation:XValidation:rule="!has(self.encryptionContext) || has(self.ciphertextBlob)",message="encryptionContext goes with ciphertextBlob: a DataKey brings its own"
// +kubebuilder:validation:XValidation:rule="(self.wrappingKeySpec == 'EC_SM2') == (self.wrappingAlgorithm == 'SM2PKE')",message="EC_SM2 goes with SM2PKE, and RSA key specs with RSAES_OAEP_SHA_256 or RSAES_OAEP_SHA_1"
// +kubebuilder:validation:XValidation:rule="!has(self.sm2CiphertextFormat) || self.wrappingAlgorithm == 'SM2PKE'",message="sm2CiphertextFormat goes with SM2PKE"
// +kubebuilder:validation:XValidation:rule="(has(self.target) && has(self.target.name)) == (has(oldSelf.target) && has(oldSelf.target.name)) && (!has(self.target) || !has(self.target.name) || self.target.name == oldSelf.target.name)",message="target.name cannot be changed: make another ExportedDataKey"
type ExportedDataKeySpec struct {
	// DataKeyRef names the DataKey to export.
	// +optional
	DataKeyRef *DataKeyReference `json:"dataKeyRef,omitempty"`
	// CiphertextBlob is the data key to export, in Base64. The key that it names must consent, as with
	// dataKeyRef.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=4096
	CiphertextBlob string `json:"ciphertextBlob,omitempty"`
	// EncryptionContext is the one that the data key was made with. With ciphertextBlob only.
	// +optional
	// +kubebuilder:validation:MaxProperties=64
	EncryptionContext map[string]ContextValue `json:"encryptionContext,omitempty"`
	// PublicKey is the recipient's.
	// +required
	PublicKey PublicKeySource `json:"publicKey"`
	// WrappingKeySpec is the type of the public key.
	// +required
	WrappingKeySpec WrappingKeySpec `json:"wrappingKeySpec"`
	// WrappingAlgorithm is how the data key is encrypted under the public key.
	// +required
	// +kubebuilder:validation:Enum=RSAES_OAEP_SHA_256;RSAES_OAEP_SHA_1;SM2PKE
	WrappingAlgorithm string `json:"wrappingAlgorithm"`
	// SM2CiphertextFormat is C1C3C2 (raw, the default), C1C2C3 (raw, older) or ASN1 (GM/T 0009).
	// +optional
	// +kubebuilder:validation:Enum=C1C3C2;C1C2C3;ASN1
	SM2CiphertextFormat string `json:"sm2CiphertextFormat,omitempty"`
	// DryRun tries everything but the export itself. It always ends in an error: DryRunOperationError
	// (it would have succeeded), ValidationError or AccessDeniedError. Nothing is written.
	// +optional
	DryRun bool `json:"dryRun,omitempty"`
	// Target is the Secret that is written.
	// +optional
	Target *ExportTarget `json:"target,omitempty"`
}

// ExportedDataKeyStatus is the export as it is.
type ExportedDataKeyStatus struct {
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
	// RequestID is the call that made the export.
	// +optional
	// +kubebuilder:validation:MaxLength=36
	RequestID string `json:"requestID,omitempty"`
	// Custody says where the data key was in plaintext while it was exported.
	// +optional
	Custody Custody `json:"custody,omitempty"`
	// RecipientFingerprint is SHA256: and the hexadecimal SHA-256 of the recipient's
	// SubjectPublicKeyInfo.
	// +optional
	// +kubebuilder:validation:MaxLength=128
	RecipientFingerprint string `json:"recipientFingerprint,omitempty"`
	// RecipientVersion is the version of the object that the public key was last read from.
	// +optional
	// +kubebuilder:validation:MaxLength=512
	RecipientVersion string `json:"recipientVersion,omitempty"`
	// InputsDigest is the digest of all that the export was made from; another one makes it anew.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	InputsDigest string `json:"inputsDigest,omitempty"`
	// SecretRef is the Secret that holds the export.
	// +optional
	SecretRef *SecretReference `json:"secretRef,omitempty"`
	// ExportTime is when the export was made.
	// +optional
	ExportTime *metav1.Time `json:"exportTime,omitempty"`
}

// ExportedDataKey is a data key under a recipient's public key (ExportDataKey).
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:categories=keyconvoy,shortName=edk
// +kubebuilder:printcolumn:name="DataKey",type=string,JSONPath=`.spec.dataKeyRef.name`
// +kubebuilder:printcolumn:name="Algorithm",type=string,JSONPath=`.spec.wrappingAlgorithm`
// +kubebuilder:printcolumn:name="Custody",type=string,JSONPath=`.status.custody`
// +kubebuilder:printcolumn:name="Secret",type=string,JSONPath=`.status.secretRef.name`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Exported",type=date,JSONPath=`.status.exportTime`,priority=1
// +kubebuilder:printcolumn:name="Recipient",type=string,JSONPath=`.status.recipientFingerprint`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type ExportedDataKey struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +required
	Spec ExportedDataKeySpec `json:"spec"`
	// +optional
	Status ExportedDataKeyStatus `json:"status,omitempty"`
}

// ExportedDataKeyList is a list of ExportedDataKeys.
// +kubebuilder:object:root=true
type ExportedDataKeyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []ExportedDataKey `json:"items"`
}
