package controllers_test

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// recipient is the holder of a key pair that data keys are exported to.
type recipient struct {
	private *wrapping.PrivateKey
	public  *wrapping.PublicKey
}

// One recipient of each type serves all tests: making RSA keys is slow.
var (
	rsaRecipient      = sync.OnceValue(func() recipient { return newRecipient(wrapping.RSA2048) })
	otherRSARecipient = sync.OnceValue(func() recipient { return newRecipient(wrapping.RSA2048) })
	sm2Recipient      = sync.OnceValue(func() recipient { return newRecipient(wrapping.ECSM2) })
)

func newRecipient(spec wrapping.KeySpec) recipient {
	key, err := wrapping.GeneratePrivateKey(rand.Reader, spec)
	if err != nil {
		panic(err)
	}
	return recipient{key, key.Public()}
}

func (r recipient) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: r.public.SPKI()})
}

func (r recipient) privatePEM(t testing.TB) []byte {
	t.Helper()
	der, err := r.private.PKCS8()
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// certificate is a certificate of an RSA recipient; another serial number stands for a renewed one.
func (r recipient) certificate(t testing.TB, serial int64) []byte {
	t.Helper()
	der, err := r.private.PKCS8()
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<31, 0)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, r.public.RSA(), key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})
}

type exportChange = func(*v1alpha1.ExportedDataKeySpec)

// newExport exports the data key named dek to the RSA recipient, unless it is changed.
func newExport(name string, change ...exportChange) *v1alpha1.ExportedDataKey {
	e := &v1alpha1.ExportedDataKey{ObjectMeta: metav1.ObjectMeta{Name: name}}
	for _, c := range append([]exportChange{ofDataKey("dek"), toBlob(rsaRecipient().public.Base64()), withRSA("RSAES_OAEP_SHA_256")}, change...) {
		c(&e.Spec)
	}
	return e
}

// export makes an export and waits until it is there.
func (o *operator) export(t testing.TB, name string, change ...exportChange) *v1alpha1.ExportedDataKey {
	t.Helper()
	e := newExport(name, change...)
	o.Make(t, e)
	o.Ready(t, e)
	return e
}

func ofDataKey(name string) exportChange {
	return func(s *v1alpha1.ExportedDataKeySpec) {
		s.CiphertextBlob, s.EncryptionContext, s.KeyRef = "", nil, nil
		s.DataKeyRef = &v1alpha1.DataKeyReference{Name: v1alpha1.ObjectName(name)}
	}
}

// ofBlob exports an inline blob that was made under the key named key, of the export's own namespace.
func ofBlob(blob string, context map[string]v1alpha1.ContextValue) exportChange {
	return ofBlobUnder("", "key", blob, context)
}

// ofBlobUnder exports an inline blob under the key that is named.
func ofBlobUnder(namespace, key, blob string, context map[string]v1alpha1.ContextValue) exportChange {
	return func(s *v1alpha1.ExportedDataKeySpec) {
		s.DataKeyRef, s.CiphertextBlob, s.EncryptionContext = nil, blob, context
		s.KeyRef = &v1alpha1.MasterKeyReference{Kind: "ImportedKey", Name: v1alpha1.ObjectName(key), Namespace: v1alpha1.NamespaceName(namespace)}
	}
}

func toBlob(text string) exportChange {
	return func(s *v1alpha1.ExportedDataKeySpec) {
		s.PublicKey = v1alpha1.PublicKeySource{Type: v1alpha1.SourceBlob, Blob: text}
	}
}

func toSecret(name, entry string) exportChange {
	return func(s *v1alpha1.ExportedDataKeySpec) {
		s.PublicKey = v1alpha1.PublicKeySource{Type: v1alpha1.SourceSecret, SecretKeyRef: &v1alpha1.EntryReference{Name: v1alpha1.ObjectName(name), Key: v1alpha1.EntryKey(entry)}}
	}
}

func toConfigMap(name, entry string) exportChange {
	return func(s *v1alpha1.ExportedDataKeySpec) {
		s.PublicKey = v1alpha1.PublicKeySource{Type: v1alpha1.SourceConfigMap, ConfigMapKeyRef: &v1alpha1.EntryReference{Name: v1alpha1.ObjectName(name), Key: v1alpha1.EntryKey(entry)}}
	}
}

func toKey(name string) exportChange {
	return func(s *v1alpha1.ExportedDataKeySpec) {
		s.PublicKey = v1alpha1.PublicKeySource{Type: v1alpha1.SourceImportedKey, ImportedKeyRef: &v1alpha1.LocalReference{Name: v1alpha1.ObjectName(name)}}
	}
}

func withRSA(algorithm string) exportChange {
	return func(s *v1alpha1.ExportedDataKeySpec) {
		s.WrappingKeySpec, s.WrappingAlgorithm, s.SM2CiphertextFormat = "RSA_2048", algorithm, ""
	}
}

func withSM2(s *v1alpha1.ExportedDataKeySpec) { withSM2Format("")(s) }

func withSM2Format(format string) exportChange {
	return func(s *v1alpha1.ExportedDataKeySpec) {
		s.WrappingKeySpec, s.WrappingAlgorithm, s.SM2CiphertextFormat = "EC_SM2", "SM2PKE", format
	}
}

func withExportTarget(target v1alpha1.ExportTarget) exportChange {
	return func(s *v1alpha1.ExportedDataKeySpec) { s.Target = &target }
}

// exportedBytes is what an export's Secret holds for the recipient.
func (o *operator) exportedBytes(t testing.TB, e *v1alpha1.ExportedDataKey) []byte {
	t.Helper()
	o.Read(t, e)
	if e.Status.SecretRef == nil {
		t.Fatalf("%s has no Secret", e.Name)
	}
	return o.secretOf(t, e.Status.SecretRef.Name).Data["exportedDataKey"]
}

// openExport opens an export as the recipient.
func (o *operator) openExport(t testing.TB, e *v1alpha1.ExportedDataKey, to recipient) []byte {
	t.Helper()
	plain, err := to.private.Unwrap(wrapping.Algorithm(e.Spec.WrappingAlgorithm), wrapping.SM2Format(e.Spec.SM2CiphertextFormat), o.exportedBytes(t, e))
	if err != nil {
		t.Fatalf("the recipient cannot open the export: %v", err)
	}
	return plain
}

// checkExport checks that an export's Secret and status agree, and returns the Secret.
func (o *operator) checkExport(t testing.TB, e *v1alpha1.ExportedDataKey, to recipient) *corev1.Secret {
	t.Helper()
	o.Read(t, e)
	name := e.Name
	if e.Spec.Target != nil && e.Spec.Target.Name != "" {
		name = string(e.Spec.Target.Name)
	}
	s := o.secretOf(t, name)
	for entry, want := range map[string]string{
		"keyId": e.Status.KeyID, "keyVersionId": e.Status.KeyVersionID,
		"wrappingKeySpec": string(e.Spec.WrappingKeySpec), "wrappingAlgorithm": e.Spec.WrappingAlgorithm,
		"recipientFingerprint": to.public.Fingerprint(),
	} {
		if got := string(s.Data[entry]); got != want || got == "" {
			t.Errorf("%s is %q in the Secret, want %q", entry, got, want)
		}
	}
	if s.Type != v1alpha1.SecretTypeExportedDataKey || s.Labels[v1alpha1.LabelManagedBy] != v1alpha1.ManagedBy {
		t.Errorf("the Secret is of type %s with labels %v", s.Type, s.Labels)
	}
	if !metav1.IsControlledBy(s, e) {
		t.Errorf("the Secret would not go with the export: %+v", s.OwnerReferences)
	}
	status := e.Status
	if status.SecretRef == nil || status.SecretRef.Name != name || status.SecretRef.UID != string(s.UID) || status.SecretRef.ResourceVersion != s.ResourceVersion {
		t.Errorf("status.secretRef is %+v, the Secret %s %s", status.SecretRef, s.UID, s.ResourceVersion)
	}
	if status.RequestID == "" || status.Custody == "" || status.ExportTime == nil || status.RecipientFingerprint != to.public.Fingerprint() {
		t.Errorf("the status is not complete: %+v", status)
	}
	return s
}

// configMap makes a ConfigMap with one entry.
func (o *operator) configMap(t testing.TB, name, entry, text string) *corev1.ConfigMap {
	t.Helper()
	m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: o.Namespace, Name: name}, Data: map[string]string{entry: text}}
	if err := o.Create(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	return m
}

// absent checks that there is no Secret of that name.
func (o *operator) absent(t testing.TB, name string) {
	t.Helper()
	err := o.Get(t.Context(), types.NamespacedName{Namespace: o.Namespace, Name: name}, &corev1.Secret{})
	if err == nil || client.IgnoreNotFound(err) != nil {
		t.Errorf("the Secret %s should not exist: %v", name, err)
	}
}

// opensslOpen opens an export as a person does who has nothing but the private key and openssl.
func opensslOpen(t testing.TB, to recipient, algorithm string, ciphertext []byte) []byte {
	t.Helper()
	dir := t.TempDir()
	for name, content := range map[string][]byte{"private.pem": to.privatePEM(t), "wrapped": ciphertext} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	options := map[string][]string{
		"RSAES_OAEP_SHA_256": {"-pkeyopt", "rsa_padding_mode:oaep", "-pkeyopt", "rsa_oaep_md:sha256", "-pkeyopt", "rsa_mgf1_md:sha256"},
		"RSAES_OAEP_SHA_1":   {"-pkeyopt", "rsa_padding_mode:oaep"},
		"SM2PKE":             nil,
	}[algorithm]
	var out, problem bytes.Buffer
	cmd := exec.Command("openssl", append([]string{"pkeyutl", "-decrypt", "-inkey", "private.pem", "-in", "wrapped"}, options...)...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &out, &problem
	if err := cmd.Run(); err != nil {
		t.Fatalf("openssl: %v\n%s", err, problem.Bytes())
	}
	return out.Bytes()
}

// withoutSecret waits until an export has no Secret.
func (o *operator) withoutSecret(t testing.TB, e *v1alpha1.ExportedDataKey) {
	t.Helper()
	harness.Eventually(t, func() string {
		if o.secretIn(t, e.Namespace, e.Name) != nil {
			return "the Secret still exists"
		}
		return ""
	})
}
