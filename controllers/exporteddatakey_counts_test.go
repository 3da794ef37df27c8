package controllers_test

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
)

func TestExportedDataKey_firstExportCostsTwoWrites(t *testing.T) {
	t.Parallel()
	o := startWithKey(t, harness.WithHealth(time.Hour)) // a check reads, too
	o.dataKey(t, "dek")
	o.makeSecret(t, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "tls"}, Data: map[string][]byte{"tls.crt": rsaRecipient().certificate(t, 1)}})
	o.configMap(t, "map", "key", string(rsaRecipient().pem()))
	o.pendingKey(t, "other", under("RSA_2048", "RSAES_OAEP_SHA_256"))
	for _, c := range []struct {
		name   string
		change exportChange
		reads  map[string]int
	}{
		{"inline", toBlob(rsaRecipient().public.Base64()), map[string]int{}},
		{"secret", toSecret("tls", "tls.crt"), map[string]int{"get secrets": 1}},
		{"config-map", toConfigMap("map", "key"), map[string]int{"get configmaps": 1}},
		{"imported-key", toKey("other"), map[string]int{}},
	} {
		o.uncounted(t)
		e := newExport(c.name, c.change)
		o.Make(t, e)
		o.Ready(t, e)
		o.Settled(t, e)
		wantCounts(t, c.name, o.Writes(), map[string]int{"apply secrets": 1, "patch exporteddatakeys/status": 1})
		wantCounts(t, c.name, o.Requests.All().Reads, c.reads)
		wantCounts(t, c.name, o.Requests.All().Lists, map[string]int{})
		wantCounts(t, c.name, o.Calls(), map[string]int{"ExportDataKey": 1})
		if all := o.Events(t, e); len(all) != 0 {
			t.Errorf("%s made events %q", c.name, all)
		}
	}
}

func TestExportedDataKey_aReconcileWithoutAReasonCostsNothing(t *testing.T) {
	t.Parallel()
	o := startWithKey(t, harness.WithHealth(time.Hour)) // a check reads, too
	k := o.dataKey(t, "dek")
	m := o.configMap(t, "map", "key", string(rsaRecipient().pem()))
	e := o.export(t, "e", toConfigMap("map", "key"))
	o.Settled(t, e)

	o.uncounted(t)
	o.Annotate(t, e, "note", "irrelevant") // causes no reconcile
	o.Annotate(t, k, "note", "irrelevant")
	wantCounts(t, "an annotation", o.Writes(), map[string]int{})

	// Another version of the source must be read, once, and is noted.
	o.Again(t, e, func() { o.Change(t, m, func() { m.Data["other"] = "x" }) })
	o.Ready(t, e)
	wantCounts(t, "another entry in the source", o.Requests.All().Reads, map[string]int{"get configmaps": 1})
	wantCounts(t, "another entry in the source", o.Writes(), map[string]int{"patch exporteddatakeys/status": 1})
	wantCounts(t, "another entry in the source", o.Calls(), map[string]int{})
}

func TestExportedDataKey_restartWithManyExportsCostsNothing(t *testing.T) {
	t.Parallel()
	const many = 50
	o := startWithKey(t)
	k := o.dataKey(t, "dek")
	m := o.configMap(t, "map", "key", string(rsaRecipient().pem()))
	objects := []client.Object{k}
	for i := range many {
		change := toBlob(rsaRecipient().public.Base64())
		if i%2 == 0 {
			change = toConfigMap(m.Name, "key")
		}
		e := newExport(fmt.Sprintf("e-%d", i), change)
		o.Make(t, e)
		objects = append(objects, e)
	}
	o.Ready(t, objects...)
	if n := o.Calls()["ExportDataKey"]; n != many {
		t.Errorf("the module made %d exports of %d", n, many)
	}
	o.Restart(t)
	store := &v1alpha1.KeyStore{ObjectMeta: metav1.ObjectMeta{Namespace: o.Namespace, Name: "store"}}
	o.Settled(t, append(objects, store)...)
	counts := o.Requests.In(o.Namespace)
	wantCounts(t, "a restart", counts.Writes, map[string]int{})
	wantCounts(t, "a restart", counts.Reads, map[string]int{})
	wantCounts(t, "a restart", counts.Lists, map[string]int{})
	wantCounts(t, "a restart", o.Calls(), map[string]int{})
}

func TestExportedDataKey_operatorThatEndsBetweenTheTwoWrites_findsTheExport(t *testing.T) {
	t.Parallel()
	var c cut
	o := startWithKey(t, c.option())
	o.dataKey(t, "dek")
	c.on.Store(true)
	e := newExport("e")
	o.Make(t, e)
	first := o.secretWith(t, "e", func(*corev1.Secret) string { return "" })
	o.Stop(t)
	if o.Read(t, e); e.Status.SecretRef != nil {
		t.Fatal("the status was written")
	}
	c.on.Store(false)
	o.ForgetCounts()
	o.Start(t)
	o.Ready(t, e)
	if s := o.checkExport(t, e, rsaRecipient()); s.ResourceVersion != first.ResourceVersion {
		t.Error("the Secret was written again")
	}
	if e.Status.RequestID != first.Annotations["keyconvoy.io/request-id"] || e.Status.Custody != v1alpha1.CustodyUnknown {
		t.Errorf("the status is %+v", e.Status)
	}
	wantCounts(t, "finding the export", o.Calls(), map[string]int{})
}

func TestExportedDataKey_lostStatusIsTakenFromTheSecret(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	o.dataKey(t, "dek")
	e := o.export(t, "e")
	first := o.checkExport(t, e, rsaRecipient())
	before := e.DeepCopy().Status
	o.ForgetCounts()
	o.loseStatus(t, e)
	o.wakeBySecret(t, "e")
	o.Ready(t, e)
	s := o.checkExport(t, e, rsaRecipient())
	if harness.JSON(s.Data) != harness.JSON(first.Data) {
		t.Error("the Secret holds another export")
	}
	before.SecretRef.ResourceVersion = s.ResourceVersion
	before.Custody = v1alpha1.CustodyUnknown // a Secret is no proof of it
	before.Conditions, e.Status.Conditions = nil, nil
	if harness.JSON(e.Status) != harness.JSON(before) {
		t.Errorf("the status is %s, was %s", harness.JSON(e.Status), harness.JSON(before))
	}
	wantCounts(t, "taking over", o.Calls(), map[string]int{})
}

func TestExportedDataKey_moduleThatFailsForAWhile_isAskedAgain(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	o.dataKey(t, "dek")
	o.Module(t).FailAll("ExportDataKey", hsm.Errorf(hsm.Unavailable, "The module does not answer."))
	e := newExport("e")
	o.Make(t, e)
	o.Waits(t, e, "ServiceUnavailableTemporary", "ServiceUnavailableTemporary: Service Unavailable Temporary. The module does not answer.")
	o.absent(t, "e")
	harness.Eventually(t, func() string {
		if n := o.Calls()["ExportDataKey"]; n < 2 {
			return fmt.Sprintf("the module was asked %d times", n)
		}
		return ""
	})
	o.Module(t).FailAll("ExportDataKey", nil)
	o.Ready(t, e)
	o.checkExport(t, e, rsaRecipient())
	if all := o.Events(t, e); len(all) != 0 {
		t.Errorf("what passes by itself is no event: %q", all)
	}
}

func TestExportedDataKey_itsOwnSecret_isNoReasonToLookAgain(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	o.dataKey(t, "dek")
	const n = 40
	exports := make([]client.Object, n)
	for i := range exports {
		exports[i] = newExport(fmt.Sprintf("e-%d", i), toBlob(rsaRecipient().public.Base64()))
	}
	o.Make(t, exports...)
	o.Ready(t, exports...)
	o.Settled(t, exports...)

	// A deletion by another user is a reason; once it was seen, so were the events of all the Secrets before.
	o.ForgetCounts() // of requests, not of reconciles
	o.Remove(t, o.secretOf(t, "e-0"))
	harness.Eventually(t, func() string {
		if o.Writes()["apply secrets"] == 0 {
			return "the Secret is not made again"
		}
		return ""
	})
	o.Settled(t, exports...)
	once := 0
	for _, e := range exports[1:] {
		if begun, _ := o.Reconciles(t, e); begun == 1 {
			once++
		}
	}
	// An event may overtake the answer to its write; on a busy machine that of most does, but not of all.
	if once == 0 {
		t.Errorf("each of %d exports was looked at again", n-1)
	}
}
