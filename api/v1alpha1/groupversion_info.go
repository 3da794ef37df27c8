// Package v1alpha1 holds Keyconvoy's kinds.
//
// Optional fields have no schema defaults: their documented defaults are applied by getters, so that
// what is in the cluster is what is in Git.
//
// +kubebuilder:object:generate=true
// +kubebuilder:ac:generate=true
// +kubebuilder:ac:output:package="../applyconfiguration"
// +groupName=keyconvoy.io
package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupVersion is the API group and version of the kinds.
var GroupVersion = schema.GroupVersion{Group: "keyconvoy.io", Version: "v1alpha1"}

// SchemeGroupVersion is GroupVersion, under the name that generated apply configurations use.
var SchemeGroupVersion = GroupVersion

var schemeBuilder = runtime.NewSchemeBuilder(func(scheme *runtime.Scheme) error {
	scheme.AddKnownTypes(GroupVersion,
		&KeyStore{}, &KeyStoreList{},
		&ClusterKeyStore{}, &ClusterKeyStoreList{},
		&ImportedKey{}, &ImportedKeyList{},
		&GeneratedKey{}, &GeneratedKeyList{},
		&DataKey{}, &DataKeyList{},
		&ExportedDataKey{}, &ExportedDataKeyList{},
		&ClusterExportedDataKey{}, &ClusterExportedDataKeyList{},
		&AccessKey{}, &AccessKeyList{},
	)
	metav1.AddToGroupVersion(scheme, GroupVersion)
	return nil
})

// AddToScheme adds the kinds to a scheme.
var AddToScheme = schemeBuilder.AddToScheme
