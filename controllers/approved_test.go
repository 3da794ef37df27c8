package controllers_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
)

// Someone without the verb export deletes a DataKey and creates another one with its name, under a key whose material
// they know. The exports that were made of the first deliver no other.
func TestExportedDataKey_dataKeyReplacedByAnother_isNotExported(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	k := o.dataKey(t, "dek")
	e := o.export(t, "e")
	former, before := o.openExport(t, e, rsaRecipient()), o.secretOf(t, "e")
	o.enabledKey(t, "mine", nil)
	o.RemoveUnseen(t, k, o.secretOf(t, "dek"))
	k = o.dataKey(t, "dek", underKey("mine"))
	o.Stalls(t, e, v1alpha1.ReasonInputReplaced, "DataKey "+o.Namespace+"/dek")
	if s := o.secretOf(t, "e"); s.ResourceVersion != before.ResourceVersion {
		t.Error("the Secret was written")
	}
	o.Restart(t)
	o.Settled(t, e)
	o.Stalls(t, e, v1alpha1.ReasonInputReplaced)

	// A change of the spec requires the verb.
	want := o.dataKeyBytes(t, k)
	o.Change(t, e, func() { e.Spec.WrappingAlgorithm = "RSAES_OAEP_SHA_1" })
	o.Ready(t, e)
	if got := o.openExport(t, e, rsaRecipient()); !bytes.Equal(got, want) || bytes.Equal(got, former) {
		t.Error("it is another data key")
	}
}

// The DataKey comes back with the same data key: nothing was replaced.
func TestExportedDataKey_dataKeyCreatedAgainFromItsSecret_isTheSame(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	k := o.dataKey(t, "dek")
	e := o.export(t, "e")
	version := o.secretOf(t, "e").ResourceVersion
	o.RemoveUnseen(t, k)
	o.dataKey(t, "dek")
	o.Ready(t, e)
	if s := o.secretOf(t, "e"); s.ResourceVersion != version {
		t.Error("it was exported again")
	}
}

// An ImportedKey is the recipient. Someone without the verb export deletes it and creates another one with its name, in a
// key store whose token is theirs.
func TestExportedDataKey_recipientReplacedByAnother_isNotExportedTo(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	o.dataKey(t, "dek")
	recipient := o.pendingKey(t, "recipient")
	e := o.export(t, "e", toKey("recipient"), withSM2)
	version := o.secretOf(t, "e").ResourceVersion
	o.Remove(t, recipient)
	o.Gone(t, recipient)
	again := o.pendingKey(t, "recipient")
	o.Stalls(t, e, v1alpha1.ReasonInputReplaced, "ImportedKey recipient")
	if s := o.secretOf(t, "e"); s.ResourceVersion != version {
		t.Error("the Secret was written")
	}
	o.Change(t, e, func() {
		e.Spec.Target = &v1alpha1.ExportTarget{SecretTarget: v1alpha1.SecretTarget{Labels: map[string]v1alpha1.MetadataValue{"again": "yes"}}}
	})
	o.Ready(t, e)
	if e.Status.RecipientFingerprint != again.Status.ImportParameters.PublicKeyFingerprint {
		t.Errorf("it is exported to %s", e.Status.RecipientFingerprint)
	}
}

// As above, through a ClusterExportedDataKey, one of whose exports is deleted so that it is made again.
func TestClusterExport_dataKeyReplacedByAnother_isNotExported(t *testing.T) {
	t.Parallel()
	o := startToSpread(t, "All")
	namespaces := o.teamNamespaces(t, 2)
	e := o.clusterExport(t, func(s *v1alpha1.ClusterExportedDataKeySpec) {
		s.Template.PublicKey.Blob = rsaRecipient().public.Base64()
	})
	o.counts(t, e, 2, 2, 0)
	o.Ready(t, e)
	o.enabledKey(t, "mine", nil)
	child := func(namespace string) *v1alpha1.ExportedDataKey {
		return &v1alpha1.ExportedDataKey{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: e.Name}}
	}
	dataKey := &v1alpha1.DataKey{ObjectMeta: metav1.ObjectMeta{Namespace: o.Namespace, Name: "dek"}}
	o.RemoveUnseen(t, dataKey, o.secretOf(t, "dek"), child(namespaces[0]), o.secretIn(t, namespaces[0], e.Name))
	o.dataKey(t, "dek", underKey("mine"))
	o.Stalls(t, child(namespaces[1]), v1alpha1.ReasonInputReplaced)
	o.Stalls(t, e, v1alpha1.ReasonInputReplaced)
	if s := o.secretIn(t, namespaces[0], e.Name); s != nil {
		t.Error("the other data key was exported")
	}
}

// What is written on a Secret, or as an owner, and a status cannot hold, does not keep the operator from writing the
// status, and so from seeing that consent was withdrawn.
func TestExportedDataKey_marksThatNoStatusCanHold_areLeftOut(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*corev1.Secret){
		"a-time-of-1960": func(s *corev1.Secret) { s.Annotations["keyconvoy.io/export-time"] = "1960-01-01T00:00:00Z" },
		"a-time-of-9999": func(s *corev1.Secret) { s.Annotations["keyconvoy.io/export-time"] = "9999-12-31T23:59:59-01:00" },
		"a-uuid-with-prefix": func(s *corev1.Secret) {
			s.Annotations["keyconvoy.io/request-id"] = "urn:uuid:" + s.Annotations["keyconvoy.io/request-id"]
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := startWithKey(t)
			o.dataKey(t, "dek")
			e := o.export(t, "e")
			o.Stop(t)
			s := o.secretOf(t, "e")
			o.loseStatus(t, e)
			o.Change(t, s, func() { change(s) })
			o.Start(t)
			o.Ready(t, e)
			if e.Status.ExportTime != nil && e.Status.ExportTime.Year() < 1971 || strings.HasPrefix(e.Status.RequestID, "urn:") || e.Status.SecretRef == nil {
				t.Errorf("the status is %s", harness.JSON(e.Status))
			}
		})
	}
}

func TestExportedDataKey_ownerWithAnOddUID_isNoParent(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	o.dataKey(t, "dek")
	e := newExport("owned")
	e.OwnerReferences = []metav1.OwnerReference{{
		APIVersion: v1alpha1.GroupVersion.String(), Kind: "ClusterExportedDataKey", Name: "owned", Controller: new(true), UID: types.UID(strings.Repeat("u", 65)),
	}}
	o.Make(t, e)
	o.Ready(t, e)
	if e.Status.Parent != "" {
		t.Errorf("the parent is %q", e.Status.Parent)
	}
}

// An editor of Secrets keeps the export's Secret from going when consent is withdrawn: with another owner, or a finalizer.
func TestConsent_withdrawn_ofASecretThatSomeoneHolds_destroysTheExport(t *testing.T) {
	t.Parallel()
	for name, hold := range map[string]func(*corev1.Secret){
		"with another owner": func(s *corev1.Secret) {
			s.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "ConfigMap", Name: "c", UID: "u", Controller: new(true)}}
		},
		"without owner and mark": func(s *corev1.Secret) { s.OwnerReferences, s.Annotations = nil, nil },
		"with a finalizer":       func(s *corev1.Secret) { s.Finalizers = []string{"example.com/held"} },
	} {
		t.Run(name, func(t *testing.T) {
			o := startToSpread(t, "All")
			e := o.inTeam(t, "export")
			o.Make(t, e)
			o.Ready(t, e)
			o.Stop(t)
			s := o.secretIn(t, e.Namespace, e.Name)
			o.Change(t, s, func() { hold(s) })
			o.setPolicy(t, nil)
			o.Start(t)
			o.Condition(t, e, v1alpha1.ConditionReady, "False", "ForbiddenNoPermission")
			harness.Eventually(t, func() string {
				if s := o.secretIn(t, e.Namespace, e.Name); s != nil && len(s.Data) > 0 {
					return fmt.Sprintf("the Secret still has %d entries", len(s.Data))
				}
				return ""
			})
			if s := o.secretIn(t, e.Namespace, e.Name); s != nil {
				o.Change(t, s, func() { s.Finalizers = nil })
			}
		})
	}
}

// A lost status does not keep a Secret whose consent was withdrawn, even if the recipient's key no longer exists.
func TestConsent_withdrawn_ofAnExportThatNoStatusKnows_destroysIt(t *testing.T) {
	t.Parallel()
	o := startToSpread(t, "All")
	e := o.inTeam(t, "export", toConfigMap("recipient", "key"))
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: e.Namespace, Name: "recipient"}, Data: map[string]string{"key": string(rsaRecipient().pem())}}
	o.Make(t, cm, e)
	o.Ready(t, e)
	o.Stop(t)
	o.loseStatus(t, e)
	o.Remove(t, cm)
	o.setPolicy(t, nil)
	o.Start(t)
	o.withoutSecret(t, e)
}
