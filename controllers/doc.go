// Package controllers has one reconciler per kind. Each contributes its phases to the frame in internal/reconciler. It uses
// key stores through internal/keystore, master keys through internal/keyring, and Secrets through internal/secrets; the
// operations on keys are those of internal/kms.
//
// A reconciler's files: <kind>_controller.go (Reconcile), _phases.go (the steps), _delete.go, _setup.go (watches and
// predicates). setup.go starts them all; what several watches use is in watches.go and indexes.go.
package controllers
