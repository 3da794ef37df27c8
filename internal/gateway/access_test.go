package gateway_test

import (
	"context"
	"maps"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/hsm/inprocess"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
)

// objectOf returns the object of a generated key.
func objectOf(t *testing.T, o *harness.Operator, id string) *v1alpha1.GeneratedKey {
	t.Helper()
	var list v1alpha1.GeneratedKeyList
	if err := o.List(t.Context(), &list, ctrlclient.InNamespace(o.Namespace)); err != nil {
		t.Fatal(err)
	}
	for i := range list.Items {
		if string(list.Items[i].UID) == id {
			return &list.Items[i]
		}
	}
	t.Fatalf("There is no GeneratedKey %s", id)
	return nil
}

// withoutID is an answer without what is different in each.
func withoutID(a answer) map[string]any {
	body := maps.Clone(a.body)
	delete(body, "RequestId")
	return body
}

func TestGateway_verbs(t *testing.T) {
	t.Parallel()
	o, r := run(t)
	admin := r.allow(t, o.Namespace, "admin", all...)
	id := createKey(t, r, admin, nil)
	to := newRecipient(t)
	blob := r.eventually(t, admin, "GenerateDataKeyWithoutPlaintext", map[string]string{"KeyId": id}, "").text(t, "CiphertextBlob")
	requests := map[string]map[string]string{
		"DescribeKey": {"KeyId": id}, "ListKeys": {}, "GenerateDataKeyWithoutPlaintext": {"KeyId": id}, "DisableKey": {"KeyId": id}, "CreateKey": {},
		"ExportDataKey": to.parameters(map[string]string{"CiphertextBlob": blob}), "TagResource": {"KeyId": id, "Tags": `[{"TagKey":"a","TagValue":"b"}]`},
		"GenerateAndExportDataKey": to.parameters(map[string]string{"KeyId": id}),
		"ReEncrypt":                {"CiphertextBlob": blob, "DestinationKeyId": id},
	}
	const no, hidden = "Forbidden.NoPermission", "Forbidden.KeyNotFound"
	for verb, c := range map[string]struct {
		allowed []string
		denied  string // the code of what needs a key
	}{
		"get":    {[]string{"DescribeKey"}, no},
		"list":   {[]string{"ListKeys"}, hidden},
		"use":    {[]string{"GenerateDataKeyWithoutPlaintext"}, hidden},
		"export": {[]string{"ExportDataKey"}, hidden},
		"update": {[]string{"TagResource"}, hidden},
		"create": {[]string{"CreateKey"}, hidden},
		"none":   {nil, hidden},
	} {
		t.Run(verb, func(t *testing.T) {
			t.Parallel()
			caller := r.allow(t, o.Namespace, "only-"+verb, verb)
			for action, parameters := range requests {
				want := c.denied
				switch {
				case len(c.allowed) > 0 && c.allowed[0] == action:
					want = ""
				case action == "ListKeys" || action == "CreateKey":
					want = no
				case action == "DisableKey" && verb == "update":
					continue
				}
				r.fails(t, caller, action, parameters, want)
			}
			if verb == "get" {
				return
			}
			// What the caller may not see is answered as what does not exist.
			there := r.call(t, caller, "DescribeKey", map[string]string{"KeyId": id})
			not := r.call(t, caller, "DescribeKey", map[string]string{"KeyId": uuid.NewString()})
			if there.status != not.status || !maps.Equal(withoutID(there), withoutID(not)) {
				t.Errorf("A hidden key is answered with %v, and a key that does not exist with %v", there.body, not.body)
			}
		})
	}
}

func TestGateway_keysOfOtherNamespaces(t *testing.T) {
	t.Parallel()
	o, r := run(t)
	admin := r.allow(t, o.Namespace, "admin", all...)
	id := createKey(t, r, admin, nil)
	key, to := map[string]string{"KeyId": id}, newRecipient(t)
	blob := r.eventually(t, admin, "GenerateDataKeyWithoutPlaintext", key, "").text(t, "CiphertextBlob")
	export := to.parameters(map[string]string{"CiphertextBlob": blob})
	away := o.Env.Namespace(t)
	granted, stranger := r.allow(t, away, "granted"), r.allow(t, away, "stranger")
	r.grant(t, o.Namespace, away, "granted", all...)

	// A role without the owner's consent.
	r.fails(t, granted, "DescribeKey", key, "Forbidden.KeyNotFound")
	r.fails(t, granted, "ExportDataKey", export, "Forbidden.KeyNotFound")
	object := objectOf(t, o, id)
	o.Change(t, object, func() {
		object.Spec.ExportPolicy = &v1alpha1.ExportPolicy{
			Namespaces: &v1alpha1.ExportNamespaces{From: "All"}, WrappingAlgorithms: []v1alpha1.ExportAlgorithm{"RSAES_OAEP_SHA_256"},
		}
	})
	r.eventually(t, granted, "DescribeKey", key, "")
	r.ok(t, granted, "ExportDataKey", export)
	// A data key must not get from its owner's policy to one of the caller.
	o.Make(t, &v1alpha1.KeyStore{
		ObjectMeta: metav1.ObjectMeta{Namespace: away, Name: "main"}, Spec: v1alpha1.KeyStoreSpec{Type: v1alpha1.KeyStoreSoftware},
	})
	own := createKey(t, r, r.allow(t, away, "owner", all...), nil)
	r.grant(t, away, away, "granted", "get", "use")
	r.eventually(t, granted, "DescribeKey", map[string]string{"KeyId": own}, "")
	r.fails(t, granted, "ReEncrypt", map[string]string{"CiphertextBlob": blob, "DestinationKeyId": own}, "Forbidden.NoPermission")
	export["WrappingAlgorithm"] = "RSAES_OAEP_SHA_1"
	r.fails(t, granted, "ExportDataKey", export, "Forbidden.NoPermission")
	dry := maps.Clone(export)
	dry["DryRun"] = "true"
	r.fails(t, granted, "ExportDataKey", dry, "AccessDeniedError")
	// Its own list does not have it, nor has it an alias there.
	r.fails(t, granted, "ListKeys", nil, "Forbidden.NoPermission")
	r.fails(t, granted, "CreateAlias", map[string]string{"KeyId": id, "AliasName": "alias/mine"}, "UnsupportedOperation")
	// The owner's consent without a role.
	r.fails(t, stranger, "DescribeKey", key, "Forbidden.KeyNotFound")
	r.fails(t, stranger, "ExportDataKey", export, "Forbidden.KeyNotFound")
}

func TestGateway_endOfAnAccessKey(t *testing.T) {
	t.Parallel()
	o, r := run(t)
	for name, c := range map[string]struct {
		end  func(*client)
		code string
	}{
		"disabled": {func(c *client) { o.Change(t, c.object, func() { c.object.Spec.Disabled = true }) }, "Forbidden.AccessKey"},
		"expired": {func(c *client) {
			o.Change(t, c.object, func() { c.object.Spec.ExpireTime = &metav1.Time{Time: time.Unix(1_000_000_000, 0)} })
		}, "Forbidden.AccessKey"},
		"deleted": {func(c *client) { o.Remove(t, c.object) }, "InvalidAccessKeyId.NotFound"},
		"account-deleted": {func(c *client) {
			o.Remove(t, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: o.Namespace, Name: c.object.Name}})
		}, "Forbidden.NoPermission"},
		"account-replaced": {func(c *client) {
			account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: o.Namespace, Name: c.object.Name}}
			o.Remove(t, account)
			o.Make(t, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: o.Namespace, Name: c.object.Name}})
		}, "Forbidden.NoPermission"},
		"secret-replaced": {func(c *client) {
			o.Remove(t, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: o.Namespace, Name: c.object.Name}})
		}, "SignatureDoesNotMatch"},
	} {
		t.Run(name, func(t *testing.T) {
			caller := r.allow(t, o.Namespace, name, all...)
			r.ok(t, caller, "ListKeys", nil)
			c.end(caller)
			r.eventually(t, caller, "ListKeys", nil, c.code)
		})
	}
}

// Without the operator, keys can be used, and changes end in a code that clients retry.
func TestGateway_operatorDown(t *testing.T) {
	t.Parallel()
	o, r := run(t)
	c := r.allow(t, o.Namespace, "admin", all...)
	id := createKey(t, r, c, nil)
	key := map[string]string{"KeyId": id}
	r.eventually(t, c, "GenerateDataKeyWithoutPlaintext", key, "")
	o.Stop(t)
	another := start(t, o) // one that starts without an operator
	another.eventually(t, c, "GenerateDataKeyWithoutPlaintext", key, "")
	r.ok(t, c, "GenerateDataKeyWithoutPlaintext", key)
	if got := r.fails(t, c, "DisableKey", key, "ServiceUnavailableTemporary"); got.status != 503 {
		t.Errorf("The status is %d", got.status)
	}
	r.fails(t, c, "CreateKey", nil, "ServiceUnavailableTemporary")
	o.Start(t)
	r.eventually(t, c, "GenerateDataKeyWithoutPlaintext", key, "Rejected.Disabled") // the change is made late
	if list := r.ok(t, c, "ListKeys", nil); list.text(t, "TotalCount") != "1" {
		t.Errorf("The key whose creation failed is still there: %v", list.body)
	}
}

// The gateway ends between the module's import and the object's patch. The client tries again, at another replica.
func TestGateway_killedAfterTheImport(t *testing.T) {
	t.Parallel()
	o, r := run(t)
	failing := &atomic.Bool{}
	failing.Store(true)
	killed := start(t, o, func(s *settings) { s.failPatch = failing })
	c := r.allow(t, o.Namespace, "admin", all...)
	id := createKey(t, r, c, map[string]string{"Origin": "EXTERNAL"})
	parameters := r.eventually(t, c, "GetParametersForImport", map[string]string{"KeyId": id, "WrappingKeySpec": "RSA_2048", "WrappingAlgorithm": "RSAES_OAEP_SHA_256"}, "")
	importIt := map[string]string{
		"KeyId": id, "ImportToken": parameters.text(t, "ImportToken"), "EncryptedKeyMaterial": wrapped(t, parameters.text(t, "PublicKey"), material(t)),
	}
	killed.eventually(t, c, "DescribeKey", map[string]string{"KeyId": id}, "")
	killed.eventually(t, c, "ImportKeyMaterial", importIt, "ServiceUnavailableTemporary")
	r.fails(t, c, "GenerateDataKeyWithoutPlaintext", map[string]string{"KeyId": id}, "Rejected.PendingImport")
	r.ok(t, c, "ImportKeyMaterial", importIt)
	r.ok(t, c, "GenerateDataKeyWithoutPlaintext", map[string]string{"KeyId": id})
}

// A module that hangs affects only calls to it.
func TestGateway_hangingModule(t *testing.T) {
	t.Parallel()
	o, r := run(t)
	hang, release := &atomic.Value{}, make(chan struct{})
	hang.Store("")
	slow := start(t, o, func(s *settings) {
		s.modules = hsmtest.Provider(func(ctx context.Context, cfg hsm.Config) (hsm.Module, error) {
			module, err := inprocess.Provider(nil).Open(ctx, cfg)
			if err != nil {
				return nil, err
			}
			info, err := module.Describe(ctx)
			return hsm.Intercept(module, func(ctx context.Context, method string, next func(context.Context) error) error {
				if method == "GenerateDataKey" && hang.Load() == info.Info.Serial {
					select {
					case <-release:
					case <-ctx.Done():
						return hsm.Wrap(hsm.Unavailable, ctx.Err(), "")
					}
				}
				return next(ctx)
			}), err
		})
	})
	defer close(release)
	c := r.allow(t, o.Namespace, "admin", all...)
	id := createKey(t, r, c, nil)
	o.Make(t, &v1alpha1.KeyStore{ObjectMeta: metav1.ObjectMeta{Name: "other"}, Spec: v1alpha1.KeyStoreSpec{Type: v1alpha1.KeyStoreSoftware}})
	other := &v1alpha1.GeneratedKey{
		ObjectMeta: metav1.ObjectMeta{Name: "other"},
		Spec:       v1alpha1.GeneratedKeySpec{KeyStoreRef: v1alpha1.KeyStoreReference{Kind: "KeyStore", Name: "other"}, KeySpec: "AES_256"},
	}
	o.Make(t, other)
	o.Ready(t, other)
	slow.eventually(t, c, "GenerateDataKeyWithoutPlaintext", map[string]string{"KeyId": id}, "")
	slow.eventually(t, c, "GenerateDataKeyWithoutPlaintext", map[string]string{"KeyId": string(other.UID)}, "")
	store := &v1alpha1.KeyStore{ObjectMeta: metav1.ObjectMeta{Namespace: o.Namespace, Name: "main"}}
	o.Read(t, store)
	hang.Store(store.Status.Module.Serial)
	answers := make(chan answer)
	for range 8 {
		go func() { answers <- slow.call(t, c, "GenerateDataKeyWithoutPlaintext", map[string]string{"KeyId": id}) }()
	}
	slow.ok(t, c, "GenerateDataKeyWithoutPlaintext", map[string]string{"KeyId": string(other.UID)})
	slow.ok(t, c, "DescribeKey", map[string]string{"KeyId": id})
	for range 8 {
		if a := <-answers; a.status != 503 || a.code() != "ServiceUnavailableTemporary" {
			t.Errorf("A call to the module is answered with %d %v", a.status, a.body)
		}
	}
}

// errEnded is the error of a request that the API server never got.
var errEnded = apierrors.NewInternalError(context.Canceled)
