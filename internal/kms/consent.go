package kms

import "slices"

// ExportPolicy is the consent of a key's owner to exports of the data keys under it. Its zero value
// consents to exports within the key's own namespace, to anybody.
type ExportPolicy struct {
	// Namespaces says where an export may be made.
	Namespaces ExportNamespaces
	// Recipients are the fingerprints of the public keys that may be exported to; empty means any.
	Recipients []string
	// WrappingAlgorithms are those that may be used; empty means any.
	WrappingAlgorithms []string
}

// ExportNamespaces says where an export may be made.
type ExportNamespaces string

// The choices of namespaces. Empty means NamespacesSame.
const (
	NamespacesSame     ExportNamespaces = "Same"
	NamespacesAll      ExportNamespaces = "All"
	NamespacesSelector ExportNamespaces = "Selector"
)

// Use is an export that wants consent.
type Use struct {
	// SameNamespace: the export is made in the key's own namespace.
	SameNamespace bool
	// Selected: the owner's selector selects the export's namespace.
	Selected bool
	// Recipient is the fingerprint of the recipient's public key.
	Recipient         string
	WrappingAlgorithm string
}

// consents is the chain of what an owner must consent to. Each link says yes, or what to ask for.
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

// DryRun turns the end of an export that was only tried into the documented outcome. Errors that are
// nobody's fault (the module does not answer) stay what they are, and so does an outcome.
func DryRun(err error) error {
	code := CodeOf(err)
	switch {
	case code == DryRunOperationError || code == ValidationError || code == AccessDeniedError:
		return err
	case err == nil:
		return &Error{Code: DryRunOperationError, Detail: "The export would have succeeded. Nothing was exported."}
	case code.HTTPStatus() == 403 || code.HTTPStatus() == 404:
		return &Error{Code: AccessDeniedError, Detail: public(err), Err: err}
	case code.HTTPStatus() == 400 || code.HTTPStatus() == 409:
		return &Error{Code: ValidationError, Detail: public(err), Err: err}
	}
	return err
}
