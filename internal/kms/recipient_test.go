package kms_test

import (
	"testing"

	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

func TestNewRecipient_refusesWhatDoesNotFit(t *testing.T) {
	t.Parallel()
	for sentence, tc := range map[string]struct {
		key       wrapping.KeySpec
		spec      wrapping.KeySpec
		algorithm wrapping.Algorithm
		says      string
	}{
		"a public key of another size":     {wrapping.RSA2048, wrapping.RSA3072, wrapping.RSAESOAEPSHA256, "WrappingKeySpec: The public key is RSA_2048, not RSA_3072."},
		"an SM2 key that is called RSA":    {wrapping.ECSM2, wrapping.RSA2048, wrapping.RSAESOAEPSHA1, "WrappingKeySpec: The public key is EC_SM2, not RSA_2048."},
		"SM2PKE for an RSA key":            {wrapping.RSA2048, wrapping.RSA2048, wrapping.SM2PKE, "WrappingAlgorithm: SM2PKE requires an EC_SM2 key"},
		"OAEP for an SM2 key":              {wrapping.ECSM2, wrapping.ECSM2, wrapping.RSAESOAEPSHA256, "WrappingAlgorithm: RSAES_OAEP_SHA_256 requires an RSA key"},
		"PKCS#1 v1.5":                      {wrapping.RSA2048, wrapping.RSA2048, wrapping.RSAESPKCS1V15, "WrappingAlgorithm: RSAES_PKCS1_V1_5 is for imports only"},
		"a key type that does not exist":   {wrapping.RSA2048, "RSA_1024", wrapping.RSAESOAEPSHA256, "unknown wrapping key type"},
		"an algorithm that does not exist": {wrapping.RSA2048, wrapping.RSA2048, "ROT13", "unknown wrapping algorithm"},
	} {
		t.Run(sentence, func(t *testing.T) {
			t.Parallel()
			r, err := kms.NewRecipient(recipient(t, tc.key).Public(), tc.spec, tc.algorithm)
			wantError(t, err, kms.InvalidParameter, tc.says)
			if !r.IsZero() {
				t.Error("a recipient is returned with the error")
			}
		})
	}
}
