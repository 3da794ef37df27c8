package crd_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	. "github.com/onsi/gomega"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	ac "github.com/keyconvoy/keyconvoy/api/applyconfiguration/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/testenv"
)

const manager = "test"

// applied is one kind: what is applied, an object to read it back into, and what the manager then owns.
type applied struct {
	config  runtime.ApplyConfiguration
	object  client.Object
	extract func() (any, error)
}

func pkcs11Store() *ac.PKCS11StoreApplyConfiguration {
	return ac.PKCS11Store().WithModule("m").WithMaxSessions(4).
		WithToken(ac.TokenSelector().WithLabel("l").WithSerial("1").WithModel("x")).
		WithPINSecretRef(ac.EntryReference().WithName("pin").WithKey("pin"))
}

// everyKind sets every field of every spec that can be set at once.
func everyKind(ns string) map[string]applied {
	var (
		cks  v1alpha1.ClusterKeyStore
		ks   v1alpha1.KeyStore
		imk  v1alpha1.ImportedKey
		gk   v1alpha1.GeneratedKey
		ak   v1alpha1.AccessKey
		dk   v1alpha1.DataKey
		edk  v1alpha1.ExportedDataKey
		cedk v1alpha1.ClusterExportedDataKey
	)
	secretEntry := func() *ac.EntrySourceApplyConfiguration {
		return ac.EntrySource().WithType(v1alpha1.SourceSecret).WithSecretKeyRef(ac.EntryReference().WithName("s").WithKey("k"))
	}
	configMapEntry := func() *ac.EntrySourceApplyConfiguration {
		return ac.EntrySource().WithType(v1alpha1.SourceConfigMap).WithConfigMapKeyRef(ac.EntryReference().WithName("c").WithKey("k"))
	}
	return map[string]applied{
		"ClusterKeyStore": {
			config: ac.ClusterKeyStore(ns).WithSpec(ac.ClusterKeyStoreSpec().
				WithType(v1alpha1.KeyStorePKCS11).WithPKCS11(pkcs11Store()).WithCustody(v1alpha1.CustodyModuleOnly).WithKeyProtection(v1alpha1.KeyProtectionEnforcedOnly).WithAllowPKCS1V15Import(true).
				WithAllowedNamespaces(ac.LabelSelector().WithMatchLabels(map[string]v1alpha1.LabelValue{"a": "b"}))),
			object:  &cks,
			extract: func() (any, error) { return ac.ExtractClusterKeyStore(&cks, manager) },
		},
		"KeyStore": {
			config: ac.KeyStore(ns, ns).WithSpec(ac.KeyStoreSpec().
				WithType(v1alpha1.KeyStorePKCS11).WithPKCS11(pkcs11Store()).WithCustody(v1alpha1.CustodyHostAllowed).WithAllowPKCS1V15Import(true)),
			object:  &ks,
			extract: func() (any, error) { return ac.ExtractKeyStore(&ks, manager) },
		},
		"ImportedKey": {
			config: ac.ImportedKey(ns, ns).WithSpec(ac.ImportedKeySpec().
				WithKeyStoreRef(ac.KeyStoreReference().WithKind("KeyStore").WithName("s")).WithKeySpec("SM4").
				WithImportParameters(ac.ImportParametersSpec().WithWrappingKeySpec("EC_SM2").WithWrappingAlgorithm("SM2PKE")).
				WithMaterial(ac.MaterialSpec().WithEncryptedKeyMaterialFrom(secretEntry()).WithImportTokenFrom(configMapEntry()).
					WithExpireTime(metav1.Unix(2_000_000_000, 0))).
				WithDesiredState(v1alpha1.DesiredPendingDeletion).WithPendingWindowInDays(7).
				WithExportPolicy(ac.ExportPolicy().
					WithNamespaces(ac.ExportNamespaces().WithFrom("Selector").
						WithSelector(ac.LabelSelector().WithMatchLabels(map[string]v1alpha1.LabelValue{"a": "b"}))).
					WithRecipients(ac.ExportRecipient().WithFingerprint("SHA256:"+strings.Repeat("0", 64))).
					WithWrappingAlgorithms("SM2PKE", "RSAES_OAEP_SHA_1")).
				WithAdopt(ac.AdoptSpec().WithKeyVersionID("00000000-0000-5000-8000-000000000000").WithMaterialFingerprint(strings.Repeat("f", 32))).
				WithDeletionPolicy(v1alpha1.DeletionDelete)),
			object:  &imk,
			extract: func() (any, error) { return ac.ExtractImportedKey(&imk, manager) },
		},
		"GeneratedKey": {
			config: ac.GeneratedKey(ns, ns).WithSpec(ac.GeneratedKeySpec().
				WithKeyStoreRef(ac.KeyStoreReference().WithKind("KeyStore").WithName("s")).WithKeySpec("SM4").
				WithRotation(ac.RotationSpec().WithInterval("2160h")).
				WithAdopt(ac.AdoptVersionsSpec().WithType(v1alpha1.AdoptByVersion).WithKeyVersionIDs("00000000-0000-5000-8000-000000000000")).
				WithDesiredState(v1alpha1.DesiredPendingDeletion).WithPendingWindowInDays(7).
				WithExportPolicy(ac.ExportPolicy().WithWrappingAlgorithms("SM2PKE")).
				WithDeletionPolicy(v1alpha1.DeletionDelete)),
			object:  &gk,
			extract: func() (any, error) { return ac.ExtractGeneratedKey(&gk, manager) },
		},
		"AccessKey": {
			config: ac.AccessKey(ns, ns).WithSpec(ac.AccessKeySpec().WithServiceAccountName("app").
				WithKeyStoreRef(ac.KeyStoreReference().WithKind("KeyStore").WithName("s")).WithDisabled(true).WithExpireTime(metav1.NewTime(time.Unix(4102444800, 0)))),
			object:  &ak,
			extract: func() (any, error) { return ac.ExtractAccessKey(&ak, manager) },
		},
		"DataKey": {
			config: ac.DataKey(ns, ns).WithSpec(ac.DataKeySpec().
				WithKeyRef(ac.KeyReference().WithKind("ImportedKey").WithName("k")).
				WithKeySpec("AES_128").WithNumberOfBytes(64).WithCiphertextBlob("AA==").
				WithReencryption(ac.ReencryptionSpec().WithPolicy(v1alpha1.ReencryptOnRotation)).
				WithEncryptionContext(map[string]v1alpha1.ContextValue{"a": "b"}).
				WithTarget(ac.SecretTarget().WithName("t").
					WithLabels(map[string]v1alpha1.MetadataValue{"a": "b"}).
					WithAnnotations(map[string]v1alpha1.MetadataValue{"a": "b"}))),
			object:  &dk,
			extract: func() (any, error) { return ac.ExtractDataKey(&dk, manager) },
		},
		"ExportedDataKey": {
			config: ac.ExportedDataKey(ns, ns).WithSpec(ac.ExportedDataKeySpec().
				WithCiphertextBlob("AA==").
				WithKeyRef(ac.MasterKeyReference().WithKind("ImportedKey").WithName("k").WithNamespace("n")).
				WithEncryptionContext(map[string]v1alpha1.ContextValue{"a": "b"}).
				WithPublicKey(ac.PublicKeySource().WithType(v1alpha1.SourceConfigMap).WithConfigMapKeyRef(ac.EntryReference().WithName("c").WithKey("k"))).
				WithWrappingKeySpec("EC_SM2").WithWrappingAlgorithm("SM2PKE").WithSM2CiphertextFormat("ASN1").WithDryRun(true).
				WithTarget(ac.ExportTarget().WithName("t").WithImmutable(true).
					WithLabels(map[string]v1alpha1.MetadataValue{"a": "b"}).
					WithAnnotations(map[string]v1alpha1.MetadataValue{"a": "b"}))),
			object:  &edk,
			extract: func() (any, error) { return ac.ExtractExportedDataKey(&edk, manager) },
		},
		"ClusterExportedDataKey": {
			config: ac.ClusterExportedDataKey(ns).WithSpec(ac.ClusterExportedDataKeySpec().
				WithNamespaceSelector(ac.LabelSelector().WithMatchLabels(map[string]v1alpha1.LabelValue{"a": "b"})).
				WithTemplate(ac.ExportTemplate().
					WithDataKeyRef(ac.NamespacedReference().WithNamespace("n").WithName("d")).
					WithPublicKey(ac.DistributedPublicKeySource().WithType(v1alpha1.SourceSecret).WithSecretKeyRef(ac.EntryReference().WithName("s").WithKey("k"))).
					WithWrappingKeySpec("EC_SM2").WithWrappingAlgorithm("SM2PKE").WithSM2CiphertextFormat("ASN1").
					WithTarget(ac.ExportTarget().WithName("t").WithImmutable(true).
						WithLabels(map[string]v1alpha1.MetadataValue{"a": "b"}).
						WithAnnotations(map[string]v1alpha1.MetadataValue{"a": "b"})))),
			object:  &cedk,
			extract: func() (any, error) { return ac.ExtractClusterExportedDataKey(&cedk, manager) },
		},
	}
}

func TestApplyConfigurations_comeBackAsTheyWereApplied(t *testing.T) {
	t.Parallel()
	env := testenv.Start(t)
	for kind, a := range everyKind(env.Namespace(t)) {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			want, err := json.Marshal(a.config)
			g.Expect(err).NotTo(HaveOccurred())
			ns := env.Namespace(t)
			// The server's answer is written into what was applied, so apply a copy of each.
			apply := func(owner string) error {
				return strict(env.Client).Apply(t.Context(), everyKind(ns)[kind].config, client.FieldOwner(owner))
			}
			key := client.ObjectKey{Namespace: ns, Name: ns}
			if strings.HasPrefix(kind, "Cluster") {
				key.Namespace = ""
			}

			g.Expect(apply(manager)).To(Succeed())
			g.Expect(env.Client.Get(t.Context(), key, a.object)).To(Succeed())
			got, err := a.extract()
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(specOf(g, got)).To(MatchJSON(specOf(g, json.RawMessage(want))))

			// The same again changes nothing.
			before := a.object.GetResourceVersion()
			g.Expect(apply(manager)).To(Succeed())
			g.Expect(env.Client.Get(t.Context(), key, a.object)).To(Succeed())
			g.Expect(a.object.GetResourceVersion()).To(Equal(before))

			// Two who want the same share it.
			g.Expect(apply("another")).To(Succeed())
		})
	}
}

// specOf is the spec of an object as JSON.
func specOf(g Gomega, object any) string {
	text, err := json.Marshal(object)
	g.Expect(err).NotTo(HaveOccurred())
	var parts struct {
		Spec json.RawMessage `json:"spec"`
	}
	g.Expect(json.Unmarshal(text, &parts)).To(Succeed())
	g.Expect(parts.Spec).NotTo(BeEmpty())
	return string(parts.Spec)
}

func TestApply_ofAnotherManagerConflicts(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	env := testenv.Start(t)
	ns := env.Namespace(t)
	key := func(bytes string) runtime.ApplyConfiguration {
		return ac.KeyStore("k", ns).WithSpec(ac.KeyStoreSpec().WithType(v1alpha1.KeyStorePKCS11).WithPKCS11(ac.PKCS11Store().WithModule("m").
			WithToken(ac.TokenSelector().WithLabel(bytes))))
	}
	g.Expect(env.Client.Apply(t.Context(), key("a"), client.FieldOwner("flux"))).To(Succeed())
	err := env.Client.Apply(t.Context(), key("b"), client.FieldOwner("argo"))
	g.Expect(apierrors.IsConflict(err)).To(BeTrue(), "%v", err)
}

func conditions() []metav1.Condition {
	return []metav1.Condition{{
		Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonSucceeded,
		Message: "m", ObservedGeneration: 1, LastTransitionTime: metav1.Unix(1, 0),
	}}
}

func secretRef() *v1alpha1.SecretReference {
	return &v1alpha1.SecretReference{Name: "secret", UID: "u", ResourceVersion: "1", Digest: "d"}
}

// withStatus makes one object of each kind with its whole status.
func withStatus(ns string) []client.Object {
	meta := metav1.ObjectMeta{Namespace: ns, Name: ns}
	now := metav1.NewTime(time.Unix(1_000_000_000, 0))
	store := v1alpha1.KeyStoreStatus{
		ObservedGeneration: 1, Conditions: conditions(),
		Module:            &v1alpha1.ModuleInfo{Library: "softhsm", Manufacturer: "SoftHSM project", Model: "SoftHSM v2", Serial: "00ff", Firmware: "2.6"},
		KeysWithoutHolder: &v1alpha1.KeyVersions{Count: 1, KeyVersionIDs: []string{"00000000-0000-5000-8000-000000000000"}},
		MissingKeys:       &v1alpha1.KeyVersions{Count: 1, KeyVersionIDs: []string{"00000000-0000-5000-8000-000000000001"}},
		KeyProtection: &v1alpha1.KeyProtection{
			State: v1alpha1.KeyProtectionNotEnforced, Methods: []string{"C_WrapKey with CKM_AES_KEY_WRAP"},
		},
		Capabilities:   []v1alpha1.Capability{{Operation: "Export", Algorithm: "RSAES_OAEP_SHA_1", Custody: "Module"}},
		SuspectPeriods: []v1alpha1.SuspectPeriod{{From: now, To: &now}},
	}
	return []client.Object{
		&v1alpha1.ClusterKeyStore{
			ObjectMeta: metav1.ObjectMeta{Name: ns},
			Spec:       v1alpha1.ClusterKeyStoreSpec{KeyStoreSpec: v1alpha1.KeyStoreSpec{Type: v1alpha1.KeyStoreSoftware}},
			Status:     store,
		},
		&v1alpha1.KeyStore{
			ObjectMeta: meta, Spec: v1alpha1.KeyStoreSpec{Type: v1alpha1.KeyStoreSoftware}, Status: store,
		},
		&v1alpha1.ImportedKey{
			ObjectMeta: meta,
			Spec: v1alpha1.ImportedKeySpec{
				KeyStoreRef: v1alpha1.KeyStoreReference{Kind: "KeyStore", Name: "store"}, KeySpec: "AES_256",
				ImportParameters: &v1alpha1.ImportParametersSpec{WrappingKeySpec: "RSA_2048", WrappingAlgorithm: "RSAES_OAEP_SHA_256"},
			},
			Status: v1alpha1.ImportedKeyStatus{
				ObservedGeneration: 1, Conditions: conditions(), KeyID: "id", KeyVersionID: "version", KeyState: "Enabled",
				Origin: "EXTERNAL", MaterialFingerprint: strings.Repeat("f", 32), HasMaterial: true, Custody: "Module", InputsDigest: "d", SourcesVersion: "v",
				MaterialExpireTime: &now, DeletionRequestTime: &now, DeletionTime: &now, RenewedFor: "r", MaterialDeletedFor: "d",
				FormerParametersExpireTime: &now, Token: "t",
				ImportParameters: &v1alpha1.ImportParameters{
					PublicKey: "AA==", PublicKeyFingerprint: "SHA256:00", ImportToken: "AA==", TokenExpireTime: now,
					WrappingKeySpec: "RSA_2048", WrappingAlgorithm: "RSAES_OAEP_SHA_256",
				},
			},
		},
		&v1alpha1.GeneratedKey{
			ObjectMeta: meta,
			Spec: v1alpha1.GeneratedKeySpec{
				KeyStoreRef: v1alpha1.KeyStoreReference{Kind: "KeyStore", Name: "store"}, KeySpec: "AES_256",
			},
			Status: v1alpha1.GeneratedKeyStatus{
				ObservedGeneration: 1, Conditions: conditions(), KeyID: "id", KeyState: "Enabled", Origin: "Aliyun_KMS",
				PrimaryVersion: "first", Versions: []v1alpha1.KeyVersion{
					{KeyVersionID: "first", Number: 2, CreateTime: now, Custody: "Module", Fingerprint: strings.Repeat("f", 32), State: v1alpha1.VersionPrimary, Suspect: true},
				},
				NextRotationTime: &now, RotatedFor: "r", DeletionRequestTime: &now, DeletionTime: &now, Token: "t",
			},
		},
		&v1alpha1.AccessKey{
			ObjectMeta: meta,
			Spec:       v1alpha1.AccessKeySpec{ServiceAccountName: "app"},
			Status: v1alpha1.AccessKeyStatus{
				ObservedGeneration: 1, Conditions: conditions(), AccessKeyID: "KC", ServiceAccountUID: "u", SecretRef: &v1alpha1.AccessKeySecret{Name: "s", UID: "u", ResourceVersion: "1"},
			},
		},
		&v1alpha1.DataKey{
			ObjectMeta: meta,
			Spec:       v1alpha1.DataKeySpec{KeyRef: v1alpha1.KeyReference{Kind: "ImportedKey", Name: "payments"}},
			Status: v1alpha1.DataKeyStatus{
				ObservedGeneration: 1, Conditions: conditions(), KeyID: "id", KeyRef: &v1alpha1.KeyReference{Kind: "ImportedKey", Name: "payments"}, KeyVersionID: "version",
				CiphertextBlob: "AA==", DataKeyDigest: "d", AcceptedDigest: "d", BlobTag: "AA==", Custody: v1alpha1.CustodyUnknown, SecretRef: secretRef(),
				GenerationTime: &now, VerificationTime: &now,
			},
		},
		&v1alpha1.ExportedDataKey{
			ObjectMeta: meta,
			Spec: v1alpha1.ExportedDataKeySpec{
				DataKeyRef: &v1alpha1.DataKeyReference{Name: "ledger"}, PublicKey: v1alpha1.PublicKeySource{Type: v1alpha1.SourceBlob, Blob: "AA=="},
				WrappingKeySpec: "RSA_2048", WrappingAlgorithm: "RSAES_OAEP_SHA_256",
			},
			Status: v1alpha1.ExportedDataKeyStatus{
				ObservedGeneration: 1, Conditions: conditions(), KeyID: "id", KeyVersionID: "version", RequestID: "r",
				Custody: "Host", Parent: "p", RecipientFingerprint: "SHA256:00", RecipientVersion: "v", InputsDigest: "d",
				SecretRef: secretRef(), ExportedDataKey: "AA==", ExportTime: &now, Approved: approved(), DryRunResult: v1alpha1.DryRunWouldFail,
			},
		},
		&v1alpha1.ClusterExportedDataKey{
			ObjectMeta: metav1.ObjectMeta{Name: ns},
			Spec: v1alpha1.ClusterExportedDataKeySpec{
				NamespaceSelector: v1alpha1.LabelSelector{MatchLabels: map[string]v1alpha1.LabelValue{"team": "a"}},
				Template: v1alpha1.ExportTemplate{
					DataKeyRef: v1alpha1.NamespacedReference{Namespace: "n", Name: "ledger"},
					PublicKey:  v1alpha1.DistributedPublicKeySource{Type: v1alpha1.SourceBlob, Blob: "AA=="}, WrappingKeySpec: "RSA_2048", WrappingAlgorithm: "RSAES_OAEP_SHA_256",
				},
			},
			Status: v1alpha1.ClusterExportedDataKeyStatus{
				ObservedGeneration: 1, Conditions: conditions(), Approved: approved(),
				SelectedNamespaces: 33, ReadyNamespaces: 22, FailedNamespaces: 11,
				Failures: []v1alpha1.NamespaceFailure{{Namespace: "n", Reason: "ForbiddenNoPermission"}},
			},
		},
	}
}

func approved() *v1alpha1.ApprovedInputs {
	return &v1alpha1.ApprovedInputs{Generation: 1, DataKeyDigest: strings.Repeat("0", 64), RecipientKeyID: "u"}
}

func TestStatus_isASubresourceThatKeepsEveryField(t *testing.T) {
	t.Parallel()
	env := testenv.Start(t)
	ns := env.Namespace(t)
	for _, o := range withStatus(ns) {
		g := NewWithT(t)
		want, err := json.Marshal(o)
		g.Expect(err).NotTo(HaveOccurred())

		g.Expect(strict(env.Client).Create(t.Context(), o)).To(Succeed())
		g.Expect(statusOf(g, o)).NotTo(HaveKey("conditions"), "%T: a user wrote the status", o)

		full := o.DeepCopyObject().(client.Object)
		g.Expect(json.Unmarshal(want, full)).To(Succeed())
		full.SetResourceVersion(o.GetResourceVersion())
		g.Expect(strict(env.Client).Status().Update(t.Context(), full)).To(Succeed())
		var wanted struct {
			Status map[string]any `json:"status"`
		}
		g.Expect(json.Unmarshal(want, &wanted)).To(Succeed())
		g.Expect(statusOf(g, full)).To(Equal(wanted.Status), "%T", o)
		g.Expect(full.GetGeneration()).To(Equal(int64(1)), "%T: a status is no new generation", o)
	}
}

func statusOf(g Gomega, o client.Object) map[string]any {
	text, err := json.Marshal(o)
	g.Expect(err).NotTo(HaveOccurred())
	var parts struct {
		Status map[string]any `json:"status"`
	}
	g.Expect(json.Unmarshal(text, &parts)).To(Succeed())
	return parts.Status
}
