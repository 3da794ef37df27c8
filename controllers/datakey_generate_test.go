package controllers_test

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
)

func TestDataKey_waitsForItsKeyAndWakes(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftware)
	k := newDataKey("dek")
	o.Make(t, k)
	o.Waits(t, k, v1alpha1.ReasonKeyNotReady, "ImportedKey key does not exist")

	key := o.pendingKey(t, "key")
	o.Waits(t, k, "RejectedPendingImport", "Rejected.PendingImport: ")
	if n := o.Calls()["GenerateDataKey"]; n != 0 {
		t.Errorf("the module was asked %d times for a data key that could not be made", n)
	}
	o.absent(t, "dek")

	o.give(t, key, inline(wrapUnder(t, key.Status.ImportParameters, o.material(32)), key.Status.ImportParameters.ImportToken))
	o.Ready(t, k)
	o.checkSecretOf(t, k, "dek")
}

func TestDataKey_waitsForTheModuleAndWakes(t *testing.T) {
	t.Parallel()
	gone := hsm.Errorf(hsm.Unavailable, "The module does not answer.")
	o := startWithKey(t)
	o.Module(t).FailAll("GenerateDataKey", gone)
	k := newDataKey("dek")
	o.Make(t, k)
	o.Waits(t, k, "ServiceUnavailableTemporary", "ServiceUnavailableTemporary: ", "The module does not answer.")
	if all := o.Events(t, k); len(all) != 0 {
		t.Errorf("what passes by itself is no event: %q", all)
	}
	o.Module(t).FailAll("GenerateDataKey", nil)
	o.Ready(t, k)
}

func TestDataKey_waitsForTheKeyStoresConsentAndWakes(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	allow := func(value string) *v1alpha1.LabelSelector {
		return &v1alpha1.LabelSelector{MatchLabels: map[string]v1alpha1.LabelValue{"keys": v1alpha1.LabelValue(value)}}
	}
	label := func(value string) {
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: o.Namespace}}
		o.Change(t, ns, func() { ns.Labels = map[string]string{"keys": value} })
	}
	label("yes")
	store := o.clusterStore(t, onSoftware, func(s *v1alpha1.ClusterKeyStoreSpec) { s.AllowedNamespaces = allow("yes") })
	key := o.enabledKey(t, "key", nil, inClusterStore(store.Name))
	o.Settled(t, key)
	// The same event wakes the key: so the operator knows the label before it sees a data key.
	relabel := func(value string) { o.Again(t, key, func() { label(value) }) }

	relabel("no")
	first := newDataKey("first")
	o.Make(t, first)
	o.Stalls(t, first, "ForbiddenNoPermission", "Forbidden.NoPermission: ", "does not allow this namespace", "Ask its administrator")
	o.absent(t, "first")
	relabel("yes")
	o.Ready(t, first)

	relabel("no")
	second := newDataKey("second")
	o.Make(t, second)
	o.Stalls(t, second, "ForbiddenNoPermission")
	o.Change(t, store, func() { store.Spec.AllowedNamespaces = allow("no") })
	o.Ready(t, second)
}

// Between the module's answer and the Secret the operator may end: that data key was never
// published, and another takes its place.
func TestDataKey_isGeneratedOnce(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	k := o.dataKey(t, "dek")
	blob := k.Status.CiphertextBlob
	o.Change(t, k, func() { k.Spec.Target = &v1alpha1.SecretTarget{Labels: map[string]v1alpha1.MetadataValue{"app": "a"}} })
	o.Ready(t, k)
	o.wakeBySecret(t, "dek")
	o.Read(t, k)
	o.secretCaughtUp(t, k)
	if n := o.Calls()["GenerateDataKey"]; n != 1 {
		t.Errorf("the module was asked for %d data keys", n)
	}
	o.Restart(t)
	o.dataKey(t, "another") // so the operator has looked at all
	o.Ready(t, k)
	o.checkSecretOf(t, k, "dek")
	if k.Status.CiphertextBlob != blob || o.Calls()["GenerateDataKey"] != 1 {
		t.Errorf("after a restart the data key is another, or was made anew: %v", o.Calls())
	}
}

// secretCaughtUp waits until the status knows the Secret as it is.
func (o *operator) secretCaughtUp(t testing.TB, k *v1alpha1.DataKey) {
	t.Helper()
	o.Until(t, k, func() string {
		s := o.secretOf(t, k.Status.SecretRef.Name)
		if ref := k.Status.SecretRef; ref.UID == string(s.UID) && ref.ResourceVersion == s.ResourceVersion {
			return ""
		}
		return "the status does not know the Secret as it is"
	})
}

func TestDataKey_isAsLongAsItIsAskedFor(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	spec := func(keySpec string, n int32) func(*v1alpha1.DataKeySpec) {
		return func(s *v1alpha1.DataKeySpec) { s.KeySpec, s.NumberOfBytes = keySpec, n }
	}
	for name, c := range map[string]struct {
		spec func(*v1alpha1.DataKeySpec)
		want int
	}{
		"neither":       {spec("", 0), 32},
		"aes-256":       {spec("AES_256", 0), 32},
		"aes-128":       {spec("AES_128", 0), 16},
		"one-byte":      {spec("", 1), 1},
		"twenty-bytes":  {spec("", 20), 20},
		"longest":       {spec("", 1024), 1024},
		"the-bytes-win": {spec("AES_128", 33), 33},
	} {
		t.Run(name, func(t *testing.T) {
			if got := len(o.dataKeyBytes(t, o.dataKey(t, name, c.spec))); got != c.want {
				t.Errorf("it has %d bytes, want %d", got, c.want)
			}
		})
	}
}

func TestDataKey_custodyIsTheModules(t *testing.T) {
	t.Parallel()
	for store, custodies := range map[string]map[int32]hsm.Custody{
		onSoftware: {32: hsm.CustodySoftware},
		// RFC 3394 wraps keys of 16 bytes and multiples of 8; for others there is AEAD on the host.
		onSoftHSM: {32: hsm.CustodyModule, 20: hsm.CustodyHost},
		onNSS:     {16: hsm.CustodyModule, 1: hsm.CustodyHost},
	} {
		t.Run(store, func(t *testing.T) {
			o := startOperator(t)
			o.store(t, store)
			key := o.enabledKey(t, "key", nil, under("RSA_2048", "RSAES_OAEP_SHA_1"))
			for length, custody := range custodies {
				k := o.dataKey(t, fmt.Sprintf("dek-%d", length), withBytes(length))
				if got := hsm.Custody(k.Status.Custody); got != custody {
					t.Errorf("%d bytes: custody is %s, want %s", length, got, custody)
				}
				if k.Status.KeyID != string(key.UID) || k.Status.KeyVersionID != key.Status.KeyVersionID {
					t.Errorf("the status names key %s, version %s", k.Status.KeyID, k.Status.KeyVersionID)
				}
				if got := o.dataKeyBytes(t, k); len(got) != int(length) {
					t.Errorf("it has %d bytes, want %d", len(got), length)
				}
			}
		})
	}
}

func TestDataKey_custodyThatThePolicyForbidsIsRefused(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftHSM, func(s *v1alpha1.KeyStoreSpec) { s.Custody = v1alpha1.CustodyModuleOnly })
	o.enabledKey(t, "key", nil, under("RSA_2048", "RSAES_OAEP_SHA_1"))
	k := newDataKey("dek", withBytes(20))
	o.Make(t, k)
	o.Stalls(t, k, "UnsupportedOperation", "UnsupportedOperation: This action is not supported.")
	o.absent(t, "dek")
	o.Event(t, k, "UnsupportedOperation")
	if inside := o.dataKey(t, "inside"); inside.Status.Custody != v1alpha1.Custody(hsm.CustodyModule) {
		t.Errorf("custody is %s", inside.Status.Custody)
	}
}

func TestDataKey_refusesTargetMetadataThatIsNotTheUsers(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	for name, c := range map[string]struct {
		target v1alpha1.SecretTarget
		says   string
	}{
		"reserved-label":      {v1alpha1.SecretTarget{Labels: map[string]v1alpha1.MetadataValue{"keyconvoy.io/x": "y"}}, "are Keyconvoy's own"},
		"reserved-annotation": {v1alpha1.SecretTarget{Annotations: map[string]v1alpha1.MetadataValue{"keyconvoy.io/data-key": "other"}}, "are Keyconvoy's own"},
		"managed-by":          {v1alpha1.SecretTarget{Labels: map[string]v1alpha1.MetadataValue{v1alpha1.LabelManagedBy: "helm"}}, "are Keyconvoy's own"},
		"label-value":         {v1alpha1.SecretTarget{Labels: map[string]v1alpha1.MetadataValue{"app": "no spaces"}}, "a valid label must"},
		"label-name":          {v1alpha1.SecretTarget{Labels: map[string]v1alpha1.MetadataValue{"a/b/c": "x"}}, "a valid label key must"},
		"annotation-name":     {v1alpha1.SecretTarget{Annotations: map[string]v1alpha1.MetadataValue{"not a name": "x"}}, "name part must"},
	} {
		t.Run(name, func(t *testing.T) {
			k := newDataKey(name, withTarget(c.target))
			o.Make(t, k)
			o.Stalls(t, k, "InvalidParameter", "InvalidParameter: ", "target: ", c.says)
			o.absent(t, name)
			o.Change(t, k, func() { k.Spec.Target = nil })
			o.Ready(t, k)
		})
	}
}

func TestDataKey_secondReconcileAndRestartCostNothing(t *testing.T) {
	t.Parallel()
	o := startWithKey(t, harness.WithHealth(time.Hour)) // a check reads, too
	o.uncounted(t)
	k := o.dataKey(t, "dek")
	o.ReconciledSince(t, k, 1) // the event of its own Secret is the second
	wantCounts(t, "the first data key", o.Writes(), map[string]int{"apply secrets": 1, "patch datakeys": 1, "patch datakeys/status": 1})
	wantCounts(t, "the first data key", o.Calls(), map[string]int{"GenerateDataKey": 1, "Authenticate": 1})
	wantCounts(t, "the first data key", o.Requests.All().Reads, map[string]int{"get secrets": 1})

	o.Restart(t)
	o.Settled(t, k)
	wantCounts(t, "a restart", o.Calls(), map[string]int{})
	wantCounts(t, "a restart", o.Requests.In(o.Namespace).Writes, map[string]int{})
	wantCounts(t, "a restart", o.Requests.In(o.Namespace).Reads, map[string]int{})
}

func wantCounts(t testing.TB, what string, got, want map[string]int) {
	t.Helper()
	if harness.JSON(got) != harness.JSON(want) {
		t.Errorf("%s made %s, want %s", what, harness.JSON(got), harness.JSON(want))
	}
}
