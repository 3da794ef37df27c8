package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// The reconcile frame writes the conditions of every kind through these methods.

// GetConditions returns the conditions of the status.
func (s *KeyStore) GetConditions() []metav1.Condition { return s.Status.Conditions }

// SetConditions sets the conditions of the status.
func (s *KeyStore) SetConditions(conditions []metav1.Condition) { s.Status.Conditions = conditions }

// SetObservedGeneration sets the generation of the spec that the status describes.
func (s *KeyStore) SetObservedGeneration(generation int64) { s.Status.ObservedGeneration = generation }

// GetStatus returns a pointer to the status.
func (s *KeyStore) GetStatus() any { return &s.Status }

// GetConditions returns the conditions of the status.
func (s *ClusterKeyStore) GetConditions() []metav1.Condition { return s.Status.Conditions }

// SetConditions sets the conditions of the status.
func (s *ClusterKeyStore) SetConditions(conditions []metav1.Condition) {
	s.Status.Conditions = conditions
}

// SetObservedGeneration sets the generation of the spec that the status describes.
func (s *ClusterKeyStore) SetObservedGeneration(generation int64) {
	s.Status.ObservedGeneration = generation
}

// GetStatus returns a pointer to the status.
func (s *ClusterKeyStore) GetStatus() any { return &s.Status }

// GetConditions returns the conditions of the status.
func (k *ImportedKey) GetConditions() []metav1.Condition { return k.Status.Conditions }

// SetConditions sets the conditions of the status.
func (k *ImportedKey) SetConditions(conditions []metav1.Condition) { k.Status.Conditions = conditions }

// SetObservedGeneration sets the generation of the spec that the status describes.
func (k *ImportedKey) SetObservedGeneration(generation int64) {
	k.Status.ObservedGeneration = generation
}

// GetStatus returns a pointer to the status.
func (k *ImportedKey) GetStatus() any { return &k.Status }

// GetConditions returns the conditions of the status.
func (k *GeneratedKey) GetConditions() []metav1.Condition { return k.Status.Conditions }

// SetConditions sets the conditions of the status.
func (k *GeneratedKey) SetConditions(conditions []metav1.Condition) { k.Status.Conditions = conditions }

// SetObservedGeneration sets the generation of the spec that the status describes.
func (k *GeneratedKey) SetObservedGeneration(generation int64) {
	k.Status.ObservedGeneration = generation
}

// GetStatus returns a pointer to the status.
func (k *GeneratedKey) GetStatus() any { return &k.Status }

// GetConditions returns the conditions of the status.
func (k *DataKey) GetConditions() []metav1.Condition { return k.Status.Conditions }

// SetConditions sets the conditions of the status.
func (k *DataKey) SetConditions(conditions []metav1.Condition) { k.Status.Conditions = conditions }

// SetObservedGeneration sets the generation of the spec that the status describes.
func (k *DataKey) SetObservedGeneration(generation int64) { k.Status.ObservedGeneration = generation }

// GetStatus returns a pointer to the status.
func (k *DataKey) GetStatus() any { return &k.Status }

// GetConditions returns the conditions of the status.
func (e *ExportedDataKey) GetConditions() []metav1.Condition { return e.Status.Conditions }

// SetConditions sets the conditions of the status.
func (e *ExportedDataKey) SetConditions(conditions []metav1.Condition) {
	e.Status.Conditions = conditions
}

// SetObservedGeneration sets the generation of the spec that the status describes.
func (e *ExportedDataKey) SetObservedGeneration(generation int64) {
	e.Status.ObservedGeneration = generation
}

// GetStatus returns a pointer to the status.
func (e *ExportedDataKey) GetStatus() any { return &e.Status }

// GetConditions returns the conditions of the status.
func (e *ClusterExportedDataKey) GetConditions() []metav1.Condition { return e.Status.Conditions }

// SetConditions sets the conditions of the status.
func (e *ClusterExportedDataKey) SetConditions(conditions []metav1.Condition) {
	e.Status.Conditions = conditions
}

// SetObservedGeneration sets the generation of the spec that the status describes.
func (e *ClusterExportedDataKey) SetObservedGeneration(generation int64) {
	e.Status.ObservedGeneration = generation
}

// GetStatus returns a pointer to the status.
func (e *ClusterExportedDataKey) GetStatus() any { return &e.Status }

// GetConditions returns the conditions of the status.
func (k *AccessKey) GetConditions() []metav1.Condition { return k.Status.Conditions }

// SetConditions sets the conditions of the status.
func (k *AccessKey) SetConditions(conditions []metav1.Condition) { k.Status.Conditions = conditions }

// SetObservedGeneration sets the generation of the spec that the status describes.
func (k *AccessKey) SetObservedGeneration(generation int64) { k.Status.ObservedGeneration = generation }

// GetStatus returns a pointer to the status.
func (k *AccessKey) GetStatus() any { return &k.Status }
