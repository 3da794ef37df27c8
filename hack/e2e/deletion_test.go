package e2e

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// The namespace controller deletes the kinds of a namespace in an order that is not defined. Each case deletes one kind
// first.
func TestNamespace_withEveryKind_isDeletedWithinAMinute(t *testing.T) {
	token := installWithSoftHSM(t)
	var slowest time.Duration
	for _, first := range []string{
		"", "secrets", "keystores", "importedkeys", "generatedkeys", "datakeys", "exporteddatakeys", "clusterexporteddatakeys",
	} {
		name := "first " + first
		if first == "" {
			name = "all at once"
		}
		t.Run(name, func(t *testing.T) {
			explainFailure(t)
			namespace := newNamespace(t)
			t.Cleanup(func() { kubectl(t, "delete", "clusterexporteddatakey", namespace, "--ignore-not-found") })
			createEveryKind(t, namespace)
			if n := token.objects(t); n <= ofTheToken {
				t.Fatalf("the token has %d objects: this test would find nothing in it", n)
			}

			start := time.Now()
			deleteFirst(t, namespace, first)
			deleteNamespace(t, namespace)

			took := time.Since(start)
			slowest = max(slowest, took)
			if took > time.Minute {
				t.Errorf("the deletion took %s", took)
			}
			if n := token.objects(t); n != ofTheToken {
				t.Errorf("the token has %d objects, want only the MAC key", n)
			}
		})
	}
	record("deletion of a namespace with every kind, slowest order", rounded(slowest))
}

// ofTheToken is the number of objects that belong to a token and not to a key store: the MAC key of import tokens, which
// all key stores of a token share.
const ofTheToken = 1

// deleteFirst deletes the objects of a kind and does not wait.
func deleteFirst(t testing.TB, namespace, kind string) {
	t.Helper()
	switch kind {
	case "":
	case "clusterexporteddatakeys":
		kubectl(t, "delete", kind, namespace, "--wait=false")
	default:
		kubectl(t, "delete", kind, "--all", "-n", namespace, "--wait=false")
	}
}

// createEveryKind creates an object of each kind in a namespace, on a key store of its own in the token.
func createEveryKind(t *testing.T, namespace string) {
	t.Helper()
	apply(t, fmt.Sprintf(`
apiVersion: v1
kind: Secret
metadata: {name: pin, namespace: %[1]s}
stringData: {pin: "%[2]s"}
---
apiVersion: keyconvoy.io/v1alpha1
kind: KeyStore
metadata: {name: hsm, namespace: %[1]s}
spec:
  type: PKCS11
  pkcs11: {module: softhsm, token: {label: %[3]s}, pinSecretRef: {name: pin, key: pin}}
`, namespace, tokenPIN, tokenLabel))
	waitReady(t, namespace, "keystore/hsm")
	newDataKey(t, namespace, "KeyStore", "hsm")
	newImportedKey(t, namespace, "KeyStore", "hsm")
	r := newRecipient(t)
	r.exportNow(t, namespace, "export")
	apply(t, fmt.Sprintf(`
apiVersion: keyconvoy.io/v1alpha1
kind: ClusterExportedDataKey
metadata: {name: %[1]s}
spec:
  namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: %[1]s}}
  template:
    dataKeyRef: {namespace: %[1]s, name: ledger}
    publicKey: {type: Blob, blob: %[2]s}
    wrappingKeySpec: RSA_2048
    wrappingAlgorithm: RSAES_OAEP_SHA_256
`, namespace, r.publicKey(t)))
	eventually(t, "the data key is exported to the namespace", func() error {
		return api.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: namespace}, &corev1.Secret{})
	})
}
