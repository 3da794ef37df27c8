// Package hsmtest is the contract of hsm.Module as a test that every module must pass, and what
// tests of its callers need: a module that counts calls and fails on demand, and a storage in memory.
//
// The contract opens and seals by other means (the standard library and internal packages in pure
// Go) whatever a module makes or takes: that a module agrees with itself proves nothing. It knows
// the material of every key that it uses, because it brought it.
package hsmtest

import (
	"testing"

	"github.com/keyconvoy/keyconvoy/internal/ciphertext"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
)

// Target is the module under test and what is expected of it.
type Target struct {
	// Open opens the module. It is called several times, never while the module of an earlier call
	// is open, and must open the same token each time. Run closes what it opens. Keys of others on
	// the token do no harm.
	Open func(t testing.TB) hsm.Module

	// Capabilities is the list that the module must report, in this order. What is not in it must be
	// refused with NotSupported, and custody in results must be what it says.
	Capabilities []hsm.Capability

	// Reads says whether blobs of that scheme, sealed elsewhere, must open under a key of that type;
	// the others must be refused with NotSupported. Nil means: those schemes that Capabilities has
	// under Generate.
	Reads func(hsm.KeySpec, ciphertext.Scheme) bool
}

// Run runs the contract. It skips nothing.
func Run(t *testing.T, target Target) {
	t.Helper()
	s := newSuite(target)
	s.open(t)
	s.prepare(t)
	s.close(t)
	s.open(t)
	t.Run("what was there is there after a restart", s.testReopened)
	t.Run("while open", func(t *testing.T) {
		for name, test := range s.behaviours() {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				test(t)
			})
		}
	})
	t.Run("what is destroyed is gone", s.testDestroyed)
	s.close(t)
	s.open(t)
	t.Run("what is destroyed is gone after a restart", s.testStayedDestroyed)
	s.close(t)
}

// behaviours are independent of each other and run at once.
func (s *suite) behaviours() map[string]func(*testing.T) {
	return map[string]func(*testing.T){
		"capabilities are those expected":                     s.testCapabilities,
		"check succeeds":                                      s.testCheck,
		"what is no capability is refused":                    s.testNotSupported,
		"a context that is done stops every call":             s.testContextDone,
		"many callers at once":                                s.testManyCallers,
		"a tag is stable and belongs to its message":          s.testAuthenticate,
		"a wrapping key is made once":                         s.testWrappingKeyOnce,
		"a wrapping key made by several callers is one":       s.testWrappingKeyRace,
		"wrapping keys are listed by owner":                   s.testWrappingKeyList,
		"a destroyed wrapping key unwraps nothing":            s.testWrappingKeyDestroyed,
		"longer RSA wrapping keys import and receive":         s.testLongerRSA,
		"material comes in under every algorithm":             s.testImport,
		"material that does not unwrap is refused":            s.testImportNotUnwrapping,
		"material of a wrong length is refused":               s.testImportLength,
		"an owner that cannot be kept is refused":             s.testImportOwner,
		"other material is refused":                           s.testImportOther,
		"the same material again changes nothing":             s.testImportAgain,
		"the same material comes back after its destruction":  s.testImportBack,
		"several callers import one key":                      s.testImportRace,
		"several callers import different material":           s.testImportRaceOther,
		"unknown keys are not found":                          s.testUnknownKeys,
		"data keys of every length open elsewhere":            s.testGenerate,
		"data keys of impossible lengths are refused":         s.testGenerateLength,
		"blobs sealed elsewhere open":                         s.testForeignBlobs,
		"blobs that must not open all fail alike":             s.testBlobRefused,
		"an exported data key opens at the recipient's":       s.testExport,
		"a data key too long for the recipient is refused":    s.testExportTooLong,
		"a data key travels from module to module":            s.testModuleToModule,
		"a recipient's key that does not fit is refused":      s.testExportMisfit,
		"blobs of one key do not open under its twin":         s.testTwinKeys,
		"an EncryptionContext is a map, absent or not":        s.testContextEquality,
		"the fingerprint is that of the material, everywhere": s.testFingerprint,
	}
}
