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
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
	"github.com/keyconvoy/keyconvoy/internal/hsm/pkcs11/token"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// invalidBlobs are variants of a valid blob that must not open, by what is wrong.
func (f *fixture) invalidBlobs(t *testing.T, good ciphertext.Blob) map[string]hsm.OpenRequest {
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
	t.Cleanup(func() { _ = f.m.DestroyKey(context.Background(), other) })
	blob := good
	blob.KeyVersionID = other
	all["another key"] = f.open(blob)
	return all
}

func TestInvalidBlobs_allFailAlikeWithoutAReconnect(t *testing.T) {
	tokens.OnEach(t, func(t *testing.T, tok tokens.Token) {
		f := newFixture(t, configOf(tok))
		for _, length := range []int{16, 20} {
			invalid := f.invalidBlobs(t, f.generate(t, length))
			before := objects(t, f.m)
			spy := tokens.SpyOn(t, tok)
			for what, req := range invalid {
				for name, err := range map[string]error{
					"VerifyDataKey": f.m.VerifyDataKey(t.Context(), req),
					"ExportDataKey": f.exportError(t, req, wrapping.RSAESOAEPSHA256),
				} {
					hsmtest.WantKind(t, err, hsm.InvalidBlob, "%s, %s", name, what)
					var e *hsm.Error
					if !errors.As(err, &e) || e.Detail != hsm.ErrInvalidBlob.Detail {
						t.Errorf("%s, %s: the text differs from that of other invalid blobs: %v", name, what, err)
					}
				}
			}
			if n := reconnects(spy); n != 0 {
				t.Errorf("%d calls to reconnect, want 0", n)
			}
			if n := objects(t, f.m); n != before {
				t.Errorf("%d objects, want %d", n, before)
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

func TestInvalidMaterial_createsNoObjectsAndDoesNotReconnect(t *testing.T) {
	tokens.OnEach(t, func(t *testing.T, tok tokens.Token) {
		f := newFixture(t, configOf(tok))
		before := objects(t, f.m)
		spy := tokens.SpyOn(t, tok)
		for _, algorithm := range []wrapping.Algorithm{wrapping.RSAESOAEPSHA256, wrapping.RSAESOAEPSHA1} {
			for what, tc := range map[string]struct {
				material []byte
				spoil    func([]byte) []byte
				want     hsm.Kind
			}{
				"15 bytes":      {make([]byte, 15), nil, hsm.MaterialLength},
				"16 bytes":      {make([]byte, 16), nil, hsm.MaterialLength},
				"31 bytes":      {make([]byte, 31), nil, hsm.MaterialLength}, // SoftHSM pads these to 32
				"33 bytes":      {make([]byte, 33), nil, hsm.MaterialLength},
				"a flipped bit": {make([]byte, 32), func(b []byte) []byte { b[100] ^= 4; return b }, hsm.InvalidMaterial},
				"cut short":     {make([]byte, 32), func(b []byte) []byte { return b[:255] }, hsm.InvalidMaterial},
				"nothing":       {make([]byte, 32), func([]byte) []byte { return nil }, hsm.InvalidMaterial},
			} {
				wrapped, err := wrapping.Wrap(rand.Reader, hsmtest.PublicKey(t, f.pair), algorithm, "", tc.material)
				if err != nil {
					t.Fatal(err)
				}
				if tc.spoil != nil {
					wrapped = tc.spoil(wrapped)
				}
				req := hsm.ImportRequest{KeyVersionID: uuid.New(), Spec: hsm.AES256, WrappingKey: f.pair.ID, Algorithm: algorithm, EncryptedMaterial: wrapped}
				_, err = f.m.ImportKey(t.Context(), req)
				hsmtest.WantKind(t, err, tc.want, "%s under %s", what, algorithm)
			}
		}
		if n := reconnects(spy); n != 0 {
			t.Errorf("%d calls to reconnect, want 0", n)
		}
		if n := objects(t, f.m); n != before {
			t.Errorf("%d objects, want %d", n, before)
		}
	})
}

func TestOperations_leaveNoObjectsBehind(t *testing.T) {
	tokens.OnEach(t, func(t *testing.T, tok tokens.Token) {
		f := newFixture(t, configOf(tok))
		f.mustWork(t)
		before := objects(t, f.m)
		for range 20 {
			f.mustWork(t)
			f.generate(t, 20)
		}
		if after := objects(t, f.m); after != before {
			t.Errorf("%d objects, want %d", after, before)
		}
	})
}

func TestMasterKey_isProtectedAndLabelled(t *testing.T) {
	tokens.OnEach(t, func(t *testing.T, tok tokens.Token) {
		f := newFixture(t, configOf(tok))
		err := f.m.do(t.Context(), func(s *session) error {
			h, err := s.master(f.id)
			if err != nil {
				return err
			}
			for attribute, want := range map[uint]bool{
				p11.CKA_TOKEN: true, p11.CKA_PRIVATE: true, p11.CKA_SENSITIVE: true, p11.CKA_DERIVE: true,
				p11.CKA_EXTRACTABLE: false, p11.CKA_ENCRYPT: false, p11.CKA_DECRYPT: false, p11.CKA_WRAP: false,
				p11.CKA_UNWRAP: false, p11.CKA_SIGN: false, p11.CKA_VERIFY: false,
			} {
				values, err := s.GetAttributes(h, attribute)
				if err != nil || isTrue(values[0]) != want || isFalse(values[0]) == want {
					t.Errorf("attribute %#x is %x, %v; want %v", attribute, values, err, want)
				}
			}
			values, err := s.GetAttributes(h, p11.CKA_ID, p11.CKA_LABEL, p11.CKA_KEY_TYPE)
			if err != nil || !bytes.Equal(values[0], f.id[:]) || string(values[1]) != "keyconvoy:key:"+f.id.String()+":AES_256:team-a:payments:Imported:1:"+f.id.String() ||
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

func TestOtherKeys_areProtected(t *testing.T) {
	tokens.OnEach(t, func(t *testing.T, tok tokens.Token) {
		f := newFixture(t, configOf(tok))
		f.mustWork(t)
		err := f.m.do(t.Context(), func(s *session) error {
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
					// Only if the padding of some algorithm is removed on the host.
					p11.CKA_DECRYPT: s.can.needsRawRSA(s.cfg),
				},
				mac: {
					p11.CKA_SENSITIVE: true, p11.CKA_EXTRACTABLE: false, p11.CKA_SIGN: true, p11.CKA_VERIFY: false, p11.CKA_ENCRYPT: false,
					p11.CKA_DECRYPT: false, p11.CKA_WRAP: false, p11.CKA_UNWRAP: false, p11.CKA_DERIVE: false,
				},
			} {
				for attribute, want := range wants {
					values, err := s.GetAttributes(h, attribute)
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

// Another party may create a key with the same CKA_ID and less protection.
func TestMasterKey_lessProtected_isNotUsed(t *testing.T) {
	tokens.OnEach(t, func(t *testing.T, tok tokens.Token) {
		m := mustOpen(t, configOf(tok))
		for _, more := range []uint{
			p11.CKA_EXTRACTABLE, p11.CKA_ENCRYPT, p11.CKA_DECRYPT, p11.CKA_WRAP, p11.CKA_UNWRAP, p11.CKA_VERIFY,
		} {
			id := uuid.New()
			err := m.do(t.Context(), func(s *session) error {
				template := byEncryptData.masterTemplate(id, hsm.AES256, hsm.Owner{}, true, 0)
				for _, a := range template {
					if a.Type == more {
						a.Value = []byte{1}
					}
				}
				_, err := s.CreateObject(append(template, p11.NewAttribute(p11.CKA_VALUE, make([]byte, 32))))
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = m.DestroyKey(context.Background(), id) })
			_, err = m.FindKey(t.Context(), id)
			hsmtest.WantKind(t, err, hsm.Internal, "FindKey of a key with attribute %#x", more)
			_, err = m.GenerateDataKey(t.Context(), hsm.GenerateRequest{KeyVersionID: id, Length: 32})
			hsmtest.WantKind(t, err, hsm.Internal, "GenerateDataKey under a key with attribute %#x", more)
		}
	})
}

func TestFingerprint_isTheCMACOfIndependentCode(t *testing.T) {
	tokens.OnEach(t, func(t *testing.T, tok tokens.Token) {
		f := newFixture(t, configOf(tok))
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

func TestModuleOnly_rejectsWhatRequiresTheHost(t *testing.T) {
	for kind, newToken := range tokens.Kinds {
		t.Run(kind, func(t *testing.T) {
			cfg := configOf(newToken(t))
			host := newFixture(t, cfg)
			short := host.generate(t, 20)
			cfg.Custody = "" // the default is ModuleOnly
			f := &fixture{m: mustOpen(t, cfg), pair: host.pair, id: host.id, material: host.material, binding: host.binding}
			if got, want := describe(t, f.m).Capabilities, expected(kind, hsm.CustodyModule, false); len(got) != len(want) {
				t.Errorf("Capabilities = %v; want %v", got, want)
			}
			before := objects(t, f.m)
			_, err := f.m.GenerateDataKey(t.Context(), hsm.GenerateRequest{KeyVersionID: f.id, Length: 20, Binding: f.binding})
			hsmtest.WantKind(t, err, hsm.NotSupported, "GenerateDataKey of 20 bytes")
			hsmtest.WantKind(t, f.m.VerifyDataKey(t.Context(), f.open(short)), hsm.NotSupported, "VerifyDataKey of 20 bytes")
			hsmtest.WantKind(t, f.exportError(t, f.open(short), wrapping.RSAESOAEPSHA1), hsm.NotSupported, "ExportDataKey of 20 bytes")
			blob := f.generate(t, 32)
			if err := f.exportError(t, f.open(blob), wrapping.RSAESOAEPSHA1); err != nil {
				t.Errorf("ExportDataKey with SHA-1: %v", err)
			}
			sm2, err := wrapping.GeneratePrivateKey(rand.Reader, wrapping.ECSM2)
			if err != nil {
				t.Fatal(err)
			}
			toSM2 := f.export(blob, wrapping.SM2PKE)
			toSM2.Recipient = sm2.Public().SPKI()
			_, err = f.m.ExportDataKey(t.Context(), toSM2)
			hsmtest.WantKind(t, err, hsm.NotSupported, "ExportDataKey to SM2")

			req := f.importOf(t, uuid.New(), f.material)
			req.Algorithm = wrapping.RSAESOAEPSHA256
			req.EncryptedMaterial, _ = wrapping.Wrap(rand.Reader, hsmtest.PublicKey(t, f.pair), req.Algorithm, "", f.material)
			_, err = f.m.ImportKey(t.Context(), req)
			exportErr := f.exportError(t, f.open(blob), wrapping.RSAESOAEPSHA256)
			if kind == "NSS" {
				if err != nil || exportErr != nil {
					t.Errorf("NSS supports SHA-256 inside: import %v, export %v", err, exportErr)
				}
				return
			}
			hsmtest.WantKind(t, err, hsm.NotSupported, "ImportKey with SHA-256")
			hsmtest.WantKind(t, exportErr, hsm.NotSupported, "ExportDataKey with SHA-256")
			if !strings.Contains(err.Error(), "ModuleOnly forbids") || !strings.Contains(err.Error(), "inside, it supports RSAES_OAEP_SHA_1") {
				t.Errorf("%v does not name the policy and the alternative", err)
			}
			if after := objects(t, f.m); after != before {
				t.Errorf("%d objects, want %d", after, before)
			}
		})
	}
}

// The blob is from another module with the same master key, and its data key is longer than this token supports.
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
	hsmtest.WantKind(t, f.m.VerifyDataKey(t.Context(), f.open(blob)), hsm.InvalidBlob, "changed")
}

func TestWrappingKey_halfOfAPair_isReplaced(t *testing.T) {
	tokens.OnEach(t, func(t *testing.T, tok tokens.Token) {
		m := mustOpen(t, configOf(tok))
		for what, half := range map[string]func(uuid.UUID) token.ObjectName{"public": publicName, "private": privateName} {
			req := hsm.WrappingKeyRequest{ID: uuid.New(), Owner: uuid.New(), Spec: wrapping.RSA2048, NotAfter: time.Unix(2_000_000_000, 5)}
			first, err := m.CreateWrappingKey(t.Context(), req)
			if err != nil {
				t.Fatal(err)
			}
			if first.Owner != req.Owner || !first.NotAfter.Equal(time.Unix(2_000_000_000, 0)) {
				t.Errorf("%+v is not what was requested", first)
			}
			before := objects(t, m)
			if err := m.do(t.Context(), func(s *session) error { return s.destroyAll(half(req.ID)) }); err != nil {
				t.Fatal(err)
			}
			if list, err := hsmtest.PairsOf(t.Context(), m, req.Owner); err != nil || len(list) != 1 {
				t.Errorf("without its %s half the pair is not listed, so its other half would never be destroyed: %v, %v", what, list, err)
			}
			second, err := m.CreateWrappingKey(t.Context(), req)
			if err != nil || bytes.Equal(second.PublicKey, first.PublicKey) {
				t.Errorf("without its %s half the pair is not replaced: %v", what, err)
			}
			if list, err := hsmtest.PairsOf(t.Context(), m, req.Owner); err != nil || len(list) != 1 {
				t.Errorf("ListWrappingKeys = %v, %v", list, err)
			}
			if after := objects(t, m); after != before {
				t.Errorf("%d objects, want %d", after, before)
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

func TestConcurrency_moreCallersThanSessions(t *testing.T) {
	tokens.OnEach(t, func(t *testing.T, tok tokens.Token) {
		cfg := configOf(tok)
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

// Without the lock on a token's objects, SoftHSM fails one of a hundred imports here and leaves half an object behind.
func TestConcurrency_importsAndSearches_doNotDisturbEachOther(t *testing.T) {
	tokens.OnEach(t, func(t *testing.T, tok tokens.Token) {
		f := newFixture(t, configOf(tok))
		before := objects(t, f.m)
		var group sync.WaitGroup
		for range 8 {
			group.Go(func() {
				for range 30 {
					id := uuid.New()
					if _, err := f.m.ImportKey(t.Context(), f.importOf(t, id, f.material)); err != nil {
						t.Error(err)
					}
					if list, err := hsmtest.PairsOf(t.Context(), f.m, f.pair.Owner); err != nil || len(list) != 1 {
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
			t.Errorf("%d objects, want %d", after, before)
		}
	})
}

func TestOperations_wipeKeyMaterialThatTheyRead(t *testing.T) {
	tok := tokens.SoftHSM(t)
	f := newFixture(t, configOf(tok))
	spy := tokens.SpyOn(t, tok)
	short, long := f.generate(t, 20), f.generate(t, 32)
	wrapped, err := wrapping.Wrap(rand.Reader, hsmtest.PublicKey(t, f.pair), wrapping.RSAESOAEPSHA256, "", f.material)
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
		spy.Reset()
		if err := operation(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		for _, secret := range spy.Secrets(t) {
			// Fingerprints and the blocks for them have 16 bytes and are no secrets.
			if len(secret) != 16 && len(bytes.Trim(secret, "\x00")) != 0 {
				t.Errorf("%s does not wipe %d bytes", what, len(secret))
			}
		}
	}
}
