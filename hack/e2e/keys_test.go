package e2e

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
)

// recipient is a key pair to which the tests export.
type recipient struct{ key *rsa.PrivateKey }

func newRecipient(t testing.TB) recipient {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return recipient{key}
}

func (r recipient) publicKey(t testing.TB) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(r.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(der)
}

// export returns an export of the DataKey "ledger".
func (r recipient) export(t testing.TB, namespace, name string) *v1alpha1.ExportedDataKey {
	t.Helper()
	return &v1alpha1.ExportedDataKey{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: v1alpha1.ExportedDataKeySpec{
			DataKeyRef:        &v1alpha1.DataKeyReference{Name: "ledger"},
			PublicKey:         v1alpha1.PublicKeySource{Type: v1alpha1.SourceBlob, Blob: r.publicKey(t)},
			WrappingKeySpec:   "RSA_2048",
			WrappingAlgorithm: "RSAES_OAEP_SHA_256",
		},
	}
}

// open decrypts the Secret of an export.
func (r recipient) open(t testing.TB, secret *corev1.Secret) []byte {
	t.Helper()
	key, err := rsa.DecryptOAEP(sha256.New(), nil, r.key, secret.Data["exportedDataKey"], nil)
	if err != nil {
		t.Fatalf("the Secret %s does not open: %v", secret.Name, err)
	}
	return key
}

// openByName is open, for a Secret that exists.
func (r recipient) openByName(t testing.TB, namespace, name string) []byte {
	t.Helper()
	return r.open(t, get(t, &corev1.Secret{}, namespace, name))
}

// exportNow creates an export, waits for its Secret, and returns the data key and how long it took.
func (r recipient) exportNow(t testing.TB, namespace, name string) (key []byte, took time.Duration) {
	t.Helper()
	start := time.Now()
	if err := api.Create(t.Context(), r.export(t, namespace, name)); err != nil {
		t.Fatal(err)
	}
	secret := &corev1.Secret{}
	eventually(t, "the export "+name+" has a Secret", func() error {
		return api.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: name}, secret)
	})
	took = time.Since(start)
	return r.open(t, secret), took
}

// newDataKey creates the GeneratedKey "payments" in a key store, and the DataKey "ledger" under it.
func newDataKey(t testing.TB, namespace, storeKind, store string) {
	t.Helper()
	apply(t, fmt.Sprintf(`
apiVersion: keyconvoy.io/v1alpha1
kind: GeneratedKey
metadata: {name: payments, namespace: %[1]s}
spec: {keyStoreRef: {kind: %[2]s, name: %[3]s}, keySpec: AES_256, deletionPolicy: Delete}
---
apiVersion: keyconvoy.io/v1alpha1
kind: DataKey
metadata: {name: ledger, namespace: %[1]s}
spec: {keyRef: {kind: GeneratedKey, name: payments}, keySpec: AES_256}
`, namespace, storeKind, store))
	waitReady(t, namespace, "datakey/ledger")
}

// newImportedKey creates the ImportedKey "imported" and imports new material into it, as a user does.
func newImportedKey(t testing.TB, namespace, storeKind, store string) {
	t.Helper()
	apply(t, fmt.Sprintf(`
apiVersion: keyconvoy.io/v1alpha1
kind: ImportedKey
metadata: {name: imported, namespace: %s}
spec:
  keyStoreRef: {kind: %s, name: %s}
  keySpec: AES_256
  deletionPolicy: Delete
  importParameters: {wrappingKeySpec: RSA_2048, wrappingAlgorithm: RSAES_OAEP_SHA_256}
`, namespace, storeKind, store))
	kubectl(t, "wait", "importedkey/imported", "-n", namespace, "--for=jsonpath={.status.importParameters.publicKey}", "--timeout=3m")
	material := make([]byte, 32)
	if _, err := rand.Read(material); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "material.bin")
	if err := os.WriteFile(file, material, 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "", "keyconvoy", "wrap", "--key=imported", "-n", namespace, "--in="+file, "--apply")
	waitReady(t, namespace, "importedkey/imported")
}

func waitReady(t testing.TB, namespace, object string) {
	t.Helper()
	kubectl(t, "wait", object, "-n", namespace, "--for=condition=Ready", "--timeout=3m")
}

// equal compares data keys without printing them.
func equal(t testing.TB, what string, got, want []byte) {
	t.Helper()
	if len(want) == 0 || !bytes.Equal(got, want) {
		t.Errorf("%s: it is another data key", what)
	}
}

// waitGone waits until an object no longer exists, and returns how long it took.
func waitGone(t testing.TB, object client.Object) time.Duration {
	t.Helper()
	start := time.Now()
	eventually(t, object.GetName()+" is deleted", func() error {
		err := api.Get(t.Context(), client.ObjectKeyFromObject(object), object)
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err == nil {
			err = fmt.Errorf("it exists, with finalizers %q", object.GetFinalizers())
		}
		return err
	})
	return time.Since(start)
}
