// Package controllers has one reconciler per kind. They know Kubernetes and call internal/kms; they know
// no cryptography.
//
// A reconciler's files: <kind>_controller.go (Reconcile), _phases.go (the steps), _delete.go, _setup.go
// (watches, predicates, indexes). setup.go starts them all.
package controllers
