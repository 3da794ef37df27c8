package config_test

import (
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"

	. "github.com/onsi/gomega"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
)

func TestPolicies_creating_takesTheVerbOnWhatIsNamed(t *testing.T) {
	t.Parallel()
	env := withPolicies(t)
	for sentence, tc := range map[string]struct {
		verb, resource string
		names          []string
		elsewhere      bool // the verb is in another namespace than the person's
		object         func(here, elsewhere string) client.Object
		says           []string // nothing: it is taken
	}{
		"a data key, without the verb":                                 {"get", "importedkeys", nil, false, func(_, _ string) client.Object { return dataKey("k") }, []string{"the verb use", "ImportedKey k", "resources: [importedkeys], resourceNames: [k], verbs: [use]"}},
		"a data key, with the verb on another key":                     {"use", "importedkeys", []string{"other"}, false, func(_, _ string) client.Object { return dataKey("k") }, []string{"ImportedKey k"}},
		"a data key, with the verb elsewhere":                          {"use", "importedkeys", nil, true, func(_, _ string) client.Object { return dataKey("k") }, []string{"ImportedKey k"}},
		"a data key, with the other verb":                              {"export", "importedkeys", nil, false, func(_, _ string) client.Object { return dataKey("k") }, []string{"the verb use"}},
		"a data key, with the verb on its key":                         {"use", "importedkeys", []string{"k"}, false, func(_, _ string) client.Object { return dataKey("k") }, nil},
		"a data key, with the verb on all keys":                        {"use", "importedkeys", nil, false, func(_, _ string) client.Object { return dataKey("k") }, nil},
		"a data key under a generated key, the verb on imported keys":  {"use", "importedkeys", nil, false, func(_, _ string) client.Object { return underGenerated(dataKey("k")) }, []string{"the verb use", "GeneratedKey k", "resources: [generatedkeys], resourceNames: [k], verbs: [use]", "--clusterrole=keyconvoy-generatedkey-user-role"}},
		"a data key under an imported key, the verb on generated keys": {"use", "generatedkeys", nil, false, func(_, _ string) client.Object { return dataKey("k") }, []string{"ImportedKey k"}},
		"a data key under a generated key, the verb on it":             {"use", "generatedkeys", []string{"k"}, false, func(_, _ string) client.Object { return underGenerated(dataKey("k")) }, nil},
		"a blob under a generated key, the verb on imported keys":      {"export", "importedkeys", nil, false, func(_, _ string) client.Object { return underGenerated(exportOfBlob("k")) }, []string{"the verb export", "GeneratedKey k", "resources: [generatedkeys]"}},
		"a blob under a generated key, the verb on it":                 {"export", "generatedkeys", []string{"k"}, false, func(_, _ string) client.Object { return underGenerated(exportOfBlob("k")) }, nil},
		"a blob taken over under a generated key, use only":            {"use", "generatedkeys", []string{"k"}, false, func(_, _ string) client.Object { return underGenerated(takeover("k")) }, []string{"the verb export", "GeneratedKey k"}},
		"an export, without the verb":                                  {"get", "datakeys", nil, false, func(_, _ string) client.Object { return export("d") }, []string{"the verb export", "DataKey d", "resources: [datakeys], resourceNames: [d], verbs: [export]"}},
		"an export, with the verb on another":                          {"export", "datakeys", []string{"other"}, false, func(_, _ string) client.Object { return export("d") }, []string{"DataKey d"}},
		"an export, with the verb elsewhere":                           {"export", "datakeys", nil, true, func(_, _ string) client.Object { return export("d") }, []string{"DataKey d"}},
		"an export, with the verb on keys":                             {"export", "importedkeys", nil, false, func(_, _ string) client.Object { return export("d") }, []string{"DataKey d"}},
		"an export, with the verb to use":                              {"use", "datakeys", nil, false, func(_, _ string) client.Object { return export("d") }, []string{"DataKey d"}},
		"an export, with the verb on its data key":                     {"export", "datakeys", []string{"d"}, false, func(_, _ string) client.Object { return export("d") }, nil},
		"an export that names its namespace":                           {"export", "datakeys", []string{"d"}, false, func(here, _ string) client.Object { return export("d", here) }, nil},
		"an export from elsewhere, the verb here":                      {"export", "datakeys", nil, false, func(_, elsewhere string) client.Object { return export("d", elsewhere) }, []string{"DataKey d"}},
		"an export from elsewhere, the verb there":                     {"export", "datakeys", []string{"d"}, true, func(_, elsewhere string) client.Object { return export("d", elsewhere) }, nil},
		"a dry run, without the verb":                                  {"get", "datakeys", nil, false, func(_, _ string) client.Object { e := export("d"); e.Spec.DryRun = true; return e }, []string{"DataKey d"}},
		"a blob, without the verb":                                     {"get", "importedkeys", nil, false, func(_, _ string) client.Object { return exportOfBlob("k") }, []string{"ciphertextBlob", "ImportedKey k", "resources: [importedkeys], resourceNames: [k], verbs: [export]", "--clusterrole=keyconvoy-datakey-exporter-role"}},
		"a blob, with the verb on another key":                         {"export", "importedkeys", []string{"other"}, false, func(_, _ string) client.Object { return exportOfBlob("k") }, []string{"ImportedKey k"}},
		"a blob, with the verb on its key":                             {"export", "importedkeys", []string{"k"}, false, func(_, _ string) client.Object { return exportOfBlob("k") }, nil},
		"a blob, with the verb on all data keys":                       {"export", "datakeys", nil, false, func(_, _ string) client.Object { return exportOfBlob("k") }, []string{"ImportedKey k"}},
		"a blob, with the verb on all keys":                            {"export", "importedkeys", nil, false, func(_, _ string) client.Object { return exportOfBlob("k") }, nil},
		"a blob, with the verb elsewhere":                              {"export", "importedkeys", nil, true, func(_, _ string) client.Object { return exportOfBlob("k") }, []string{"ImportedKey k"}},
		"a blob from elsewhere, the verb here":                         {"export", "importedkeys", nil, false, func(_, elsewhere string) client.Object { return exportOfBlob("k", elsewhere) }, []string{"ImportedKey k"}},
		"a blob from elsewhere, the verb there":                        {"export", "importedkeys", []string{"k"}, true, func(_, elsewhere string) client.Object { return exportOfBlob("k", elsewhere) }, nil},
		"a blob taken over, with use only":                             {"use", "importedkeys", []string{"k"}, false, func(_, _ string) client.Object { return takeover("k") }, []string{"the verb export", "ImportedKey k"}},
		"a blob taken over, with export only":                          {"export", "importedkeys", []string{"k"}, false, func(_, _ string) client.Object { return takeover("k") }, []string{"the verb use", "ImportedKey k"}},
		"an export to all, without the verb":                           {"get", "datakeys", nil, false, func(here, _ string) client.Object { return clusterExport(here, "d") }, []string{"the verb export", "DataKey d"}},
		"an export to all, with the verb elsewhere":                    {"export", "datakeys", nil, true, func(here, _ string) client.Object { return clusterExport(here, "d") }, []string{"DataKey d"}},
		"an export to all, with the verb":                              {"export", "datakeys", []string{"d"}, false, func(here, _ string) client.Object { return clusterExport(here, "d") }, nil},
	} {
		t.Run(sentence, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			here, elsewhere := env.Namespace(t), env.Namespace(t)
			p := newPerson(t, env, here)
			in := here
			if tc.elsewhere {
				in = elsewhere
			}
			p.may(tc.verb, tc.resource, in, tc.names...)
			err := p.tries(tc.object(here, elsewhere))
			if tc.says == nil {
				g.Expect(err).NotTo(HaveOccurred())
				return
			}
			refused(g, err, append(tc.says, p.name)...)
		})
	}
}

func TestPolicies_changing_takesTheVerbWhereSomethingNewIsAskedFor(t *testing.T) {
	t.Parallel()
	env := withPolicies(t)
	for sentence, tc := range map[string]struct {
		object func(here string) client.Object
		change func(client.Object)
		refuse bool
	}{
		"another data key":          {func(string) client.Object { return export("d") }, func(o client.Object) { o.(*v1alpha1.ExportedDataKey).Spec.DataKeyRef.Name = "e" }, true},
		"another recipient":         {func(string) client.Object { return export("d") }, func(o client.Object) { o.(*v1alpha1.ExportedDataKey).Spec.PublicKey.Blob = "AQ==" }, true},
		"no dry run any more":       {func(string) client.Object { e := export("d"); e.Spec.DryRun = true; return e }, func(o client.Object) { o.(*v1alpha1.ExportedDataKey).Spec.DryRun = false }, true},
		"another blob":              {func(string) client.Object { return exportOfBlob("k") }, func(o client.Object) { o.(*v1alpha1.ExportedDataKey).Spec.CiphertextBlob = "AQ==" }, true},
		"more namespaces":           {func(here string) client.Object { return clusterExport(here, "d") }, func(o client.Object) { o.(*v1alpha1.ClusterExportedDataKey).Spec.NamespaceSelector.MatchLabels = nil }, true},
		"a recipient for all":       {func(here string) client.Object { return clusterExport(here, "d") }, func(o client.Object) { o.(*v1alpha1.ClusterExportedDataKey).Spec.Template.PublicKey.Blob = "AQ==" }, true},
		"a blob for a data key":     {func(string) client.Object { return dataKey("k") }, func(o client.Object) { o.(*v1alpha1.DataKey).Spec.CiphertextBlob = "AA==" }, true},
		"an export without owner":   {func(string) client.Object { return owned(export("d"), "maker") }, func(o client.Object) { o.SetOwnerReferences(nil) }, true},
		"an export of another":      {func(string) client.Object { return owned(export("d"), "maker") }, func(o client.Object) { owned(o, "mine") }, true},
		"an owner for an export":    {func(string) client.Object { return export("d") }, func(o client.Object) { owned(o, "maker") }, true},
		"a blob's without owner":    {func(string) client.Object { return owned(exportOfBlob("k"), "maker") }, func(o client.Object) { o.SetOwnerReferences(nil) }, true},
		"labels of an export":       {func(string) client.Object { return export("d") }, label, false},
		"finalizers of an export":   {func(string) client.Object { return export("d") }, finalize, false},
		"labels of a blob's export": {func(string) client.Object { return exportOfBlob("k") }, label, false},
		"labels of a data key":      {func(string) client.Object { return dataKey("k") }, label, false},
		"finalizers of one for all": {func(here string) client.Object { return clusterExport(here, "d") }, finalize, false},
		"nothing at all":            {func(string) client.Object { return export("d") }, func(client.Object) {}, false},
	} {
		t.Run(sentence, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			here := env.Namespace(t)
			p := newPerson(t, env, here)
			object := existing(t, env, here, tc.object(here))

			// As kubectl patch, kubectl replace and kubectl apply --server-side do.
			patched := object.DeepCopyObject().(client.Object)
			tc.change(patched)
			patch := client.MergeFrom(object)
			ways := map[string]error{
				"patch":  p.Patch(t.Context(), patched.DeepCopyObject().(client.Object), patch, client.DryRunAll),
				"update": p.Update(t.Context(), patched.DeepCopyObject().(client.Object), client.DryRunAll),
			}
			for way, err := range ways {
				if tc.refuse {
					refused(g, err, p.name)
				} else {
					g.Expect(err).NotTo(HaveOccurred(), way)
				}
			}
			g.Expect(p.Delete(t.Context(), object)).To(Succeed(), "deleting takes no verb of ours")
		})
	}
}

// kubectl delete --cascade=orphan has the garbage collector take the owner off. It has no verb of ours, and may change
// nothing else.
func TestPolicies_garbageCollectorMayOrphan(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	env := withPolicies(t)
	here := env.Namespace(t)
	p := &person{t: t, env: env, namespace: here, name: "system:serviceaccount:kube-system:generic-garbage-collector"}
	p.Client = env.As(t, p.name)
	p.bind(here, rbacv1.PolicyRule{APIGroups: []string{group}, Resources: []string{"exporteddatakeys"}, Verbs: []string{"patch", "get", "update"}})
	object := existing(t, env, here, owned(export("d"), "maker").(*v1alpha1.ExportedDataKey))
	orphaned := object.DeepCopy()
	orphaned.OwnerReferences = nil
	g.Expect(p.Patch(t.Context(), orphaned.DeepCopy(), client.MergeFrom(object), client.DryRunAll)).To(Succeed())
	orphaned.Spec.DataKeyRef.Name = "e"
	refused(g, p.Patch(t.Context(), orphaned, client.MergeFrom(object), client.DryRunAll), "DataKey e")
}

// Other controllers copy Secrets by their labels, or apply what is in them. Someone who may write no Secret must not
// have the operator write one for them.
func TestPolicies_marksOnASecret_takeTheVerbToCreateSecrets(t *testing.T) {
	t.Parallel()
	env := withPolicies(t)
	values := map[string]v1alpha1.MetadataValue{"argocd.argoproj.io/secret-type": "cluster"}
	for sentence, target := range map[string]v1alpha1.SecretTarget{
		"labels": {Labels: values}, "annotations": {Annotations: values},
	} {
		for kind, tc := range map[string]struct {
			object  func(here string) client.Object
			verb    string
			on      string
			cluster bool
		}{
			"a data key": {func(string) client.Object { k := dataKey("k"); k.Spec.Target = &target; return k }, "use", "importedkeys", false},
			"an export": {func(string) client.Object {
				e := export("k")
				e.Spec.Target = &v1alpha1.ExportTarget{SecretTarget: target}
				return e
			}, "export", "datakeys", false},
			"a blob's export": {func(string) client.Object {
				e := exportOfBlob("k")
				e.Spec.Target = &v1alpha1.ExportTarget{SecretTarget: target}
				return e
			}, "export", "importedkeys", false},
			"an export to all": {func(here string) client.Object {
				e := clusterExport(here, "k")
				e.Spec.Template.Target = &v1alpha1.ExportTarget{SecretTarget: target}
				return e
			}, "export", "datakeys", true},
		} {
			t.Run(sentence+" of "+kind, func(t *testing.T) {
				t.Parallel()
				g := NewWithT(t)
				here, elsewhere := env.Namespace(t), env.Namespace(t)
				p := newPerson(t, env, here)
				p.may(tc.verb, tc.on, here)
				secrets := rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"secrets"}, Verbs: []string{"create"}}
				object := tc.object(here)
				refused(g, p.tries(object), "the verb create on Secrets", p.name)
				p.bind(elsewhere, secrets)
				refused(g, p.tries(object), "the verb create on Secrets")
				p.bind(here, secrets)
				if tc.cluster {
					refused(g, p.tries(object), "the verb create on Secrets in all namespaces")
					p.bind("", secrets)
				}
				g.Expect(p.tries(object)).To(Succeed())
			})
		}
	}
}

// A person who gets the verb may change what was refused before.
func TestPolicies_changing_isTakenWithTheVerb(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	env := withPolicies(t)
	here := env.Namespace(t)
	p := newPerson(t, env, here)
	object := existing(t, env, here, export("d"))
	p.may("export", "datakeys", here, "e")
	change := func(name string) error {
		changed := object.DeepCopy()
		changed.Spec.DataKeyRef.Name = v1alpha1.ObjectName(name)
		changed.Spec.PublicKey.Blob = "AQ=="
		return p.Update(t.Context(), changed, client.DryRunAll)
	}
	refused(g, change("d"), "DataKey d")
	g.Expect(change("e")).To(Succeed())
}

// What the message tells an administrator to do helps, word for word.
func TestPolicies_message_saysWhatHelps(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	env := withPolicies(t)
	here := env.Namespace(t)
	p := newPerson(t, env, here)
	kubeconfig := env.Kubeconfig(t, nil, "default")
	for _, u := range build(t, "default") {
		if slices.Contains([]string{"keyconvoy-importedkey-user-role", "keyconvoy-datakey-exporter-role"}, u.GetName()) {
			g.Expect(env.Client.Create(t.Context(), u)).To(Succeed())
		}
	}
	for _, object := range []client.Object{dataKey("payments.v1"), export("ledger")} {
		err := p.tries(object)
		refused(g, err, p.name)
		_, command, _ := strings.Cut(err.Error(), "with: kubectl ")
		args := strings.Fields(strings.ReplaceAll(command, "USER", p.name))
		out, err := exec.CommandContext(t.Context(), env.Kubectl(), append([]string{"--kubeconfig", kubeconfig}, args...)...).CombinedOutput()
		g.Expect(err).NotTo(HaveOccurred(), "%q: %s", args, out)
		g.Eventually(func() error { return p.tries(object) }).Should(Succeed())
	}
	g.Expect(p.tries(exportOfBlob("k"))).To(Succeed(), "the role has both")
	g.Expect(p.tries(takeover("k"))).To(Succeed(), "with both roles")
}

func TestPolicies_administratorsAreNotStopped(t *testing.T) {
	t.Parallel()
	env := withPolicies(t)
	here := env.Namespace(t)
	for _, object := range []client.Object{dataKey("k"), export("d"), clusterExport(here, "d")} {
		existing(t, env, here, object)
	}
}

// The operator writes statuses without any verb of ours, and exports for ClusterExportedDataKeys.
func TestPolicies_operatorIsNotStopped(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	env := withPolicies(t)
	here := env.Namespace(t)
	role := find[rbacv1.ClusterRole](t, build(t, "default"), "ClusterRole", "keyconvoy-manager-role")
	p := &person{t: t, env: env, namespace: here, name: "system:serviceaccount:" + operatorNamespace + ":policies-test"}
	p.Client = env.As(t, p.name)
	name := here + "-manager"
	g.Expect(env.Client.Create(t.Context(), &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: role.Rules})).To(Succeed())
	g.Expect(env.Client.Create(t.Context(), &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: name}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name},
		Subjects: []rbacv1.Subject{{Kind: rbacv1.UserKind, Name: p.name, APIGroup: rbacv1.GroupName}},
	})).To(Succeed())
	g.Eventually(func() error { return p.tries(export("d")) }).Should(Succeed())

	object := existing(t, env, here, exportOfBlob("k"))
	before := object.DeepCopy()
	object.Status.RequestID = "r"
	g.Expect(p.Status().Patch(t.Context(), object, client.MergeFrom(before))).To(Succeed())
	// What it has no need for, it may not do either.
	refused(g, p.tries(exportOfBlob("k")))
}

// Who has the roles as they are installed may do this and no more.
func TestPolicies_withTheInstalledRoles(t *testing.T) {
	t.Parallel()
	env := withPolicies(t)
	objects := build(t, "default")
	for sentence, tc := range map[string]struct {
		roles []string
		takes []client.Object
		not   []client.Object
	}{
		"an editor of data keys":                 {[]string{"datakey-editor"}, []client.Object{dataKey("k")}, []client.Object{export("d"), takeover("k")}},
		"an editor who may export":               {[]string{"datakey-editor", "datakey-exporter"}, []client.Object{takeover("k")}, []client.Object{export("d")}},
		"an editor of exports has no data key":   {[]string{"exporteddatakey-editor"}, nil, []client.Object{dataKey("k"), export("d"), exportOfBlob("k")}},
		"an admin of exports neither":            {[]string{"exporteddatakey-admin"}, nil, []client.Object{export("d"), exportOfBlob("k")}},
		"an exporter may write no export":        {[]string{"datakey-exporter"}, nil, []client.Object{export("d")}},
		"an editor of exports and exporter":      {[]string{"exporteddatakey-editor", "datakey-exporter"}, []client.Object{export("d"), exportOfBlob("k")}, []client.Object{export("d", "default"), dataKey("k")}},
		"an editor of data keys and of exports":  {[]string{"datakey-editor", "exporteddatakey-editor"}, []client.Object{dataKey("k")}, []client.Object{export("d"), exportOfBlob("k")}},
		"a user of keys and editor of exports":   {[]string{"importedkey-user", "exporteddatakey-editor"}, nil, []client.Object{export("d"), exportOfBlob("k")}},
		"an admin of keys may not use them even": {[]string{"importedkey-admin"}, nil, []client.Object{dataKey("k"), export("d")}},
	} {
		t.Run(sentence, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			here := env.Namespace(t)
			p := &person{t: t, env: env, namespace: here, name: fmt.Sprintf("person-%d", people.Add(1))}
			p.Client = env.As(t, p.name)
			for _, role := range tc.roles {
				for _, rule := range find[rbacv1.ClusterRole](t, objects, "ClusterRole", "keyconvoy-"+role+"-role").Rules {
					p.bind(here, rule)
				}
			}
			for _, object := range tc.takes {
				g.Expect(p.tries(object)).To(Succeed())
			}
			for _, object := range tc.not {
				g.Expect(apierrors.IsForbidden(p.tries(object))).To(BeTrue(), "%T", object)
			}
		})
	}
}

// A policy that cannot be evaluated lets nothing through, and each is in force.
func TestPolicies_areBoundAndFailClosed(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	objects := build(t, "default")
	bound := map[string]bool{}
	for _, u := range objects {
		if u.GetKind() == "ValidatingAdmissionPolicyBinding" {
			b := find[admissionregistrationv1.ValidatingAdmissionPolicyBinding](t, objects, u.GetKind(), u.GetName())
			g.Expect(b.Spec.ValidationActions).To(ConsistOf(admissionregistrationv1.Deny))
			g.Expect(b.Spec.MatchResources).To(BeNil(), "in every namespace")
			bound[b.Spec.PolicyName] = true
		}
	}
	n := 0
	for _, u := range objects {
		if u.GetKind() == "ValidatingAdmissionPolicy" {
			n++
			p := find[admissionregistrationv1.ValidatingAdmissionPolicy](t, objects, u.GetKind(), u.GetName())
			g.Expect(*p.Spec.FailurePolicy).To(Equal(admissionregistrationv1.Fail))
			g.Expect(bound).To(HaveKey(p.Name))
			for _, rule := range p.Spec.MatchConstraints.ResourceRules {
				g.Expect(rule.APIGroups).To(Equal([]string{group}), "other people's objects are not ours to stop")
			}
		}
	}
	g.Expect(n).To(Equal(len(bound)))
	g.Expect(n).To(Equal(8))
}

// Two changes in a row would move a data key from the first key to the last, and each user would need the verbs on two of the three.
func TestPolicies_dataKeyThatIsBeingMoved_isNotSentFurther(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	env := withPolicies(t)
	here := env.Namespace(t)
	p := newPerson(t, env, here)
	p.may("use", "importedkeys", here)
	p.may("export", "importedkeys", here)
	object := existing(t, env, here, dataKey("second"))
	is := object.DeepCopyObject().(*v1alpha1.DataKey)
	is.Status.KeyRef = &v1alpha1.KeyReference{Kind: "ImportedKey", Name: "first"}
	g.Expect(env.Client.Status().Patch(t.Context(), is, client.MergeFrom(object))).To(Succeed())
	moveTo := func(name string) error {
		moved := is.DeepCopy()
		moved.Spec.KeyRef.Name = v1alpha1.ObjectName(name)
		return p.Patch(t.Context(), moved, client.MergeFrom(is), client.DryRunAll)
	}
	g.Expect(moveTo("third")).To(And(MatchError(apierrors.IsForbidden, "a refusal"), MatchError(ContainSubstring("still under the ImportedKey first"))))
	g.Expect(moveTo("first")).To(Succeed())
	is.Status.KeyRef.Name = "second"
	g.Expect(env.Client.Status().Update(t.Context(), is)).To(Succeed())
	g.Expect(moveTo("third")).To(Succeed())
}

// Moving a data key under another master key gives the users of that one what was under the former one, whose exportPolicy no
// longer applies.
func TestPolicies_changingTheMasterKey_takesTheVerbsOnBoth(t *testing.T) {
	t.Parallel()
	env := withPolicies(t)
	for sentence, tc := range map[string]struct {
		imported, generated []string // the keys that the person may use
		exported            string   // the ImportedKey from which the person may export
		verb, says          string   // nothing: it is taken
	}{
		"both":                      {[]string{"k"}, []string{"g"}, "k", "", ""},
		"the former only":           {[]string{"k"}, []string{"other"}, "k", "use", "GeneratedKey g"},
		"the new only":              {[]string{"other"}, []string{"g"}, "k", "use", "ImportedKey k"},
		"both, without the exports": {[]string{"k"}, []string{"g"}, "other", "export", "ImportedKey k"},
	} {
		t.Run(sentence, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			here := env.Namespace(t)
			p := newPerson(t, env, here)
			p.may("use", "importedkeys", here, tc.imported...)
			p.may("use", "generatedkeys", here, tc.generated...)
			p.may("export", "importedkeys", here, tc.exported)
			object := existing(t, env, here, dataKey("k"))
			moved := object.DeepCopyObject().(*v1alpha1.DataKey)
			moved.Spec.KeyRef = v1alpha1.KeyReference{Kind: "GeneratedKey", Name: "g"}
			err := p.Patch(t.Context(), moved, client.MergeFrom(object), client.DryRunAll)
			if tc.says == "" {
				g.Expect(err).NotTo(HaveOccurred())
				return
			}
			refused(g, err, "the verb "+tc.verb, tc.says, p.name)
		})
	}
}
