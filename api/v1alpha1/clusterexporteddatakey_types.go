package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// NamespacedReference names an object of a namespace.
type NamespacedReference struct {
	// Namespace of the object.
	// +required
	Namespace NamespaceName `json:"namespace"`
	// Name of the object.
	// +required
	Name ObjectName `json:"name"`
}

// DistributedPublicKeySource says where the recipient's public key of each namespace comes from. Exactly
// one field is set.
// +kubebuilder:validation:XValidation:rule="[has(self.blob), has(self.secretKeyRef), has(self.configMapKeyRef)].filter(x, x).size() == 1",message="exactly one of blob, secretKeyRef and configMapKeyRef is needed"
type DistributedPublicKeySource struct {
	// Blob is one public key for all namespaces.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=16384
	Blob string `json:"blob,omitempty"`
	// SecretKeyRef reads it from the Secret of that name in each namespace.
	// +optional
	SecretKeyRef *EntryReference `json:"secretKeyRef,omitempty"`
	// ConfigMapKeyRef reads it from the ConfigMap of that name in each namespace.
	// +optional
	ConfigMapKeyRef *EntryReference `json:"configMapKeyRef,omitempty"`
}

// ExportTemplate is the ExportedDataKey that is made in each namespace.
// +kubebuilder:validation:XValidation:rule="(self.wrappingKeySpec == 'EC_SM2') == (self.wrappingAlgorithm == 'SM2PKE')",message="EC_SM2 goes with SM2PKE, and RSA key specs with RSAES_OAEP_SHA_256 or RSAES_OAEP_SHA_1"
// +kubebuilder:validation:XValidation:rule="!has(self.sm2CiphertextFormat) || self.wrappingAlgorithm == 'SM2PKE'",message="sm2CiphertextFormat goes with SM2PKE"
type ExportTemplate struct {
	// DataKeyRef names the DataKey to export. The owner of its key must consent to the namespaces
	// (exportPolicy).
	// +required
	DataKeyRef NamespacedReference `json:"dataKeyRef"`
	// PublicKey is the recipient's.
	// +required
	PublicKey DistributedPublicKeySource `json:"publicKey"`
	// WrappingKeySpec is the type of the public key.
	// +required
	WrappingKeySpec WrappingKeySpec `json:"wrappingKeySpec"`
	// WrappingAlgorithm is how the data key is encrypted under the public key.
	// +required
	WrappingAlgorithm ExportAlgorithm `json:"wrappingAlgorithm"`
	// SM2CiphertextFormat is C1C3C2 (raw, the default), C1C2C3 (raw, older) or ASN1 (GM/T 0009).
	// +optional
	// +kubebuilder:validation:Enum=C1C3C2;C1C2C3;ASN1
	SM2CiphertextFormat string `json:"sm2CiphertextFormat,omitempty"`
	// Target is the Secret that is written in each namespace.
	// +optional
	Target *ExportTarget `json:"target,omitempty"`
}

// ClusterExportedDataKeySpec is one data key for many namespaces.
// +kubebuilder:validation:XValidation:rule="(has(self.template.target) && has(self.template.target.name)) == (has(oldSelf.template.target) && has(oldSelf.template.target.name)) && (!has(self.template.target) || !has(self.template.target.name) || self.template.target.name == oldSelf.template.target.name)",message="target.name cannot be changed: make another ClusterExportedDataKey"
type ClusterExportedDataKeySpec struct {
	// NamespaceSelector selects the namespaces by their labels; an empty selector selects all.
	// +required
	NamespaceSelector metav1.LabelSelector `json:"namespaceSelector"`
	// Template is the ExportedDataKey that is made in each namespace, under this object's name.
	// +required
	Template ExportTemplate `json:"template"`
}

// NamespaceFailure is a namespace in which the export has failed.
type NamespaceFailure struct {
	// Namespace that failed.
	// +required
	Namespace NamespaceName `json:"namespace"`
	// Reason as its ExportedDataKey says it.
	// +required
	// +kubebuilder:validation:MaxLength=128
	Reason string `json:"reason"`
}

// ClusterExportedDataKeyStatus counts the exports.
type ClusterExportedDataKeyStatus struct {
	// ObservedGeneration is the generation that the status speaks of.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Conditions: Ready, Reconciling, Stalled.
	// +optional
	// +listType=map
	// +listMapKey=type
	// +kubebuilder:validation:MaxItems=8
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// Namespaces is how many namespaces the selector selects.
	// +optional
	Namespaces int32 `json:"namespaces"`
	// ReadyNamespaces is in how many of them the export is Ready.
	// +optional
	ReadyNamespaces int32 `json:"readyNamespaces"`
	// FailedNamespaces is in how many of them it has failed.
	// +optional
	FailedNamespaces int32 `json:"failedNamespaces"`
	// Failures are the first few that failed, by name.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=10
	Failures []NamespaceFailure `json:"failures,omitempty"`
}

// ClusterExportedDataKey is one data key exported to every namespace that matches.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,categories=keyconvoy,shortName=cedk
// +kubebuilder:printcolumn:name="DataKey",type=string,JSONPath=`.spec.template.dataKeyRef.name`
// +kubebuilder:printcolumn:name="Namespaces",type=integer,JSONPath=`.status.namespaces`
// +kubebuilder:printcolumn:name="Exported",type=integer,JSONPath=`.status.readyNamespaces`
// +kubebuilder:printcolumn:name="Failed",type=integer,JSONPath=`.status.failedNamespaces`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
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
}

// ClusterExportedDataKeyList is a list of ClusterExportedDataKeys.
// +kubebuilder:object:root=true
type ClusterExportedDataKeyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []ClusterExportedDataKey `json:"items"`
}
