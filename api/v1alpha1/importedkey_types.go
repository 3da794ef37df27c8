package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// KeyState is the state of a master key, in the words of the seeds.
// +kubebuilder:validation:Enum=PendingImport;Enabled;Disabled;PendingDeletion;Deleted
type KeyState string

// DesiredKeyState is the state that the owner wants a key to be in.
// +kubebuilder:validation:Enum=Enabled;Disabled;PendingDeletion
type DesiredKeyState string

// The desired states.
const (
	// DesiredEnabled is the default.
	DesiredEnabled DesiredKeyState = "Enabled"
	// DesiredDisabled keeps the key, and lets no operation use it.
	DesiredDisabled DesiredKeyState = "Disabled"
	// DesiredPendingDeletion destroys the key after a window, within which it can be called off.
	DesiredPendingDeletion DesiredKeyState = "PendingDeletion"
)

// OriginExternal is the origin of a key whose material is brought in.
const OriginExternal = "EXTERNAL"

// DeletionPolicy says what the deletion of an object does to its key in the module.
// +kubebuilder:validation:Enum=Retain;Delete
type DeletionPolicy string

// The deletion policies.
const (
	// DeletionRetain leaves the key in the module. It is the default.
	DeletionRetain DeletionPolicy = "Retain"
	// DeletionDelete destroys the key: data keys under it are lost for ever.
	DeletionDelete DeletionPolicy = "Delete"
)

// ImportParametersSpec is what GetParametersForImport is asked for.
// +kubebuilder:validation:XValidation:rule="(self.wrappingKeySpec == 'EC_SM2') == (self.wrappingAlgorithm == 'SM2PKE')",message="EC_SM2 goes with SM2PKE, and RSA key specs with RSAES_OAEP_SHA_256, RSAES_OAEP_SHA_1 or RSAES_PKCS1_V1_5"
type ImportParametersSpec struct {
	// WrappingKeySpec is the type of the key pair under which the material is wrapped.
	// +required
	WrappingKeySpec WrappingKeySpec `json:"wrappingKeySpec"`
	// WrappingAlgorithm is how the material is wrapped. RSAES_PKCS1_V1_5 only where the key store
	// allows it.
	// +required
	// +kubebuilder:validation:Enum=RSAES_OAEP_SHA_256;RSAES_OAEP_SHA_1;RSAES_PKCS1_V1_5;SM2PKE
	WrappingAlgorithm string `json:"wrappingAlgorithm"`
}

// MaterialSpec is the wrapped key material: ciphertext, fit for Git.
// +kubebuilder:validation:XValidation:rule="has(self.encryptedKeyMaterial) != has(self.encryptedKeyMaterialFrom)",message="exactly one of encryptedKeyMaterial and encryptedKeyMaterialFrom is needed"
// +kubebuilder:validation:XValidation:rule="has(self.importToken) != has(self.importTokenFrom)",message="exactly one of importToken and importTokenFrom is needed"
type MaterialSpec struct {
	// EncryptedKeyMaterial is the material, wrapped under status.importParameters.publicKey, in
	// Base64.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=4096
	EncryptedKeyMaterial string `json:"encryptedKeyMaterial,omitempty"`
	// EncryptedKeyMaterialFrom reads it from a Secret or ConfigMap: Base64 text, or the raw bytes
	// that an ExportedDataKey writes.
	// +optional
	EncryptedKeyMaterialFrom *EntrySource `json:"encryptedKeyMaterialFrom,omitempty"`
	// ImportToken is status.importParameters.importToken as it was when the material was wrapped.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=1024
	ImportToken string `json:"importToken,omitempty"`
	// ImportTokenFrom reads it from a Secret or ConfigMap.
	// +optional
	ImportTokenFrom *EntrySource `json:"importTokenFrom,omitempty"`
	// ExpireTime is when the material ends and is destroyed in the module; absent means never. Another
	// time takes another import: wrap the same material again under fresh import parameters.
	// +optional
	ExpireTime *metav1.Time `json:"expireTime,omitempty"`
}

// AdoptSpec names a key that is in the module already.
type AdoptSpec struct {
	// KeyVersionID is status.keyVersionID of the object that the key had before.
	// +required
	// +kubebuilder:validation:MaxLength=36
	// +kubebuilder:validation:Pattern=`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`
	KeyVersionID string `json:"keyVersionID"`
	// MaterialFingerprint is status.materialFingerprint of that object; when it is given, the key in
	// the module must have it.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	MaterialFingerprint string `json:"materialFingerprint,omitempty"`
}

// ExportPolicy is the owner's consent to exports of the data keys under a key.
type ExportPolicy struct {
	// Namespaces says where an export may be made; absent means in the key's own namespace.
	// +optional
	Namespaces *ExportNamespaces `json:"namespaces,omitempty"`
	// Recipients are the public keys that may be exported to; absent means any.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=256
	Recipients []ExportRecipient `json:"recipients,omitempty"`
	// WrappingAlgorithms are those that may be used; absent means any.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=8
	WrappingAlgorithms []ExportAlgorithm `json:"wrappingAlgorithms,omitempty"`
}

// ExportAlgorithm is how a data key is encrypted under a recipient's public key.
// +kubebuilder:validation:Enum=RSAES_OAEP_SHA_256;RSAES_OAEP_SHA_1;SM2PKE
type ExportAlgorithm string

// ExportNamespaces selects namespaces.
// +kubebuilder:validation:XValidation:rule="has(self.selector) == (self.from == 'Selector')",message="selector goes with from: Selector"
type ExportNamespaces struct {
	// From is Same (the key's own), All, or Selector.
	// +required
	// +kubebuilder:validation:Enum=Same;All;Selector
	From string `json:"from"`
	// Selector selects namespaces by their labels, beside the key's own.
	// +optional
	Selector *metav1.LabelSelector `json:"selector,omitempty"`
}

// ExportRecipient is a recipient's public key.
type ExportRecipient struct {
	// Fingerprint is SHA256: and the hexadecimal SHA-256 of the SubjectPublicKeyInfo (DER).
	// +required
	// +kubebuilder:validation:MaxLength=71
	// +kubebuilder:validation:Pattern=`^SHA256:[0-9a-f]{64}$`
	Fingerprint string `json:"fingerprint"`
}

// ImportedKeySpec is a customer master key whose material is brought in.
// +kubebuilder:validation:XValidation:rule="self.keyStoreRef == oldSelf.keyStoreRef",message="keyStoreRef cannot be changed: a key does not move between modules; export a data key instead"
// +kubebuilder:validation:XValidation:rule="self.keySpec == oldSelf.keySpec",message="keySpec cannot be changed: make another ImportedKey"
// +kubebuilder:validation:XValidation:rule="has(self.adopt) == has(oldSelf.adopt) && (!has(self.adopt) || self.adopt == oldSelf.adopt)",message="adopt cannot be changed: make another ImportedKey"
// +kubebuilder:validation:XValidation:rule="!has(self.pendingWindowInDays) || (has(self.desiredState) && self.desiredState == 'PendingDeletion')",message="pendingWindowInDays goes with desiredState PendingDeletion"
type ImportedKeySpec struct {
	// KeyStoreRef names the key store that holds the key.
	// +required
	KeyStoreRef KeyStoreReference `json:"keyStoreRef"`
	// KeySpec is the type of the key.
	// +required
	KeySpec KeySpec `json:"keySpec"`
	// ImportParameters is what GetParametersForImport is asked for.
	// +required
	ImportParameters ImportParametersSpec `json:"importParameters"`
	// Material is the wrapped material; absent until it has been wrapped.
	// +optional
	Material *MaterialSpec `json:"material,omitempty"`
	// DesiredState is Enabled (the default), Disabled or PendingDeletion.
	// +optional
	DesiredState DesiredKeyState `json:"desiredState,omitempty"`
	// PendingWindowInDays is how long a PendingDeletion can be called off; absent means 30. It counts
	// from when the deletion was asked for.
	// +optional
	// +kubebuilder:validation:Minimum=7
	// +kubebuilder:validation:Maximum=366
	PendingWindowInDays int32 `json:"pendingWindowInDays,omitempty"`
	// ExportPolicy is the owner's consent to exports; absent means within this namespace, to anybody.
	// +optional
	ExportPolicy *ExportPolicy `json:"exportPolicy,omitempty"`
	// Adopt binds this object to a key that is in the module already, to restore from a backup. It must
	// have been imported from a namespace of this name.
	// +optional
	Adopt *AdoptSpec `json:"adopt,omitempty"`
	// DeletionPolicy says what deleting this object does to the key in the module; absent means
	// Retain.
	// +optional
	DeletionPolicy DeletionPolicy `json:"deletionPolicy,omitempty"`
}

// ImportParameters is the answer of GetParametersForImport. Public key and token belong together.
type ImportParameters struct {
	// PublicKey is the SubjectPublicKeyInfo (DER) in Base64.
	// +required
	// +kubebuilder:validation:MaxLength=2048
	PublicKey string `json:"publicKey"`
	// PublicKeyFingerprint is SHA256: and the hexadecimal SHA-256 of the SubjectPublicKeyInfo.
	// +required
	// +kubebuilder:validation:MaxLength=128
	PublicKeyFingerprint string `json:"publicKeyFingerprint"`
	// ImportToken goes back with the material.
	// +required
	// +kubebuilder:validation:MaxLength=1024
	ImportToken string `json:"importToken"`
	// TokenExpireTime is when public key and token end.
	// +required
	TokenExpireTime metav1.Time `json:"tokenExpireTime"`
	// WrappingKeySpec is the type of the public key.
	// +required
	WrappingKeySpec WrappingKeySpec `json:"wrappingKeySpec"`
	// WrappingAlgorithm is how the material must be wrapped.
	// +required
	// +kubebuilder:validation:MaxLength=32
	WrappingAlgorithm string `json:"wrappingAlgorithm"`
}

// ImportedKeyStatus is the key as it is.
type ImportedKeyStatus struct {
	// ObservedGeneration is the generation that the status speaks of.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Conditions: Ready, Reconciling, Stalled.
	// +optional
	// +listType=map
	// +listMapKey=type
	// +kubebuilder:validation:MaxItems=8
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// KeyID is this object's UID.
	// +optional
	// +kubebuilder:validation:MaxLength=36
	KeyID string `json:"keyID,omitempty"`
	// KeyVersionID names the key's material; it is CKA_ID in a PKCS#11 module.
	// +optional
	// +kubebuilder:validation:MaxLength=36
	KeyVersionID string `json:"keyVersionID,omitempty"`
	// KeyState is PendingImport, Enabled, Disabled, PendingDeletion, or Deleted once the key is destroyed.
	// +optional
	KeyState KeyState `json:"keyState,omitempty"`
	// Origin is EXTERNAL.
	// +optional
	// +kubebuilder:validation:MaxLength=16
	Origin string `json:"origin,omitempty"`
	// ImportParameters is the public key and token for the next import; absent after they end.
	// +optional
	ImportParameters *ImportParameters `json:"importParameters,omitempty"`
	// FormerParametersExpireTime is when the first of the parameters ends that were published before
	// importParameters: they stay usable until then, and their key pair is destroyed soon after. Absent when
	// there are none.
	// +optional
	FormerParametersExpireTime *metav1.Time `json:"formerParametersExpireTime,omitempty"`
	// RenewedFor is the value of the annotation keyconvoy.io/renew-import-parameters (its digest, when it
	// is long) that was last answered. Another value asks for new parameters.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	RenewedFor string `json:"renewedFor,omitempty"`
	// MaterialFingerprint is the CMAC of a fixed label under the material, in hexadecimal: equal for
	// equal material in every module. The first import binds the key to it.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	MaterialFingerprint string `json:"materialFingerprint,omitempty"`
	// MaterialExpireTime is when the material in the module ends; absent when it never does.
	// +optional
	MaterialExpireTime *metav1.Time `json:"materialExpireTime,omitempty"`
	// DeletionRequestTime is when a key became PendingDeletion.
	// +optional
	DeletionRequestTime *metav1.Time `json:"deletionRequestTime,omitempty"`
	// DeletionTime is when a key that is PendingDeletion is destroyed.
	// +optional
	DeletionTime *metav1.Time `json:"deletionTime,omitempty"`
	// MaterialDeletedFor is the value of the annotation keyconvoy.io/delete-key-material (its digest,
	// when it is long) that was last carried out.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	MaterialDeletedFor string `json:"materialDeletedFor,omitempty"`
	// Custody says where the material was in plaintext on its way into the module.
	// +optional
	Custody Custody `json:"custody,omitempty"`
	// InputsDigest is the digest of the wrapped material, token and expiry that were imported.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	InputsDigest string `json:"inputsDigest,omitempty"`
	// SourcesVersion is the version of the Secrets and ConfigMaps that InputsDigest speaks of.
	// +optional
	// +kubebuilder:validation:MaxLength=512
	SourcesVersion string `json:"sourcesVersion,omitempty"`
}

// ImportedKey is a customer master key whose material is brought in (Origin EXTERNAL).
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:categories=keyconvoy,shortName=imk
// +kubebuilder:printcolumn:name="Spec",type=string,JSONPath=`.spec.keySpec`
// +kubebuilder:printcolumn:name="State",type=string,JSONPath=`.status.keyState`
// +kubebuilder:printcolumn:name="Custody",type=string,JSONPath=`.status.custody`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Expires",type=string,JSONPath=`.status.materialExpireTime`,priority=1
// +kubebuilder:printcolumn:name="KeyID",type=string,JSONPath=`.status.keyID`,priority=1
// +kubebuilder:printcolumn:name="Store",type=string,JSONPath=`.spec.keyStoreRef.name`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type ImportedKey struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +required
	Spec ImportedKeySpec `json:"spec"`
	// +optional
	Status ImportedKeyStatus `json:"status,omitempty"`
}

// HasMaterial says whether the key's material is in the module, as far as the status knows.
func (k *ImportedKey) HasMaterial() bool { return k.Status.Custody != "" }

// ImportedKeyList is a list of ImportedKeys.
// +kubebuilder:object:root=true
type ImportedKeyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []ImportedKey `json:"items"`
}
