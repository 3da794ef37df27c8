package hsm_test

import (
	"crypto/rand"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

var sm2Recipient = sync.OnceValue(func() *wrapping.PublicKey {
	key, err := wrapping.GeneratePrivateKey(rand.Reader, wrapping.ECSM2)
	if err != nil {
		panic(err)
	}
	return key.Public()
})

// refusal returns the error of an export's Validate.
func refusal(r hsm.ExportRequest) error {
	_, err := r.Validate()
	return err
}

func TestValidate_acceptsWhatSomeModuleSupports(t *testing.T) {
	t.Parallel()
	for sentence, err := range map[string]error{
		"an SM2 pair in a namespace":  hsm.WrappingKeyRequest{Spec: wrapping.ECSM2, Namespace: "team-a"}.Validate(),
		"a pair without an owner":     hsm.WrappingKeyRequest{Spec: wrapping.RSA4096}.Validate(),
		"an import in a namespace":    hsm.ImportRequest{Spec: hsm.SM4, Owner: longestOwner()}.Validate(),
		"the shortest data key":       hsm.GenerateRequest{Length: 1}.Validate(),
		"the longest data key":        hsm.GenerateRequest{Length: hsm.MaxDataKeyLen}.Validate(),
		"an export without a format":  refusal(hsm.ExportRequest{Recipient: sm2Recipient().SPKI(), Algorithm: wrapping.SM2PKE}),
		"an export in a given format": refusal(hsm.ExportRequest{Recipient: sm2Recipient().SPKI(), Algorithm: wrapping.SM2PKE, SM2Format: wrapping.ASN1}),
	} {
		if err != nil {
			t.Errorf("%s: %v", sentence, err)
		}
	}
}

func TestValidate_rejectsWhatNoModuleSupports(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("é", 1000)
	for sentence, tc := range map[string]struct {
		err  error
		want string
	}{
		"a pair of an unknown type":     {hsm.WrappingKeyRequest{Spec: "RSA_1024"}.Validate(), `no wrapping key type "RSA_1024"`},
		"a pair of a long type":         {hsm.WrappingKeyRequest{Spec: wrapping.KeySpec(long)}.Validate(), "no wrapping key type"},
		"a namespace with blanks":       {hsm.WrappingKeyRequest{Spec: wrapping.ECSM2, Namespace: "team a"}.Validate(), "63 printable ASCII"},
		"a key of an unknown type":      {hsm.ImportRequest{Spec: "DES"}.Validate(), `no key type "DES"`},
		"a key of a long type":          {hsm.ImportRequest{Spec: hsm.KeySpec(long)}.Validate(), "no key type"},
		"an invalid owner":              {hsm.ImportRequest{Spec: hsm.SM4, Owner: hsm.Owner{Namespace: "é"}}.Validate(), "63 printable ASCII"},
		"a data key of 0 bytes":         {hsm.GenerateRequest{}.Validate(), "1 to 1024 bytes"},
		"a data key that is too long":   {hsm.GenerateRequest{Length: hsm.MaxDataKeyLen + 1}.Validate(), "1 to 1024 bytes"},
		"an export without a recipient": {refusal(hsm.ExportRequest{Algorithm: wrapping.SM2PKE}), "no recipient"},
		"an export to a damaged key":    {refusal(hsm.ExportRequest{Recipient: sm2Recipient().SPKI()[1:], Algorithm: wrapping.SM2PKE}), "damaged"},
		"an export to a key in PEM":     {refusal(hsm.ExportRequest{Recipient: []byte("-----BEGIN PUBLIC KEY-----"), Algorithm: wrapping.SM2PKE}), "damaged"},
		"an algorithm for imports":      {refusal(hsm.ExportRequest{Recipient: sm2Recipient().SPKI(), Algorithm: wrapping.RSAESPKCS1V15}), "for import only"},
		"an algorithm of another type":  {refusal(hsm.ExportRequest{Recipient: sm2Recipient().SPKI(), Algorithm: wrapping.RSAESOAEPSHA256}), "requires an RSA key"},
		"an unknown algorithm":          {refusal(hsm.ExportRequest{Recipient: sm2Recipient().SPKI(), Algorithm: "ROT13"}), "unknown wrapping algorithm"},
		"an unknown format": {
			refusal(hsm.ExportRequest{Recipient: sm2Recipient().SPKI(), Algorithm: wrapping.SM2PKE, SM2Format: wrapping.SM2Format(long)}),
			"no SM2 ciphertext format",
		},
	} {
		var e *hsm.Error
		if !errors.As(tc.err, &e) || e.Kind != hsm.NotSupported || !strings.Contains(e.Detail, tc.want) {
			t.Errorf("%s: %v; want NotSupported and %q", sentence, tc.err, tc.want)
			continue
		}
		if len(e.Detail) > 300 || strings.Contains(e.Detail, "é") {
			t.Errorf("%s: the detail repeats what it was given: %s", sentence, e.Detail)
		}
	}
}
