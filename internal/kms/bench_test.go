package kms_test

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/ciphertext"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/hsm/software"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// What our layers cost: each operation is done in three ways, side by side.
//
//	ours    through Operations, as a controller does it: all our layers
//	module  the same request to the hsm.Module: without the domain layer, and so without the import token
//	bare    the shortest loop that does the same with miekg/pkcs11 on one open session, or with
//	        crypto/rsa, crypto/aes and gmsm on keys that it holds
//
// And ratio calls ours and bare by turns and compares the fastest tenths, since whatever else the machine does
// meets both and only ever adds.
//
// In ours and bare alike is what an operation means: that a data key is bound to its EncryptionContext (one
// hash), that a CiphertextBlob has its documented form, in Base64, and is authentic; that an import token is
// genuine, that material has the right length and gets a fingerprint, that what is imported is kept (sealed, in
// software); that a key in a token can be used for one thing and cannot leave it, that temporary objects go and
// plaintext on the host is wiped.
//
// Only in ours are the key's state, the checks of a request (how long the EncryptionContext is as JSON, what
// the module can do, what custody allows), names (UUIDs of key versions and requests), that a context ends a wait,
// the pool of sessions, generations and recovery, finding a key by its identifier, that two cannot make one key,
// that a private key in software can be wiped, because it is parsed anew for each import; and what is looked
// at once more in an import into a token: that there is no such key yet, that the ciphertext is as long as the
// modulus, that the new key's attributes are as asked, that it is the material that was measured.

// bare is what a user would write who has one key, one session and no errors to tell apart.
type bare interface {
	// generate returns a CiphertextBlob.
	generate(encryptionContext map[string]string, length int) (blob string, err error)
	export(blob string, encryptionContext map[string]string, algorithm wrapping.Algorithm, to *wrapping.PublicKey) ([]byte, error)
	importKey(material wrappedMaterial) (hsm.Fingerprint, func() error, error)
}

// wrappedMaterial is the input of an import in all its forms.
type wrappedMaterial struct {
	algorithm wrapping.Algorithm
	key       kms.Key
	pairID    uuid.UUID
	material  []byte // what is wrapped
	wrapped   []byte
	token     []byte
}

// bench is a module with a key in it, and a bare way to the same.
type bench struct {
	o    kms.Operations
	bare bare
	key  kms.Key
	// material returns input for bare, where that is not the same as for the module; nil where it is.
	material func(testing.TB, wrappedMaterial) wrappedMaterial
}

var benchContext = kms.EncryptionContext{"app": "ledger", "stage": "production"}

// once does an operation, and says how to undo it where that is needed before the next time.
type once func() (undo func() error, err error)

// sideBySide measures the ways.
func sideBySide(b *testing.B, ours, module, bare once) {
	b.Helper()
	b.Run("ours", func(b *testing.B) { repeat(b, ours) })
	b.Run("module", func(b *testing.B) { repeat(b, module) })
	b.Run("bare", func(b *testing.B) { repeat(b, bare) })
	b.Run("ratio", func(b *testing.B) {
		var times [2][]time.Duration
		for b.Loop() {
			for i, do := range []once{ours, bare} {
				start := time.Now()
				undo, err := do()
				times[i] = append(times[i], time.Since(start))
				mustUndo(b, undo, err)
			}
		}
		b.ReportMetric(0, "ns/op") // says nothing here, and 0 leaves it out
		b.ReportMetric(fastestTenth(times[0])/fastestTenth(times[1]), "ours/bare")
	})
}

func repeat(b *testing.B, do once) {
	b.Helper()
	b.ReportAllocs()
	for b.Loop() {
		undo, err := do()
		if undo != nil {
			b.StopTimer()
		}
		mustUndo(b, undo, err)
		if undo != nil {
			b.StartTimer()
		}
	}
}

func mustUndo(b *testing.B, undo func() error, err error) {
	b.Helper()
	if err == nil && undo != nil {
		err = undo()
	}
	if err != nil {
		b.Fatal(err)
	}
}

// fastestTenth is the time that a tenth of the times is below.
func fastestTenth(times []time.Duration) float64 {
	slices.Sort(times)
	return float64(times[len(times)/10])
}

// benchModules opens the modules, one by one.
var benchModules = map[string]func(testing.TB) *bench{"software": newSoftwareBench}

// onEachModule runs a benchmark on every module.
func onEachModule(b *testing.B, run func(*testing.B, *bench)) {
	b.Helper()
	for _, name := range []string{"SoftHSM", "NSS", "software"} {
		if open := benchModules[name]; open != nil {
			b.Run(name, func(b *testing.B) { run(b, open(b)) })
		}
	}
}

// capabilities are the module's.
func (n *bench) capabilities(t testing.TB) []hsm.Capability {
	t.Helper()
	described, err := n.o.Module.Describe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return described.Capabilities
}

// offers lists the algorithms of an operation that the benchmarks measure.
func (n *bench) offers(t testing.TB, operation hsm.Operation) (algorithms []wrapping.Algorithm) {
	t.Helper()
	for _, c := range n.capabilities(t) {
		if c.Operation == operation && c.Algorithm != string(wrapping.RSAESPKCS1V15) {
			algorithms = append(algorithms, wrapping.Algorithm(c.Algorithm))
		}
	}
	return algorithms
}

func specFor(algorithm wrapping.Algorithm) wrapping.KeySpec {
	if algorithm == wrapping.SM2PKE {
		return wrapping.ECSM2
	}
	return wrapping.RSA2048
}

// wrapped is material for a new key, wrapped under a pair of the module.
func (n *bench) wrapped(t testing.TB, spec hsm.KeySpec, algorithm wrapping.Algorithm, material []byte) wrappedMaterial {
	t.Helper()
	key := newKey(spec)
	p, err := n.o.GetParametersForImport(t.Context(), kms.ImportParametersRequest{
		Key: key, WrappingKeySpec: specFor(algorithm), WrappingAlgorithm: algorithm,
	})
	if err != nil {
		t.Fatal(err)
	}
	pairs, err := hsmtest.PairsOf(t.Context(), n.o.Module, key.ID)
	if err != nil || len(pairs) != 1 {
		t.Fatalf("%d pairs, %v", len(pairs), err)
	}
	return wrappedMaterial{
		algorithm: algorithm, key: key, pairID: pairs[0].ID, token: p.ImportToken,
		material: material, wrapped: wrap(t, p.PublicKey, algorithm, material),
	}
}

// enable imports a key and returns it as it is then.
func (n *bench) enable(t testing.TB, spec hsm.KeySpec, material []byte) kms.Key {
	t.Helper()
	in := n.wrapped(t, spec, wrapping.RSAESOAEPSHA1, material)
	imported, err := n.o.ImportKeyMaterial(t.Context(), in.request())
	if err != nil {
		t.Fatal(err)
	}
	in.key.State, in.key.Primary.Fingerprint = kms.StateEnabled, imported.Fingerprint
	return in.key
}

func (w wrappedMaterial) request() kms.ImportKeyMaterialRequest {
	return kms.ImportKeyMaterialRequest{Key: w.key, ImportToken: w.token, EncryptedKeyMaterial: w.wrapped}
}

func (w wrappedMaterial) moduleRequest() hsm.ImportRequest {
	return hsm.ImportRequest{
		KeyVersionID: w.key.Primary.ID, Spec: w.key.Spec, WrappingKey: w.pairID, Algorithm: w.algorithm, EncryptedMaterial: w.wrapped,
	}
}

func BenchmarkImport(b *testing.B) {
	onEachModule(b, func(b *testing.B, n *bench) {
		for _, algorithm := range n.offers(b, hsm.OperationImport) {
			b.Run(string(algorithm), func(b *testing.B) {
				material := random(32)
				in := n.wrapped(b, hsm.AES256, algorithm, material)
				forBare := in
				if n.material != nil {
					forBare = n.material(b, in)
				}
				undo := func() error { return n.o.DeleteKeyMaterial(b.Context(), in.key) }
				want, err := hsm.FingerprintOf(hsm.AES256, material)
				if err != nil {
					b.Fatal(err)
				}
				sideBySide(b,
					func() (func() error, error) {
						made, err := n.o.ImportKeyMaterial(b.Context(), in.request())
						return undo, wrongUnless(err == nil && *made.Fingerprint == want, err)
					},
					func() (func() error, error) {
						made, err := n.o.Module.ImportKey(b.Context(), in.moduleRequest())
						return undo, wrongUnless(made.Fingerprint == want, err)
					},
					func() (func() error, error) {
						fingerprint, undo, err := n.bare.importKey(forBare)
						return undo, wrongUnless(fingerprint == want, err)
					})
			})
		}
	})
}

func BenchmarkGenerate(b *testing.B) {
	onEachModule(b, func(b *testing.B, n *bench) {
		// 32 bytes are made inside a token, 20 on the host.
		for _, length := range []int{32, 20} {
			b.Run(fmt.Sprintf("%d_bytes", length), func(b *testing.B) {
				version := n.key.Primary.ID
				req := kms.GenerateDataKeyRequest{Key: n.key, NumberOfBytes: length, EncryptionContext: benchContext}
				blob, err := n.bare.generate(benchContext, length)
				if err == nil {
					err = n.o.VerifyDataKey(b.Context(), n.key, parsed(b, blob), benchContext)
				}
				if err != nil {
					b.Fatalf("what bare makes is none of our data keys: %v", err)
				}
				sideBySide(b,
					func() (func() error, error) {
						_, err := n.o.GenerateDataKeyWithoutPlaintext(b.Context(), req)
						return nil, err
					},
					func() (func() error, error) {
						_, err := n.o.Module.GenerateDataKey(b.Context(), hsm.GenerateRequest{
							KeyVersionID: version, Length: length, Binding: ciphertext.Bind(version, benchContext),
						})
						return nil, err
					},
					func() (func() error, error) {
						_, err := n.bare.generate(benchContext, length)
						return nil, err
					})
			})
		}
	})
}

func BenchmarkExport(b *testing.B) {
	onEachModule(b, func(b *testing.B, n *bench) {
		for _, algorithm := range n.offers(b, hsm.OperationExport) {
			b.Run(string(algorithm), func(b *testing.B) {
				to := recipient(b, specFor(algorithm))
				ours, module, bare := n.exports(b, algorithm, to.Public())
				var opened [2][]byte
				for i, export := range []func() ([]byte, error){ours, bare} {
					exported, err := export()
					if err == nil {
						opened[i], err = to.Unwrap(algorithm, "", exported)
					}
					if err != nil {
						b.Fatal(err)
					}
				}
				if !bytes.Equal(opened[0], opened[1]) {
					b.Fatal("bare exports another data key than ours")
				}
				only := func(export func() ([]byte, error)) once {
					return func() (func() error, error) {
						_, err := export()
						return nil, err
					}
				}
				sideBySide(b, only(ours), only(module), only(bare))
			})
		}
	})
}

// exports are the ways to export one data key.
func (n *bench) exports(t testing.TB, algorithm wrapping.Algorithm, to *wrapping.PublicKey) (ours, module, bare func() ([]byte, error)) {
	t.Helper()
	ctx := t.Context()
	made, err := n.o.GenerateDataKeyWithoutPlaintext(ctx, kms.GenerateDataKeyRequest{Key: n.key, EncryptionContext: benchContext})
	if err != nil {
		t.Fatal(err)
	}
	blob, err := ciphertext.Parse(made.CiphertextBlob.String())
	if err != nil {
		t.Fatal(err)
	}
	req := kms.ExportDataKeyRequest{
		Key: n.key, CiphertextBlob: made.CiphertextBlob, EncryptionContext: benchContext,
		Recipient: recipientFor(t, to, algorithm),
	}
	ours = func() ([]byte, error) {
		exported, err := n.o.ExportDataKey(ctx, req)
		return exported.ExportedDataKey, err
	}
	module = func() ([]byte, error) {
		exported, err := n.o.Module.ExportDataKey(ctx, hsm.ExportRequest{
			OpenRequest: hsm.OpenRequest{Blob: blob, Binding: ciphertext.Bind(blob.KeyVersionID, benchContext)},
			Recipient:   to.SPKI(), Algorithm: algorithm,
		})
		return exported.Ciphertext, err
	}
	bare = func() ([]byte, error) {
		return n.bare.export(made.CiphertextBlob.String(), benchContext, algorithm, to)
	}
	return ours, module, bare
}

func wrongUnless(right bool, err error) error {
	if err == nil && !right {
		return errBare
	}
	return err
}

// newSoftwareBench opens a software module on storage in memory.
func newSoftwareBench(t testing.TB) *bench {
	t.Helper()
	m, err := software.Open(t.Context(), software.Config{Storage: &hsmtest.Storage{}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close(context.Background()) })
	n := &bench{o: kms.Operations{Module: m}}
	material := random(32)
	n.key = n.enable(t, hsm.AES256, material)
	hands := newBareSoftware(t, n.key.Primary.ID, material)
	n.bare, n.material = hands, hands.wrap
	return n
}

// Times are for benchmarks, since they depend on what else a machine does; allocations do not.
func TestOperations_allocateLittleMoreThanBareCalls(t *testing.T) {
	n := newSoftwareBench(t)
	check := func(what string, most float64, ours, bare func() error) {
		var counts [2]float64
		for i, do := range []func() error{ours, bare} {
			counts[i] = testing.AllocsPerRun(100, func() {
				if err := do(); err != nil {
					t.Fatal(err)
				}
			})
		}
		t.Logf("%s: %.0f allocations, %.0f in bare calls", what, counts[0], counts[1])
		if counts[0] > counts[1]+most {
			t.Errorf("%s has %.0f allocations, and bare calls have %.0f: more than %.0f of ours", what, counts[0], counts[1], most)
		}
	}
	check("GenerateDataKeyWithoutPlaintext", 10,
		func() error {
			_, err := n.o.GenerateDataKeyWithoutPlaintext(t.Context(), kms.GenerateDataKeyRequest{Key: n.key, EncryptionContext: benchContext})
			return err
		},
		func() error {
			_, err := n.bare.generate(benchContext, 32)
			return err
		})
	ours, _, bare := n.exports(t, wrapping.RSAESOAEPSHA256, recipient(t, wrapping.RSA2048).Public())
	only := func(export func() ([]byte, error)) func() error {
		return func() error {
			_, err := export()
			return err
		}
	}
	check("ExportDataKey", 15, only(ours), only(bare))
}
