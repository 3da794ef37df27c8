package wrapping_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/smx509"

	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// authority is a CA of a test.
type authority struct {
	cert *smx509.Certificate
	key  crypto.Signer
}

type family bool

const (
	ofRSA family = false // under CAs with P-256
	ofSM2 family = true
)

func (f family) newSigner(t testing.TB) crypto.Signer {
	t.Helper()
	if f == ofSM2 {
		key, err := sm2.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func template(name string, isCA bool) *smx509.Certificate {
	usage := smx509.KeyUsageKeyEncipherment
	if isCA {
		usage = smx509.KeyUsageCertSign
	}
	return &smx509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: isCA, BasicConstraintsValid: true, KeyUsage: usage,
		NotBefore: time.Unix(1700000000, 0), NotAfter: time.Unix(2000000000, 0),
	}
}

// issue makes a certificate of a public key; without a CA it is signed by key itself.
func (a *authority) issue(t testing.TB, name string, isCA bool, public any) []byte {
	t.Helper()
	tmpl := template(name, isCA)
	parent := tmpl
	if a.cert != nil {
		parent = a.cert
	}
	der, err := smx509.CreateCertificate(rand.Reader, tmpl, parent, public, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// newAuthority makes a CA, signed by another or, where that is nil, by itself.
func (f family) newAuthority(t testing.TB, by *authority, name string) *authority {
	t.Helper()
	key := f.newSigner(t)
	if by == nil {
		by = &authority{key: key}
	}
	return &authority{cert: parseCertificate(t, by.issue(t, name, true, key.Public())), key: key}
}

func parseCertificate(t testing.TB, der []byte) *smx509.Certificate {
	t.Helper()
	cert, err := smx509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// chain is a recipient's certificate, and those that lead to it.
type chain struct {
	leaf, issuer, root []byte
	key                *wrapping.PublicKey
	byIssuer, byRoot   *authority
}

func (f family) recipient() *wrapping.PublicKey {
	if f == ofSM2 {
		return sm2Key().Public()
	}
	return rsaKey().Public()
}

func native(key *wrapping.PublicKey) any {
	if key.RSA() != nil {
		return key.RSA()
	}
	return key.SM2()
}

func newChain(t testing.TB, f family) chain {
	t.Helper()
	root := f.newAuthority(t, nil, "root")
	issuer := f.newAuthority(t, root, "issuer")
	key := f.recipient()
	return chain{
		leaf: issuer.issue(t, "leaf", false, native(key)), issuer: issuer.cert.Raw, root: root.cert.Raw,
		key: key, byIssuer: issuer, byRoot: root,
	}
}

func bundle(certs ...[]byte) []byte {
	var text []byte
	for _, der := range certs {
		text = append(text, toPEM("CERTIFICATE", der)...)
	}
	return text
}

func TestParsePublicKey_ofAChain_takesTheLeafWhereverItStands(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]family{"RSA": ofRSA, "SM2": ofSM2} {
		c := newChain(t, f)
		// The issuer's key under a second root, and that root under the first.
		second := f.newAuthority(t, nil, "second root")
		crossed := second.issue(t, "issuer", true, c.byIssuer.key.Public())
		for sentence, in := range map[string][]byte{
			"leaf, issuer, root":     bundle(c.leaf, c.issuer, c.root),
			"leaf, root, issuer":     bundle(c.leaf, c.root, c.issuer),
			"issuer, leaf, root":     bundle(c.issuer, c.leaf, c.root),
			"issuer, root, leaf":     bundle(c.issuer, c.root, c.leaf),
			"root, leaf, issuer":     bundle(c.root, c.leaf, c.issuer),
			"root, issuer, leaf":     bundle(c.root, c.issuer, c.leaf),
			"leaf, issuer":           bundle(c.leaf, c.issuer),
			"issuer, leaf":           bundle(c.issuer, c.leaf),
			"the leaf twice":         bundle(c.leaf, c.leaf),
			"everything twice":       bundle(c.root, c.leaf, c.issuer, c.root, c.leaf, c.issuer),
			"an issuer with 2 roots": bundle(second.cert.Raw, crossed, c.leaf, c.issuer, c.root),
			"in Base64":              toB64(bundle(c.root, c.issuer, c.leaf)),
		} {
			t.Run(name+": "+sentence, func(t *testing.T) {
				t.Parallel()
				got, err := wrapping.ParsePublicKey(in)
				if err != nil || !got.Equal(c.key) {
					t.Errorf("%v, %v; want the leaf's key %s", got, err, c.key.Fingerprint())
				}
			})
		}
	}
}

func TestParsePublicKey_refusesCertificatesAmongWhichTheRecipientsIsUnclear(t *testing.T) {
	t.Parallel()
	c := newChain(t, ofRSA)
	public := toPEM("PUBLIC KEY", c.key.SPKI())
	other := otherRSAKey().Public()
	secondLeaf := c.byIssuer.issue(t, "second leaf", false, other.RSA())
	impostor := ofRSA.newAuthority(t, nil, "issuer")
	damaged := bytes.Clone(c.leaf)
	damaged[len(damaged)-1] ^= 1 // in the signature
	var many [][]byte
	for by := c.byIssuer; len(many) < 11; by = ofRSA.newAuthority(t, by, "issuer") {
		many = append(many, by.cert.Raw)
	}
	for sentence, tc := range map[string]struct {
		in   []byte
		says string
	}{
		"two leaves of one CA":                   {bundle(c.leaf, secondLeaf, c.issuer), "do not form one chain"},
		"two leaves of one CA, without it":       {bundle(c.leaf, secondLeaf), "do not form one chain"},
		"certificates of two chains":             {bundle(c.leaf, c.issuer, ofRSA.newAuthority(t, nil, "else").cert.Raw), "do not form one chain"},
		"a chain with a gap":                     {bundle(c.leaf, c.root), "do not form one chain"},
		"an issuer of that name with other keys": {bundle(c.leaf, impostor.cert.Raw), "do not form one chain"},
		"a leaf whose signature is damaged":      {bundle(damaged, c.issuer, c.root), "do not form one chain"},
		"CAs alone":                              {bundle(c.issuer, c.root), "all certificates in the chain are CA certificates"},
		"eleven certificates":                    {bundle(many...), "more than 10 certificates"},
		"a public key and a certificate":         {append(bytes.Clone(public), bundle(c.leaf)...), "more than one public key"},
		"a certificate and a public key":         {append(bundle(c.leaf), public...), "more than one public key"},
		"two public keys":                        {append(bytes.Clone(public), toPEM("PUBLIC KEY", other.SPKI())...), "more than one public key"},
		"the same public key twice":              {append(bytes.Clone(public), public...), "more than one public key"},
		"two public keys, DER":                   {append(c.key.SPKI(), other.SPKI()...), "bytes follow"},
		"two public keys, DER in Base64":         {toB64(append(c.key.SPKI(), other.SPKI()...)), "bytes follow"},
		"two certificates, DER":                  {append(bytes.Clone(c.leaf), c.issuer...), "bytes follow"},
		"a damaged certificate in a chain":       {bundle(c.leaf[:len(c.leaf)-9], c.issuer), "damaged certificate"},
		"a public key with a certificate inside": {append(toPEM("PUBLIC KEY", c.leaf), bundle(c.issuer)...), "more than one public key"},
	} {
		t.Run(sentence, func(t *testing.T) {
			t.Parallel()
			got, err := wrapping.ParsePublicKey(tc.in)
			var keyError *wrapping.KeyError
			if got != nil || !errors.As(err, &keyError) || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("got key %v, error %v; want %q", got, err, tc.says)
			}
		})
	}
}

// absurdSigner is an RSA key of 9216 bits, which is quick to make because its modulus is the power of one prime.
type absurdSigner struct{ n, d *big.Int }

func newAbsurdSigner(t testing.TB) absurdSigner {
	t.Helper()
	p, err := rand.Prime(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	power := new(big.Int).Exp(p, big.NewInt(8), nil)
	order := new(big.Int).Mul(power, new(big.Int).Sub(p, big.NewInt(1)))
	return absurdSigner{n: new(big.Int).Mul(power, p), d: new(big.Int).ModInverse(big.NewInt(65537), order)}
}

func (s absurdSigner) Public() crypto.PublicKey { return &rsa.PublicKey{N: s.n, E: 65537} }

// Sign makes an RSASSA-PKCS1-v1_5 signature with SHA-256 (RFC 8017, section 8.2.1).
func (s absurdSigner) Sign(_ io.Reader, digest []byte, _ crypto.SignerOpts) ([]byte, error) {
	size := (s.n.BitLen() + 7) / 8
	tail := append([]byte{0x00, 0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00, 0x04, 0x20}, digest...)
	encoded := append([]byte{0x00, 0x01}, bytes.Repeat([]byte{0xff}, size-2-len(tail))...)
	m := new(big.Int).SetBytes(append(encoded, tail...))
	return m.Exp(m, s.d, s.n).FillBytes(make([]byte, size)), nil
}

// With a signer's key of absurd size nothing is computed, however right the signature is.
func TestParsePublicKey_ofAChain_doesNotVerifyUnderAnAbsurdlyLongKey(t *testing.T) {
	t.Parallel()
	signer := newAbsurdSigner(t)
	self := &authority{key: signer}
	ca := &authority{key: signer, cert: parseCertificate(t, self.issue(t, "issuer", true, signer.Public()))}
	leaf := ca.issue(t, "leaf", false, native(rsaKey().Public()))
	if err := parseCertificate(t, leaf).CheckSignatureFrom(ca.cert); err != nil {
		t.Fatalf("the test's signature is not valid: %v", err)
	}
	if got, err := wrapping.ParsePublicKey(bundle(leaf, ca.cert.Raw)); got != nil || err == nil {
		t.Errorf("got %v, %v", got, err)
	}
}
