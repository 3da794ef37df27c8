package controllers_test

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
)

type policy = v1alpha1.ExportPolicy

func toNamespaces(from string, team string) *v1alpha1.ExportNamespaces {
	n := &v1alpha1.ExportNamespaces{From: from}
	if from == "Selector" {
		n.Selector = selector(labelTeam, team)
	}
	return n
}

func toRecipients(all ...recipient) []v1alpha1.ExportRecipient {
	var list []v1alpha1.ExportRecipient
	for _, r := range all {
		list = append(list, v1alpha1.ExportRecipient{Fingerprint: r.public.Fingerprint()})
	}
	return list
}

// inTeam exports the data key dek of the test's namespace from a namespace of the team.
func (o *operator) inTeam(t testing.TB, name string, change ...exportChange) *v1alpha1.ExportedDataKey {
	t.Helper()
	e := newExport(name, append([]exportChange{o.fromHere("dek")}, change...)...)
	e.Namespace = o.teamNamespaces(t, 1)[0]
	return e
}

// fromHere names a DataKey of the test's namespace, for exports elsewhere.
func (o *operator) fromHere(name string) exportChange {
	return func(s *v1alpha1.ExportedDataKeySpec) {
		ofDataKey(name)(s)
		s.DataKeyRef.Namespace = v1alpha1.NamespaceName(o.Namespace)
	}
}

func (o *operator) key(t testing.TB) *v1alpha1.ImportedKey {
	t.Helper()
	key := importedKey("key")
	key.Namespace = o.Namespace
	o.Read(t, key)
	return key
}

// setPolicy gives the key named key another policy.
func (o *operator) setPolicy(t testing.TB, p *policy) {
	t.Helper()
	key := o.key(t)
	o.Change(t, key, func() { key.Spec.ExportPolicy = p })
}

func TestConsent_isAskedForNamespaceRecipientAndAlgorithm(t *testing.T) {
	t.Parallel()
	o := startToSpread(t, "Same")
	blob := dataKeyBlob(o, t, "dek")
	here, team, elsewhere := o.Namespace, o.teamNamespaces(t, 1)[0], o.Env.Namespace(t)
	const (
		namespaces = "exportPolicy.namespaces"
		recipients = "exportPolicy.recipients"
		algorithms = "exportPolicy.wrappingAlgorithms"
	)
	sha1 := withRSA("RSAES_OAEP_SHA_1")
	n := 0
	for sentence, tc := range map[string]struct {
		policy *policy
		in     string
		change exportChange
		says   string // nothing: it is exported
	}{
		"no policy, elsewhere":                    {nil, elsewhere, o.fromHere("dek"), namespaces},
		"no policy, here":                         {nil, here, ofDataKey("dek"), ""},
		"no policy, here by name":                 {nil, here, o.fromHere("dek"), ""},
		"Same, elsewhere":                         {&policy{Namespaces: toNamespaces("Same", "")}, elsewhere, o.fromHere("dek"), namespaces},
		"Same, a blob elsewhere":                  {&policy{Namespaces: toNamespaces("Same", "")}, elsewhere, ofBlobUnder(here, "key", blob, nil), namespaces},
		"Same, a blob with white space elsewhere": {&policy{Namespaces: toNamespaces("Same", "")}, elsewhere, ofBlobUnder(here, "key", lines(blob), nil), namespaces},
		"All, elsewhere":                          {&policy{Namespaces: toNamespaces("All", "")}, elsewhere, o.fromHere("dek"), ""},
		"All, a blob elsewhere":                   {&policy{Namespaces: toNamespaces("All", "")}, elsewhere, ofBlobUnder(here, "key", blob, nil), ""},
		"Selector, elsewhere":                     {&policy{Namespaces: toNamespaces("Selector", o.OwnNamespace)}, elsewhere, o.fromHere("dek"), namespaces},
		"Selector, the team":                      {&policy{Namespaces: toNamespaces("Selector", o.OwnNamespace)}, team, o.fromHere("dek"), ""},
		"Selector, here":                          {&policy{Namespaces: toNamespaces("Selector", o.OwnNamespace)}, here, ofDataKey("dek"), ""},
		"another recipient":                       {&policy{Recipients: toRecipients(otherRSARecipient())}, here, ofDataKey("dek"), recipients},
		"another recipient of a blob":             {&policy{Recipients: toRecipients(otherRSARecipient())}, here, ofBlob(blob, nil), recipients},
		"a recipient of the list":                 {&policy{Recipients: toRecipients(otherRSARecipient(), rsaRecipient())}, here, ofDataKey("dek"), ""},
		"another algorithm":                       {&policy{WrappingAlgorithms: []v1alpha1.ExportAlgorithm{"RSAES_OAEP_SHA_256"}}, here, sha1, algorithms},
		"an algorithm of the list":                {&policy{WrappingAlgorithms: []v1alpha1.ExportAlgorithm{"RSAES_OAEP_SHA_1"}}, here, sha1, ""},
		"all but the recipient": {&policy{
			Namespaces: toNamespaces("All", ""), Recipients: toRecipients(otherRSARecipient()), WrappingAlgorithms: []v1alpha1.ExportAlgorithm{"RSAES_OAEP_SHA_256"},
		}, elsewhere, o.fromHere("dek"), recipients},
		"all of it": {&policy{
			Namespaces: toNamespaces("All", ""), Recipients: toRecipients(rsaRecipient()), WrappingAlgorithms: []v1alpha1.ExportAlgorithm{"RSAES_OAEP_SHA_256"},
		}, elsewhere, o.fromHere("dek"), ""},
	} {
		n++
		o.setPolicy(t, tc.policy)
		o.Ready(t, o.key(t))
		e := newExport(fmt.Sprintf("export-%d", n), tc.change)
		e.Namespace = tc.in
		before := o.Calls()["ExportDataKey"]
		o.Make(t, e)
		if tc.says == "" {
			o.Ready(t, e)
		} else {
			o.Stalls(t, e, "ForbiddenNoPermission", "Forbidden.NoPermission: This operation is forbidden", "owner does not consent", tc.says)
			if o.secretIn(t, e.Namespace, e.Name) != nil {
				t.Errorf("%s: there is a Secret", sentence)
			}
			if n := o.Calls()["ExportDataKey"] - before; n != 0 {
				t.Errorf("%s: the module was asked %d times", sentence, n)
			}
		}
		o.Remove(t, e)
		o.Gone(t, e)
	}
}

// A DataKey of one's own does not make another's blob one's own.
func TestConsent_ofTheBlobsKey_notOfTheKeyThatOneNames(t *testing.T) {
	t.Parallel()
	o := startToSpread(t, "Same")
	blob := dataKeyBlob(o, t, "dek")
	elsewhere := o.Env.Namespace(t)
	store := &v1alpha1.KeyStore{ObjectMeta: metav1.ObjectMeta{Namespace: elsewhere, Name: "store"}, Spec: storeSpec(onSoftware)}
	o.Make(t, store)
	o.Ready(t, store)
	own := importedKey("key", consenting("All"))
	own.Namespace = elsewhere
	o.Make(t, own)
	o.Waits(t, own, v1alpha1.ReasonPendingImport)
	p := own.Status.ImportParameters
	o.give(t, own, inline(wrapUnder(t, p, o.material(32)), p.ImportToken))
	o.enabled(t, own)
	theirs := newDataKey("dek", withBlob(blob))
	theirs.Namespace = elsewhere
	e := newExport("export")
	e.Namespace = elsewhere
	o.Make(t, theirs, e)
	o.Stalls(t, theirs, "InvalidParameter")
	o.Waits(t, e, v1alpha1.ReasonKeyNotReady)
}

// withdrawn waits until an export's Secret is deleted because consent was withdrawn, and one event says so.
func (o *operator) withdrawn(t testing.TB, e *v1alpha1.ExportedDataKey) {
	t.Helper()
	o.withoutSecret(t, e)
	harness.WantWords(t, o.Event(t, e, "ForbiddenNoPermission"), []string{"Forbidden.NoPermission: "})
	o.Until(t, e, func() string {
		if s := e.Status; s.SecretRef != nil || s.ExportTime != nil || s.InputsDigest != "" || s.RequestID != "" || s.Custody != "" {
			return "the status still speaks of an export: " + harness.StatusJSON(e)
		}
		return ""
	})
}

func TestConsent_withdrawn_deletesTheSecret_andComesBack(t *testing.T) {
	t.Parallel()
	consent := policy{
		Namespaces: toNamespaces("Selector", ""), Recipients: toRecipients(rsaRecipient(), otherRSARecipient()),
		WrappingAlgorithms: []v1alpha1.ExportAlgorithm{"RSAES_OAEP_SHA_256", "SM2PKE"},
	}
	change := func(f func(*policy)) func(*operator, testing.TB, *v1alpha1.ExportedDataKey) {
		return func(o *operator, t testing.TB, _ *v1alpha1.ExportedDataKey) {
			key := o.key(t)
			o.Change(t, key, func() { f(key.Spec.ExportPolicy) })
		}
	}
	allowed := func(team func(*operator) string) func(*operator, testing.TB, *v1alpha1.ExportedDataKey) {
		return func(o *operator, t testing.TB, _ *v1alpha1.ExportedDataKey) {
			store := &v1alpha1.ClusterKeyStore{ObjectMeta: named(o.OwnNamespace)}
			o.Change(t, store, func() { store.Spec.AllowedNamespaces = selector(labelTeam, team(o)) })
		}
	}
	type step = func(*operator, testing.TB, *v1alpha1.ExportedDataKey)
	for sentence, tc := range map[string]struct {
		withdraw, giveBack step
		says               string
	}{
		"the owner keeps it at home": {
			change(func(p *policy) { p.Namespaces = nil }),
			change(func(p *policy) { p.Namespaces = toNamespaces("All", "") }),
			"exportPolicy.namespaces",
		},
		"the owner takes the recipient off the list": {
			change(func(p *policy) { p.Recipients = toRecipients(otherRSARecipient()) }),
			change(func(p *policy) { p.Recipients = toRecipients(rsaRecipient()) }),
			"exportPolicy.recipients",
		},
		"the owner takes the algorithm off the list": {
			change(func(p *policy) { p.WrappingAlgorithms = []v1alpha1.ExportAlgorithm{"SM2PKE"} }),
			change(func(p *policy) { p.WrappingAlgorithms = nil }),
			"exportPolicy.wrappingAlgorithms",
		},
		"the namespace leaves the team": {
			func(o *operator, t testing.TB, e *v1alpha1.ExportedDataKey) { o.relabel(t, e.Namespace, "other") },
			func(o *operator, t testing.TB, e *v1alpha1.ExportedDataKey) {
				o.relabel(t, e.Namespace, o.OwnNamespace)
			},
			"exportPolicy.namespaces",
		},
		"the key store serves other namespaces": {
			allowed(func(*operator) string { return "other" }),
			allowed(func(o *operator) string { return o.OwnNamespace }),
			"spec.allowedNamespaces",
		},
		"the key's namespace leaves those that the key store serves": {
			func(o *operator, t testing.TB, _ *v1alpha1.ExportedDataKey) { o.relabel(t, o.Namespace, "other") },
			func(o *operator, t testing.TB, _ *v1alpha1.ExportedDataKey) {
				o.relabel(t, o.Namespace, o.OwnNamespace)
			},
			"spec.allowedNamespaces",
		},
	} {
		t.Run(sentence, func(t *testing.T) {
			o := startOperator(t)
			o.relabel(t, o.Namespace, o.OwnNamespace)
			store := o.clusterStore(t, onSoftware, func(s *v1alpha1.ClusterKeyStoreSpec) {
				s.AllowedNamespaces = selector(labelTeam, o.OwnNamespace)
			})
			o.enabledKey(t, "key", nil, inClusterStore(store.Name), func(s *v1alpha1.ImportedKeySpec) {
				s.ExportPolicy = consent.DeepCopy()
				s.ExportPolicy.Namespaces.Selector = selector(labelTeam, o.OwnNamespace)
			})
			dataKey := o.dataKey(t, "dek")
			byName := o.inTeam(t, "by-name")
			byBlob := newExport("by-blob", ofBlobUnder(o.Namespace, "key", dataKey.Status.CiphertextBlob, nil))
			byBlob.Namespace = byName.Namespace
			o.Make(t, byBlob)
			o.Ready(t, byBlob) // so the operator knows the namespace, and does not refuse the other one at first
			o.Make(t, byName)
			o.Ready(t, byName)
			before := o.secretIn(t, byName.Namespace, byName.Name)

			tc.withdraw(o, t, byName)
			for _, e := range []*v1alpha1.ExportedDataKey{byName, byBlob} {
				o.Stalls(t, e, "ForbiddenNoPermission", tc.says)
				o.withdrawn(t, e)
			}
			tc.giveBack(o, t, byName)
			o.Ready(t, byName, byBlob)
			if s := o.secretIn(t, byName.Namespace, byName.Name); s == nil || s.UID == before.UID {
				t.Error("there is no new Secret")
			}
			n := 0
			for _, e := range o.Events(t, byName) {
				if strings.HasPrefix(e, "ForbiddenNoPermission: ") {
					n++
				}
			}
			if n != 1 {
				t.Errorf("there are %d events", n)
			}
		})
	}
}

// Whatever else is wrong does not keep a Secret alive whose consent was withdrawn.
func TestConsent_withdrawn_deletesTheSecret_alsoWhen(t *testing.T) {
	t.Parallel()
	for sentence, before := range map[string]func(*operator, testing.TB, *v1alpha1.ExportedDataKey){
		"the recipient's key is deleted": func(o *operator, t testing.TB, e *v1alpha1.ExportedDataKey) {
			o.Again(t, e, func() {
				o.Remove(t, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: e.Namespace, Name: "recipient"}})
			})
			o.Waits(t, e, v1alpha1.ReasonSourceNotFound)
		},
		"the data key is deleted": func(o *operator, t testing.TB, e *v1alpha1.ExportedDataKey) {
			dataKey := newDataKey("dek")
			dataKey.Namespace = o.Namespace
			o.Remove(t, dataKey)
			o.Waits(t, e, v1alpha1.ReasonKeyNotReady)
		},
		"the export is spoiled": func(o *operator, t testing.TB, e *v1alpha1.ExportedDataKey) {
			o.Change(t, e, func() {
				withExportTarget(v1alpha1.ExportTarget{SecretTarget: v1alpha1.SecretTarget{
					Labels: map[string]v1alpha1.MetadataValue{"no label": "at all"},
				}})(&e.Spec)
			})
			o.Stalls(t, e, "InvalidParameter")
		},
		"the export is only tried now": func(o *operator, t testing.TB, e *v1alpha1.ExportedDataKey) {
			o.Change(t, e, func() { dryRun(&e.Spec) })
			o.Stalls(t, e, "DryRunOperationError")
		},
		"the module is down": func(o *operator, t testing.TB, _ *v1alpha1.ExportedDataKey) {
			o.Module(t).FailAll("ExportDataKey", hsm.Errorf(hsm.Unavailable, "The module is restarting."))
		},
		"the key is Disabled": func(o *operator, t testing.TB, _ *v1alpha1.ExportedDataKey) {
			key := o.key(t)
			o.Change(t, key, func() { key.Spec.DesiredState = v1alpha1.DesiredDisabled })
			o.Ready(t, key)
		},
		"the key store is deleted": func(o *operator, t testing.TB, _ *v1alpha1.ExportedDataKey) {
			store := &v1alpha1.KeyStore{ObjectMeta: metav1.ObjectMeta{Namespace: o.Namespace, Name: "store"}}
			o.Remove(t, store)
			o.editor(t, o.Namespace).release(t, store)
			o.Gone(t, store)
		},
	} {
		t.Run(sentence, func(t *testing.T) {
			o := startToSpread(t, "All")
			e := o.inTeam(t, "export", toConfigMap("recipient", "key"))
			o.Make(t, &corev1.ConfigMap{
				ObjectMeta: metav1.ObjectMeta{Namespace: e.Namespace, Name: "recipient"}, Data: map[string]string{"key": string(rsaRecipient().pem())},
			}, e)
			o.Ready(t, e)
			before(o, t, e)
			if o.secretIn(t, e.Namespace, e.Name) == nil {
				t.Fatal("the Secret went before")
			}
			o.setPolicy(t, nil)
			o.withoutSecret(t, e)
		})
	}
}

// While the operator is away, no watch event reaches it; it finds out by itself.
func TestConsent_withdrawnWhileTheOperatorIsAway_isNoticed(t *testing.T) {
	t.Parallel()
	o := startToSpread(t, "All")
	e := o.inTeam(t, "export")
	o.Make(t, e)
	o.Ready(t, e)
	o.Stop(t)
	o.setPolicy(t, nil)
	o.Start(t)
	o.Stalls(t, e, "ForbiddenNoPermission")
	o.withdrawn(t, e)
}

// The export does not delete a Secret that another user created in its place.
func TestConsent_withdrawn_leavesForeignSecretsAlone(t *testing.T) {
	t.Parallel()
	o := startToSpread(t, "All")
	e := o.inTeam(t, "export")
	o.Make(t, e)
	o.Ready(t, e)
	o.Stop(t)
	o.Remove(t, o.secretIn(t, e.Namespace, e.Name))
	foreign := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: e.Namespace, Name: e.Name}}
	o.Make(t, foreign)
	o.setPolicy(t, nil)
	o.Start(t)
	o.Stalls(t, e, "ForbiddenNoPermission")
	if s := o.secretIn(t, e.Namespace, e.Name); s == nil || s.UID != foreign.UID {
		t.Error("it was deleted")
	}
}

// Without the owner's object, an object that only asks to adopt its key does not decide about exports that exist.
func TestConsent_ofAnObjectThatOnlyAsksForTheKey_doesNotCount(t *testing.T) {
	t.Parallel()
	o := startToSpread(t, "All")
	e := o.inTeam(t, "export")
	o.Make(t, e)
	o.Ready(t, e)
	key := o.key(t)
	o.Remove(t, key)
	o.Gone(t, key)

	impostor := adopting(key)
	impostor.Namespace = o.Env.Namespace(t)
	o.Make(t, impostor)
	o.Waits(t, impostor, v1alpha1.ReasonKeyStoreNotFound)
	o.Change(t, impostor, func() { impostor.Spec.ExportPolicy = nil })
	o.Waits(t, impostor, v1alpha1.ReasonKeyStoreNotFound)
	// Something has the export reconciled.
	o.Again(t, e, func() { o.relabel(t, e.Namespace, "other") })
	if o.secretIn(t, e.Namespace, e.Name) == nil {
		t.Error("the Secret was deleted although another object decided")
	}
}

func TestConsent_askedAgain_costsNothing(t *testing.T) {
	t.Parallel()
	o := startToSpread(t, "All")
	given, refused := o.inTeam(t, "given"), o.inTeam(t, "refused", toBlob(otherRSARecipient().public.Base64()))
	o.setPolicy(t, &policy{Namespaces: toNamespaces("All", ""), Recipients: toRecipients(rsaRecipient())})
	o.Make(t, given, refused)
	o.Ready(t, given)
	o.Stalls(t, refused, "ForbiddenNoPermission")
	o.Event(t, refused, "ForbiddenNoPermission")
	o.Settled(t, given, refused, o.key(t))
	o.uncounted(t)

	wake := map[string]func(){
		"another label of the namespace": func() {
			for _, e := range []client.Object{given, refused} {
				ns := &corev1.Namespace{ObjectMeta: named(e.GetNamespace())}
				o.Change(t, ns, func() { ns.Labels["another"] = "label" })
			}
		},
		"another policy that says the same": func() {
			o.setPolicy(t, &policy{Namespaces: toNamespaces("All", ""), Recipients: toRecipients(rsaRecipient(), sm2Recipient())})
		},
	}
	for sentence, cause := range wake {
		o.Again(t, given, func() { o.Again(t, refused, cause) })
		o.Ready(t, o.key(t)) // whose own status is the one write
		w := o.Writes()
		delete(w, "patch importedkeys/status")
		if len(w) != 0 {
			t.Errorf("%s: it wrote %v", sentence, w)
		}
		if calls := o.Calls(); calls["ExportDataKey"] != 0 {
			t.Errorf("%s: it called %v", sentence, calls)
		}
	}
}
