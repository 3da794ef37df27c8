package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// CustodyPolicy says how far plaintext key bytes may come out of the module.
// +kubebuilder:validation:Enum=HostAllowed;ModuleOnly
type CustodyPolicy string

// The custody policies.
const (
	// CustodyHostAllowed lets an operation take a key into the operator's memory for the time of one
	// call where the module lacks a mechanism. It is the default.
	CustodyHostAllowed CustodyPolicy = "HostAllowed"
	// CustodyModuleOnly refuses such operations.
	CustodyModuleOnly CustodyPolicy = "ModuleOnly"
)

// KeyStoreSpec says which cryptographic module holds the keys.
// +kubebuilder:validation:XValidation:rule="has(self.software) != has(self.pkcs11)",message="exactly one of software and pkcs11 is needed"
// +kubebuilder:validation:XValidation:rule="!has(self.software) || !has(self.custody) || self.custody != 'ModuleOnly'",message="the software store is not a cryptographic module: custody ModuleOnly needs pkcs11"
// +kubebuilder:validation:XValidation:rule="has(self.software) == has(oldSelf.software)",message="software and pkcs11 cannot be exchanged: the keys would be left behind; make another key store"
type KeyStoreSpec struct {
	// Software selects the embedded store: keys sealed in Secrets of the operator's namespace.
	// +optional
	Software *SoftwareStore `json:"software,omitempty"`
	// PKCS11 selects a token of a PKCS#11 module.
	// +optional
	PKCS11 *PKCS11Store `json:"pkcs11,omitempty"`
	// Custody says how far plaintext key bytes may come out of the module; absent means HostAllowed.
	// +optional
	Custody CustodyPolicy `json:"custody,omitempty"`
	// AllowPKCS1V15Import allows RSAES_PKCS1_V1_5 for imports. That padding lets whoever may try
	// many imports learn about the material, so it is off unless set.
	// +optional
	AllowPKCS1V15Import bool `json:"allowPKCS1V15Import,omitempty"`
}

// SoftwareStore is the embedded store. It has no settings.
type SoftwareStore struct{}

// PKCS11Store is a token of a PKCS#11 module.
type PKCS11Store struct {
	// Module is the name under which the administrator allowed the library with
	// --pkcs11-module NAME=PATH. It is never a path.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	Module string `json:"module"`
	// Token selects the token. Exactly one must match.
	// +required
	Token TokenSelector `json:"token"`
	// PINSecretRef is the entry that holds the user PIN: in the key store's namespace, or in the
	// operator's for a ClusterKeyStore. Absent for tokens without login.
	// +optional
	PINSecretRef *EntryReference `json:"pinSecretRef,omitempty"`
	// MaxSessions bounds the sessions that work at once; absent means 8.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1024
	MaxSessions int32 `json:"maxSessions,omitempty"`
}

// TokenSelector selects a token by what it says of itself, without trailing blanks. Slot numbers
// change, so they select nothing.
type TokenSelector struct {
	// Label of the token.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=32
	Label string `json:"label"`
	// Serial number of the token.
	// +optional
	// +kubebuilder:validation:MaxLength=16
	Serial string `json:"serial,omitempty"`
	// Model of the token.
	// +optional
	// +kubebuilder:validation:MaxLength=16
	Model string `json:"model,omitempty"`
}

// ClusterKeyStoreSpec is a KeyStoreSpec and who may use it.
type ClusterKeyStoreSpec struct {
	KeyStoreSpec `json:",inline"`

	// AllowedNamespaces selects the namespaces that may use the key store by their labels; absent
	// means all.
	// +optional
	AllowedNamespaces *metav1.LabelSelector `json:"allowedNamespaces,omitempty"`
}

// ModuleInfo is what a module says of itself.
type ModuleInfo struct {
	// Library is the module's name as the administrator allowed it, or "software".
	// +optional
	// +kubebuilder:validation:MaxLength=63
	Library string `json:"library,omitempty"`
	// Manufacturer of the token.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	Manufacturer string `json:"manufacturer,omitempty"`
	// Model of the token.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	Model string `json:"model,omitempty"`
	// Serial number of the token.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	Serial string `json:"serial,omitempty"`
	// Firmware version of the token.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	Firmware string `json:"firmware,omitempty"`
}

// Capability is one thing that the self-test saw the module do.
type Capability struct {
	// Operation is MasterKey, Import, Generate or Export.
	// +required
	// +kubebuilder:validation:MaxLength=32
	Operation string `json:"operation"`
	// Algorithm of the operation.
	// +required
	// +kubebuilder:validation:MaxLength=64
	Algorithm string `json:"algorithm"`
	// Custody says where plaintext is meanwhile.
	// +required
	Custody Custody `json:"custody"`
}

// KeyStoreStatus is what the operator found out about the module.
type KeyStoreStatus struct {
	// ObservedGeneration is the generation that the status speaks of.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Conditions: Ready, Reconciling, Stalled.
	// +optional
	// +listType=map
	// +listMapKey=type
	// +kubebuilder:validation:MaxItems=8
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// Module is what the module says of itself.
	// +optional
	Module *ModuleInfo `json:"module,omitempty"`
	// Capabilities are what the self-test saw the module do.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=64
	Capabilities []Capability `json:"capabilities,omitempty"`
	// RefusedPINSecret is the digest of the PIN's Secret (its version) and of what else the module is opened
	// with, when the module refused the PIN. They are not tried again, also not after a restart: tries lock
	// the token.
	// +optional
	// +kubebuilder:validation:MaxLength=128
	RefusedPINSecret string `json:"refusedPINSecret,omitempty"`
}

// KeyStore is a cryptographic module for the keys of one namespace.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:categories=keyconvoy,shortName=ks
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Module",type=string,JSONPath=`.status.module.library`
// +kubebuilder:printcolumn:name="Model",type=string,JSONPath=`.status.module.model`,priority=1
// +kubebuilder:printcolumn:name="Serial",type=string,JSONPath=`.status.module.serial`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type KeyStore struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +required
	Spec KeyStoreSpec `json:"spec"`
	// +optional
	Status KeyStoreStatus `json:"status,omitempty"`
}

// KeyStoreList is a list of KeyStores.
// +kubebuilder:object:root=true
type KeyStoreList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []KeyStore `json:"items"`
}

// ClusterKeyStore is a cryptographic module for the keys of many namespaces.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,categories=keyconvoy,shortName=cks
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Module",type=string,JSONPath=`.status.module.library`
// +kubebuilder:printcolumn:name="Model",type=string,JSONPath=`.status.module.model`,priority=1
// +kubebuilder:printcolumn:name="Serial",type=string,JSONPath=`.status.module.serial`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +genclient:nonNamespaced
type ClusterKeyStore struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +required
	Spec ClusterKeyStoreSpec `json:"spec"`
	// +optional
	Status KeyStoreStatus `json:"status,omitempty"`
}

// ClusterKeyStoreList is a list of ClusterKeyStores.
// +kubebuilder:object:root=true
type ClusterKeyStoreList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []ClusterKeyStore `json:"items"`
}
