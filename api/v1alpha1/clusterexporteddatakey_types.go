package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// NamespacedReference names an object and its namespace.
type NamespacedReference struct {
	// Namespace of the object.
	// +required
	Namespace NamespaceName `json:"namespace"`
	// Name of the object.
	// +required
	Name ObjectName `json:"name"`
}

// DistributedPublicKeySource is where the recipient's public key of each namespace is read from.
// +kubebuilder:validation:XValidation:rule="has(self.blob) == (self.type == 'Blob')",message="blob must be set if type is Blob, and only then"
// +kubebuilder:validation:XValidation:rule="has(self.secretKeyRef) == (self.type == 'SecretKeyRef')",message="secretKeyRef must be set if type is SecretKeyRef, and only then"
// +kubebuilder:validation:XValidation:rule="has(self.configMapKeyRef) == (self.type == 'ConfigMapKeyRef')",message="configMapKeyRef must be set if type is ConfigMapKeyRef, and only then"
type DistributedPublicKeySource struct {
	// Type is the field that is set: Blob, SecretKeyRef or ConfigMapKeyRef.
	// +required
	// +unionDiscriminator
	// +kubebuilder:validation:Enum=Blob;SecretKeyRef;ConfigMapKeyRef
	Type SourceType `json:"type"`
	// Blob is one public key for all namespaces, as PEM or Base64 DER, for example the output of "openssl pkey -pubout".
	// +optional
	// +unionMember
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=16384
	Blob string `json:"blob,omitempty"`
	// SecretKeyRef reads the public key from the Secret with this name in each namespace.
	// +optional
	// +unionMember
	SecretKeyRef *EntryReference `json:"secretKeyRef,omitempty"`
	// ConfigMapKeyRef reads the public key from the ConfigMap with this name in each namespace.
	// +optional
	// +unionMember
	ConfigMapKeyRef *EntryReference `json:"configMapKeyRef,omitempty"`
}

// ExportTemplate is the ExportedDataKey that the operator creates in each namespace.
// +kubebuilder:validation:XValidation:rule="(self.wrappingKeySpec == 'EC_SM2') == (self.wrappingAlgorithm == 'SM2PKE')",message="EC_SM2 requires SM2PKE; RSA key specs require RSAES_OAEP_SHA_256 or RSAES_OAEP_SHA_1"
// +kubebuilder:validation:XValidation:rule="!has(self.sm2CiphertextFormat) || self.wrappingAlgorithm == 'SM2PKE'",message="sm2CiphertextFormat requires wrappingAlgorithm SM2PKE"
type ExportTemplate struct {
	// DataKeyRef names the DataKey to export. The exportPolicy of its ImportedKey must allow the namespaces.
	// +required
	DataKeyRef NamespacedReference `json:"dataKeyRef"`
	// PublicKey is the public key of the recipient.
	// +required
	PublicKey DistributedPublicKeySource `json:"publicKey"`
	// WrappingKeySpec is the type of the public key: RSA_2048, RSA_3072, RSA_4096 or EC_SM2.
	// +required
	WrappingKeySpec WrappingKeySpec `json:"wrappingKeySpec"`
	// WrappingAlgorithm is the algorithm that encrypts the data key under the public key: RSAES_OAEP_SHA_256 or
	// RSAES_OAEP_SHA_1 with RSA keys, SM2PKE with EC_SM2.
	// +required
	WrappingAlgorithm ExportAlgorithm `json:"wrappingAlgorithm"`
	// SM2CiphertextFormat is the format of an SM2 ciphertext: C1C3C2 (raw), C1C2C3 (raw, older) or ASN1 (GM/T 0009, which
	// openssl reads). Only with SM2PKE. Defaults to C1C3C2.
	// +optional
	// +kubebuilder:validation:Enum=C1C3C2;C1C2C3;ASN1
	SM2CiphertextFormat string `json:"sm2CiphertextFormat,omitempty"`
	// Target is the Secret that the operator writes in each namespace. Defaults to a Secret with the name of this
	// object.
	// +optional
	Target *ExportTarget `json:"target,omitempty"`
}

// ClusterExportedDataKeySpec exports one data key to many namespaces.
// +kubebuilder:validation:XValidation:rule="(has(self.template.target) && has(self.template.target.name)) == (has(oldSelf.template.target) && has(oldSelf.template.target.name)) && (!has(self.template.target) || !has(self.template.target.name) || self.template.target.name == oldSelf.template.target.name)",message="target.name cannot be changed: create another ClusterExportedDataKey"
type ClusterExportedDataKeySpec struct {
	// NamespaceSelector selects the namespaces by their labels, for example {matchLabels: {ledger: "yes"}}. An empty
	// selector ({}) selects all. The operator's own namespace is never selected.
	// +required
	NamespaceSelector LabelSelector `json:"namespaceSelector"`
	// Template is the ExportedDataKey that the operator creates in each namespace, under the name of this object.
	// +required
	Template ExportTemplate `json:"template"`
}

// NamespaceFailure is a namespace in which the export failed.
type NamespaceFailure struct {
	// Namespace in which the export failed.
	// +required
	Namespace NamespaceName `json:"namespace"`
	// Reason of the Ready condition of the ExportedDataKey.
	// +required
	// +kubebuilder:validation:MaxLength=128
	Reason string `json:"reason"`
}

// ClusterExportedDataKeyStatus counts the exports.
type ClusterExportedDataKeyStatus struct {
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
	// Approved is the data key that the name in the spec had when the operator first found it.
	// +optional
	Approved *ApprovedInputs `json:"approved,omitempty"`
	// SelectedNamespaces is the number of selected namespaces.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=2147483647
	SelectedNamespaces int32 `json:"selectedNamespaces"`
	// ReadyNamespaces is the number of selected namespaces in which the export is ready.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=2147483647
	ReadyNamespaces int32 `json:"readyNamespaces"`
	// FailedNamespaces is the number of selected namespaces in which the export failed.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=2147483647
	FailedNamespaces int32 `json:"failedNamespaces"`
	// Failures are the first 10 namespaces in which the export failed, by name.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=10
	Failures []NamespaceFailure `json:"failures,omitempty"`
}

// ClusterExportedDataKey exports one data key to every namespace that a selector selects.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,categories=keyconvoy,shortName=cedk
// +kubebuilder:printcolumn:name="DataKey",type=string,JSONPath=`.spec.template.dataKeyRef.name`
// +kubebuilder:printcolumn:name="Namespaces",type=integer,JSONPath=`.status.selectedNamespaces`
// +kubebuilder:printcolumn:name="Exported",type=integer,JSONPath=`.status.readyNamespaces`
// +kubebuilder:printcolumn:name="Failed",type=integer,JSONPath=`.status.failedNamespaces`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Message",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].message`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +genclient:nonNamespaced
type ClusterExportedDataKey struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +required
	Spec ClusterExportedDataKeySpec `json:"spec"`
	// +optional
	Status ClusterExportedDataKeyStatus `json:"status,omitempty"`

	Decoding `json:"-"`
}

// ClusterExportedDataKeyList is a list of ClusterExportedDataKeys.
// +kubebuilder:object:root=true
type ClusterExportedDataKeyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []ClusterExportedDataKey `json:"items"`
}
