package config_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	. "github.com/onsi/gomega"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
)

func TestSamples_areTakenByTheServer(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	c, w := warned(t)
	kustomized := build(t, "samples")
	ensureNamespaces(t, c, kustomized)

	files, err := filepath.Glob("samples/*.yaml")
	g.Expect(err).NotTo(HaveOccurred())
	count := 0
	for _, file := range files {
		if filepath.Base(file) == "kustomization.yaml" {
			continue
		}
		text, err := os.ReadFile(file)
		g.Expect(err).NotTo(HaveOccurred())
		for _, u := range parse(t, text) {
			count++
			g.Expect(u.GetKind()).NotTo(Equal("Secret"), "%s: Secrets do not belong into Git", file)
			g.Expect(c.Apply(t.Context(), client.ApplyConfigurationFromUnstructured(u), client.FieldOwner("test"), client.DryRunAll)).
				To(Succeed(), file)
		}
		g.Expect(string(text)).To(HavePrefix("#"), "%s does not say what it is", file)
	}
	// All but the key store of the other sort are in the kustomization.
	g.Expect(kustomized).To(HaveLen(count - 1))
	g.Expect(w.get()).To(BeEmpty(), "the server warned")
}

// The samples belong together: each reference finds its object.
func TestSamples_referToEachOther(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	objects := build(t, "samples")
	store := find[v1alpha1.ClusterKeyStore](t, objects, "ClusterKeyStore", "main")
	key := find[v1alpha1.ImportedKey](t, objects, "ImportedKey", "payments")
	dataKey := find[v1alpha1.DataKey](t, objects, "DataKey", "ledger")
	g.Expect(string(key.Spec.KeyStoreRef.Name)).To(Equal(store.Name))
	g.Expect(string(dataKey.Spec.KeyRef.Name)).To(Equal(key.Name))
	for _, name := range []string{"ledger-rsa", "ledger-sm2"} {
		exported := find[v1alpha1.ExportedDataKey](t, objects, "ExportedDataKey", name)
		g.Expect(string(exported.Spec.DataKeyRef.Name)).To(Equal(dataKey.Name))
		g.Expect(string(exported.Spec.PublicKey.ConfigMapKeyRef.Name)).To(Equal("recipients"))
	}
	everywhere := find[v1alpha1.ClusterExportedDataKey](t, objects, "ClusterExportedDataKey", "ledger-everywhere")
	g.Expect(everywhere.Spec.Template.DataKeyRef).To(Equal(v1alpha1.NamespacedReference{
		Namespace: v1alpha1.NamespaceName(dataKey.Namespace), Name: v1alpha1.ObjectName(dataKey.Name),
	}))
	g.Expect(string(everywhere.Spec.Template.PublicKey.ConfigMapKeyRef.Name)).To(Equal("recipients"))
	for _, u := range objects {
		if u.GetKind() != "Namespace" && !strings.HasPrefix(u.GetKind(), "Cluster") {
			g.Expect(u.GetNamespace()).To(Equal("team-a"), u.GetName())
		}
	}
	text, err := os.ReadFile("samples/clusterkeystore_pkcs11.yaml")
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(parse(t, text)[0].GetName()).To(Equal(store.Name), "one takes the place of the other")
}
