package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// CustodyPolicy is whether plaintext key bytes may exist outside the module.
// +kubebuilder:validation:Enum=HostAllowed;ModuleOnly
type CustodyPolicy string

// The custody policies.
const (
	// CustodyHostAllowed allows an operation to hold a key in the operator's memory during one call if the module
	// lacks a mechanism. It is the default.
	CustodyHostAllowed CustodyPolicy = "HostAllowed"
	// CustodyModuleOnly rejects such operations.
	CustodyModuleOnly CustodyPolicy = "ModuleOnly"
)

// KeyProtectionPolicy is whether a module must protect its keys from someone who has its PIN.
// +kubebuilder:validation:Enum=NotEnforcedAllowed;EnforcedOnly
type KeyProtectionPolicy string

// The key protection policies.
const (
	// KeyProtectionNotEnforcedAllowed allows any module. It is the default.
	KeyProtectionNotEnforcedAllowed KeyProtectionPolicy = "NotEnforcedAllowed"
	// KeyProtectionEnforcedOnly allows only modules whose status.keyProtection.state is Enforced.
	KeyProtectionEnforcedOnly KeyProtectionPolicy = "EnforcedOnly"
)

// KeyStoreType is the type of the module that holds the keys.
// +kubebuilder:validation:Enum=Software;PKCS11
type KeyStoreType string

// The types of key store.
const (
	// KeyStoreSoftware is the embedded store.
	KeyStoreSoftware KeyStoreType = "Software"
	// KeyStorePKCS11 is a token of a PKCS#11 module.
	KeyStorePKCS11 KeyStoreType = "PKCS11"
)

// KeyStoreSpec selects the cryptographic module that holds the keys.
// +kubebuilder:validation:XValidation:rule="has(self.pkcs11) == (self.type == 'PKCS11')",message="pkcs11 must be set if type is PKCS11, and only then"
// +kubebuilder:validation:XValidation:rule="self.type != 'Software' || !has(self.custody) || self.custody != 'ModuleOnly'",message="the software store is not a cryptographic module: custody ModuleOnly requires type PKCS11"
// +kubebuilder:validation:XValidation:rule="self.type != 'Software' || !has(self.keyProtection) || self.keyProtection != 'EnforcedOnly'",message="the software store keeps its keys in Secrets: keyProtection EnforcedOnly requires type PKCS11"
// +kubebuilder:validation:XValidation:rule="self.type == oldSelf.type",message="type cannot be changed: the keys would be left behind; create another key store"
type KeyStoreSpec struct {
	// Type is Software, the embedded store, which keeps encrypted keys in Secrets in the operator's namespace, or
	// PKCS11, a token of a PKCS#11 module such as an HSM. It cannot be changed.
	// +required
	// +unionDiscriminator
	Type KeyStoreType `json:"type"`
	// PKCS11 selects the token. It must be set if type is PKCS11, and only then. If you change the module or the token,
	// existing keys remain in the previous token: the condition KeysMissing lists those that the new one does not have.
	// +optional
	// +unionMember
	PKCS11 *PKCS11Store `json:"pkcs11,omitempty"`
	// Custody is whether plaintext key bytes may exist outside the module. ModuleOnly rejects every operation for
	// which the operator would have to hold a key in its memory. Defaults to HostAllowed.
	// +optional
	Custody CustodyPolicy `json:"custody,omitempty"`
	// KeyProtection is whether the module must protect its keys from someone who has its PIN and tries to extract a
	// key or to add usages to it. With EnforcedOnly, the key store is ready only if the module rejected every such
	// attempt of the self-test (see status.keyProtection). Defaults to NotEnforcedAllowed, which allows any module.
	// +optional
	KeyProtection KeyProtectionPolicy `json:"keyProtection,omitempty"`
	// AllowPKCS1V15Import allows RSAES_PKCS1_V1_5 for imports. PKCS#1 v1.5 padding is open to padding-oracle attacks.
	// Defaults to false.
	// +optional
	AllowPKCS1V15Import bool `json:"allowPKCS1V15Import,omitempty"`
}

// PKCS11Store is a token of a PKCS#11 module.
type PKCS11Store struct {
	// Module is the name under which the administrator allowed the library with --pkcs11-module NAME=PATH, for
	// example softhsm. It is never a path. Setting it requires the verb use on the pkcs11module of that name.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	Module string `json:"module"`
	// Token selects the token. Exactly one token must match.
	// +required
	Token TokenSelector `json:"token"`
	// PINSecretRef is the Secret entry that holds the user PIN. The Secret must be in the namespace of the KeyStore
	// or, for a ClusterKeyStore, in the operator's namespace. Omit it for tokens without login.
	// +optional
	PINSecretRef *EntryReference `json:"pinSecretRef,omitempty"`
	// MaxSessions is the maximum number of concurrent sessions, from 1 to 1024. Defaults to 8.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1024
	MaxSessions int32 `json:"maxSessions,omitempty"`
}

// TokenSelector selects a token by label and, optionally, serial number and model, all without trailing blanks. Slot
// numbers are not supported because they can change.
type TokenSelector struct {
	// Label of the token, at most 32 characters, for example keyconvoy.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=32
	Label string `json:"label"`
	// Serial number of the token, at most 16 characters. Defaults to any.
	// +optional
	// +kubebuilder:validation:MaxLength=16
	Serial string `json:"serial,omitempty"`
	// Model of the token, at most 16 characters. Defaults to any.
	// +optional
	// +kubebuilder:validation:MaxLength=16
	Model string `json:"model,omitempty"`
}

// ClusterKeyStoreSpec is a KeyStoreSpec and the namespaces that may use the key store.
type ClusterKeyStoreSpec struct {
	KeyStoreSpec `json:",inline"`

	// AllowedNamespaces selects, by their labels, the namespaces that may use the key store, for example
	// {matchLabels: {kubernetes.io/metadata.name: team-a}}. Defaults to all namespaces.
	// +optional
	AllowedNamespaces *LabelSelector `json:"allowedNamespaces,omitempty"`
}

// ModuleInfo describes a module, as its library and token report it.
type ModuleInfo struct {
	// Library is the name under which the administrator allowed the module, or "software".
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

// Capability is one operation and algorithm that the module supports, as the self-test found.
type Capability struct {
	// Operation is MasterKey, Import, Generate or Export.
	// +required
	// +kubebuilder:validation:MaxLength=32
	Operation string `json:"operation"`
	// Algorithm of the operation.
	// +required
	// +kubebuilder:validation:MaxLength=64
	Algorithm string `json:"algorithm"`
	// Custody is where plaintext exists during the operation: Module, Host or Software.
	// +required
	Custody Custody `json:"custody"`
}

// KeyProtectionState is the result of the self-test's attempts.
// +kubebuilder:validation:Enum=Enforced;NotEnforced
type KeyProtectionState string

// The key protection states.
const (
	// KeyProtectionEnforced means that the module rejected every attempt.
	KeyProtectionEnforced KeyProtectionState = "Enforced"
	// KeyProtectionNotEnforced means that an attempt succeeded.
	KeyProtectionNotEnforced KeyProtectionState = "NotEnforced"
)

// KeyProtection is the result of the self-test's attempts to extract a key from the module. The self-test uses a key
// of its own that has the attributes of a master key.
type KeyProtection struct {
	// State is Enforced if the module rejected every attempt, otherwise NotEnforced.
	// +required
	State KeyProtectionState `json:"state"`
	// Methods are the attempts that succeeded, such as "C_WrapKey with CKM_AES_KEY_WRAP": someone who has the PIN can
	// use them on the keys in the module.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MaxLength=128
	Methods []string `json:"methods,omitempty"`
}

// KeyStoreStatus is the observed state of the key store and its module.
type KeyStoreStatus struct {
	// ObservedGeneration is the generation of the spec that this status describes.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=9007199254740991
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Conditions: Ready, Reconciling, Stalled, KeysMissing while the module lacks keys that ImportedKeys hold in it, and
	// ModuleCrashed for ten minutes after the process of the PKCS#11 library ended by itself.
	// +optional
	// +listType=map
	// +listMapKey=type
	// +kubebuilder:validation:MaxItems=8
	// +kubebuilder:validation:XValidation:rule="self.all(c, c.lastTransitionTime > timestamp('1970-01-01T00:00:00Z') && c.lastTransitionTime <= timestamp('9999-12-31T23:59:59Z') && (!has(c.observedGeneration) || c.observedGeneration <= 9007199254740991))",message="a lastTransitionTime or observedGeneration is invalid"
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// Module describes the module.
	// +optional
	Module *ModuleInfo `json:"module,omitempty"`
	// Capabilities are the operations and algorithms that the module supports, as the self-test found.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=64
	Capabilities []Capability `json:"capabilities,omitempty"`
	// KeyProtection is whether the module protects its keys from someone who has its PIN. The operator tests it each
	// time it opens the module.
	// +optional
	KeyProtection *KeyProtection `json:"keyProtection,omitempty"`
	// KeysWithoutHolder are the master keys in the module that no ImportedKey holds: for a KeyStore, those of its
	// namespace; for a ClusterKeyStore, all. The operator never destroys them automatically. To use or destroy a key,
	// adopt it. The operator updates this field when it opens the module and once a day.
	// +optional
	KeysWithoutHolder *KeyVersions `json:"keysWithoutHolder,omitempty"`
	// MissingKeys are the master keys that ImportedKeys hold in this key store and that the module does not have, for
	// example because spec.pkcs11 now selects another token. The operator never creates them again. The condition
	// KeysMissing says what to do. The operator updates this field when it opens the module and once a day, and every
	// minute while keys are missing.
	// +optional
	MissingKeys *KeyVersions `json:"missingKeys,omitempty"`
	// SuspectPeriods are times in which the module may have returned wrong results, because a check found one, the oldest
	// first. When the key store is ready again, the operator repeats the exports of such a period, and verifies the data
	// keys. If there are more than eight, the two oldest become one.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=8
	SuspectPeriods []SuspectPeriod `json:"suspectPeriods,omitempty"`
}

// SuspectPeriod is a time in which the module may have returned wrong results.
type SuspectPeriod struct {
	// From is when the last check before began whose results were right, or when the module was opened.
	// +required
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Schemaless
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:Pattern=`^((197[1-9]|19[89][0-9]|[2-9][0-9]{3})-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))|(19(7[26]|8[048]|9[26])|[2-9][0-9](0[48]|[2468][048]|[13579][26])|([2468][048]|[3579][26])00)-02-29)T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]Z$`
	From metav1.Time `json:"from"`
	// To is when the first check after began whose results were right. It is not set until there is one.
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Schemaless
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:Pattern=`^((197[1-9]|19[89][0-9]|[2-9][0-9]{3})-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))|(19(7[26]|8[048]|9[26])|[2-9][0-9](0[48]|[2468][048]|[13579][26])|([2468][048]|[3579][26])00)-02-29)T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]Z$`
	To *metav1.Time `json:"to,omitempty"`
}

// KeyVersions are versions of master keys.
type KeyVersions struct {
	// Count is the number of key versions.
	// +required
	Count int32 `json:"count"`
	// KeyVersionIDs are the identifiers of the first 10, in order.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=10
	// +kubebuilder:validation:items:MaxLength=36
	KeyVersionIDs []string `json:"keyVersionIDs,omitempty"`
}

// KeyStore is a cryptographic module for the keys of its namespace. It has the fields of a ClusterKeyStore except
// allowedNamespaces.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:categories=keyconvoy,shortName=kst
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Module",type=string,JSONPath=`.status.module.library`
// +kubebuilder:printcolumn:name="Model",type=string,JSONPath=`.status.module.model`,priority=1
// +kubebuilder:printcolumn:name="Protection",type=string,JSONPath=`.status.keyProtection.state`,priority=1
// +kubebuilder:printcolumn:name="Serial",type=string,JSONPath=`.status.module.serial`,priority=1
// +kubebuilder:printcolumn:name="Message",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].message`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type KeyStore struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +required
	Spec KeyStoreSpec `json:"spec"`
	// +optional
	Status KeyStoreStatus `json:"status,omitempty"`

	Decoding `json:"-"`
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
// +kubebuilder:resource:scope=Cluster,categories=keyconvoy,shortName=ckst
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Module",type=string,JSONPath=`.status.module.library`
// +kubebuilder:printcolumn:name="Model",type=string,JSONPath=`.status.module.model`,priority=1
// +kubebuilder:printcolumn:name="Protection",type=string,JSONPath=`.status.keyProtection.state`,priority=1
// +kubebuilder:printcolumn:name="Serial",type=string,JSONPath=`.status.module.serial`,priority=1
// +kubebuilder:printcolumn:name="Message",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].message`,priority=1
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

	Decoding `json:"-"`
}

// ClusterKeyStoreList is a list of ClusterKeyStores.
// +kubebuilder:object:root=true
type ClusterKeyStoreList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []ClusterKeyStore `json:"items"`
}
