package wrapping_test

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"strings"
	"testing"

	"github.com/emmansun/gmsm/smx509"
	"github.com/go-logr/logr/funcr"

	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// sm2Private assembles a PKCS#8 SM2 key around a SEC 1 key that may be wrong.
func sm2Private(sec1 []byte) []byte {
	algorithm := []byte{
		0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01,
		0x06, 0x08, 0x2a, 0x81, 0x1c, 0xcf, 0x55, 0x01, 0x82, 0x2d,
	}
	body := append([]byte{0x02, 0x01, 0x00}, algorithm...)
	body = append(append(body, 0x04, byte(len(sec1))), sec1...)
	return append([]byte{0x30, byte(len(body))}, body...)
}

func sec1(scalar []byte, tail ...byte) []byte {
	body := append([]byte{0x02, 0x01, 0x01, 0x04, byte(len(scalar))}, scalar...)
	body = append(body, tail...)
	return append([]byte{0x30, byte(len(body))}, body...)
}

func TestParsePrivateKey_refusesWithAReasonThatSaysWhatToDo(t *testing.T) {
	t.Parallel()
	sh := newShell(t)
	rsaDER, sm2DER := pkcs8(t, rsaKey()), pkcs8(t, sm2Key())
	sh.write("rsa.der", rsaDER)
	sh.write("sm2.der", sm2DER)
	sh.openssl("pkey", "-inform", "DER", "-in", "rsa.der", "-aes128", "-passout", "pass:secret", "-out", "encrypted.pem")
	sh.openssl("ec", "-inform", "DER", "-in", "sm2.der", "-aes128", "-passout", "pass:secret", "-out", "old.pem")
	sh.openssl("pkcs8", "-topk8", "-inform", "DER", "-in", "rsa.der", "-outform", "DER", "-passout", "pass:secret", "-out", "encrypted.der")
	sh.openssl("req", "-x509", "-keyform", "DER", "-key", "rsa.der", "-subj", "/CN=recipient", "-out", "cert.pem")
	sh.openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", "p256.pem")
	sh.openssl("ec", "-in", "p256.pem", "-out", "p256sec1.pem")
	sh.openssl("genpkey", "-algorithm", "ED25519", "-out", "ed25519.pem")
	sh.openssl("genrsa", "-out", "short.pem", "1024")
	sh.openssl("genrsa", "-3", "-out", "three.pem", "2048")
	otherScalar := otherSM2PrivateScalar(t)
	broken := x509.MarshalPKCS1PrivateKey(parseRSA(t, rsaDER))
	broken[300] ^= 1 // in the private exponent
	absurd := x509.MarshalPKCS1PrivateKey(&rsa.PrivateKey{
		PublicKey: rsa.PublicKey{N: oddNumber(65536), E: 65537}, D: oddNumber(65536),
		Primes: []*big.Int{oddNumber(32768), oddNumber(32768)},
	})
	order := unhex(t, "fffffffeffffffffffffffffffffffff7203df6b21c6052b53bbf40939d54123")

	for sentence, tc := range map[string]struct {
		in   []byte
		says string
	}{
		"nothing":                           {nil, "is empty"},
		"a megabyte":                        {make([]byte, 1<<20), "longer than"},
		"a sentence":                        {[]byte("please use my key"), "PKCS#8, PKCS#1 or SEC 1"},
		"a PKCS#12 file":                    {[]byte{0x30, 0x07, 0x02, 0x01, 0x03, 0x30, 0x00, 0x30, 0x00}, "openssl pkcs12 -in file.p12 -nocerts -noenc"},
		"PEM without a key":                 {toPEM("SM2 PARAMETERS", []byte{5, 0}), "contains no PRIVATE KEY"},
		"PEM cut short":                     {toPEM("PRIVATE KEY", rsaDER)[:200], "block 1 (line 1) has no END line"},
		"two keys":                          {append(toPEM("PRIVATE KEY", rsaDER), toPEM("PRIVATE KEY", sm2DER)...), "more than one private key"},
		"a key, then a damaged one":         {append(toPEM("PRIVATE KEY", rsaDER), toPEM("PRIVATE KEY", sm2DER)[:80]...), "block 2 (line 29) has no END line"},
		"a damaged one, then a key":         {append(toPEM("PRIVATE KEY", sm2DER)[:80], toPEM("PRIVATE KEY", rsaDER)...), "damaged at line 2"},
		"encrypted PKCS#8, PEM":             {sh.read("encrypted.pem"), "openssl pkey -in key.pem -out plain.pem"},
		"encrypted PKCS#8, DER":             {sh.read("encrypted.der"), "-inform DER"},
		"encrypted in the old way":          {sh.read("old.pem"), "openssl pkey -in key.pem -out plain.pem"},
		"a public key, PEM":                 {toPEM("PUBLIC KEY", rsaKey().Public().SPKI()), "a public key or certificate"},
		"a public key, DER":                 {sm2Key().Public().SPKI(), "a public key or certificate"},
		"a PKCS#1 public key, DER":          {x509.MarshalPKCS1PublicKey(rsaKey().Public().RSA()), "a public key or certificate"},
		"a certificate":                     {sh.read("cert.pem"), "a public key or certificate"},
		"a byte too many":                   {append(bytes.Clone(rsaDER), 0), "bytes follow"},
		"RSA of 1024 bits":                  {sh.read("short.pem"), "2048, 3072 or 4096 bits"},
		"RSA of 65536 bits":                 {absurd, "2048, 3072 or 4096 bits"},
		"RSA with exponent 3":               {sh.read("three.pem"), "below 65537"},
		"RSA numbers that do not fit":       {broken, "damaged"},
		"P-256, PKCS#8":                     {sh.read("p256.pem"), "OID 1.2.156.10197.1.301"},
		"P-256, SEC 1":                      {sh.read("p256sec1.pem"), "OID 1.2.156.10197.1.301"},
		"Ed25519":                           {sh.read("ed25519.pem"), "neither an RSA key"},
		"SEC 1 that names no curve":         {sec1(otherScalar), "does not name the curve"},
		"an SM2 scalar of zero":             {sm2Private(sec1(make([]byte, 32))), "damaged"},
		"an SM2 scalar of the group's size": {sm2Private(sec1(order)), "damaged"},
		"an SM2 scalar of 31 bytes":         {sm2Private(sec1(otherScalar[:31])), "damaged"},
		"an SM2 scalar of 33 bytes":         {sm2Private(sec1(append([]byte{0}, otherScalar...))), "damaged"},
		"bytes after the SM2 scalar":        {sm2Private(sec1(otherScalar, 0x05, 0x00)), "damaged"},
		"bytes after the inner SM2 key":     {sm2Private(append(sec1(otherScalar), 0x05, 0x00)), "damaged"},
		"PKCS#8 of version 2":               {replaced(t, sm2DER, []byte{0x02, 0x01, 0x00, 0x30, 0x13}, []byte{0x02, 0x01, 0x02, 0x30, 0x13}), "damaged"},
		"PKCS#8 of a negative version":      {replaced(t, sm2DER, []byte{0x02, 0x01, 0x00, 0x30, 0x13}, []byte{0x02, 0x01, 0xff, 0x30, 0x13}), "damaged"},
		"SEC 1 of version 2":                {sm2Private(append([]byte{0x30, 0x25, 0x02, 0x01, 0x02, 0x04, 0x20}, otherScalar...)), "damaged"},
		"the public half of another key":    {swapScalar(t, sm2DER, otherScalar), "do not belong together"},
	} {
		t.Run(sentence, func(t *testing.T) {
			t.Parallel()
			key, err := wrapping.ParsePrivateKey(tc.in)
			var keyError *wrapping.KeyError
			if key != nil || !errors.As(err, &keyError) {
				t.Fatalf("got key %v, error %v; want a *KeyError", key, err)
			}
			if text := err.Error(); !strings.Contains(text, tc.says) || len(text) > 250 || strings.Contains(text, "\n") {
				t.Errorf("it says %q; want %q in it, on one line", text, tc.says)
			}
		})
	}
}

func otherSM2PrivateScalar(t *testing.T) []byte {
	t.Helper()
	return scalarOf(t, pkcs8(t, otherSM2Key()))
}

func scalarOf(t *testing.T, der []byte) []byte {
	t.Helper()
	_, tail, found := bytes.Cut(der, []byte{0x02, 0x01, 0x01, 0x04, 0x20})
	if !found {
		t.Fatal("no scalar")
	}
	return tail[:32]
}

func swapScalar(t *testing.T, der, scalar []byte) []byte {
	t.Helper()
	return replaced(t, der, scalarOf(t, der), scalar)
}

func TestParsePrivateKey_takesWhatOpensslWrites(t *testing.T) {
	t.Parallel()
	sh := newShell(t)
	rsaDER, sm2DER := pkcs8(t, rsaKey()), pkcs8(t, sm2Key())
	sh.write("rsa.der", rsaDER)
	sh.write("sm2.der", sm2DER)
	convert := func(tool, in string, options ...string) []byte {
		return sh.openssl(append([]string{tool, "-inform", "DER", "-in", in}, options...)...)
	}
	sm2Old := convert("ec", "sm2.der")
	for sentence, tc := range map[string]struct {
		in   []byte
		want *wrapping.PrivateKey
	}{
		"RSA PKCS#8 DER":           {rsaDER, rsaKey()},
		"RSA PKCS#8 PEM":           {convert("pkey", "rsa.der"), rsaKey()},
		"RSA PKCS#8 DER in Base64": {lines(toB64(rsaDER)), rsaKey()},
		"RSA PKCS#1 PEM":           {convert("rsa", "rsa.der", "-traditional"), rsaKey()},
		"RSA PKCS#1 DER":           {convert("rsa", "rsa.der", "-traditional", "-outform", "DER"), rsaKey()},
		"SM2 PKCS#8 DER":           {sm2DER, sm2Key()},
		"SM2 PKCS#8 PEM":           {convert("pkey", "sm2.der"), sm2Key()},
		"SM2 SEC 1 PEM":            {sm2Old, sm2Key()},
		"SM2 SEC 1 DER":            {convert("ec", "sm2.der", "-outform", "DER"), sm2Key()},
		"SM2 SEC 1 no public half": {convert("ec", "sm2.der", "-no_public"), sm2Key()},
		"EC parameters before it": {
			append(sh.openssl("ecparam", "-name", "SM2"), bytes.ReplaceAll(sm2Old, []byte("SM2 PRIVATE"), []byte("EC PRIVATE"))...),
			sm2Key(),
		},
		"its public key before it": {append(toPEM("PUBLIC KEY", sm2Key().Public().SPKI()), convert("pkey", "sm2.der")...), sm2Key()},
	} {
		t.Run(sentence, func(t *testing.T) {
			t.Parallel()
			before := bytes.Clone(tc.in)
			got, err := wrapping.ParsePrivateKey(tc.in)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(pkcs8(t, got), pkcs8(t, tc.want)) || !got.Public().Equal(tc.want.Public()) {
				t.Error("another key")
			}
			if !bytes.Equal(tc.in, before) {
				t.Error("the caller's bytes were changed")
			}
		})
	}
}

func TestPrivateKey_PKCS8isWhatOtherLibrariesWrite(t *testing.T) {
	t.Parallel()
	for name, key := range map[string]*wrapping.PrivateKey{"RSA": rsaKey(), "SM2": sm2Key()} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			der := pkcs8(t, key)
			sh := newShell(t)
			sh.write("key.der", der)
			block := toPEM("PRIVATE KEY", der)
			if got := sh.openssl("pkey", "-inform", "DER", "-in", "key.der"); !bytes.Equal(got, block) {
				t.Error("openssl writes other PKCS#8")
			}
			if _, err := smx509.ParsePKCS8PrivateKey(der); err != nil {
				t.Errorf("gmsm: %v", err)
			}
		})
	}
}

func TestPublicKey_PrivateKey_readsWhatPKCS8Wrote(t *testing.T) {
	t.Parallel()
	secret := []byte("0123456789abcdef")
	for name, tc := range map[string]struct {
		key, other *wrapping.PrivateKey
		algorithm  wrapping.Algorithm
	}{
		"RSA": {rsaKey(), newKey(t, wrapping.RSA2048), wrapping.RSAESOAEPSHA256},
		"SM2": {sm2Key(), newKey(t, wrapping.ECSM2), wrapping.SM2PKE},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			wrapped, err := wrapping.Wrap(rand.Reader, tc.key.Public(), tc.algorithm, "", secret)
			if err != nil {
				t.Fatal(err)
			}
			read, err := tc.key.Public().PrivateKey(pkcs8(t, tc.key))
			if err != nil || !read.Public().Equal(tc.key.Public()) {
				t.Fatalf("%v, %v", read, err)
			}
			if got, err := read.Unwrap(tc.algorithm, "", wrapped); err != nil || !bytes.Equal(got, secret) {
				t.Errorf("it unwraps %x, %v", got, err)
			}
			// Halves of two keys are refused, or unwrap nothing that was wrapped under the public one.
			mixed, err := tc.key.Public().PrivateKey(pkcs8(t, tc.other))
			if name == "RSA" && err == nil {
				t.Error("the halves of two RSA keys are taken")
			}
			if err == nil {
				_, err = mixed.Unwrap(tc.algorithm, "", wrapped)
			}
			if err == nil {
				t.Error("the halves of two keys unwrap")
			}
		})
	}
	scalar := func(b byte) []byte {
		der := pkcs8(t, sm2Key())
		i := bytes.Index(der, []byte{4, 32}) + 2 // an OCTET STRING
		copy(der[i:], bytes.Repeat([]byte{b}, 32))
		return der
	}
	for name, der := range map[string][]byte{"zero": scalar(0), "more than the order": scalar(0xff), "nothing": nil, "a key of another kind": pkcs8(t, rsaKey()), "a part": pkcs8(t, sm2Key())[:40]} {
		if _, err := sm2Key().Public().PrivateKey(der); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	if _, err := rsaKey().Public().PrivateKey(pkcs8(t, sm2Key())); err == nil {
		t.Error("an SM2 key is taken for an RSA key")
	}
}

func newKey(t *testing.T, spec wrapping.KeySpec) *wrapping.PrivateKey {
	t.Helper()
	key, err := wrapping.GeneratePrivateKey(rand.Reader, spec)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestGeneratePrivateKey_refusesUnknownTypesAndBrokenRandomness(t *testing.T) {
	t.Parallel()
	for _, spec := range []wrapping.KeySpec{"", "RSA_1024", "rsa_2048"} {
		if key, err := wrapping.GeneratePrivateKey(rand.Reader, spec); key != nil || err == nil {
			t.Errorf("%q: made", spec)
		}
	}
	if key, err := wrapping.GeneratePrivateKey(strings.NewReader("short"), wrapping.ECSM2); key != nil || err == nil {
		t.Error("made from five bytes of randomness")
	}
}

func TestPrivateKey_neverPrints(t *testing.T) {
	t.Parallel()
	native := parseRSA(t, pkcs8(t, rsaKey()))
	leaks := []string{native.D.String()[:40], native.Primes[0].String()[:40]}
	for _, secret := range [][]byte{scalarOf(t, pkcs8(t, sm2Key())), native.D.Bytes(), native.Primes[0].Bytes()} {
		part := secret[4:20]
		leaks = append(leaks, hex.EncodeToString(part), strings.ToUpper(hex.EncodeToString(part)),
			fmt.Sprintf("% x", part), fmt.Sprint(part), strings.Trim(fmt.Sprint(part), "[]"), string(part))
	}
	scalar := new(big.Int).SetBytes(scalarOf(t, pkcs8(t, sm2Key())))
	leaks = append(leaks, scalar.String())

	var out bytes.Buffer
	for _, key := range []*wrapping.PrivateKey{rsaKey(), sm2Key(), {}} {
		type holder struct {
			Key    wrapping.PrivateKey
			Keys   []*wrapping.PrivateKey
			hidden wrapping.PrivateKey
			secret *wrapping.PrivateKey
		}
		held := holder{*key, []*wrapping.PrivateKey{key}, *key, key}
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "% x", "%t", "%o", "%b"} {
			if got := fmt.Sprintf(verb, key) + fmt.Sprintf(verb, *key); got != key.String()+key.String() {
				t.Errorf("%s prints %s", verb, got)
			}
			for _, value := range []any{key, *key, held, &held} {
				fmt.Fprintf(&out, verb+"\n", value)
			}
		}
		marshalled, err := json.Marshal(held)
		if err != nil {
			t.Fatal(err)
		}
		out.Write(marshalled)
		slog.New(slog.NewJSONHandler(&out, nil)).Info("Made", "key", key, "held", held)
		slog.New(slog.NewTextHandler(&out, nil)).Info("Made", "key", *key, "held", held)
		funcr.NewJSON(func(line string) { out.WriteString(line) }, funcr.Options{}).Info("Made", "key", key, "held", held)
	}
	for _, leak := range leaks {
		if strings.Contains(out.String(), leak) {
			t.Errorf("the output contains %q", leak)
		}
	}
	if !strings.Contains(out.String(), "[private key "+rsaKey().Public().Fingerprint()+"]") {
		t.Error("nothing says which key it is")
	}
}

func TestPrivateKey_Wipe_overwritesThePrivateNumbers(t *testing.T) {
	t.Parallel()
	for name, spec := range map[string]wrapping.KeySpec{"RSA": wrapping.RSA2048, "SM2": wrapping.ECSM2} {
		key, err := wrapping.GeneratePrivateKey(rand.Reader, spec)
		if err != nil {
			t.Fatal(err)
		}
		before := pkcs8(t, key)
		key.Wipe()
		if after, err := key.PKCS8(); err == nil && bytes.Equal(after, before) {
			t.Errorf("%s: the private key is still there", name)
		}
	}
}
