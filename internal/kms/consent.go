package kms

import "slices"

// ExportPolicy is the consent of a key's owner to exports of the data keys under it. Its zero value allows exports
// within the key's own namespace, to any recipient.
type ExportPolicy struct {
	// Namespaces are the namespaces in which exports are allowed.
	Namespaces ExportNamespaces
	// Recipients are the fingerprints of the allowed recipients' public keys; empty means any.
	Recipients []string
	// WrappingAlgorithms are the allowed algorithms; empty means any.
	WrappingAlgorithms []string
}

// ExportNamespaces is the choice of namespaces in which exports are allowed.
type ExportNamespaces string

// The choices of namespaces. Empty means NamespacesSame.
const (
	NamespacesSame     ExportNamespaces = "Same"
	NamespacesAll      ExportNamespaces = "All"
	NamespacesSelector ExportNamespaces = "Selector"
)

// Use is an export that requires consent.
type Use struct {
	// SameNamespace: the export is in the key's own namespace.
	SameNamespace bool
	// Selected: the owner's selector selects the namespace of the export.
	Selected bool
	// Recipient is the fingerprint of the recipient's public key.
	Recipient         string
	WrappingAlgorithm string
}

// consents are the parts of an owner's consent. Each returns "", or why the export is not allowed.
var consents = []func(ExportPolicy, Use) string{
	func(p ExportPolicy, u Use) string {
		if u.SameNamespace || p.Namespaces == NamespacesAll || (p.Namespaces == NamespacesSelector && u.Selected) {
			return ""
		}
		return "The key's owner does not consent to exports in this namespace (exportPolicy.namespaces)."
	},
	func(p ExportPolicy, u Use) string {
		if len(p.Recipients) == 0 || slices.Contains(p.Recipients, u.Recipient) {
			return ""
		}
		return "The key's owner does not consent to exports for this recipient (exportPolicy.recipients): its public key is " + u.Recipient + "."
	},
	func(p ExportPolicy, u Use) string {
		if len(p.WrappingAlgorithms) == 0 || slices.Contains(p.WrappingAlgorithms, u.WrappingAlgorithm) {
			return ""
		}
		return "The key's owner does not consent to exports with " + u.WrappingAlgorithm + " (exportPolicy.wrappingAlgorithms)."
	},
}

// Consent decides whether a key's owner consents to an export. The error is Forbidden.NoPermission.
func (p ExportPolicy) Consent(u Use) error {
	for _, ask := range consents {
		if refusal := ask(p, u); refusal != "" {
			return &Error{Code: ForbiddenNoPermission, Detail: refusal}
		}
	}
	return nil
}
