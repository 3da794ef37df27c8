package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// KeyState is the state of a master key, in the words of the seeds.
// +kubebuilder:validation:Enum=PendingImport;Enabled
type KeyState string

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
}

// ImportedKeySpec is a customer master key whose material is brought in.
// +kubebuilder:validation:XValidation:rule="self.keyStoreRef == oldSelf.keyStoreRef",message="keyStoreRef cannot be changed: a key does not move between modules; export a data key instead"
// +kubebuilder:validation:XValidation:rule="self.keySpec == oldSelf.keySpec",message="keySpec cannot be changed: make another ImportedKey"
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
	// KeyState is PendingImport or Enabled.
	// +optional
	KeyState KeyState `json:"keyState,omitempty"`
	// Origin is EXTERNAL.
	// +optional
	// +kubebuilder:validation:MaxLength=16
	Origin string `json:"origin,omitempty"`
	// ImportParameters is the public key and token for the next import; absent after they end.
	// +optional
	ImportParameters *ImportParameters `json:"importParameters,omitempty"`
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
	// Custody says where the material was in plaintext on its way into the module.
	// +optional
	Custody Custody `json:"custody,omitempty"`
	// InputsDigest is the digest of the wrapped material and token that were imported.
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

// ImportedKeyList is a list of ImportedKeys.
// +kubebuilder:object:root=true
type ImportedKeyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []ImportedKey `json:"items"`
}
