package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

const (
	storeName   = "main"
	keyName     = "payments"
	dataKeyName = "ledger"
	recipients  = "recipients" // a ConfigMap
	// setUpConcurrency is how many objects are created at once, outside of a measurement.
	setUpConcurrency = 16
)

// recipient is the key pair to which data keys are exported, and the algorithm.
type recipient struct {
	Algorithm string // e.g. RSAES_OAEP_SHA_256
	From      string // where the exports find the public key: "inline" or "ConfigMap"

	key *wrapping.PrivateKey
}

// The places of a public key.
const (
	inline        = "inline"
	fromConfigMap = "ConfigMap"
)

func newRecipient(algorithm, from string) (*recipient, error) {
	r := &recipient{Algorithm: algorithm, From: from}
	var err error
	r.key, err = wrapping.GeneratePrivateKey(rand.Reader, wrapping.KeySpec(r.keySpec()))
	return r, err
}

func (r *recipient) keySpec() v1alpha1.WrappingKeySpec {
	if r.Algorithm == string(wrapping.SM2PKE) {
		return "EC_SM2"
	}
	return "RSA_2048"
}

func (r *recipient) source() v1alpha1.PublicKeySource {
	if r.From == fromConfigMap {
		return v1alpha1.PublicKeySource{Type: v1alpha1.SourceConfigMap, ConfigMapKeyRef: &v1alpha1.EntryReference{Name: recipients, Key: "key"}}
	}
	return v1alpha1.PublicKeySource{Type: v1alpha1.SourceBlob, Blob: r.key.Public().Base64()}
}

func exportName(i int) string { return fmt.Sprintf("export-%05d", i) }

// export is the i-th ExportedDataKey.
func (r *recipient) export(i int) *v1alpha1.ExportedDataKey {
	return &v1alpha1.ExportedDataKey{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: exportName(i)},
		Spec: v1alpha1.ExportedDataKeySpec{
			DataKeyRef: &v1alpha1.DataKeyReference{Name: dataKeyName},
			PublicKey:  r.source(), WrappingKeySpec: r.keySpec(), WrappingAlgorithm: r.Algorithm,
		},
	}
}

// createExports creates the ExportedDataKeys with the numbers from up to, but not including, to.
func (c *cluster) createExports(ctx context.Context, r *recipient, from, to int) error {
	if r.From == fromConfigMap {
		m := &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: recipients},
			Data:       map[string]string{"key": r.key.Public().Base64()},
		}
		if err := client.IgnoreAlreadyExists(c.Create(ctx, m)); err != nil {
			return err
		}
	}
	return forEach(ctx, to-from, setUpConcurrency, func(ctx context.Context, i int) error { return c.Create(ctx, r.export(from+i)) })
}

// bringKey applies a key store, imports a key into it with the command line, and creates a data key. The operator must
// be running.
func (c *cluster) bringKey(ctx context.Context, s *store) error {
	key := &v1alpha1.ImportedKey{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: keyName},
		Spec: v1alpha1.ImportedKeySpec{
			KeyStoreRef:      v1alpha1.KeyStoreReference{Kind: "ClusterKeyStore", Name: storeName},
			KeySpec:          "AES_256",
			ImportParameters: &v1alpha1.ImportParametersSpec{WrappingKeySpec: "RSA_2048", WrappingAlgorithm: "RSAES_OAEP_SHA_256"},
			ExportPolicy:     &v1alpha1.ExportPolicy{Namespaces: &v1alpha1.ExportNamespaces{From: "All"}},
		},
	}
	dataKey := &v1alpha1.DataKey{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: dataKeyName},
		Spec:       v1alpha1.DataKeySpec{KeyRef: v1alpha1.KeyReference{Kind: "ImportedKey", Name: keyName}},
	}
	objects := []client.Object{
		&v1alpha1.ClusterKeyStore{ObjectMeta: metav1.ObjectMeta{Name: storeName}, Spec: v1alpha1.ClusterKeyStoreSpec{KeyStoreSpec: s.spec}},
		key, dataKey,
	}
	if s.pin != "" {
		objects = append(objects, &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: operatorNamespace, Name: pinSecret}, StringData: map[string]string{pinSecret: s.pin},
		})
	}
	for _, o := range objects {
		if err := c.Create(ctx, o); err != nil {
			return err
		}
	}
	err := c.until(ctx, key, func() bool { return key.Status.ImportParameters != nil })
	if err != nil {
		return err
	}
	material := make([]byte, 32)
	_, _ = rand.Read(material) // it never fails (Go 1.24)
	path := filepath.Join(c.dir, "material")
	if err := os.WriteFile(path, material, 0o600); err != nil {
		return err
	}
	if _, err := command(ctx, c.tools.keyconvoy, "wrap", "--kubeconfig", c.kubeconfig, "-n", namespace, "--key", keyName, "--in", path, "--apply"); err != nil {
		return err
	}
	return c.until(ctx, dataKey, func() bool { return meta.IsStatusConditionTrue(dataKey.Status.Conditions, v1alpha1.ConditionReady) })
}

// until reads an object until a condition is true.
func (c *cluster) until(ctx context.Context, o client.Object, wanted func() bool) error {
	err := wait.PollUntilContextTimeout(ctx, 50*time.Millisecond, 2*time.Minute, true, func(ctx context.Context) (bool, error) {
		err := c.Get(ctx, client.ObjectKeyFromObject(o), o)
		return err == nil && wanted(), err
	})
	if err != nil {
		return fmt.Errorf("waiting for %T %s: %w", o, o.GetName(), err)
	}
	return nil
}

// verify checks that there are n exports, that each Secret is the one in the status of its export, and that the recipient
// decrypts the same data key from all of them. It decrypts every hundredth.
func (c *cluster) verify(ctx context.Context, r *recipient, n int) error {
	var exports v1alpha1.ExportedDataKeyList
	if err := c.List(ctx, &exports, client.InNamespace(namespace)); err != nil {
		return err
	}
	var list corev1.SecretList
	if err := c.List(ctx, &list, client.InNamespace(namespace)); err != nil {
		return err
	}
	secrets := map[string]*corev1.Secret{}
	for i := range list.Items {
		secrets[list.Items[i].Name] = &list.Items[i]
	}
	if len(exports.Items) != n {
		return fmt.Errorf("there are %d exports instead of %d", len(exports.Items), n)
	}
	var dataKey string
	for i := range exports.Items {
		e := &exports.Items[i]
		secret := secrets[e.Name]
		if secret == nil || e.Status.SecretRef == nil || e.Status.SecretRef.UID != string(secret.UID) ||
			!meta.IsStatusConditionTrue(e.Status.Conditions, v1alpha1.ConditionReady) {
			return fmt.Errorf("%s is not exported: %+v", e.Name, e.Status)
		}
		if i%100 != 0 {
			continue
		}
		plain, err := r.key.Unwrap(wrapping.Algorithm(r.Algorithm), "", secret.Data["exportedDataKey"])
		if err != nil {
			return fmt.Errorf("%s does not open: %w", e.Name, err)
		}
		if dataKey == "" {
			dataKey = string(plain)
		}
		if dataKey != string(plain) {
			return fmt.Errorf("%s holds another data key than %s", e.Name, exports.Items[0].Name)
		}
	}
	return nil
}
