package wrapping_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"math/big"
	"strings"
	"testing"

	"github.com/emmansun/gmsm/smx509"

	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

func toPEM(blockType string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: blockType, Bytes: der})
}

func toB64(raw []byte) []byte { return []byte(base64.StdEncoding.EncodeToString(raw)) }

// lines breaks Base64 as openssl does, with the line ends of Windows.
func lines(b64 []byte) []byte {
	var out []byte
	for ; len(b64) > 64; b64 = b64[64:] {
		out = append(append(out, b64[:64]...), "\r\n"...)
	}
	return append(append(out, b64...), "\r\n"...)
}

func spki(t *testing.T, key any) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// oddNumber is an odd number of so many bits, good enough for a modulus that is refused or only
// parsed.
func oddNumber(bits uint) *big.Int {
	n := new(big.Int).Lsh(big.NewInt(1), bits-1)
	return n.Add(n, big.NewInt(12345))
}

// replaced returns der with one occurrence of old replaced by as many bytes.
func replaced(t *testing.T, der, old, by []byte) []byte {
	t.Helper()
	if bytes.Count(der, old) != 1 || len(old) != len(by) {
		t.Fatalf("%x is %d times in the DER", old, bytes.Count(der, old))
	}
	return bytes.Replace(der, old, by, 1)
}

func TestParsePublicKey_refusesWithAReasonThatSaysWhatToDo(t *testing.T) {
	t.Parallel()
	sh := newShell(t)
	rsaPublic, sm2Public := rsaKey().Public(), sm2Key().Public()
	rsaDER, sm2DER := rsaPublic.SPKI(), sm2Public.SPKI()
	pkcs1 := x509.MarshalPKCS1PublicKey(rsaPublic.RSA())
	private, sm2Private := pkcs8(t, rsaKey()), pkcs8(t, sm2Key())
	sh.write("rsa.der", private)
	sh.write("sm2.der", sm2Private)
	sh.openssl("pkey", "-inform", "DER", "-in", "rsa.der", "-traditional", "-out", "pkcs1.pem")
	sh.openssl("ec", "-inform", "DER", "-in", "sm2.der", "-out", "sec1.pem")
	sh.openssl("ec", "-inform", "DER", "-in", "sm2.der", "-outform", "DER", "-out", "sec1.der")
	sh.openssl("pkey", "-inform", "DER", "-in", "rsa.der", "-aes128", "-passout", "pass:secret", "-out", "encrypted.pem")
	sh.openssl("pkcs8", "-topk8", "-inform", "DER", "-in", "rsa.der", "-outform", "DER", "-passout", "pass:secret", "-out", "encrypted.der")
	sh.openssl("ec", "-inform", "DER", "-in", "sm2.der", "-pubout", "-param_enc", "explicit", "-out", "explicit.pem")
	sh.openssl("ec", "-inform", "DER", "-in", "sm2.der", "-pubout", "-conv_form", "compressed", "-out", "compressed.pem")
	sh.openssl("req", "-new", "-keyform", "DER", "-key", "rsa.der", "-subj", "/CN=request", "-out", "request.pem")
	sh.openssl("req", "-x509", "-keyform", "DER", "-key", "rsa.der", "-subj", "/CN=recipient", "-outform", "DER", "-out", "cert.der")
	sh.openssl("genpkey", "-algorithm", "RSA-PSS", "-pkeyopt", "rsa_keygen_bits:2048", "-out", "pss.pem")
	pss := sh.openssl("pkey", "-in", "pss.pem", "-pubout")
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ed, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	n := rsaPublic.RSA().N
	tooWide := replaced(t, rsaDER, []byte{0x02, 0x03, 0x01, 0x00, 0x01}, []byte{0x02, 0x03, 0x00, 0x00, 0x01})
	offCurve := bytes.Clone(sm2DER)
	offCurve[len(offCurve)-1] ^= 1
	nullParameters := []byte{0x01, 0x05, 0x00, 0x03, 0x82}

	for sentence, tc := range map[string]struct {
		in   []byte
		says string
	}{
		"nothing":                         {nil, "is empty"},
		"white space":                     {[]byte(" \r\n\t"), "is empty"},
		"a megabyte":                      {make([]byte, 1<<20), "longer than"},
		"a sentence":                      {[]byte("please use my key"), "SubjectPublicKeyInfo"},
		"zeros":                           {make([]byte, 300), "SubjectPublicKeyInfo"},
		"Base64 of a sentence":            {toB64([]byte("please use my key")), "SubjectPublicKeyInfo"},
		"Base64 of Base64":                {toB64(toB64(rsaDER)), "SubjectPublicKeyInfo"},
		"an empty sequence":               {[]byte{0x30, 0}, "SubjectPublicKeyInfo"},
		"an SSH key":                      {[]byte("ssh-rsa AAAAB3NzaC1yc2E= me@here"), "ssh-keygen -e -m PKCS8"},
		"PKCS#1 PEM":                      {toPEM("RSA PUBLIC KEY", pkcs1), "openssl rsa -RSAPublicKey_in -in key.pem -pubout"},
		"PKCS#1 DER":                      {pkcs1, "-inform DER"},
		"PKCS#1 DER in Base64":            {toB64(pkcs1), "openssl rsa -RSAPublicKey_in"},
		"a PKCS#8 private key, PEM":       {toPEM("PRIVATE KEY", private), "a private key, which must not be put here"},
		"a PKCS#8 private key, DER":       {private, "a private key"},
		"a PKCS#8 private key, Base64":    {toB64(private), "a private key"},
		"a private PEM in Base64":         {toB64(toPEM("PRIVATE KEY", private)), "a private key"},
		"a PKCS#1 private key, PEM":       {sh.read("pkcs1.pem"), "a private key"},
		"a PKCS#1 private key, DER":       {x509.MarshalPKCS1PrivateKey(parseRSA(t, private)), "a private key"},
		"a SEC 1 private key, PEM":        {sh.read("sec1.pem"), "a private key"},
		"a SEC 1 private key, DER":        {sh.read("sec1.der"), "a private key"},
		"an encrypted private key, PEM":   {sh.read("encrypted.pem"), "a private key"},
		"an encrypted private key, DER":   {sh.read("encrypted.der"), "a private key"},
		"a public key, then a private":    {append(toPEM("PUBLIC KEY", rsaDER), toPEM("PRIVATE KEY", private)...), "a private key"},
		"a certificate, then a private":   {append(toPEM("CERTIFICATE", sh.read("cert.der")), sh.read("pkcs1.pem")...), "a private key"},
		"a damaged private PEM":           {[]byte("-----BEGIN PRIVATE KEY-----\nMIIE"), "a private key"},
		"a certificate request":           {sh.read("request.pem"), "openssl req -in request.pem -pubkey -noout"},
		"PEM cut short":                   {toPEM("PUBLIC KEY", rsaDER)[:200], "block 1 (line 1) has no END line"},
		"PEM on one line":                 {bytes.ReplaceAll(toPEM("PUBLIC KEY", rsaDER), []byte("\n"), []byte(" ")), "keep its line breaks"},
		"PEM of something else":           {toPEM("PUBLIC KEY", []byte("hello")), "SubjectPublicKeyInfo"},
		"DER and one more byte":           {append(bytes.Clone(rsaDER), 0), "bytes follow"},
		"DER and a line end":              {append(bytes.Clone(sm2DER), '\n'), "bytes follow"},
		"Base64 of DER and one more byte": {toB64(append(bytes.Clone(sm2DER), 0)), "bytes follow"},
		"PEM with a byte after the DER":   {toPEM("PUBLIC KEY", append(bytes.Clone(rsaDER), 0)), "bytes follow"},
		"DER cut short":                   {rsaDER[:200], "SubjectPublicKeyInfo"},
		"a certificate cut short":         {sh.read("cert.der")[:300], "SubjectPublicKeyInfo"},
		"a certificate without a key":     {[]byte{0x30, 0x07, 0x30, 0x00, 0x30, 0x00, 0x03, 0x01, 0x00}, "certificate is damaged"},
		"RSA without its NULL":            {replaced(t, rsaDER, nullParameters, []byte{0x01, 0x04, 0x00, 0x03, 0x82}), "damaged"},
		"RSA exponent not minimal":        {tooWide, "damaged"},
		"RSA of 1024 bits":                {spki(t, &rsa.PublicKey{N: oddNumber(1024), E: 65537}), "2048, 3072 or 4096 bits"},
		"RSA of 2047 bits":                {spki(t, &rsa.PublicKey{N: oddNumber(2047), E: 65537}), "2048, 3072 or 4096 bits"},
		"RSA of 2056 bits":                {spki(t, &rsa.PublicKey{N: oddNumber(2056), E: 65537}), "2048, 3072 or 4096 bits"},
		"RSA of 8192 bits":                {spki(t, &rsa.PublicKey{N: oddNumber(8192), E: 65537}), "2048, 3072 or 4096 bits"},
		"RSA with an even modulus":        {spki(t, &rsa.PublicKey{N: new(big.Int).Sub(n, big.NewInt(1)), E: 65537}), "even"},
		"RSA with exponent 3":             {spki(t, &rsa.PublicKey{N: n, E: 3}), "below 65537"},
		"RSA with exponent 1":             {spki(t, &rsa.PublicKey{N: n, E: 1}), "below 65537"},
		"RSA with an even exponent":       {spki(t, &rsa.PublicKey{N: n, E: 65538}), "even"},
		"RSA with an exponent of 2^32+1":  {spki(t, &rsa.PublicKey{N: n, E: 1<<32 + 1}), "above 2147483647"},
		"RSA for signatures only (PSS)":   {pss, "for signatures only (RSASSA-PSS)"},
		"P-256":                           {spki(t, &p256.PublicKey), "on the curve P-256"},
		"Ed25519":                         {spki(t, ed), "a key for Ed25519"},
		"SM2 with explicit parameters":    {sh.read("explicit.pem"), "-param_enc named_curve"},
		"SM2 compressed":                  {sh.read("compressed.pem"), "-conv_form uncompressed"},
		"SM2 off the curve":               {offCurve, "not on the curve"},
		"SM2 at infinity":                 {append(append([]byte{0x30, 0x19}, sm2DER[2:23]...), 0x03, 0x02, 0x00, 0x00), "not on the curve"},
		"a byte after the key inside":     {rsaSPKI(t, rsaPublic.RSA(), nil, []byte{0}, nil), "damaged"},
		"an integer after the key inside": {rsaSPKI(t, rsaPublic.RSA(), nil, []byte{2, 1, 1}, nil), "damaged"},
		"a byte after the algorithm":      {rsaSPKI(t, rsaPublic.RSA(), []byte{0}, nil, nil), "damaged"},
		"a byte after the bits":           {rsaSPKI(t, rsaPublic.RSA(), nil, nil, []byte{0}), "damaged"},
		"a value after the bits":          {rsaSPKI(t, rsaPublic.RSA(), nil, nil, []byte{5, 0}), "SubjectPublicKeyInfo"},
		"two curves":                      {sm2SPKI(t, sm2DER, []byte{6, 1, 42}), "does not name the curve"},
		"SM2 with unused bits":            {replaced(t, sm2DER, []byte{0x03, 0x42, 0x00, 0x04}, []byte{0x03, 0x42, 0x01, 0x04}), "damaged"},
	} {
		t.Run(sentence, func(t *testing.T) {
			t.Parallel()
			key, err := wrapping.ParsePublicKey(tc.in)
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

// sequence is a DER SEQUENCE of the given parts.
func sequence(t *testing.T, parts ...[]byte) []byte {
	t.Helper()
	der, err := asn1.Marshal(asn1.RawValue{Tag: asn1.TagSequence, IsCompound: true, Bytes: bytes.Join(parts, nil)})
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func bits(t *testing.T, content []byte) []byte {
	t.Helper()
	der, err := asn1.Marshal(asn1.BitString{Bytes: content, BitLength: 8 * len(content)})
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// rsaSPKI is a SubjectPublicKeyInfo with something more in its algorithm, its key or behind both.
func rsaSPKI(t *testing.T, key *rsa.PublicKey, inAlgorithm, inKey, behind []byte) []byte {
	t.Helper()
	n, err := asn1.Marshal(key.N)
	if err != nil {
		t.Fatal(err)
	}
	oid := []byte{0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01}
	algorithm := sequence(t, oid, []byte{5, 0}, inAlgorithm)
	return sequence(t, algorithm, bits(t, sequence(t, n, []byte{2, 3, 1, 0, 1}, inKey)), behind)
}

// sm2SPKI is der with something more after the curve.
func sm2SPKI(t *testing.T, der, inAlgorithm []byte) []byte {
	t.Helper()
	return sequence(t, sequence(t, der[4:23], inAlgorithm), der[23:])
}

func parseRSA(t *testing.T, der []byte) *rsa.PrivateKey {
	t.Helper()
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		t.Fatal(err)
	}
	return key.(*rsa.PrivateKey)
}

func TestParsePublicKey_takesEveryFormInWhichPeopleHandKeysOver(t *testing.T) {
	t.Parallel()
	for name, key := range map[string]*wrapping.PrivateKey{"RSA": rsaKey(), "SM2": sm2Key()} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sh := newShell(t)
			sh.write("key.der", pkcs8(t, key))
			sh.openssl("req", "-x509", "-keyform", "DER", "-key", "key.der", "-subj", "/CN=recipient", "-outform", "DER", "-out", "cert.der")
			der := sh.openssl("pkey", "-inform", "DER", "-in", "key.der", "-pubout", "-outform", "DER")
			public := sh.openssl("pkey", "-inform", "DER", "-in", "key.der", "-pubout")
			cert := sh.read("cert.der")
			certificate := sh.openssl("x509", "-inform", "DER", "-in", "cert.der")
			verbose := sh.openssl("x509", "-inform", "DER", "-in", "cert.der", "-text")
			windows := bytes.ReplaceAll(public, []byte("\n"), []byte("\r\n"))
			for sentence, in := range map[string][]byte{
				"DER":                              der,
				"Base64 of DER on one line":        toB64(der),
				"Base64 of DER as openssl base64":  lines(toB64(der)),
				"PEM":                              public,
				"PEM with line ends of Windows":    windows,
				"PEM with a byte-order mark":       append([]byte("\ufeff"), windows...),
				"PEM with text before and after":   append(append([]byte("0 my key:\n"), public...), "bye\n"...),
				"PEM without a line end":           bytes.TrimSpace(public),
				"PEM in Base64":                    toB64(public),
				"a certificate, DER":               cert,
				"a certificate, DER in Base64":     lines(toB64(cert)),
				"a certificate, PEM":               certificate,
				"a certificate with its text":      verbose,
				"a certificate, PEM in Base64":     toB64(certificate),
				"parameters before the public key": append(toPEM("SM2 PARAMETERS", []byte{5, 0}), public...),
			} {
				t.Run(sentence, func(t *testing.T) {
					t.Parallel()
					got, err := wrapping.ParsePublicKey(in)
					if err != nil {
						t.Fatal(err)
					}
					if !got.Equal(key.Public()) || !bytes.Equal(got.SPKI(), der) || got.Spec() != key.Public().Spec() {
						t.Errorf("another key: %x", got.SPKI())
					}
				})
			}
		})
	}
}

func TestPublicKey_saysTheSameAsOtherLibraries(t *testing.T) {
	t.Parallel()
	for name, key := range map[string]*wrapping.PublicKey{"RSA": rsaKey().Public(), "SM2": sm2Key().Public()} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sh := newShell(t)
			sh.write("public.pem", toPEM("PUBLIC KEY", key.SPKI()))
			sh.openssl("pkey", "-pubin", "-in", "public.pem", "-outform", "DER", "-out", "public.der")
			if der := sh.read("public.der"); !bytes.Equal(der, key.SPKI()) || key.Base64() != string(toB64(der)) {
				t.Errorf("openssl writes %x, we %x", der, key.SPKI())
			}
			_, digest, _ := strings.Cut(string(sh.openssl("dgst", "-sha256", "public.der")), "= ")
			if want := "SHA256:" + strings.TrimSpace(digest); key.Fingerprint() != want {
				t.Errorf("Fingerprint = %s; openssl says %s", key.Fingerprint(), want)
			}
			var native any = key.RSA()
			if key.RSA() == nil {
				native = key.SM2()
			}
			if der, err := smx509.MarshalPKIXPublicKey(native); err != nil || !bytes.Equal(der, key.SPKI()) {
				t.Errorf("gmsm writes %x (%v), we %x", der, err, key.SPKI())
			}
		})
	}
}

func TestPublicKey_isOfOneTypeOnly(t *testing.T) {
	t.Parallel()
	if k := rsaKey().Public(); k.Spec() != wrapping.RSA2048 || k.RSA() == nil || k.SM2() != nil || len(k.SPKI()) != 294 {
		t.Errorf("RSA: %s, %v, %v, %d bytes", k.Spec(), k.RSA(), k.SM2(), len(k.SPKI()))
	}
	if k := sm2Key().Public(); k.Spec() != wrapping.ECSM2 || k.RSA() != nil || k.SM2() == nil || len(k.SPKI()) != 91 {
		t.Errorf("SM2: %s, %v, %v, %d bytes", k.Spec(), k.RSA(), k.SM2(), len(k.SPKI()))
	}
	for spec, bits := range map[wrapping.KeySpec]uint{wrapping.RSA3072: 3072, wrapping.RSA4096: 4096} {
		k, err := wrapping.FromRSA(&rsa.PublicKey{N: oddNumber(bits), E: 65537})
		if err != nil || k.Spec() != spec {
			t.Errorf("%d bits: %v, %v; want %s", bits, k, err, spec)
		}
	}
}

func TestPublicKey_equalsItselfOnly(t *testing.T) {
	t.Parallel()
	var none *wrapping.PublicKey
	a, b := rsaKey().Public(), otherRSAKey().Public()
	again, err := wrapping.FromRSA(a.RSA())
	if err != nil {
		t.Fatal(err)
	}
	if a.Equal(b) || a.Equal(sm2Key().Public()) || a.Equal(nil) || none.Equal(a) {
		t.Error("different keys are equal")
	}
	if !a.Equal(again) || !none.Equal(nil) {
		t.Error("the same key is not equal")
	}
}

func TestFromRSA_copiesTheKey(t *testing.T) {
	t.Parallel()
	native := &rsa.PublicKey{N: oddNumber(2048), E: 65537}
	key, err := wrapping.FromRSA(native)
	if err != nil {
		t.Fatal(err)
	}
	native.N.SetInt64(1)
	if key.RSA().N.BitLen() != 2048 {
		t.Error("the key changed with its source")
	}
}

func TestFromNative_refusesWhatIsNoKey(t *testing.T) {
	t.Parallel()
	good := sm2Key().Public().SM2()
	for sentence, key := range map[string]*ecdsa.PublicKey{
		"no key":         nil,
		"no coordinates": {Curve: good.Curve},
		"another curve":  {Curve: elliptic.P256(), X: good.X, Y: good.Y},
		"infinity":       {Curve: good.Curve, X: new(big.Int), Y: new(big.Int)},
		"negative":       {Curve: good.Curve, X: new(big.Int).Neg(good.X), Y: good.Y},
		"too long":       {Curve: good.Curve, X: good.X, Y: new(big.Int).Lsh(good.Y, 8)},
		"not reduced":    {Curve: good.Curve, X: new(big.Int).Add(good.X, good.Curve.Params().P), Y: good.Y},
	} {
		if got, err := wrapping.FromSM2(key); got != nil || err == nil {
			t.Errorf("%s: taken", sentence)
		}
	}
	for sentence, key := range map[string]*rsa.PublicKey{
		"no key":      nil,
		"no modulus":  {E: 65537},
		"negative":    {N: new(big.Int).Neg(oddNumber(2048)), E: 65537},
		"no exponent": {N: oddNumber(2048)},
		"negative e":  {N: oddNumber(2048), E: -65537},
	} {
		if got, err := wrapping.FromRSA(key); got != nil || err == nil {
			t.Errorf("%s: taken", sentence)
		}
	}
}

// The helpers above make keys that are refused for what they add, and for nothing else.
func TestParsePublicKey_takesWhatTheHelpersMakeWithoutAddition(t *testing.T) {
	t.Parallel()
	rsaPublic, sm2Public := rsaKey().Public(), sm2Key().Public()
	if got := rsaSPKI(t, rsaPublic.RSA(), nil, nil, nil); !bytes.Equal(got, rsaPublic.SPKI()) {
		t.Errorf("RSA: %x", got)
	}
	if got := sm2SPKI(t, sm2Public.SPKI(), nil); !bytes.Equal(got, sm2Public.SPKI()) {
		t.Errorf("SM2: %x", got)
	}
}
