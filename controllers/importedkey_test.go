package controllers_test

import (
	"crypto/rand"
	"encoding/base64"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// importedKey is a key in the store of the test's namespace. Its import parameters are the ones that cost
// least: an SM2 pair is made in no time.
func importedKey(name string, change ...func(*v1alpha1.ImportedKeySpec)) *v1alpha1.ImportedKey {
	key := &v1alpha1.ImportedKey{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: v1alpha1.ImportedKeySpec{
			KeyStoreRef:      v1alpha1.KeyStoreReference{Kind: "KeyStore", Name: "store"},
			KeySpec:          v1alpha1.KeySpec(hsm.AES256),
			ImportParameters: &v1alpha1.ImportParametersSpec{WrappingKeySpec: "EC_SM2", WrappingAlgorithm: "SM2PKE"},
		},
	}
	for _, c := range change {
		c(&key.Spec)
	}
	return key
}

// under sets the import parameters.
func under(spec v1alpha1.WrappingKeySpec, algorithm string) func(*v1alpha1.ImportedKeySpec) {
	return func(s *v1alpha1.ImportedKeySpec) {
		s.ImportParameters = &v1alpha1.ImportParametersSpec{WrappingKeySpec: spec, WrappingAlgorithm: algorithm}
	}
}

func ofSpec(spec hsm.KeySpec) func(*v1alpha1.ImportedKeySpec) {
	return func(s *v1alpha1.ImportedKeySpec) { s.KeySpec = v1alpha1.KeySpec(spec) }
}

func inClusterStore(name string) func(*v1alpha1.ImportedKeySpec) {
	return func(s *v1alpha1.ImportedKeySpec) {
		s.KeyStoreRef = v1alpha1.KeyStoreReference{Kind: "ClusterKeyStore", Name: v1alpha1.ObjectName(name)}
	}
}

// pendingKey makes a key and waits until it publishes its parameters.
func (o *operator) pendingKey(t testing.TB, name string, change ...func(*v1alpha1.ImportedKeySpec)) *v1alpha1.ImportedKey {
	t.Helper()
	key := importedKey(name, change...)
	o.Make(t, key)
	o.Waits(t, key, v1alpha1.ReasonPendingImport)
	return key
}

// enabledKey makes a key with that material, or random one, and waits until it is Enabled.
func (o *operator) enabledKey(t testing.TB, name string, material []byte, change ...func(*v1alpha1.ImportedKeySpec)) *v1alpha1.ImportedKey {
	t.Helper()
	key := o.pendingKey(t, name, change...)
	if material == nil {
		material = o.material(hsm.KeySpec(key.Spec.KeySpec).Len())
	}
	o.give(t, key, inline(wrapUnder(t, key.Status.ImportParameters, material), key.Status.ImportParameters.ImportToken))
	o.enabled(t, key)
	return key
}

func (o *operator) enabled(t testing.TB, key *v1alpha1.ImportedKey) {
	t.Helper()
	o.Ready(t, key)
	if key.Status.KeyState != "Enabled" {
		t.Errorf("the key is Ready and %s", key.Status.KeyState)
	}
}

// give sets a key's material.
func (o *operator) give(t testing.TB, key *v1alpha1.ImportedKey, m *v1alpha1.MaterialSpec) {
	t.Helper()
	o.Change(t, key, func() { key.Spec.Material = m })
}

func inline(wrapped []byte, token string) *v1alpha1.MaterialSpec {
	return &v1alpha1.MaterialSpec{EncryptedKeyMaterial: base64.StdEncoding.EncodeToString(wrapped), ImportToken: token}
}

// material is random material that nothing may show.
func (o *operator) material(n int) []byte {
	m := make([]byte, n)
	_, _ = rand.Read(m)
	o.Hide("material", m)
	return m
}

func wrapUnder(t testing.TB, p *v1alpha1.ImportParameters, material []byte) []byte {
	t.Helper()
	key, err := wrapping.ParsePublicKey([]byte(p.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	wrapped, err := wrapping.Wrap(rand.Reader, key, wrapping.Algorithm(p.WrappingAlgorithm), "", material)
	if err != nil {
		t.Fatal(err)
	}
	return wrapped
}

// opensslWrap wraps material as a person does who has nothing but the status and openssl.
func opensslWrap(t testing.TB, p *v1alpha1.ImportParameters, material []byte) []byte {
	t.Helper()
	dir := t.TempDir()
	der, err := base64.StdEncoding.DecodeString(p.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"public.der": der, "material": material} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	options := map[string][]string{
		"RSAES_OAEP_SHA_256": {"-pkeyopt", "rsa_padding_mode:oaep", "-pkeyopt", "rsa_oaep_md:sha256", "-pkeyopt", "rsa_mgf1_md:sha256"},
		"RSAES_OAEP_SHA_1":   {"-pkeyopt", "rsa_padding_mode:oaep"},
		"RSAES_PKCS1_V1_5":   nil,
		"SM2PKE":             nil,
	}[p.WrappingAlgorithm]
	cmd := exec.Command("openssl", append([]string{
		"pkeyutl", "-encrypt", "-pubin", "-keyform", "DER", "-inkey", "public.der", "-in", "material", "-out", "wrapped",
	}, options...)...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("openssl: %v\n%s", err, out)
	}
	wrapped, err := os.ReadFile(filepath.Join(dir, "wrapped"))
	if err != nil {
		t.Fatal(err)
	}
	return wrapped
}

func TestImportedKey_materialFromOpenssl_isImported(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		store   string
		key     hsm.KeySpec
		under   func(*v1alpha1.ImportedKeySpec)
		custody hsm.Custody
	}{
		"software, RSA-OAEP SHA-256":                       {onSoftware, hsm.AES256, under("RSA_2048", "RSAES_OAEP_SHA_256"), hsm.CustodySoftware},
		"software, RSA-OAEP SHA-1, a key of 192 bits":      {onSoftware, hsm.AES192, under("RSA_2048", "RSAES_OAEP_SHA_1"), hsm.CustodySoftware},
		"software, SM2 for SM4":                            {onSoftware, hsm.SM4, under("EC_SM2", "SM2PKE"), hsm.CustodySoftware},
		"SoftHSM, RSA-OAEP SHA-1: inside the module":       {onSoftHSM, hsm.AES256, under("RSA_2048", "RSAES_OAEP_SHA_1"), hsm.CustodyModule},
		"SoftHSM, RSA-OAEP SHA-256: padding off in memory": {onSoftHSM, hsm.AES128, under("RSA_2048", "RSAES_OAEP_SHA_256"), hsm.CustodyHost},
		"NSS, RSA-OAEP SHA-1: inside the module":           {onNSS, hsm.AES128, under("RSA_2048", "RSAES_OAEP_SHA_1"), hsm.CustodyModule},
		"NSS, RSA-OAEP SHA-256: inside the module":         {onNSS, hsm.AES256, under("RSA_2048", "RSAES_OAEP_SHA_256"), hsm.CustodyModule},
	} {
		t.Run(name, func(t *testing.T) {
			o := startOperator(t)
			o.store(t, c.store)
			key := o.pendingKey(t, "key", ofSpec(c.key), c.under)
			wantPublished(t, key)
			material := o.material(c.key.Len())
			o.give(t, key, inline(opensslWrap(t, key.Status.ImportParameters, material), key.Status.ImportParameters.ImportToken))
			o.enabled(t, key)
			if got := hsm.Custody(key.Status.Custody); got != c.custody {
				t.Errorf("custody is %s, want %s", got, c.custody)
			}
			want, err := hsm.FingerprintOf(c.key, material)
			if err != nil || key.Status.MaterialFingerprint != want.String() {
				t.Errorf("the fingerprint is %s, want %s (%v)", key.Status.MaterialFingerprint, want, err)
			}
			harness.WantWords(t, o.Event(t, key, "KeyState"), []string{"was PendingImport", "is Enabled"})
			if all := o.Events(t, key); len(all) != 1 {
				t.Errorf("a success makes one event: %q", all)
			}
		})
	}
}

// wantPublished checks what a key says that waits for its material.
func wantPublished(t testing.TB, key *v1alpha1.ImportedKey) {
	t.Helper()
	s := key.Status
	if s.KeyID != string(key.UID) || s.KeyVersionID == "" || s.KeyVersionID == s.KeyID || s.Origin != "EXTERNAL" || s.KeyState != "PendingImport" {
		t.Errorf("the key says it is %s, version %s, origin %s, %s", s.KeyID, s.KeyVersionID, s.Origin, s.KeyState)
	}
	p := s.ImportParameters
	if p == nil {
		t.Fatal("it publishes no import parameters")
	}
	public, err := wrapping.ParsePublicKey([]byte(p.PublicKey))
	if err != nil || public.Fingerprint() != p.PublicKeyFingerprint || string(public.Spec()) != string(p.WrappingKeySpec) {
		t.Errorf("the public key is not what is said of it: %v", err)
	}
	if p.WrappingKeySpec != key.Spec.ImportParameters.WrappingKeySpec || p.WrappingAlgorithm != key.Spec.ImportParameters.WrappingAlgorithm {
		t.Errorf("%s and %s were not asked for", p.WrappingKeySpec, p.WrappingAlgorithm)
	}
	if raw, err := base64.StdEncoding.DecodeString(p.ImportToken); err != nil || len(raw) == 0 {
		t.Errorf("the token is no Base64: %v", err)
	}
}
