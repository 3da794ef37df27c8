package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// KeyState is the state of a master key.
// +kubebuilder:validation:Enum=PendingImport;Enabled;Disabled;PendingDeletion;Deleted
type KeyState string

// DesiredKeyState is the state in which the owner wants a key to be.
// +kubebuilder:validation:Enum=Enabled;Disabled;PendingDeletion
type DesiredKeyState string

// The desired states.
const (
	// DesiredEnabled is the default.
	DesiredEnabled DesiredKeyState = "Enabled"
	// DesiredDisabled keeps the key, but no operation can use it.
	DesiredDisabled DesiredKeyState = "Disabled"
	// DesiredPendingDeletion destroys the key after a waiting period, during which the deletion can be cancelled.
	DesiredPendingDeletion DesiredKeyState = "PendingDeletion"
)

// DeletionPolicy is what happens to the key in the module when its object is deleted.
// +kubebuilder:validation:Enum=Retain;Delete
type DeletionPolicy string

// The deletion policies.
const (
	// DeletionRetain leaves the key in the module. It is the default.
	DeletionRetain DeletionPolicy = "Retain"
	// DeletionDelete destroys the key. Data keys under it are permanently lost.
	DeletionDelete DeletionPolicy = "Delete"
)

// ImportParametersSpec is the type and algorithm of the key pair under which you wrap the material.
// +kubebuilder:validation:XValidation:rule="(self.wrappingKeySpec == 'EC_SM2') == (self.wrappingAlgorithm == 'SM2PKE')",message="EC_SM2 requires SM2PKE; RSA key specs require RSAES_OAEP_SHA_256, RSAES_OAEP_SHA_1 or RSAES_PKCS1_V1_5"
type ImportParametersSpec struct {
	// WrappingKeySpec is the type of the key pair under which you wrap the material: RSA_2048, RSA_3072, RSA_4096 or
	// EC_SM2.
	// +required
	WrappingKeySpec WrappingKeySpec `json:"wrappingKeySpec"`
	// WrappingAlgorithm is the algorithm with which you wrap the material: RSAES_OAEP_SHA_256, RSAES_OAEP_SHA_1 or
	// RSAES_PKCS1_V1_5 with RSA keys, SM2PKE with EC_SM2. RSAES_PKCS1_V1_5 requires allowPKCS1V15Import in the key
	// store.
	// +required
	// +kubebuilder:validation:Enum=RSAES_OAEP_SHA_256;RSAES_OAEP_SHA_1;RSAES_PKCS1_V1_5;SM2PKE
	WrappingAlgorithm string `json:"wrappingAlgorithm"`
}

// MaterialSpec is the wrapped key material. It is ciphertext and can be kept in Git.
// +kubebuilder:validation:XValidation:rule="has(self.encryptedKeyMaterial) != has(self.encryptedKeyMaterialFrom)",message="exactly one of encryptedKeyMaterial and encryptedKeyMaterialFrom must be set"
// +kubebuilder:validation:XValidation:rule="has(self.importToken) != has(self.importTokenFrom)",message="exactly one of importToken and importTokenFrom must be set"
type MaterialSpec struct {
	// EncryptedKeyMaterial is the material, wrapped under status.importParameters.publicKey, in Base64. Either this
	// field or encryptedKeyMaterialFrom must be set. "keyconvoy wrap --apply" wraps the material and sets this field
	// and importToken.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=4096
	EncryptedKeyMaterial string `json:"encryptedKeyMaterial,omitempty"`
	// EncryptedKeyMaterialFrom reads the wrapped material from a Secret or ConfigMap: Base64 text, or the raw bytes
	// that an ExportedDataKey writes.
	// +optional
	EncryptedKeyMaterialFrom *EntrySource `json:"encryptedKeyMaterialFrom,omitempty"`
	// ImportToken is the value of status.importParameters.importToken when you wrapped the material. Either this field
	// or importTokenFrom must be set.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=1024
	ImportToken string `json:"importToken,omitempty"`
	// ImportTokenFrom reads the import token from a Secret or ConfigMap.
	// +optional
	ImportTokenFrom *EntrySource `json:"importTokenFrom,omitempty"`
	// ExpireTime is the time at which the material expires and is destroyed in the module, for example
	// 2030-01-01T00:00:00Z. Defaults to never. The time must be in the future when the material is imported, and in UTC
	// at most 9999-12-31T23:59:59Z. Changing it requires importing the same material again under new import
	// parameters.
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Schemaless
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:Pattern=`^(((197[1-9]|19[89][0-9]|[2-9][0-9]{3})-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))|(19(7[26]|8[048]|9[26])|[2-9][0-9](0[48]|[2468][048]|[13579][26])|([2468][048]|[3579][26])00)-02-29)T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]Z|((197[1-9]|19[89][0-9]|[2-8][0-9]{3}|9[0-8][0-9]{2}|99[0-8][0-9]|999[0-8])-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))|(19(7[26]|8[048]|9[26])|[2-9][0-9](0[48]|[2468][048]|[13579][26])|([2468][048]|[3579][26])00)-02-29)T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?(Z|[-+]([01][0-9]|2[0-3]):[0-5][0-9]))$`
	ExpireTime *metav1.Time `json:"expireTime,omitempty"`
}

// AdoptType is how an object finds the key that it adopts.
// +kubebuilder:validation:Enum=ByVersion;ByName
type AdoptType string

// The types of adoption.
const (
	// AdoptByVersion adopts the key version that the spec names. It is the default.
	AdoptByVersion AdoptType = "ByVersion"
	// AdoptByName adopts the key that a former object of the same kind, namespace, name and key type left in the module.
	AdoptByName AdoptType = "ByName"
)

// AdoptSpec identifies a key that is already in the module, or was in it.
// +kubebuilder:validation:XValidation:rule="has(self.keyVersionID) == (!has(self.type) || self.type == 'ByVersion')",message="keyVersionID must be set, unless type is ByName, which takes no other field"
// +kubebuilder:validation:XValidation:rule="!has(self.materialFingerprint) || has(self.keyVersionID)",message="materialFingerprint requires keyVersionID"
type AdoptSpec struct {
	// Type is ByVersion (the key with keyVersionID) or ByName (the key that a former ImportedKey with this namespace,
	// name and keySpec left in the module of the key store, for example before the cluster was rebuilt). With ByName the
	// object looks once, when it is created: if the module has no such key, the object is a new key, as without adopt.
	// If it has several, the object adopts none, and its conditions list them. Defaults to ByVersion.
	// +optional
	// +unionDiscriminator
	Type AdoptType `json:"type,omitempty"`
	// KeyVersionID is the status.keyVersionID of the ImportedKey that held the key before, for example
	// 0b9b9e1c-5d3c-5c51-8a53-3c3a4f0b7c11. status.keysWithoutHolder of the key store lists candidates.
	// +optional
	// +unionMember
	// +kubebuilder:validation:MaxLength=36
	// +kubebuilder:validation:Pattern=`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`
	KeyVersionID string `json:"keyVersionID,omitempty"`
	// MaterialFingerprint is the status.materialFingerprint of that ImportedKey: 32 hexadecimal digits. If it is set,
	// the key in the module must have this fingerprint; otherwise the operator does not compare it. If it is set and the
	// module does not have the key, the object is PendingImport, and you can import the same material again: the key gets
	// this version, so that its data keys can be decrypted.
	// +optional
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:Pattern=`^[0-9a-fA-F]{32}$`
	MaterialFingerprint string `json:"materialFingerprint,omitempty"`
}

// ExportPolicy is the key owner's consent to exports of the data keys under a key.
type ExportPolicy struct {
	// Namespaces are the namespaces in which exports are allowed. Defaults to the namespace of the key.
	// +optional
	Namespaces *ExportNamespaces `json:"namespaces,omitempty"`
	// Recipients are the public keys under which data keys may be exported, at most 256. Defaults to any.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=256
	Recipients []ExportRecipient `json:"recipients,omitempty"`
	// WrappingAlgorithms are the algorithms that exports may use: RSAES_OAEP_SHA_256, RSAES_OAEP_SHA_1, SM2PKE.
	// Defaults to any.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=8
	WrappingAlgorithms []ExportAlgorithm `json:"wrappingAlgorithms,omitempty"`
}

// ExportAlgorithm is an algorithm that encrypts a data key under a recipient's public key.
// +kubebuilder:validation:Enum=RSAES_OAEP_SHA_256;RSAES_OAEP_SHA_1;SM2PKE
type ExportAlgorithm string

// ExportNamespaces selects namespaces.
// +kubebuilder:validation:XValidation:rule="has(self.selector) == (self.from == 'Selector')",message="selector must be set if from is Selector, and only then"
type ExportNamespaces struct {
	// From is Same (the namespace of the key), All, or Selector (the namespaces that selector selects, and the
	// namespace of the key).
	// +required
	// +kubebuilder:validation:Enum=Same;All;Selector
	From string `json:"from"`
	// Selector selects namespaces by their labels, in addition to the namespace of the key. It must be set if from is
	// Selector, and only then.
	// +optional
	Selector *LabelSelector `json:"selector,omitempty"`
}

// ExportRecipient is a recipient's public key.
type ExportRecipient struct {
	// Fingerprint is "SHA256:" followed by the hexadecimal SHA-256 of the SubjectPublicKeyInfo (DER), as
	// "openssl pkey -pubin -in FILE -outform DER | sha256sum" prints it.
	// +required
	// +kubebuilder:validation:MaxLength=71
	// +kubebuilder:validation:Pattern=`^SHA256:[0-9a-f]{64}$`
	Fingerprint string `json:"fingerprint"`
}

// ImportedKeySpec is the desired state of a master key whose material is imported.
// +kubebuilder:validation:XValidation:rule="self.keyStoreRef == oldSelf.keyStoreRef",message="keyStoreRef cannot be changed: a key does not move between modules; export a data key instead"
// +kubebuilder:validation:XValidation:rule="self.keySpec == oldSelf.keySpec",message="keySpec cannot be changed: create another ImportedKey"
// +kubebuilder:validation:XValidation:rule="has(self.adopt) == has(oldSelf.adopt) && (!has(self.adopt) || self.adopt == oldSelf.adopt)",message="adopt cannot be changed: create another ImportedKey"
// +kubebuilder:validation:XValidation:rule="!has(self.pendingWindowInDays) || (has(self.desiredState) && self.desiredState == 'PendingDeletion')",message="pendingWindowInDays requires desiredState PendingDeletion"
type ImportedKeySpec struct {
	// KeyStoreRef names the key store that holds the key. It cannot be changed.
	// +required
	KeyStoreRef KeyStoreReference `json:"keyStoreRef"`
	// KeySpec is the type of the key: AES_128, AES_192, AES_256 or SM4. It cannot be changed.
	// +required
	KeySpec KeySpec `json:"keySpec"`
	// ImportParameters are the type and algorithm of the key pair under which you will wrap the material. Defaults to
	// RSA_2048 with RSAES_OAEP_SHA_256.
	// +optional
	ImportParameters *ImportParametersSpec `json:"importParameters,omitempty"`
	// Material is the wrapped material. Set it after wrapping the material under status.importParameters. Until then the
	// key is PendingImport.
	// +optional
	Material *MaterialSpec `json:"material,omitempty"`
	// DesiredState is Enabled, Disabled (no operation can use the key) or PendingDeletion (the operator destroys the key
	// after pendingWindowInDays; until then you can cancel this with another state). Defaults to Enabled.
	// +optional
	DesiredState DesiredKeyState `json:"desiredState,omitempty"`
	// PendingWindowInDays is the number of days during which a PendingDeletion can be cancelled, from 7 to 366,
	// counted from the request. Defaults to 30. Only with desiredState PendingDeletion.
	// +optional
	// +kubebuilder:validation:Minimum=7
	// +kubebuilder:validation:Maximum=366
	PendingWindowInDays int32 `json:"pendingWindowInDays,omitempty"`
	// ExportPolicy is the owner's consent to exports. Defaults to exports within this namespace, to any recipient and
	// with any algorithm.
	// +optional
	ExportPolicy *ExportPolicy `json:"exportPolicy,omitempty"`
	// Adopt binds this object to a key that is already in the module, for example after a restore from a backup. Only
	// keys imported from a namespace with this name can be adopted. It cannot be changed. Adoption by version requires
	// the verb export on all ImportedKeys of the namespace. Defaults to no adoption.
	// +optional
	Adopt *AdoptSpec `json:"adopt,omitempty"`
	// DeletionPolicy is what happens to the key in the module when this object is deleted: Retain leaves it there;
	// Delete destroys it, and data keys under it are permanently lost. Defaults to Retain.
	// +optional
	DeletionPolicy DeletionPolicy `json:"deletionPolicy,omitempty"`
}

// ImportParameters are the results of GetParametersForImport. Public key and token belong together.
type ImportParameters struct {
	// PublicKey is the SubjectPublicKeyInfo (DER) in Base64.
	// +required
	// +kubebuilder:validation:MaxLength=2048
	PublicKey string `json:"publicKey"`
	// PublicKeyFingerprint is "SHA256:" followed by the hexadecimal SHA-256 of the SubjectPublicKeyInfo (DER).
	// +required
	// +kubebuilder:validation:MaxLength=128
	PublicKeyFingerprint string `json:"publicKeyFingerprint"`
	// ImportToken must be returned with the material, in spec.material.
	// +required
	// +kubebuilder:validation:MaxLength=1024
	ImportToken string `json:"importToken"`
	// TokenExpireTime is the time at which public key and token expire.
	// +required
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Schemaless
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:Pattern=`^((197[1-9]|19[89][0-9]|[2-9][0-9]{3})-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))|(19(7[26]|8[048]|9[26])|[2-9][0-9](0[48]|[2468][048]|[13579][26])|([2468][048]|[3579][26])00)-02-29)T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]Z$`
	TokenExpireTime metav1.Time `json:"tokenExpireTime"`
	// WrappingKeySpec is the type of the public key.
	// +required
	WrappingKeySpec WrappingKeySpec `json:"wrappingKeySpec"`
	// WrappingAlgorithm is the algorithm with which you must wrap the material.
	// +required
	// +kubebuilder:validation:MaxLength=32
	WrappingAlgorithm string `json:"wrappingAlgorithm"`
}

// ImportedKeyStatus is the observed state of the key.
type ImportedKeyStatus struct {
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
	// KeyID is the identifier of the key: the UID of this object.
	// +optional
	// +kubebuilder:validation:MaxLength=36
	KeyID string `json:"keyID,omitempty"`
	// KeyVersionID identifies the key's material. In a PKCS#11 module it is the CKA_ID. With adopt.type ByName it is set
	// when the operator has looked for the former key.
	// +optional
	// +kubebuilder:validation:MaxLength=36
	KeyVersionID string `json:"keyVersionID,omitempty"`
	// KeyState is PendingImport, Enabled, Disabled, PendingDeletion, or Deleted after the key is destroyed.
	// +optional
	KeyState KeyState `json:"keyState,omitempty"`
	// Origin is always EXTERNAL: the material is imported.
	// +optional
	// +kubebuilder:validation:MaxLength=16
	Origin string `json:"origin,omitempty"`
	// ImportParameters are the public key and token for the next import. They are removed when they expire.
	// +optional
	ImportParameters *ImportParameters `json:"importParameters,omitempty"`
	// FormerParametersExpireTime is the earliest expiry of import parameters that were published earlier and are
	// still valid. Their key pair is destroyed soon after.
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Schemaless
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:Pattern=`^((197[1-9]|19[89][0-9]|[2-9][0-9]{3})-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))|(19(7[26]|8[048]|9[26])|[2-9][0-9](0[48]|[2468][048]|[13579][26])|([2468][048]|[3579][26])00)-02-29)T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]Z$`
	FormerParametersExpireTime *metav1.Time `json:"formerParametersExpireTime,omitempty"`
	// RenewedFor is the last value of the annotation keyconvoy.io/renew-import-parameters for which the operator
	// created parameters (its digest, if it is long). A different value requests new parameters.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	RenewedFor string `json:"renewedFor,omitempty"`
	// MaterialFingerprint is the CMAC of a fixed label under the material, in hexadecimal. Equal material has equal
	// fingerprints in every module. After the first import, the key accepts only material with this fingerprint.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	MaterialFingerprint string `json:"materialFingerprint,omitempty"`
	// MaterialExpireTime is the time at which the material in the module expires. It is not set if the material never
	// expires.
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Schemaless
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:Pattern=`^((197[1-9]|19[89][0-9]|[2-9][0-9]{3})-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))|(19(7[26]|8[048]|9[26])|[2-9][0-9](0[48]|[2468][048]|[13579][26])|([2468][048]|[3579][26])00)-02-29)T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]Z$`
	MaterialExpireTime *metav1.Time `json:"materialExpireTime,omitempty"`
	// DeletionRequestTime is the time at which the key became PendingDeletion.
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Schemaless
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:Pattern=`^((197[1-9]|19[89][0-9]|[2-9][0-9]{3})-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))|(19(7[26]|8[048]|9[26])|[2-9][0-9](0[48]|[2468][048]|[13579][26])|([2468][048]|[3579][26])00)-02-29)T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]Z$`
	DeletionRequestTime *metav1.Time `json:"deletionRequestTime,omitempty"`
	// DeletionTime is the time at which a key in PendingDeletion is destroyed.
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Schemaless
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:Pattern=`^((197[1-9]|19[89][0-9]|[2-9][0-9]{3})-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))|(19(7[26]|8[048]|9[26])|[2-9][0-9](0[48]|[2468][048]|[13579][26])|([2468][048]|[3579][26])00)-02-29)T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]Z$`
	DeletionTime *metav1.Time `json:"deletionTime,omitempty"`
	// MaterialDeletedFor is the last value of the annotation keyconvoy.io/delete-key-material for which the operator
	// destroyed the material (its digest, if it is long).
	// +optional
	// +kubebuilder:validation:MaxLength=64
	MaterialDeletedFor string `json:"materialDeletedFor,omitempty"`
	// HasMaterial is true while the module has the key's material: from the import until the material expires or is
	// deleted.
	// +optional
	HasMaterial bool `json:"hasMaterial,omitempty"`
	// Custody is where the material existed in plaintext during the import: Module, Host or Software.
	// +optional
	Custody Custody `json:"custody,omitempty"`
	// Token is the token that the key was imported into or adopted from: manufacturer, model and serial number,
	// as the token reports them. For a software store the serial number is the identifier of its root key. A
	// key version has one holder in a token.
	// +optional
	// +kubebuilder:validation:MaxLength=256
	Token string `json:"token,omitempty"`
	// InputsDigest is the digest of the wrapped material, token and expiry that were imported.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	InputsDigest string `json:"inputsDigest,omitempty"`
	// SourcesVersion is the version of the Secrets and ConfigMaps from which InputsDigest was computed.
	// +optional
	// +kubebuilder:validation:MaxLength=512
	SourcesVersion string `json:"sourcesVersion,omitempty"`
}

// ImportedKey is a master key whose material you import (Origin EXTERNAL).
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:categories=keyconvoy,shortName=imk
// +kubebuilder:printcolumn:name="Spec",type=string,JSONPath=`.spec.keySpec`
// +kubebuilder:printcolumn:name="State",type=string,JSONPath=`.status.keyState`
// +kubebuilder:printcolumn:name="Custody",type=string,JSONPath=`.status.custody`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Deletion",type=string,JSONPath=`.status.deletionTime`
// +kubebuilder:printcolumn:name="Expires",type=string,JSONPath=`.status.materialExpireTime`,priority=1
// +kubebuilder:printcolumn:name="KeyID",type=string,JSONPath=`.status.keyID`,priority=1
// +kubebuilder:printcolumn:name="Store",type=string,JSONPath=`.spec.keyStoreRef.name`,priority=1
// +kubebuilder:printcolumn:name="Message",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].message`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type ImportedKey struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +required
	Spec ImportedKeySpec `json:"spec"`
	// +optional
	Status ImportedKeyStatus `json:"status,omitempty"`

	Decoding `json:"-"`
}

// GetImportParameters returns the import parameters that the spec asks for, which has a default.
func (s *ImportedKeySpec) GetImportParameters() ImportParametersSpec {
	if s.ImportParameters == nil {
		return ImportParametersSpec{WrappingKeySpec: "RSA_2048", WrappingAlgorithm: "RSAES_OAEP_SHA_256"}
	}
	return *s.ImportParameters
}

// ByName reports whether an object adopts the key of a former object with its name.
func (s *AdoptSpec) ByName() bool { return s != nil && s.Type == AdoptByName }

// ImportedKeyList is a list of ImportedKeys.
// +kubebuilder:object:root=true
type ImportedKeyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []ImportedKey `json:"items"`
}
