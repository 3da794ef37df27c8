package v1alpha1

import (
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// AccessKeySpec is who calls the gateway with an access key, and until when.
// +kubebuilder:validation:XValidation:rule="self.serviceAccountName == oldSelf.serviceAccountName",message="serviceAccountName cannot be changed: create another AccessKey"
type AccessKeySpec struct {
	// ServiceAccountName is the ServiceAccount of this namespace as which the gateway authorizes requests. The roles that are
	// bound to it say what the access key may do. If the ServiceAccount is deleted, the gateway rejects the access key, even if
	// another ServiceAccount is created with that name. It cannot be changed.
	// +required
	ServiceAccountName ObjectName `json:"serviceAccountName"`
	// KeyStoreRef names the key store in which CreateKey creates keys. Without it, CreateKey is rejected.
	// +optional
	KeyStoreRef *KeyStoreReference `json:"keyStoreRef,omitempty"`
	// Disabled rejects all requests with this access key. Defaults to false.
	// +optional
	Disabled bool `json:"disabled,omitempty"`
	// ExpireTime is the time from which all requests with this access key are rejected, for example 2030-01-01T00:00:00Z.
	// Defaults to never.
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Schemaless
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:Pattern=`^(((197[1-9]|19[89][0-9]|[2-9][0-9]{3})-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))|(19(7[26]|8[048]|9[26])|[2-9][0-9](0[48]|[2468][048]|[13579][26])|([2468][048]|[3579][26])00)-02-29)T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]Z|((197[1-9]|19[89][0-9]|[2-8][0-9]{3}|9[0-8][0-9]{2}|99[0-8][0-9]|999[0-8])-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))|(19(7[26]|8[048]|9[26])|[2-9][0-9](0[48]|[2468][048]|[13579][26])|([2468][048]|[3579][26])00)-02-29)T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?(Z|[-+]([01][0-9]|2[0-3]):[0-5][0-9]))$`
	ExpireTime *metav1.Time `json:"expireTime,omitempty"`
}

// AccessKeySecret identifies the Secret with an access key. (Its content is secret, so it has no digest here.)
type AccessKeySecret struct {
	// Name of the Secret.
	// +required
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name"`
	// UID of the Secret.
	// +required
	// +kubebuilder:validation:MaxLength=64
	UID string `json:"uid"`
	// ResourceVersion of the Secret when the operator last verified its content.
	// +required
	// +kubebuilder:validation:MaxLength=64
	ResourceVersion string `json:"resourceVersion"`
}

// AccessKeyStatus is the observed state of the access key.
type AccessKeyStatus struct {
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
	// AccessKeyID is the identifier with which clients name the access key. It follows from the UID of this object.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	AccessKeyID string `json:"accessKeyID,omitempty"`
	// ServiceAccountUID is the UID of the ServiceAccount to which the access key belongs.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	ServiceAccountUID string `json:"serviceAccountUID,omitempty"`
	// SecretRef identifies the Secret with the entries accessKeyId and accessKeySecret. If you delete the Secret, the operator
	// generates another secret.
	// +optional
	SecretRef *AccessKeySecret `json:"secretRef,omitempty"`
}

// AccessKey lets clients of the documented key management API call the gateway. The operator generates the access key's identifier and
// secret, and writes them into a Secret with the name of this object.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:categories=keyconvoy,shortName=ak
// +kubebuilder:printcolumn:name="AccessKeyID",type=string,JSONPath=`.status.accessKeyID`
// +kubebuilder:printcolumn:name="ServiceAccount",type=string,JSONPath=`.spec.serviceAccountName`
// +kubebuilder:printcolumn:name="Disabled",type=boolean,JSONPath=`.spec.disabled`
// +kubebuilder:printcolumn:name="Expires",type=string,JSONPath=`.spec.expireTime`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Message",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].message`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type AccessKey struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +required
	Spec AccessKeySpec `json:"spec"`
	// +optional
	Status AccessKeyStatus `json:"status,omitempty"`

	Decoding `json:"-"`
}

// Usable reports whether requests with the access key are served at a time.
func (k *AccessKey) Usable(now time.Time) bool {
	expires := k.Spec.ExpireTime
	return len(k.Invalid()) == 0 && k.DeletionTimestamp.IsZero() && !k.Spec.Disabled && (expires == nil || now.Before(expires.Time))
}

// AccessKeyList is a list of AccessKeys.
// +kubebuilder:object:root=true
type AccessKeyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []AccessKey `json:"items"`
}
