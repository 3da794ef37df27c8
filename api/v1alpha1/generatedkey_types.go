package v1alpha1

import (
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// RotationSpec is when a key gets a new version.
type RotationSpec struct {
	// Interval is the time between two rotations in hours, for example 2160h (90 days). At least 168h (7 days) and at
	// most 17520h (730 days).
	// +required
	// +kubebuilder:validation:MaxLength=6
	// +kubebuilder:validation:Pattern=`^[1-9][0-9]{2,4}h$`
	// +kubebuilder:validation:XValidation:rule="!self.matches('^[1-9][0-9]{2,4}h$') || duration(self) >= duration('168h') && duration(self) <= duration('17520h')",message="interval must be between 168h (7 days) and 17520h (730 days)"
	Interval string `json:"interval"`
}

// AdoptVersionsSpec identifies the versions of a key that are in the module already.
// +kubebuilder:validation:XValidation:rule="has(self.keyVersionIDs) == (self.type == 'ByVersion')",message="keyVersionIDs must be set if type is ByVersion, and only then"
type AdoptVersionsSpec struct {
	// Type is ByVersion (the versions in keyVersionIDs) or ByName (the versions that a former GeneratedKey with this
	// namespace, name and keySpec left in the module of the key store, for example before the cluster was rebuilt). With
	// ByName the object looks once, when it is created: if the module has no such versions, the object is a new key, as
	// without adopt. If they belong to several keys, the object adopts none.
	// +required
	// +unionDiscriminator
	Type AdoptType `json:"type"`
	// KeyVersionIDs are all versions of a former GeneratedKey, as its status.versions had them, in any order, at most 64.
	// status.keysWithoutHolder of the key store lists candidates.
	// +optional
	// +unionMember
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	KeyVersionIDs []KeyVersionID `json:"keyVersionIDs,omitempty"`
}

// KeyVersionID is the identifier of a key version.
// +kubebuilder:validation:MaxLength=36
// +kubebuilder:validation:Pattern=`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`
type KeyVersionID string

// ByName reports whether an object adopts the key of a former object with its name.
func (s *AdoptVersionsSpec) ByName() bool { return s != nil && s.Type == AdoptByName }

// GeneratedKeySpec is the desired state of a master key that the module generates.
// +kubebuilder:validation:XValidation:rule="self.keyStoreRef == oldSelf.keyStoreRef",message="keyStoreRef cannot be changed: a key does not move between modules; export a data key instead"
// +kubebuilder:validation:XValidation:rule="self.keySpec == oldSelf.keySpec",message="keySpec cannot be changed: create another GeneratedKey"
// +kubebuilder:validation:XValidation:rule="has(self.adopt) == has(oldSelf.adopt) && (!has(self.adopt) || self.adopt == oldSelf.adopt)",message="adopt cannot be changed: create another GeneratedKey"
// +kubebuilder:validation:XValidation:rule="!has(self.pendingWindowInDays) || (has(self.desiredState) && self.desiredState == 'PendingDeletion')",message="pendingWindowInDays requires desiredState PendingDeletion"
type GeneratedKeySpec struct {
	// KeyStoreRef names the key store that generates and holds the key. It cannot be changed.
	// +required
	KeyStoreRef KeyStoreReference `json:"keyStoreRef"`
	// KeySpec is the type of the key: AES_128, AES_192, AES_256 or SM4. It cannot be changed.
	// +required
	KeySpec KeySpec `json:"keySpec"`
	// Rotation is when the key gets a new version automatically. Defaults to never. The annotation keyconvoy.io/rotate
	// requests a rotation at any time.
	// +optional
	Rotation *RotationSpec `json:"rotation,omitempty"`
	// DesiredState is Enabled, Disabled (no operation can use the key) or PendingDeletion (the operator destroys all
	// versions of the key after pendingWindowInDays; until then you can cancel this with another state). Defaults to
	// Enabled.
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
	// Adopt binds this object to versions that are already in the module, for example after a restore from a backup. Only
	// versions that were generated for a namespace with this name can be adopted. It cannot be changed. Adoption by
	// version requires the verb export on all GeneratedKeys of the namespace. Defaults to no adoption.
	// +optional
	Adopt *AdoptVersionsSpec `json:"adopt,omitempty"`
	// DeletionPolicy is what happens to all versions of the key in the module when this object is deleted: Retain leaves
	// them there; Delete destroys them, and data keys under them are permanently lost. Defaults to Retain.
	// +optional
	DeletionPolicy DeletionPolicy `json:"deletionPolicy,omitempty"`
}

// KeyVersionState says what a key version is used for.
// +kubebuilder:validation:Enum=Primary;Active
type KeyVersionState string

// The states of key versions.
const (
	// VersionPrimary makes new data keys, and opens what it made.
	VersionPrimary KeyVersionState = "Primary"
	// VersionActive opens what it made while it was primary, and makes nothing new.
	VersionActive KeyVersionState = "Active"
)

// KeyVersion is a version of a generated key.
type KeyVersion struct {
	// KeyVersionID identifies the version. In a PKCS#11 module it is the CKA_ID.
	// +required
	// +kubebuilder:validation:MaxLength=36
	KeyVersionID string `json:"keyVersionID"`
	// Number of the version, from 1.
	// +required
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=2147483647
	Number int32 `json:"number"`
	// CreateTime is the time at which the operator made the version the primary one, or adopted it.
	// +required
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Schemaless
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:Pattern=`^((197[1-9]|19[89][0-9]|[2-9][0-9]{3})-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))|(19(7[26]|8[048]|9[26])|[2-9][0-9](0[48]|[2468][048]|[13579][26])|([2468][048]|[3579][26])00)-02-29)T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]Z$`
	CreateTime metav1.Time `json:"createTime"`
	// Custody is where the version has existed in plaintext: Module or Software. It is Unknown if the version was adopted.
	// +optional
	Custody Custody `json:"custody,omitempty"`
	// Fingerprint is the CMAC of a fixed label under the version, in hexadecimal.
	// +required
	// +kubebuilder:validation:MaxLength=64
	Fingerprint string `json:"fingerprint"`
	// State is Primary (new data keys are made under this version) or Active (it opens the data keys that it made).
	// +required
	State KeyVersionState `json:"state"`
	// Suspect is true if the module may have returned wrong results when it generated the version: see suspectPeriods in the
	// status of the key store. Rotate the key and re-encrypt its data keys, or move them to a new key.
	// +optional
	Suspect bool `json:"suspect,omitempty"`
}

// GeneratedKeyStatus is the observed state of the key.
type GeneratedKeyStatus struct {
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
	// KeyState is Enabled, Disabled, PendingDeletion, or Deleted after the key is destroyed.
	// +optional
	KeyState KeyState `json:"keyState,omitempty"`
	// Origin is always Aliyun_KMS, as the documented API calls it: the module generates the key.
	// +optional
	// +kubebuilder:validation:MaxLength=16
	Origin string `json:"origin,omitempty"`
	// PrimaryVersion is the keyVersionID of the version under which new data keys are made.
	// +optional
	// +kubebuilder:validation:MaxLength=36
	PrimaryVersion string `json:"primaryVersion,omitempty"`
	// Versions of the key, at most 64, by their numbers.
	// +optional
	// +listType=map
	// +listMapKey=keyVersionID
	// +kubebuilder:validation:MaxItems=64
	Versions []KeyVersion `json:"versions,omitempty"`
	// NextRotationTime is the time of the next automatic rotation. It is not set if the key is not rotated
	// automatically.
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Schemaless
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:Pattern=`^((197[1-9]|19[89][0-9]|[2-9][0-9]{3})-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))|(19(7[26]|8[048]|9[26])|[2-9][0-9](0[48]|[2468][048]|[13579][26])|([2468][048]|[3579][26])00)-02-29)T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]Z$`
	NextRotationTime *metav1.Time `json:"nextRotationTime,omitempty"`
	// RotatedFor is the last value of the annotation keyconvoy.io/rotate for which the operator rotated the key (its
	// digest, if it is long). A different value requests another rotation.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	RotatedFor string `json:"rotatedFor,omitempty"`
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
	// Token is the token that generated the versions: manufacturer, model and serial number, as the token reports them.
	// For a software store the serial number is the identifier of its root key. A key version has one holder in a token.
	// +optional
	// +kubebuilder:validation:MaxLength=256
	Token string `json:"token,omitempty"`
}

// GeneratedKey is a master key that the module generates (Origin Aliyun_KMS).
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:categories=keyconvoy,shortName=gk
// +kubebuilder:printcolumn:name="Spec",type=string,JSONPath=`.spec.keySpec`
// +kubebuilder:printcolumn:name="State",type=string,JSONPath=`.status.keyState`
// +kubebuilder:printcolumn:name="Custody",type=string,JSONPath=`.status.versions[?(@.state=="Primary")].custody`
// +kubebuilder:printcolumn:name="Version",type=string,JSONPath=`.status.versions[?(@.state=="Primary")].number`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Deletion",type=string,JSONPath=`.status.deletionTime`
// +kubebuilder:printcolumn:name="Rotation",type=string,JSONPath=`.status.nextRotationTime`,priority=1
// +kubebuilder:printcolumn:name="KeyID",type=string,JSONPath=`.status.keyID`,priority=1
// +kubebuilder:printcolumn:name="Store",type=string,JSONPath=`.spec.keyStoreRef.name`,priority=1
// +kubebuilder:printcolumn:name="Message",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].message`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type GeneratedKey struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +required
	Spec GeneratedKeySpec `json:"spec"`
	// +optional
	Status GeneratedKeyStatus `json:"status,omitempty"`

	Decoding `json:"-"`
}

// GetRotationInterval returns the time between two automatic rotations, or 0 for never.
func (s *GeneratedKeySpec) GetRotationInterval() time.Duration {
	if s.Rotation == nil {
		return 0
	}
	interval, err := time.ParseDuration(s.Rotation.Interval)
	if err != nil {
		return 0 // the schema has accepted it
	}
	return interval
}

// GeneratedKeyList is a list of GeneratedKeys.
// +kubebuilder:object:root=true
type GeneratedKeyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []GeneratedKey `json:"items"`
}
