package controllers_test

import (
	"regexp"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
)

func accessKey(name string) *v1alpha1.AccessKey {
	return &v1alpha1.AccessKey{ObjectMeta: named(name), Spec: v1alpha1.AccessKeySpec{ServiceAccountName: "app"}}
}

// startWithAccount starts an operator in a namespace with the ServiceAccount of access keys.
func startWithAccount(t *testing.T) *operator {
	t.Helper()
	o := startOperator(t)
	o.Make(t, &corev1.ServiceAccount{ObjectMeta: named("app")})
	return o
}

// accessSecret reads the Secret of an access key.
func accessSecret(t *testing.T, o *operator, name string) *corev1.Secret {
	t.Helper()
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: o.Namespace, Name: name}}
	o.Read(t, s)
	return s
}

func TestAccessKey_isInItsSecret(t *testing.T) {
	t.Parallel()
	o := startWithAccount(t)
	one, other := accessKey("one"), accessKey("other")
	o.Make(t, one, other)
	o.Ready(t, one, other)
	secret := accessSecret(t, o, "one")
	id, value := string(secret.Data["accessKeyId"]), string(secret.Data["accessKeySecret"])
	if !regexp.MustCompile(`^KC[A-Z2-7]{26}$`).MatchString(id) || id != one.Status.AccessKeyID || id == other.Status.AccessKeyID {
		t.Errorf("The identifier is %q, the status %s", id, harness.StatusJSON(one))
	}
	if !regexp.MustCompile(`^[A-Za-z0-9_-]{43}$`).MatchString(value) { // 256 bits
		t.Errorf("The secret has %d characters, or others", len(value))
	}
	if value == string(accessSecret(t, o, "other").Data["accessKeySecret"]) {
		t.Error("Two access keys have one secret")
	}
	if !metav1.IsControlledBy(secret, one) || secret.Type != v1alpha1.SecretTypeAccessKey {
		t.Errorf("The Secret is of type %s and has the owners %v", secret.Type, secret.OwnerReferences)
	}
	o.Hide("the secret of an access key", []byte(value))
}

func TestAccessKey_unchanged_isNotWritten(t *testing.T) {
	t.Parallel()
	o := startWithAccount(t)
	key := accessKey("one")
	o.Make(t, key)
	o.Ready(t, key)
	o.Restart(t)
	o.Change(t, key, func() { key.Spec.Disabled = true })
	o.Ready(t, key)
	o.ForgetCounts()
	version := accessSecret(t, o, "one").ResourceVersion
	o.Change(t, key, func() { key.Spec.Disabled = false })
	o.Ready(t, key)
	if is := accessSecret(t, o, "one").ResourceVersion; is != version {
		t.Error("The Secret was written again")
	}
}

func TestAccessKey_secretDeleted_getsAnotherSecret(t *testing.T) {
	t.Parallel()
	o := startWithAccount(t)
	key := accessKey("one")
	o.Make(t, key)
	o.Ready(t, key)
	former := accessSecret(t, o, "one")
	o.Remove(t, former)
	o.Until(t, key, func() string {
		if key.Status.SecretRef.UID == string(former.UID) {
			return "The status names the former Secret"
		}
		return ""
	})
	now := accessSecret(t, o, "one")
	if string(now.Data["accessKeyId"]) != string(former.Data["accessKeyId"]) || string(now.Data["accessKeySecret"]) == string(former.Data["accessKeySecret"]) {
		t.Error("The identifier has changed, or the secret has not")
	}
}

func TestAccessKey_secretOfOthers_staysAsItIs(t *testing.T) {
	t.Parallel()
	o := startWithAccount(t)
	taken := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: o.Namespace, Name: "one"}, Data: map[string][]byte{"accessKeySecret": []byte("theirs")}}
	o.Make(t, taken)
	key := accessKey("one")
	o.Make(t, key)
	o.Stalls(t, key, v1alpha1.ReasonTargetNotOwned, "Secret", "another name")
	if s := accessSecret(t, o, "one"); len(s.Data) != 1 || string(s.Data["accessKeySecret"]) != "theirs" {
		t.Error("The Secret of others was changed")
	}
}

// A user who may create Secrets can make one that looks like the operator's. The user knows its content.
func TestAccessKey_secretThatTheOperatorDidNotWrite_isReplaced(t *testing.T) {
	t.Parallel()
	o := startWithAccount(t)
	key := accessKey("one")
	o.Make(t, key)
	o.Ready(t, key)
	former := accessSecret(t, o, "one")
	o.Stop(t)
	o.Remove(t, former)
	forged := former.DeepCopy()
	forged.UID, forged.ResourceVersion, forged.ManagedFields = "", "", nil
	forged.Data["accessKeySecret"] = []byte(strings.Repeat("x", 43))
	o.Make(t, forged)
	o.Start(t)
	o.Until(t, key, func() string {
		if key.Status.SecretRef == nil || key.Status.SecretRef.UID != string(forged.UID) {
			return "The status does not name the new Secret"
		}
		return ""
	})
	value := string(accessSecret(t, o, "one").Data["accessKeySecret"])
	if value == string(forged.Data["accessKeySecret"]) || value == string(former.Data["accessKeySecret"]) {
		t.Error("The access key has a secret that others know")
	}
}

func TestAccessKey_secretReplacedByOneOfOthers_isNotNamedInTheStatus(t *testing.T) {
	t.Parallel()
	o := startWithAccount(t)
	key := accessKey("one")
	o.Make(t, key)
	o.Ready(t, key)
	o.Stop(t)
	o.Remove(t, accessSecret(t, o, "one"))
	o.Make(t, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: o.Namespace, Name: "one"}})
	o.Start(t)
	o.Stalls(t, key, v1alpha1.ReasonTargetNotOwned, "Secret")
	if key.Status.SecretRef != nil {
		t.Errorf("The status is %s", harness.StatusJSON(key))
	}
}

// A user who creates a ServiceAccount with the name of a former one must not get its access keys.
func TestAccessKey_serviceAccountReplaced_isNotReady(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	key := accessKey("one")
	o.Make(t, key)
	o.Waits(t, key, v1alpha1.ReasonServiceAccountNotFound, "ServiceAccount app does not exist")
	former := &corev1.ServiceAccount{ObjectMeta: named("app")}
	o.Make(t, former)
	o.Ready(t, key)
	if key.Status.ServiceAccountUID != string(former.UID) {
		t.Errorf("The status is %s", harness.StatusJSON(key))
	}
	o.Remove(t, former)
	o.Change(t, key, func() { key.Spec.Disabled = true })
	o.Stalls(t, key, v1alpha1.ReasonInputReplaced, "Delete this object")
	o.Make(t, &corev1.ServiceAccount{ObjectMeta: named("app")})
	o.Change(t, key, func() { key.Spec.Disabled = false })
	o.Stalls(t, key, v1alpha1.ReasonInputReplaced, "Delete this object")
	if key.Status.ServiceAccountUID != string(former.UID) {
		t.Error("The access key belongs to another ServiceAccount now")
	}
	again := accessKey("two")
	o.Make(t, again)
	o.Ready(t, again)
}
