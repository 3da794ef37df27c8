package ciphertext_test

import (
	"bytes"
	"crypto/aes"
	"crypto/rand"
	"errors"
	"testing"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/ciphertext"
)

func TestSealWithKey_isSealWithAKeyThatAModuleDerived(t *testing.T) {
	t.Parallel()
	master, err := aes.NewCipher(bytes.Repeat([]byte{7}, 32))
	if err != nil {
		t.Fatal(err)
	}
	id := uuid.New()
	binding := ciphertext.Bind(id, map[string]string{"app": "ledger"})
	dataKey := bytes.Repeat([]byte{9}, 32)
	for _, scheme := range []ciphertext.Scheme{ciphertext.DerivedKeyWrap, ciphertext.DerivedGCM, ciphertext.KDFKeyWrap, ciphertext.KDFGCM} {
		derived := ciphertext.DeriveKey(master, scheme, binding)
		blob, err := ciphertext.SealWithKey(rand.Reader, scheme, id, derived, binding, dataKey)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := ciphertext.Open(blob, master, binding); err != nil || !bytes.Equal(got, dataKey) {
			t.Errorf("%s: Open gives %x, %v", scheme, got, err)
		}
		sealed, err := ciphertext.Seal(rand.Reader, scheme, id, master, binding, dataKey)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := ciphertext.OpenWithKey(sealed, derived, binding); err != nil || !bytes.Equal(got, dataKey) {
			t.Errorf("%s: OpenWithKey gives %x, %v", scheme, got, err)
		}
		sealed.Payload[len(sealed.Payload)-1] ^= 1
		if _, err := ciphertext.OpenWithKey(sealed, derived, binding); !errors.Is(err, ciphertext.ErrOpen) {
			t.Errorf("%s: a changed blob gives %v", scheme, err)
		}
	}
}

func TestSealWithKey_refusesASchemeWithoutADerivedKey(t *testing.T) {
	t.Parallel()
	key, id := make([]byte, 32), uuid.New()
	binding := ciphertext.Bind(id, nil)
	for _, scheme := range []ciphertext.Scheme{0, ciphertext.DirectGCM, 9} {
		if _, err := ciphertext.SealWithKey(rand.Reader, scheme, id, key, binding, key); err == nil {
			t.Errorf("SealWithKey takes %s", scheme)
		}
		if _, err := ciphertext.OpenWithKey(ciphertext.Blob{Scheme: scheme}, key, binding); !errors.Is(err, ciphertext.ErrOpen) {
			t.Errorf("OpenWithKey with %s: %v", scheme, err)
		}
	}
}
