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
)

func TestExportedDataKey_firstExportCostsTwoWrites(t *testing.T) {
	t.Parallel()
	o := startWithKey(t, withHealth(time.Hour)) // a check reads, too
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
		o.create(t, e)
		o.ready(t, e)
		o.settled(t, e)
		wantCounts(t, c.name, o.writes(), map[string]int{"apply secrets": 1, "patch exporteddatakeys/status": 1})
		wantCounts(t, c.name, o.requests.All().Reads, c.reads)
		wantCounts(t, c.name, o.requests.All().Lists, map[string]int{})
		wantCounts(t, c.name, o.calls(), map[string]int{"ExportDataKey": 1})
		if all := o.events(t, e); len(all) != 0 {
			t.Errorf("%s made events %q", c.name, all)
		}
	}
}

func TestExportedDataKey_aReconcileWithoutAReasonCostsNothing(t *testing.T) {
	t.Parallel()
	o := startWithKey(t, withHealth(time.Hour)) // a check reads, too
	k := o.dataKey(t, "dek")
	m := o.configMap(t, "map", "key", string(rsaRecipient().pem()))
	e := o.export(t, "e", toConfigMap("map", "key"))
	o.settled(t, e)

	o.uncounted(t)
	o.annotate(t, e, "note", "irrelevant") // wakes nobody
	o.annotate(t, k, "note", "irrelevant")
	wantCounts(t, "an annotation", o.writes(), map[string]int{})

	// Another version of the source must be read, once, and is noted.
	o.again(t, e, func() { o.change(t, m, func() { m.Data["other"] = "x" }) })
	o.ready(t, e)
	wantCounts(t, "another entry in the source", o.requests.All().Reads, map[string]int{"get configmaps": 1})
	wantCounts(t, "another entry in the source", o.writes(), map[string]int{"patch exporteddatakeys/status": 1})
	wantCounts(t, "another entry in the source", o.calls(), map[string]int{})
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
		o.create(t, e)
		objects = append(objects, e)
	}
	o.ready(t, objects...)
	if n := o.calls()["ExportDataKey"]; n != many {
		t.Errorf("the module made %d exports of %d", n, many)
	}
	o.restart(t)
	store := &v1alpha1.KeyStore{ObjectMeta: metav1.ObjectMeta{Namespace: o.namespace, Name: "store"}}
	o.settled(t, append(objects, store)...)
	counts := o.requests.In(o.namespace)
	wantCounts(t, "a restart", counts.Writes, map[string]int{})
	wantCounts(t, "a restart", counts.Reads, map[string]int{})
	wantCounts(t, "a restart", counts.Lists, map[string]int{})
	wantCounts(t, "a restart", o.calls(), map[string]int{})
}

func TestExportedDataKey_operatorThatEndsBetweenTheTwoWrites_findsTheExport(t *testing.T) {
	t.Parallel()
	var c cut
	o := startWithKey(t, c.option())
	o.dataKey(t, "dek")
	c.on.Store(true)
	e := newExport("e")
	o.create(t, e)
	first := o.secretWith(t, "e", func(*corev1.Secret) string { return "" })
	o.stop(t)
	if o.read(t, e); e.Status.SecretRef != nil {
		t.Fatal("the status was written")
	}
	c.on.Store(false)
	o.forgetCounts()
	o.start(t)
	o.ready(t, e)
	if s := o.checkExport(t, e, rsaRecipient()); s.ResourceVersion != first.ResourceVersion {
		t.Error("the Secret was written again")
	}
	if e.Status.RequestID != first.Annotations["keyconvoy.io/request-id"] || e.Status.Custody != v1alpha1.CustodyUnknown {
		t.Errorf("the status is %+v", e.Status)
	}
	wantCounts(t, "finding the export", o.calls(), map[string]int{})
}

func TestExportedDataKey_lostStatusIsTakenFromTheSecret(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	o.dataKey(t, "dek")
	e := o.export(t, "e")
	first := o.checkExport(t, e, rsaRecipient())
	before := e.DeepCopy().Status
	o.forgetCounts()
	o.loseStatus(t, e)
	o.wakeBySecret(t, "e")
	o.ready(t, e)
	s := o.checkExport(t, e, rsaRecipient())
	if toJSON(s.Data) != toJSON(first.Data) {
		t.Error("the Secret holds another export")
	}
	before.SecretRef.ResourceVersion = s.ResourceVersion
	before.Custody = v1alpha1.CustodyUnknown // a Secret is no proof of it
	before.Conditions, e.Status.Conditions = nil, nil
	if toJSON(e.Status) != toJSON(before) {
		t.Errorf("the status is %s, was %s", toJSON(e.Status), toJSON(before))
	}
	wantCounts(t, "taking over", o.calls(), map[string]int{})
}

func TestExportedDataKey_moduleThatFailsForAWhile_isAskedAgain(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	o.dataKey(t, "dek")
	o.module(t).FailAll("ExportDataKey", hsm.Errorf(hsm.Unavailable, "The module does not answer."))
	e := newExport("e")
	o.create(t, e)
	o.waits(t, e, "ServiceUnavailableTemporary", "ServiceUnavailableTemporary: Service Unavailable Temporary. The module does not answer.")
	o.absent(t, "e")
	eventually(t, func() string {
		if n := o.calls()["ExportDataKey"]; n < 2 {
			return fmt.Sprintf("the module was asked %d times", n)
		}
		return ""
	})
	o.module(t).FailAll("ExportDataKey", nil)
	o.ready(t, e)
	o.checkExport(t, e, rsaRecipient())
	if all := o.events(t, e); len(all) != 0 {
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
	o.create(t, exports...)
	o.ready(t, exports...)
	o.settled(t, exports...)

	// Somebody else's deletion is a reason; once it was seen, so were the events of all the Secrets before.
	o.forgetCounts() // of requests, not of reconciles
	o.remove(t, o.secretOf(t, "e-0"))
	eventually(t, func() string {
		if o.writes()["apply secrets"] == 0 {
			return "the Secret is not made again"
		}
		return ""
	})
	o.settled(t, exports...)
	once := 0
	for _, e := range exports[1:] {
		if begun, _ := o.reconciles(t, e); begun == 1 {
			once++
		}
	}
	// An event may overtake the answer to its write; on a busy machine that of most does, but not of all.
	if once == 0 {
		t.Errorf("each of %d exports was looked at again", n-1)
	}
}
