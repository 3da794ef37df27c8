//go:build !unix

package cli

// disableCoreDumps does nothing: Windows writes a dump only where its administrator has asked for it.
func disableCoreDumps() error { return nil }
