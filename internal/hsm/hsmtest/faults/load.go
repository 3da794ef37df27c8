//go:build cgo

package faults

import (
	"bytes"
	"context"
	"crypto/cipher"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // RSAES_OAEP_SHA_1 is one of the algorithms
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/ciphertext"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// namespace is that of the keys.
const namespace = "faults"

// owner is that of the key.
func (k master) owner() hsm.Owner {
	return hsm.Owner{Namespace: namespace, Name: "key", Origin: hsm.OriginImported, Number: 1, KeyID: k.id}
}

// master is a master key and its material.
type master struct {
	id       uuid.UUID
	material []byte
	block    cipher.Block
	binding  ciphertext.Binding
}

func newMaster() master {
	key := master{id: uuid.New(), material: random(hsm.AES256.Len())}
	key.block, _ = hsm.NewCipher(hsm.AES256, key.material) // the length is right
	key.binding = ciphertext.Bind(key.id, map[string]string{"app": "faults"})
	return key
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // it never fails (Go 1.24)
	return b
}

// recipient is who opens the exports: independent code. There is one in each process, because RSA keys take long.
var recipient = sync.OnceValue(func() *wrapping.PrivateKey {
	key, err := wrapping.GeneratePrivateKey(rand.Reader, wrapping.RSA2048)
	if err != nil {
		panic(err)
	}
	return key
})

// load is a load on one store, and counts what it does.
type load struct {
	*store
	journal *journal
	pair    hsm.WrappingKey // for imports
	master  master          // for generations and exports
	tag     []byte          // of message
	pairs   bool            // the load creates more key pairs, which takes long

	stop     chan struct{}
	abandon  chan struct{} // closed to end failing operations, too
	stopping *sync.Once
	ending   *sync.Once
	done     sync.WaitGroup

	working  sync.RWMutex // held for reading during each operation
	mu       sync.Mutex
	phase    int            // see begin
	finished map[string]int // the operations that began in this phase and succeeded, by worker
	tried    map[string]int // those that began in this phase and ended
	failures map[hsm.Kind]int
	last     error // of a call
}

const message = "a message"

// operations returns what each worker does in turns.
func (l *load) operations() map[string][]func() error {
	manage := []func() error{l.authenticate, l.find}
	if l.pairs {
		manage = append(manage, l.managePair(true), l.managePair(false))
	}
	return map[string][]func() error{
		"generate": {l.generate(32), l.generate(20)},
		"export":   {l.export(wrapping.RSAESOAEPSHA1), l.export(wrapping.RSAESOAEPSHA256)},
		"import":   {l.importKey(wrapping.RSAESOAEPSHA1, true), l.importKey(wrapping.RSAESOAEPSHA256, true), l.importKey(wrapping.RSAESOAEPSHA1, false)},
		"manage":   manage,
		"rotate":   {l.generateKey(true), l.generateKey(false)},
	}
}

// prepare opens the module and creates the keys of the load.
func (l *load) prepare() error {
	l.master = newMaster()
	return l.do(func(ctx context.Context, m hsm.Module) (err error) {
		if l.pair, err = m.CreateWrappingKey(ctx, newPair()); err != nil {
			return err
		}
		l.journal.created(l.pair)
		if l.tag, err = m.Authenticate(ctx, []byte(message)); err != nil {
			return err
		}
		return l.importUnder(ctx, m, l.pair, wrapping.RSAESOAEPSHA1, l.master)
	})
}

// start starts the workers.
func (l *load) start() {
	l.stop, l.abandon, l.stopping, l.ending = make(chan struct{}), make(chan struct{}), new(sync.Once), new(sync.Once)
	l.finished, l.tried, l.failures = map[string]int{}, map[string]int{}, map[hsm.Kind]int{}
	all := l.operations()
	for name := range all {
		l.finished[name], l.tried[name] = 0, 0
	}
	for name, operations := range all {
		l.done.Go(func() { l.work(name, operations) })
	}
}

// stopped stops the load and returns a condition: that the workers have ended.
func (l *load) stopped() func() bool {
	l.stopping.Do(func() { close(l.stop) })
	ended := make(chan struct{})
	go func() { l.done.Wait(); close(ended) }()
	return func() bool {
		select {
		case <-ended:
			return true
		default:
			return false
		}
	}
}

// end ends the workers, also those whose operations fail.
func (l *load) end() {
	l.stopping.Do(func() { close(l.stop) })
	l.ending.Do(func() { close(l.abandon) })
	l.done.Wait()
}

// pace is the pause after each operation. Without it, the workers with short operations would leave little time for the others.
const pace = 3 * time.Millisecond

// work repeats each operation until it succeeds, with the same identifiers, also after the load was stopped: so whatever a
// failure left in the token must be repaired by the retry.
func (l *load) work(name string, operations []func() error) {
	for i := 0; ; i++ {
		if i%len(operations) == 0 {
			select {
			case <-l.stop:
				return
			default:
			}
		}
		for {
			phase := l.currentPhase()
			err := l.operate(operations[i%len(operations)])
			l.record(name, phase, err)
			select {
			case <-l.abandon:
				return
			case <-time.After(pace):
			}
			if err == nil {
				break
			}
		}
	}
}

func (l *load) operate(operation func() error) error {
	l.working.RLock()
	defer l.working.RUnlock()
	return operation()
}

// check checks the module as its key store does. A module that returned a wrong result is opened again.
func (l *load) check(ctx context.Context, m hsm.Module) error {
	before := l.journal.beginCheck()
	err := m.Check(ctx)
	l.journal.endCheck(before, err)
	l.checked(m, err)
	return err
}

// checkBetween calls f after a check, while no operation is in progress. The check may fail.
func (l *load) checkBetween(f func()) {
	l.working.Lock()
	defer l.working.Unlock()
	_ = l.do(l.check)
	f()
}

func (l *load) currentPhase() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.phase
}

func (l *load) record(worker string, phase int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.failures[hsm.KindOf(err)]++
		l.last = fmt.Errorf("%s: %w", worker, err)
	}
	if phase == l.phase {
		l.tried[worker]++
		if err == nil {
			l.finished[worker]++
		}
	}
}

// begin begins a phase: from now on, operations that began earlier do not count.
func (l *load) begin() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.phase++
	for worker := range l.finished {
		l.finished[worker], l.tried[worker] = 0, 0
	}
}

// progress returns the number of operations in this phase that succeeded: of the worker that has fewest, and of all.
func (l *load) progress() (least, all int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, n := range l.finished {
		all += n
	}
	return slices.Min(slices.Collect(maps.Values(l.finished))), all
}

// attempts returns the number of operations in this phase, also failed ones, of the worker that has fewest.
func (l *load) attempts() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Min(slices.Collect(maps.Values(l.tried)))
}

func (l *load) generate(length int) func() error {
	return func() error {
		return l.do(func(ctx context.Context, m hsm.Module) error {
			return l.generateUnder(ctx, m, l.master, length)
		})
	}
}

// generateUnder generates a data key and opens it with independent code.
func (l *load) generateUnder(ctx context.Context, m hsm.Module, key master, length int) error {
	made, err := m.GenerateDataKey(ctx, hsm.GenerateRequest{KeyVersionID: key.id, Length: length, Binding: key.binding})
	if err != nil {
		return err
	}
	dataKey, err := ciphertext.Open(made.Blob, key.block, key.binding)
	switch {
	case err != nil || made.Blob.KeyVersionID != key.id:
		l.journal.suspectf("GenerateDataKey of %d bytes: the blob does not open", length)
	case len(dataKey) != length:
		l.journal.suspectf("GenerateDataKey of %d bytes: the data key has %d", length, len(dataKey))
	case !l.journal.isNew(dataKey) || bytes.Equal(dataKey, make([]byte, length)):
		l.journal.suspectf("GenerateDataKey of %d bytes: the data key is not random", length)
	}
	return nil
}

// export exports a data key that independent code sealed, and opens the result with independent code.
func (l *load) export(algorithm wrapping.Algorithm) func() error {
	return func() error {
		dataKey, to := random(32), recipient()
		blob, err := ciphertext.Seal(rand.Reader, ciphertext.DerivedKeyWrap, l.master.id, l.master.block, l.master.binding, dataKey)
		if err != nil {
			return err
		}
		return l.do(func(ctx context.Context, m hsm.Module) error {
			open := hsm.OpenRequest{Blob: blob, Binding: l.master.binding}
			exported, err := m.ExportDataKey(ctx, hsm.ExportRequest{OpenRequest: open, Recipient: to.Public().SPKI(), Algorithm: algorithm})
			if err != nil {
				return err
			}
			if got, err := to.Unwrap(algorithm, "", exported.Ciphertext); err != nil || !bytes.Equal(got, dataKey) {
				l.journal.suspectf("ExportDataKey with %s: the export does not contain the data key", algorithm)
			}
			return nil
		})
	}
}

// importKey imports new keys, each again, and destroys them again if they are not kept.
func (l *load) importKey(algorithm wrapping.Algorithm, keep bool) func() error {
	key, imported := newMaster(), false
	return func() error {
		return l.do(func(ctx context.Context, m hsm.Module) error {
			if !imported {
				if err := l.importUnder(ctx, m, l.pair, algorithm, key); err != nil {
					return err
				}
				imported = true
			}
			if keep {
				if err := l.importUnder(ctx, m, l.pair, algorithm, key); err != nil {
					return err
				}
			} else {
				if err := m.DestroyKey(ctx, key.id); err != nil {
					return err
				}
				l.journal.destroyed(key.id)
			}
			key, imported = newMaster(), false
			return nil
		})
	}
}

func (l *load) importUnder(ctx context.Context, m hsm.Module, pair hsm.WrappingKey, algorithm wrapping.Algorithm, key master) error {
	public, err := wrapping.ParseSPKI(pair.PublicKey)
	if err != nil {
		return err
	}
	hash := sha1.New() //nolint:gosec // see above
	if algorithm == wrapping.RSAESOAEPSHA256 {
		hash = sha256.New()
	}
	wrapped, err := rsa.EncryptOAEP(hash, rand.Reader, public.RSA(), key.material, nil)
	if err != nil {
		return err
	}
	got, err := m.ImportKey(ctx, hsm.ImportRequest{
		KeyVersionID: key.id, Spec: hsm.AES256, WrappingKey: pair.ID, Algorithm: algorithm, EncryptedMaterial: wrapped, Owner: key.owner(),
	})
	if err != nil {
		return err
	}
	l.journal.imported(key)
	l.checkKey("ImportKey", got, key)
	return nil
}

// checkKey checks that a key in the module is the one that was imported.
func (l *load) checkKey(method string, got hsm.Key, key master) {
	want, err := hsm.FingerprintOf(hsm.AES256, key.material)
	if err != nil || got.Fingerprint != want || got.KeyVersionID != key.id || got.Spec != hsm.AES256 || got.Owner != key.owner() {
		l.journal.wrongf("%s: it returns another key than the imported one", method)
	}
}

func (l *load) authenticate() error {
	return l.do(func(ctx context.Context, m hsm.Module) error {
		tag, err := m.Authenticate(ctx, []byte(message))
		if err == nil && !bytes.Equal(tag, l.tag) {
			l.journal.suspectf("Authenticate: the tag of a message changed")
		}
		return err
	})
}

func (l *load) find() error {
	return l.do(func(ctx context.Context, m hsm.Module) error {
		if err := l.check(ctx, m); err != nil {
			return err
		}
		got, err := m.FindKey(ctx, l.master.id)
		if err != nil {
			return err
		}
		l.checkKey("FindKey", got, l.master)
		all, err := m.ListKeys(ctx)
		if err != nil {
			return err
		}
		for _, one := range all {
			if one.KeyVersionID == l.master.id && one.Owner == l.master.owner() {
				return nil
			}
		}
		l.journal.wrongf("ListKeys: the list does not have a key that exists")
		return nil
	})
}

// generateKey generates keys in the module, each again, re-encrypts a data key under each and back, and destroys them again if they
// are not kept.
func (l *load) generateKey(keep bool) func() error {
	req := newGeneratedKey()
	return func() error {
		return l.do(func(ctx context.Context, m hsm.Module) error {
			made, err := m.GenerateKey(ctx, req)
			if err != nil {
				return err
			}
			l.journal.generatedKey(made)
			again, err := m.GenerateKey(ctx, req)
			if err != nil {
				return err
			}
			if again.Fingerprint != made.Fingerprint {
				l.journal.wrongf("GenerateKey: the same version has another fingerprint")
			}
			if err := l.reencrypt(ctx, m, made.KeyVersionID); err != nil {
				return err
			}
			if !keep {
				if err := m.DestroyKey(ctx, made.KeyVersionID); err != nil {
					return err
				}
				l.journal.destroyed(made.KeyVersionID)
			}
			req = newGeneratedKey()
			return nil
		})
	}
}

func newGeneratedKey() hsm.GenerateKeyRequest {
	id := uuid.New()
	return hsm.GenerateKeyRequest{KeyVersionID: id, Spec: hsm.AES256, Owner: hsm.Owner{
		Namespace: namespace, Name: "generated", Origin: hsm.OriginGenerated, Number: 1, KeyID: id,
	}}
}

// reencrypt moves a data key that independent code sealed under another key and back. Like the operation that uses the module, it
// takes no result that differs from what it began with.
func (l *load) reencrypt(ctx context.Context, m hsm.Module, to uuid.UUID) error {
	binding := ciphertext.Bind(to, map[string]string{"app": "faults"})
	blob, err := ciphertext.Seal(rand.Reader, ciphertext.DerivedKeyWrap, l.master.id, l.master.block, l.master.binding, random(32))
	if err != nil {
		return err
	}
	moved, err := m.ReencryptDataKey(ctx, hsm.ReencryptRequest{
		OpenRequest: hsm.OpenRequest{Blob: blob, Binding: l.master.binding}, NewKeyVersionID: to, NewBinding: binding,
	})
	if err != nil {
		return err
	}
	back, err := m.ReencryptDataKey(ctx, hsm.ReencryptRequest{
		OpenRequest: hsm.OpenRequest{Blob: moved.Blob, Binding: binding}, NewKeyVersionID: l.master.id, NewBinding: l.master.binding,
	})
	if hsm.KindOf(err) == hsm.InvalidBlob || err == nil && !bytes.Equal(back.Blob.Payload, blob.Payload) {
		return hsm.Errorf(hsm.WrongResult, "the module re-encrypted another data key than the one in the blob")
	}
	return err
}

// managePair creates wrapping key pairs, each again, and destroys them again if they are not kept.
func (l *load) managePair(keep bool) func() error {
	req := newPair()
	return func() error {
		return l.do(func(ctx context.Context, m hsm.Module) error {
			pair, err := m.CreateWrappingKey(ctx, req)
			if err != nil {
				return err
			}
			l.journal.created(pair)
			again, err := m.CreateWrappingKey(ctx, req)
			if err != nil {
				return err
			}
			if !bytes.Equal(pair.PublicKey, again.PublicKey) {
				l.journal.wrongf("CreateWrappingKey: the public key of a pair changed")
			}
			if !keep {
				if err := m.DestroyWrappingKey(ctx, req.ID); err != nil {
					return err
				}
				l.journal.pairDestroyed(req.ID)
			}
			req = newPair()
			return nil
		})
	}
}

func newPair() hsm.WrappingKeyRequest {
	return hsm.WrappingKeyRequest{ID: uuid.New(), Owner: uuid.New(), Namespace: namespace, Spec: wrapping.RSA2048, NotAfter: time.Now().Add(time.Hour)}
}
