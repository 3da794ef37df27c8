package ciphertext

import (
	"bytes"
	"crypto/aes"
	"testing"

	"github.com/emmansun/gmsm/cbcmac"
	"github.com/google/uuid"
)

func TestCMAC_isThatOfIndependentCode(t *testing.T) {
	t.Parallel()
	for last := range 4 { // both values of the bits that doubling carries
		block, err := aes.NewCipher(bytes.Repeat([]byte{byte(last)}, 32))
		if err != nil {
			t.Fatal(err)
		}
		for n := range 100 {
			message := bytes.Repeat([]byte{0x5a}, n)
			if got, want := cmac(block, message), cbcmac.NewCMAC(block, 16).MAC(message); !bytes.Equal(got[:], want) {
				t.Errorf("the CMAC of %d bytes is %x, want %x", n, got, want)
			}
		}
	}
}

// A module computes the same key from the messages of the KDF, or from its input.
func TestKDFMessages_haveTheCounterAndTheInput(t *testing.T) {
	t.Parallel()
	binding := Bind(uuid.Nil, nil)
	for _, scheme := range []Scheme{KDFKeyWrap, KDFGCM} {
		for i, message := range binding.KDFMessages(scheme) {
			if want := append([]byte{0, 0, 0, byte(i + 1)}, binding.KDFInput(scheme)...); !bytes.Equal(message, want) {
				t.Errorf("message %d of %s is %x, want %x", i, scheme, message, want)
			}
		}
	}
	if bytes.Equal(binding.KDFInput(KDFKeyWrap), binding.KDFInput(KDFGCM)) {
		t.Error("two schemes derive one key")
	}
}
