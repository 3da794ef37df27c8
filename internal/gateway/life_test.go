package gateway_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
)

// recipient is who gets exports.
type recipient struct {
	key  *rsa.PrivateKey
	blob string
}

func newRecipient(t *testing.T) recipient {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return recipient{key, base64.StdEncoding.EncodeToString(spki)}
}

func (r recipient) parameters(more map[string]string) map[string]string {
	out := map[string]string{"PublicKeyBlob": r.blob, "WrappingKeySpec": "RSA_2048", "WrappingAlgorithm": "RSAES_OAEP_SHA_256"}
	for name, value := range more {
		out[name] = value
	}
	return out
}

func (r recipient) open(t *testing.T, exported string) string {
	t.Helper()
	raw, err := base64.StdEncoding.DecodeString(exported)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := rsa.DecryptOAEP(sha256.New(), nil, r.key, raw, nil)
	if err != nil {
		t.Fatal(err)
	}
	return string(plain)
}

// wrapped returns material under import parameters.
func wrapped(t *testing.T, publicKey string, material []byte) string {
	t.Helper()
	der, err := base64.StdEncoding.DecodeString(publicKey)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		t.Fatal(err)
	}
	out, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, public.(*rsa.PublicKey), material, nil)
	if err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(out)
}

func material(t *testing.T) []byte {
	t.Helper()
	out := make([]byte, 32)
	if _, err := rand.Read(out); err != nil {
		t.Fatal(err)
	}
	return out
}

// createKey creates a key, once the key store is open.
func createKey(t *testing.T, r *replica, c *client, parameters map[string]string) string {
	t.Helper()
	return r.eventually(t, c, "CreateKey", parameters, "").text(t, "KeyMetadata", "KeyId")
}

func TestGateway_lifeOfAnImportedKey(t *testing.T) {
	t.Parallel()
	o, first := run(t)
	second := start(t, o)
	c := first.allow(t, o.Namespace, "admin", all...)
	second.eventually(t, c, "ListKeys", nil, "")

	id := createKey(t, first, c, map[string]string{"Origin": "EXTERNAL", "Description": "the ledger", "Tags": `[{"TagKey":"team","TagValue":"a"}]`})
	key := map[string]string{"KeyId": id}
	described := second.ok(t, c, "DescribeKey", key)
	for name, want := range map[string]string{
		"KeyState": "PendingImport", "Origin": "EXTERNAL", "KeySpec": "Aliyun_AES_256", "Description": "the ledger", "KeyUsage": "ENCRYPT/DECRYPT",
		"DeleteDate": "", "MaterialExpireTime": "", "ProtectionLevel": "SOFTWARE", "DeletionProtection": "Disabled", "Creator": o.Namespace,
	} {
		if is := described.text(t, "KeyMetadata", name); is != want {
			t.Errorf("%s is %q, want %q", name, is, want)
		}
	}
	first.fails(t, c, "GenerateDataKeyWithoutPlaintext", key, "Rejected.PendingImport")

	// The parameters come from one replica, and the other one imports.
	pair := map[string]string{"KeyId": id, "WrappingKeySpec": "RSA_2048", "WrappingAlgorithm": "RSAES_OAEP_SHA_256"}
	parameters := first.eventually(t, c, "GetParametersForImport", pair, "")
	secret := material(t)
	importIt := map[string]string{
		"KeyId": id, "ImportToken": parameters.text(t, "ImportToken"),
		"EncryptedKeyMaterial": wrapped(t, parameters.text(t, "PublicKey"), secret), "KeyMaterialExpireUnix": "4102444800",
	}
	second.eventually(t, c, "ImportKeyMaterial", importIt, "")
	if got := second.ok(t, c, "DescribeKey", key).text(t, "KeyMetadata", "MaterialExpireTime"); got != "2100-01-01T00:00:00Z" {
		t.Errorf("The material expires at %q", got)
	}
	first.eventually(t, c, "GenerateDataKeyWithoutPlaintext", key, "")

	// Other material is refused, and changes neither the module nor the object.
	var before v1alpha1.ImportedKeyList
	if err := o.List(t.Context(), &before); err != nil {
		t.Fatal(err)
	}
	other := map[string]string{"KeyId": id, "ImportToken": importIt["ImportToken"], "EncryptedKeyMaterial": wrapped(t, parameters.text(t, "PublicKey"), material(t))}
	first.fails(t, c, "ImportKeyMaterial", other, "InvalidKeyMaterial")
	for _, k := range before.Items {
		is := k
		if o.Read(t, &is); k.Namespace == o.Namespace && is.ResourceVersion != k.ResourceVersion {
			t.Error("A refused import has changed the object")
		}
	}

	generate := map[string]string{"KeyId": id, "EncryptionContext": `{"b":"2","a":"1"}`, "NumberOfBytes": "24"}
	made := first.ok(t, c, "GenerateDataKeyWithoutPlaintext", generate)
	blob := made.text(t, "CiphertextBlob")
	to := newRecipient(t)
	export := to.parameters(map[string]string{"CiphertextBlob": blob, "EncryptionContext": `{"a":"1", "b":"2"}`})
	plain := to.open(t, first.ok(t, c, "ExportDataKey", export).text(t, "ExportedDataKey"))
	again := to.open(t, second.ok(t, c, "ExportDataKey", export).text(t, "ExportedDataKey"))
	if len(plain) != 24 || plain != again {
		t.Errorf("The exports have %d and %d bytes, or differ", len(plain), len(again))
	}
	first.fails(t, c, "ExportDataKey", to.parameters(map[string]string{"CiphertextBlob": blob}), "InvalidParameter")
	dry := to.parameters(map[string]string{"CiphertextBlob": blob, "EncryptionContext": `{"a":"1", "b":"2"}`, "DryRun": "true"})
	if got := first.fails(t, c, "ExportDataKey", dry, "DryRunOperationError"); got.status != 400 || got.body["ExportedDataKey"] != nil {
		t.Errorf("The dry run is answered with %v", got.body)
	}
	dry["WrappingAlgorithm"] = "SM2PKE"
	first.fails(t, c, "ExportDataKey", dry, "ValidationError")

	// The same blob works in the other front door.
	dataKey := &v1alpha1.DataKey{ObjectMeta: metav1.ObjectMeta{Name: "ledger"}, Spec: v1alpha1.DataKeySpec{
		CiphertextBlob: blob, EncryptionContext: map[string]v1alpha1.ContextValue{"a": "1", "b": "2"},
	}}
	for _, k := range before.Items {
		if string(k.UID) == id {
			dataKey.Spec.KeyRef = v1alpha1.KeyReference{Kind: "ImportedKey", Name: v1alpha1.ObjectName(k.Name)}
		}
	}
	o.Make(t, dataKey)
	o.Ready(t, dataKey)

	states(t, first, second, c, id)
	lastOfImported(t, first, c, id, importIt)
	if log := first.audit.String(); !strings.Contains(log, `"operation":"ExportDataKey"`) || !strings.Contains(log, c.id) || strings.Contains(log, blob) {
		t.Errorf("The audit log is %s", log)
	}
}

// states leads an enabled key through its states, on two replicas.
func states(t *testing.T, first, second *replica, c *client, id string) {
	t.Helper()
	key := map[string]string{"KeyId": id}
	first.ok(t, c, "DisableKey", key)
	first.fails(t, c, "GenerateDataKeyWithoutPlaintext", key, "Rejected.Disabled")
	second.eventually(t, c, "GenerateDataKeyWithoutPlaintext", key, "Rejected.Disabled")
	first.ok(t, c, "DisableKey", key) // idempotent
	second.ok(t, c, "EnableKey", key)
	second.ok(t, c, "GenerateDataKeyWithoutPlaintext", key)
	second.fails(t, c, "CancelKeyDeletion", key, "Rejected.StateModifiedFailed")
	second.fails(t, c, "ScheduleKeyDeletion", key, "MissingParameter")
	second.fails(t, c, "ScheduleKeyDeletion", map[string]string{"KeyId": id, "PendingWindowInDays": "6"}, "InvalidParameter")
	second.ok(t, c, "ScheduleKeyDeletion", map[string]string{"KeyId": id, "PendingWindowInDays": "7"})
	second.fails(t, c, "GenerateDataKeyWithoutPlaintext", key, "Rejected.PendingDeletion")
	second.fails(t, c, "EnableKey", key, "Rejected.StateModifiedFailed")
	if second.ok(t, c, "DescribeKey", key).text(t, "KeyMetadata", "DeleteDate") == "" {
		t.Error("A key in PendingDeletion has no DeleteDate")
	}
	second.ok(t, c, "CancelKeyDeletion", key)
	second.ok(t, c, "GenerateDataKeyWithoutPlaintext", key)
}

// lastOfImported deletes the material of an imported key and imports it again.
func lastOfImported(t *testing.T, r *replica, c *client, id string, imported map[string]string) {
	t.Helper()
	key := map[string]string{"KeyId": id}
	r.eventually(t, c, "DeleteKeyMaterial", key, "")
	r.fails(t, c, "GenerateDataKeyWithoutPlaintext", key, "Rejected.PendingImport")
	r.fails(t, c, "ImportKeyMaterial", imported, "InvalidImportToken") // a deviation: docs/gateway.md
}

func TestGateway_lifeOfAGeneratedKey(t *testing.T) {
	t.Parallel()
	o, r := run(t)
	c := r.allow(t, o.Namespace, "admin", all...)
	id := createKey(t, r, c, map[string]string{"EnableAutomaticRotation": "true", "RotationInterval": "365d", "KeySpec": "Aliyun_SM4"})
	key := map[string]string{"KeyId": id}
	described := r.ok(t, c, "DescribeKey", key)
	for name, want := range map[string]string{
		"KeyState": "Enabled", "Origin": "Aliyun_KMS", "KeySpec": "Aliyun_SM4", "AutomaticRotation": "Enabled", "RotationInterval": "31536000s",
	} {
		if is := described.text(t, "KeyMetadata", name); is != want {
			t.Errorf("%s is %q, want %q", name, is, want)
		}
	}
	versions := r.ok(t, c, "ListKeyVersions", key)
	if versions.text(t, "TotalCount") != "1" {
		t.Errorf("The versions are %v", versions.body)
	}
	r.fails(t, c, "GetParametersForImport", map[string]string{"KeyId": id, "WrappingKeySpec": "RSA_2048", "WrappingAlgorithm": "RSAES_OAEP_SHA_256"}, "Unsupported.Origin")
	r.fails(t, c, "DeleteKeyMaterial", key, "Unsupported.Origin")

	to := newRecipient(t)
	both := r.eventually(t, c, "GenerateAndExportDataKey", to.parameters(map[string]string{"KeyId": id, "KeySpec": "AES_128"}), "")
	plain := to.open(t, both.text(t, "ExportedDataKey"))
	if len(plain) != 16 {
		t.Errorf("The data key has %d bytes", len(plain))
	}
	other := createKey(t, r, c, nil)
	moved := r.eventually(t, c, "ReEncrypt", map[string]string{
		"CiphertextBlob": both.text(t, "CiphertextBlob"), "DestinationKeyId": other, "DestinationEncryptionContext": `{"a":"b"}`,
	}, "")
	if moved.text(t, "KeyId") != other {
		t.Errorf("It moved to %v", moved.body)
	}
	export := to.parameters(map[string]string{"CiphertextBlob": moved.text(t, "CiphertextBlob"), "EncryptionContext": `{"a":"b"}`})
	if got := to.open(t, r.ok(t, c, "ExportDataKey", export).text(t, "ExportedDataKey")); got != plain {
		t.Error("Another data key was moved")
	}

	tagsAndAliases(t, r, c, id, other)
	var pages string
	for number := range 2 {
		list := r.ok(t, c, "ListKeys", map[string]string{"PageSize": "1", "PageNumber": fmt.Sprint(number + 1)})
		if list.text(t, "TotalCount") != "2" {
			t.Errorf("Page %d is %v", number+1, list.body)
		}
		pages += list.text(t, "Keys", "Key")
	}
	if strings.Count(pages, "KeyId:") != 2 || !strings.Contains(pages, "KeyId:"+id) || !strings.Contains(pages, "KeyId:"+other) {
		t.Errorf("The pages have %s", pages)
	}
	filtered := r.ok(t, c, "ListKeys", map[string]string{"Filters": `[{"Key":"KeySpec","Values":["Aliyun_SM4"]},{"Key":"KeyState","Values":["Disabled"]},{"Key":"KeyState","Values":["Enabled"]}]`})
	if filtered.text(t, "TotalCount") != "1" || !strings.Contains(filtered.text(t, "Keys", "Key"), id) {
		t.Errorf("The filtered list is %v", filtered.body)
	}
	for _, action := range []string{"Decrypt", "Encrypt", "GenerateDataKey"} {
		r.fails(t, c, action, key, "UnsupportedOperation")
	}
	r.fails(t, c, "OpenKmsService", nil, "InvalidAction.NotFound")
}

func tagsAndAliases(t *testing.T, r *replica, c *client, id, other string) {
	t.Helper()
	key := map[string]string{"KeyId": id}
	r.ok(t, c, "UpdateKeyDescription", map[string]string{"KeyId": id, "Description": "中文"})
	if got := r.ok(t, c, "DescribeKey", key).text(t, "KeyMetadata", "Description"); got != "中文" {
		t.Errorf("The description is %q", got)
	}
	r.ok(t, c, "TagResource", map[string]string{"KeyId": id, "Tags": `[{"TagKey":"a","TagValue":"1"},{"TagKey":"b","TagValue":""}]`})
	r.ok(t, c, "UntagResource", map[string]string{"KeyId": id, "TagKeys": `["a","none"]`})
	if got := r.ok(t, c, "ListResourceTags", key).text(t, "Tags", "Tag"); !strings.Contains(got, "TagKey:b") || strings.Contains(got, "TagKey:a") {
		t.Errorf("The tags are %s", got)
	}
	alias := map[string]string{"KeyId": id, "AliasName": "alias/ledger"}
	r.ok(t, c, "CreateAlias", alias)
	r.fails(t, c, "CreateAlias", map[string]string{"KeyId": other, "AliasName": "alias/ledger"}, "AliasAlreadyExists")
	r.fails(t, c, "CreateAlias", map[string]string{"KeyId": other, "AliasName": "ledger"}, "InvalidParameter")
	if got := r.ok(t, c, "GenerateDataKeyWithoutPlaintext", map[string]string{"KeyId": "alias/ledger"}).text(t, "KeyId"); got != id {
		t.Errorf("The alias names %s", got)
	}
	r.ok(t, c, "UpdateAlias", map[string]string{"KeyId": other, "AliasName": "alias/ledger"})
	if got := r.ok(t, c, "DescribeKey", map[string]string{"KeyId": "alias/ledger"}).text(t, "KeyMetadata", "KeyId"); got != other {
		t.Errorf("The alias names %s", got)
	}
	if got := r.ok(t, c, "ListAliases", nil); got.text(t, "TotalCount") != "1" || !strings.Contains(got.text(t, "Aliases", "Alias"), other) {
		t.Errorf("The aliases are %v", got.body)
	}
	// An alias of two keys names neither, until UpdateAlias says which.
	r.o.Annotate(t, objectOf(t, r.o, id), "keyconvoy.io/aliases", `["alias/ledger"]`)
	taken := r.eventually(t, c, "DescribeKey", map[string]string{"KeyId": "alias/ledger"}, "Forbidden.AliasNotFound")
	if message := taken.text(t, "Message"); !strings.Contains(message, id) || !strings.Contains(message, other) {
		t.Errorf("The message is %s", message)
	}
	r.ok(t, c, "UpdateAlias", map[string]string{"KeyId": other, "AliasName": "alias/ledger"})
	if got := r.ok(t, c, "DescribeKey", map[string]string{"KeyId": "alias/ledger"}).text(t, "KeyMetadata", "KeyId"); got != other {
		t.Errorf("The alias names %s", got)
	}
	r.ok(t, c, "DeleteAlias", map[string]string{"AliasName": "alias/ledger"})
	r.fails(t, c, "DeleteAlias", map[string]string{"AliasName": "alias/ledger"}, "Forbidden.AliasNotFound")
}
