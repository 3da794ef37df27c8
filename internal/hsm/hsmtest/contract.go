// Package hsmtest tests the contract of hsm.Module, which every module must pass. For tests of its callers it has a module that
// counts calls and fails on demand, and a storage in memory.
//
// The tests encrypt what a module decrypts, and decrypt what it encrypts, with independent code (the standard library and internal
// packages in pure Go), because a round trip through the module proves little. They import most keys, so they know their material.
package hsmtest

import (
	"testing"

	"github.com/keyconvoy/keyconvoy/internal/ciphertext"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
)

// Target is the module under test and its expected behavior.
type Target struct {
	// Open opens the module. Run calls it several times, closes the module before it opens it again, and expects the same token
	// each time. The token may have other keys.
	Open func(t testing.TB) hsm.Module

	// Capabilities is the list that the module must report, in this order. The module must reject anything else with
	// NotSupported, and its results must have the custody of the list.
	Capabilities []hsm.Capability

	// Reads returns whether a blob of that scheme, encrypted by another module, must open under a key of that type. The module
	// must reject the others with NotSupported. nil means the schemes that Capabilities has for Generate, and with DERIVED_GCM
	// also the other derived schemes: their keys can be computed on the host, too.
	Reads func(hsm.KeySpec, ciphertext.Scheme) bool
}

// Run runs all tests of the contract.
func Run(t *testing.T, target Target) {
	t.Helper()
	s := newSuite(target)
	s.open(t)
	s.prepare(t)
	s.close(t)
	s.open(t)
	t.Run("keys survive a restart", s.testReopened)
	t.Run("while open", func(t *testing.T) {
		for name, test := range s.behaviours() {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				test(t)
			})
		}
	})
	t.Run("destroyed keys do not exist", s.testDestroyed)
	s.close(t)
	s.open(t)
	t.Run("destroyed keys do not exist after a restart", s.testStayedDestroyed)
	s.close(t)
}

// behaviours returns the tests that run in parallel, by their names.
func (s *suite) behaviours() map[string]func(*testing.T) {
	return map[string]func(*testing.T){
		"the module reports its capabilities":                         s.testCapabilities,
		"Check succeeds":                                              s.testCheck,
		"other algorithms are rejected":                               s.testNotSupported,
		"no call begins if its context is done":                       s.testContextDone,
		"concurrent calls of all kinds":                               s.testManyCallers,
		"a tag depends only on its message":                           s.testAuthenticate,
		"a wrapping key is created once":                              s.testWrappingKeyOnce,
		"concurrent callers create one wrapping key":                  s.testWrappingKeyRace,
		"wrapping keys are listed by owner":                           s.testWrappingKeyList,
		"an invalid namespace is rejected":                            s.testWrappingKeyNamespace,
		"master keys are listed with their owners":                    s.testKeyList,
		"a destroyed wrapping key unwraps nothing":                    s.testWrappingKeyDestroyed,
		"longer RSA keys work":                                        s.testLongerRSA,
		"material is imported with every algorithm":                   s.testImport,
		"material that does not unwrap is rejected":                   s.testImportNotUnwrapping,
		"material of a wrong length is rejected":                      s.testImportLength,
		"an invalid owner is rejected":                                s.testImportOwner,
		"a key keeps the owner of its first import":                   s.testFirstOwner,
		"other material is rejected":                                  s.testImportOther,
		"importing the same material again changes nothing":           s.testImportAgain,
		"destroyed material can be imported again":                    s.testImportBack,
		"concurrent callers import one key":                           s.testImportRace,
		"concurrent callers import different material":                s.testImportRaceOther,
		"a key is generated once":                                     s.testGenerateKey,
		"another key is not taken for a generated one":                s.testGenerateKeyOther,
		"types that are not supported are not generated":              s.testGenerateKeyNotSupported,
		"concurrent callers generate one key":                         s.testGenerateKeyRace,
		"independent code opens re-encrypted data keys":               s.testReencrypt,
		"unknown keys are not found":                                  s.testUnknownKeys,
		"independent code opens data keys of every length":            s.testGenerate,
		"data keys of invalid lengths are rejected":                   s.testGenerateLength,
		"blobs of independent code open":                              s.testForeignBlobs,
		"invalid blobs fail with the same error":                      s.testBlobRefused,
		"the recipient opens an exported data key":                    s.testExport,
		"a data key too long for the recipient is rejected":           s.testExportTooLong,
		"an export is imported by the module of its recipient":        s.testModuleToModule,
		"a recipient's key that does not fit is rejected":             s.testExportMisfit,
		"a blob does not open under another key of the same material": s.testTwinKeys,
		"an empty EncryptionContext equals none":                      s.testContextEquality,
		"the fingerprint depends only on the material":                s.testFingerprint,
	}
}
