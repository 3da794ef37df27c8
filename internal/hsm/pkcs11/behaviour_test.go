//go:build cgo

package pkcs11

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/rand"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emmansun/gmsm/cbcmac"
	"github.com/google/uuid"
	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/ciphertext"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// badBlobs are variants of a good blob that must not open, by what is wrong.
func (f *fixture) badBlobs(t *testing.T, good ciphertext.Blob) map[string]hsm.OpenRequest {
	t.Helper()
	all := map[string]hsm.OpenRequest{
		"another EncryptionContext": {Blob: good, Binding: ciphertext.Bind(f.id, nil)},
	}
	variant := func(name string, payload []byte) {
		blob := good
		blob.Payload = payload
		all[name] = f.open(blob)
	}
	for i := range good.Payload {
		flipped := bytes.Clone(good.Payload)
		flipped[i] ^= 1 << (i % 8)
		variant("byte "+string(rune('A'+i))+" flipped", flipped)
	}
	for n := range len(good.Payload) {
		variant("cut to "+string(rune('A'+n)), bytes.Clone(good.Payload[:n]))
	}
	variant("longer by a block", append(bytes.Clone(good.Payload), make([]byte, 8)...))
	variant("longer than any", make([]byte, hsm.MaxDataKeyLen+16))
	other := uuid.New()
	if _, err := f.m.ImportKey(t.Context(), f.importOf(t, other, make([]byte, 32))); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if f.m.isClosed() {
			return
		}
		_ = f.m.DestroyKey(context.Background(), other)
	})
	blob := good
	blob.KeyVersionID = other
	all["another key"] = f.open(blob)
	return all
}

func TestBadBlobs_allFailAlikeAndTripNothing(t *testing.T) {
	onEach(t, func(t *testing.T, token tokens.Token) {
		f := newFixture(t, configOf(token))
		for _, length := range []int{16, 20} {
			bad := f.badBlobs(t, f.generate(t, length))
			before, left := f.m.mark(), objects(t, f.m)
			spy := spyOn(t, f.m)
			for what, req := range bad {
				for name, err := range map[string]error{
					"VerifyDataKey": f.m.VerifyDataKey(t.Context(), req),
					"ExportDataKey": f.exportError(t, req, wrapping.RSAESOAEPSHA256),
				} {
					wantKind(t, err, hsm.InvalidBlob, name+", "+what)
					var e *hsm.Error
					if !errors.As(err, &e) || e.Detail != errInvalidBlob.Detail {
						t.Errorf("%s, %s: the text tells it apart: %v", name, what, err)
					}
				}
			}
			if n := spy.count("C_Login", "C_Initialize", "C_Finalize"); n != 0 || f.m.mark() != before {
				t.Errorf("bad blobs cost %d logins and initialisations, and moved %v to %v", n, before, f.m.mark())
			}
			if n := objects(t, f.m); n != left {
				t.Errorf("%d objects; there were %d", n, left)
			}
		}
	})
}

func (f *fixture) exportError(t *testing.T, req hsm.OpenRequest, algorithm wrapping.Algorithm) error {
	t.Helper()
	export := f.export(req.Blob, algorithm)
	export.Binding = req.Binding
	_, err := f.m.ExportDataKey(t.Context(), export)
	return err
}

func TestBadMaterial_leavesNothingBehindAndTripsNothing(t *testing.T) {
	onEach(t, func(t *testing.T, token tokens.Token) {
		f := newFixture(t, configOf(token))
		before, left := f.m.mark(), objects(t, f.m)
		spy := spyOn(t, f.m)
		for _, algorithm := range []wrapping.Algorithm{wrapping.RSAESOAEPSHA256, wrapping.RSAESOAEPSHA1} {
			for what, tc := range map[string]struct {
				material []byte
				spoil    func([]byte) []byte
				want     hsm.Kind
			}{
				"15 bytes":      {make([]byte, 15), nil, hsm.MaterialLength},
				"16 bytes":      {make([]byte, 16), nil, hsm.MaterialLength},
				"31 bytes":      {make([]byte, 31), nil, hsm.MaterialLength}, // SoftHSM wraps these as 32
				"33 bytes":      {make([]byte, 33), nil, hsm.MaterialLength},
				"a flipped bit": {make([]byte, 32), func(b []byte) []byte { b[100] ^= 4; return b }, hsm.InvalidMaterial},
				"cut short":     {make([]byte, 32), func(b []byte) []byte { return b[:255] }, hsm.InvalidMaterial},
				"nothing":       {make([]byte, 32), func([]byte) []byte { return nil }, hsm.InvalidMaterial},
			} {
				wrapped, err := wrapping.Wrap(rand.Reader, f.pair.PublicKey, algorithm, "", tc.material)
				if err != nil {
					t.Fatal(err)
				}
				if tc.spoil != nil {
					wrapped = tc.spoil(wrapped)
				}
				req := hsm.ImportRequest{KeyVersionID: uuid.New(), Spec: hsm.AES256, WrappingKey: f.pair.ID, Algorithm: algorithm, EncryptedMaterial: wrapped}
				_, err = f.m.ImportKey(t.Context(), req)
				wantKind(t, err, tc.want, what+" under "+string(algorithm))
			}
		}
		if n := spy.count("C_Login", "C_Initialize", "C_Finalize"); n != 0 || f.m.mark() != before {
			t.Errorf("bad material costs %d logins and initialisations", n)
		}
		if n := objects(t, f.m); n != left {
			t.Errorf("%d objects; there were %d", n, left)
		}
	})
}

func TestOperations_leaveNoObjectsBehind(t *testing.T) {
	onEach(t, func(t *testing.T, token tokens.Token) {
		f := newFixture(t, configOf(token))
		f.mustWork(t)
		before := objects(t, f.m)
		for range 20 {
			f.mustWork(t)
			f.generate(t, 20)
		}
		if after := objects(t, f.m); after != before {
			t.Errorf("%d objects; there were %d", after, before)
		}
		if n := f.m.lib.names.names; len(n) != 0 {
			t.Errorf("%d names are still locked", len(n))
		}
	})
}

func TestMasterKey_isProtectedAndLabelled(t *testing.T) {
	onEach(t, func(t *testing.T, token tokens.Token) {
		f := newFixture(t, configOf(token))
		err := f.m.operate(t.Context(), func(s *session) error {
			h, err := s.master(f.id)
			if err != nil {
				return err
			}
			for attribute, want := range map[uint]bool{
				p11.CKA_TOKEN: true, p11.CKA_PRIVATE: true, p11.CKA_SENSITIVE: true, p11.CKA_DERIVE: true,
				p11.CKA_EXTRACTABLE: false, p11.CKA_ENCRYPT: false, p11.CKA_DECRYPT: false, p11.CKA_WRAP: false,
				p11.CKA_UNWRAP: false, p11.CKA_SIGN: false, p11.CKA_VERIFY: false,
			} {
				values, err := s.attributes(h, attribute)
				if err != nil || isTrue(values[0]) != want || isFalse(values[0]) == want {
					t.Errorf("attribute %#x is %x, %v; want %v", attribute, values, err, want)
				}
			}
			values, err := s.attributes(h, p11.CKA_ID, p11.CKA_LABEL, p11.CKA_KEY_TYPE)
			if err != nil || !bytes.Equal(values[0], f.id[:]) || string(values[1]) != "keyconvoy:key:"+f.id.String()+":AES_256:team-a" ||
				ulong(values[2]) != p11.CKK_AES {
				t.Errorf("CKA_ID, CKA_LABEL, CKA_KEY_TYPE = %q, %v", values, err)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

func TestMasterKey_keepsItsFirstOwner(t *testing.T) {
	onEach(t, func(t *testing.T, token tokens.Token) {
		f := newFixture(t, configOf(token))
		again := f.importOf(t, f.id, f.material)
		again.Owner = "team-b"
		if key, err := f.m.ImportKey(t.Context(), again); err != nil || key.Owner != "team-a" {
			t.Errorf("ImportKey = %+v, %v", key, err)
		}
		if key, err := f.m.FindKey(t.Context(), f.id); err != nil || key.Owner != "team-a" {
			t.Errorf("FindKey = %+v, %v", key, err)
		}
		again.Owner = "team b"
		_, err := f.m.ImportKey(t.Context(), again)
		wantKind(t, err, hsm.NotSupported, "an owner that does not print")
	})
}

func TestOtherKeys_areProtected(t *testing.T) {
	onEach(t, func(t *testing.T, token tokens.Token) {
		f := newFixture(t, configOf(token))
		f.mustWork(t)
		err := f.m.operate(t.Context(), func(s *session) error {
			private, err := s.private(f.pair.ID)
			if err != nil {
				return err
			}
			mac, err := s.macKey()
			if err != nil {
				return err
			}
			for h, wants := range map[p11.ObjectHandle]map[uint]bool{
				private: {
					p11.CKA_SENSITIVE: true, p11.CKA_EXTRACTABLE: false, p11.CKA_UNWRAP: true, p11.CKA_SIGN: false,
					// Only where some algorithm has its padding removed on the host.
					p11.CKA_DECRYPT: s.m.needsRaw(),
				},
				mac: {
					p11.CKA_SENSITIVE: true, p11.CKA_EXTRACTABLE: false, p11.CKA_SIGN: true, p11.CKA_VERIFY: false, p11.CKA_ENCRYPT: false,
					p11.CKA_DECRYPT: false, p11.CKA_WRAP: false, p11.CKA_UNWRAP: false, p11.CKA_DERIVE: false,
				},
			} {
				for attribute, want := range wants {
					values, err := s.attributes(h, attribute)
					if err != nil || isTrue(values[0]) != want {
						t.Errorf("attribute %#x is %x, %v; want %v", attribute, values, err, want)
					}
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

// A key that somebody else put there, weaker than ours, is not used.
func TestMasterKey_weakerThanAsked_isRefused(t *testing.T) {
	onEach(t, func(t *testing.T, token tokens.Token) {
		m := mustOpen(t, configOf(token))
		id := uuid.New()
		err := m.operate(t.Context(), func(s *session) error {
			template := masterTemplate(id, hsm.AES256, "", true)
			for _, a := range template {
				if a.Type == p11.CKA_EXTRACTABLE {
					a.Value = []byte{1}
				}
			}
			_, err := s.create(append(template, p11.NewAttribute(p11.CKA_VALUE, make([]byte, 32))))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = m.DestroyKey(t.Context(), id) }()
		_, err = m.FindKey(t.Context(), id)
		wantKind(t, err, hsm.Internal, "FindKey")
		_, err = m.GenerateDataKey(t.Context(), hsm.GenerateRequest{KeyVersionID: id, Length: 32})
		wantKind(t, err, hsm.Internal, "GenerateDataKey")
	})
}

func TestFingerprint_isTheCMACThatOthersCompute(t *testing.T) {
	onEach(t, func(t *testing.T, token tokens.Token) {
		f := newFixture(t, configOf(token))
		for range 8 { // both values of the bit that doubling carries
			material, id := make([]byte, 32), uuid.New()
			_, _ = rand.Read(material)
			made, err := f.m.ImportKey(t.Context(), f.importOf(t, id, material))
			if err != nil {
				t.Fatal(err)
			}
			block, err := aes.NewCipher(material)
			if err != nil {
				t.Fatal(err)
			}
			want := cbcmac.NewCMAC(block, 16).MAC([]byte(hsm.FingerprintLabel))
			found, err := f.m.FindKey(t.Context(), id)
			if err != nil || !bytes.Equal(found.Fingerprint[:], want) || made.Fingerprint != found.Fingerprint {
				t.Errorf("%s and %s, %v; want %x", made.Fingerprint, found.Fingerprint, err, want)
			}
			if err := f.m.DestroyKey(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestModuleOnly_refusesWhatNeedsTheHost(t *testing.T) {
	for kind, newToken := range kinds {
		t.Run(kind, func(t *testing.T) {
			cfg := configOf(newToken(t))
			host := newFixture(t, cfg)
			short := host.generate(t, 20)
			cfg.Custody = "" // by omission, too
			f := &fixture{m: mustOpen(t, cfg), pair: host.pair, id: host.id, material: host.material, binding: host.binding}
			if got, want := f.m.Capabilities(), expected(kind, hsm.CustodyModule, false); len(got) != len(want) {
				t.Errorf("Capabilities = %v; want %v", got, want)
			}
			before := objects(t, f.m)
			_, err := f.m.GenerateDataKey(t.Context(), hsm.GenerateRequest{KeyVersionID: f.id, Length: 20, Binding: f.binding})
			wantKind(t, err, hsm.NotSupported, "GenerateDataKey of 20 bytes")
			wantKind(t, f.m.VerifyDataKey(t.Context(), f.open(short)), hsm.NotSupported, "VerifyDataKey of 20 bytes")
			wantKind(t, f.exportError(t, f.open(short), wrapping.RSAESOAEPSHA1), hsm.NotSupported, "ExportDataKey of 20 bytes")
			blob := f.generate(t, 32)
			if err := f.exportError(t, f.open(blob), wrapping.RSAESOAEPSHA1); err != nil {
				t.Errorf("ExportDataKey with SHA-1: %v", err)
			}
			sm2, err := wrapping.GeneratePrivateKey(rand.Reader, wrapping.ECSM2)
			if err != nil {
				t.Fatal(err)
			}
			toSM2 := f.export(blob, wrapping.SM2PKE)
			toSM2.Recipient = sm2.Public()
			_, err = f.m.ExportDataKey(t.Context(), toSM2)
			wantKind(t, err, hsm.NotSupported, "ExportDataKey to SM2")

			req := f.importOf(t, uuid.New(), f.material)
			req.Algorithm = wrapping.RSAESOAEPSHA256
			req.EncryptedMaterial, _ = wrapping.Wrap(rand.Reader, f.pair.PublicKey, req.Algorithm, "", f.material)
			_, err = f.m.ImportKey(t.Context(), req)
			exportErr := f.exportError(t, f.open(blob), wrapping.RSAESOAEPSHA256)
			if kind == "NSS" {
				if err != nil || exportErr != nil {
					t.Errorf("NSS does SHA-256 inside: import %v, export %v", err, exportErr)
				}
				return
			}
			wantKind(t, err, hsm.NotSupported, "ImportKey with SHA-256")
			wantKind(t, exportErr, hsm.NotSupported, "ExportDataKey with SHA-256")
			if !strings.Contains(err.Error(), "ModuleOnly forbids") || !strings.Contains(err.Error(), "inside, it offers RSAES_OAEP_SHA_1") {
				t.Errorf("%v does not say what forbids it and what would do", err)
			}
			if after := objects(t, f.m); after != before {
				t.Errorf("%d objects; there were %d", after, before)
			}
		})
	}
}

// A blob whose data key is longer than this token can hold, from another module with the same master key.
func TestDataKey_longerThanTheTokenHolds_opensOnTheHost(t *testing.T) {
	f := newFixture(t, configOf(tokens.NSS(t)))
	block, err := aes.NewCipher(f.material)
	if err != nil {
		t.Fatal(err)
	}
	blob, err := ciphertext.Seal(rand.Reader, ciphertext.DerivedKeyWrap, f.id, block, f.binding, make([]byte, 1024))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.m.VerifyDataKey(t.Context(), f.open(blob)); err != nil {
		t.Error(err)
	}
	blob.Payload[9] ^= 1
	wantKind(t, f.m.VerifyDataKey(t.Context(), f.open(blob)), hsm.InvalidBlob, "changed")
}

func TestWrappingKey_halfAPair_isRemade(t *testing.T) {
	onEach(t, func(t *testing.T, token tokens.Token) {
		m := mustOpen(t, configOf(token))
		for what, half := range map[string]func(uuid.UUID) objectName{"public": publicName, "private": privateName} {
			req := hsm.WrappingKeyRequest{ID: uuid.New(), Owner: uuid.New(), Spec: wrapping.RSA2048, NotAfter: time.Unix(2_000_000_000, 5)}
			first, err := m.CreateWrappingKey(t.Context(), req)
			if err != nil {
				t.Fatal(err)
			}
			if first.Owner != req.Owner || !first.NotAfter.Equal(time.Unix(2_000_000_000, 0)) {
				t.Errorf("%+v is not what was asked for", first)
			}
			before := objects(t, m)
			if err := m.operate(t.Context(), func(s *session) error { return s.destroyAll(half(req.ID)) }); err != nil {
				t.Fatal(err)
			}
			if list, err := m.ListWrappingKeys(t.Context(), req.Owner); err != nil || len(list) != 0 {
				t.Errorf("without its %s half it is still listed: %v, %v", what, list, err)
			}
			second, err := m.CreateWrappingKey(t.Context(), req)
			if err != nil || second.PublicKey.Equal(first.PublicKey) {
				t.Errorf("without its %s half it is not made anew: %v", what, err)
			}
			if list, err := m.ListWrappingKeys(t.Context(), req.Owner); err != nil || len(list) != 1 {
				t.Errorf("ListWrappingKeys = %v, %v", list, err)
			}
			if after := objects(t, m); after != before {
				t.Errorf("%d objects; there were %d", after, before)
			}
			if err := m.DestroyWrappingKey(t.Context(), req.ID); err != nil {
				t.Error(err)
			}
			if after := objects(t, m); after != before-2 {
				t.Errorf("%d objects after its destruction; want %d", after, before-2)
			}
		}
	})
}

func TestConcurrency_manyCallersFewSessions(t *testing.T) {
	onEach(t, func(t *testing.T, token tokens.Token) {
		cfg := configOf(token)
		cfg.MaxSessions = 2
		f, other := newFixture(t, cfg), mustOpen(t, cfg)
		pair := hsm.WrappingKeyRequest{ID: uuid.New(), Owner: f.id, Spec: wrapping.RSA2048, NotAfter: time.Now()}
		shared := uuid.New()
		before := objects(t, f.m)
		var group sync.WaitGroup
		for i := range 32 {
			m := []*Module{f.m, other}[i%2]
			group.Go(func() {
				mine := &fixture{m: m, pair: f.pair, id: f.id, material: f.material, binding: f.binding}
				mine.mustWork(t)
				if _, err := m.CreateWrappingKey(t.Context(), pair); err != nil {
					t.Error(err)
				}
				if _, err := m.ImportKey(t.Context(), f.importOf(t, shared, f.material)); err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
		if after := objects(t, f.m); after != before+4 { // one pair, one master key and the MAC key
			t.Errorf("%d objects; want %d", after, before+4)
		}
	})
}

// Without catalogues, SoftHSM fails one import in a hundred here and leaves half an object behind.
func TestConcurrency_importsAndSearches_disturbNobody(t *testing.T) {
	onEach(t, func(t *testing.T, token tokens.Token) {
		f := newFixture(t, configOf(token))
		before := objects(t, f.m)
		var group sync.WaitGroup
		for range 8 {
			group.Go(func() {
				for range 30 {
					id := uuid.New()
					if _, err := f.m.ImportKey(t.Context(), f.importOf(t, id, f.material)); err != nil {
						t.Error(err)
					}
					if list, err := f.m.ListWrappingKeys(t.Context(), f.pair.Owner); err != nil || len(list) != 1 {
						t.Errorf("ListWrappingKeys = %v, %v", list, err)
					}
					if err := f.m.DestroyKey(t.Context(), id); err != nil {
						t.Error(err)
					}
				}
			})
		}
		group.Wait()
		if after := objects(t, f.m); after != before {
			t.Errorf("%d objects; there were %d", after, before)
		}
	})
}

// Whatever key material came out of the token is wiped when the operation is over.
func TestOperations_wipeWhatTheyRead(t *testing.T) {
	f := newFixture(t, configOf(tokens.SoftHSM(t)))
	spy := spyOn(t, f.m)
	short, long := f.generate(t, 20), f.generate(t, 32)
	wrapped, err := wrapping.Wrap(rand.Reader, f.pair.PublicKey, wrapping.RSAESOAEPSHA256, "", f.material)
	if err != nil {
		t.Fatal(err)
	}
	for what, operation := range map[string]func() error{
		"GenerateDataKey on the host": func() error { f.generate(t, 20); return nil },
		"VerifyDataKey on the host":   func() error { return f.m.VerifyDataKey(t.Context(), f.open(short)) },
		"ExportDataKey on the host":   func() error { return f.exportError(t, f.open(long), wrapping.RSAESOAEPSHA256) },
		"ImportKey on the host": func() error {
			_, err := f.m.ImportKey(t.Context(), hsm.ImportRequest{
				KeyVersionID: uuid.New(), Spec: hsm.AES256, WrappingKey: f.pair.ID,
				Algorithm: wrapping.RSAESOAEPSHA256, EncryptedMaterial: wrapped,
			})
			return err
		},
	} {
		spy.reset()
		if err := operation(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		for _, secret := range spy.takeSecrets() {
			// Fingerprints and what leads to them are 16 bytes and no secret.
			if len(secret) != 16 && len(bytes.Trim(secret, "\x00")) != 0 {
				t.Errorf("%s leaves %d bytes in memory", what, len(secret))
			}
		}
	}
}

func TestConcurrency_waitingEndsWithTheContext(t *testing.T) {
	cfg := configOf(tokens.SoftHSM(t))
	cfg.MaxSessions = 1
	m := mustOpen(t, cfg)
	m.slots <- struct{}{}
	defer func() { <-m.slots }()
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	wantKind(t, m.Check(short), hsm.Unavailable, "Check")
}

func TestHandles_areBounded(t *testing.T) {
	m := mustOpen(t, configOf(tokens.SoftHSM(t)))
	err := m.operate(t.Context(), func(s *session) error {
		for range 2 * maxHandles {
			m.remember(s, masterName(uuid.New()), 1)
		}
		return nil
	})
	if err != nil || len(m.at.handles) > maxHandles {
		t.Errorf("%d handles, %v; the bound is %d", len(m.at.handles), err, maxHandles)
	}
}
