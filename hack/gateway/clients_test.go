//go:build cgo

package gateway

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	openapi "github.com/alibabacloud-go/darabonba-openapi/v2/client"
	kms "github.com/alibabacloud-go/kms-20160120/v3/client"
	"github.com/alibabacloud-go/tea/tea"
	sdkerrors "github.com/aliyun/alibaba-cloud-sdk-go/sdk/errors"
	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/requests"
	oldkms "github.com/aliyun/alibaba-cloud-sdk-go/services/kms"
)

// caller is a client in one of its modes: it calls an operation, and returns members of the answer by name, or the code of the error.
type caller interface {
	call(t *testing.T, gateway int, action string, parameters map[string]string) (members map[string]string, code string)
}

func TestClients(t *testing.T) {
	s := start(t)
	recipient, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	for name, c := range map[string]caller{
		"Go, ACS3 with SHA-256":    newSDK{s, ""},
		"Go, ACS3 with SM3":        newSDK{s, "ACS3-HMAC-SM3"},
		"Go, V1":                   newSDK{s, "v2"},
		"the old Go SDK, JSON":     oldSDK{s, "JSON", "POST"},
		"the old Go SDK, XML":      oldSDK{s, "XML", "POST"},
		"the old Go SDK, GET":      oldSDK{s, "JSON", "GET"},
		"npm kms20160120":          node{s, "kms20160120", ""},
		"npm pop-core, GET":        node{s, "pop-core", "GET"},
		"npm pop-core, POST":       node{s, "pop-core", "POST"},
		"npm openapi-client, ACS3": node{s, "openapi-client", ""},
		"npm openapi-client, V1":   node{s, "openapi-client", "v2"},
		"npm openapi-core":         node{s, "openapi-core", ""},
	} {
		t.Run(name, func(t *testing.T) { life(t, c, recipient) })
	}
}

// The oldest client sends no nonce, and the time in milliseconds.
func TestClients_kmsSDK(t *testing.T) {
	s := start(t)
	c := node{s, "kms-sdk", ""}
	var id string
	eventually(t, func() error {
		members, code := c.call(t, 0, "CreateKey", map[string]string{"Origin": "Aliyun_KMS"})
		if id = members["KeyMetadata.KeyId"]; id == "" {
			return fmt.Errorf("it is answered with %q %v", code, members)
		}
		return nil
	})
	for action, want := range map[string]string{"DescribeKey": "", "ListKeys": "", "CancelKeyDeletion": "Rejected.StateModifiedFailed", "Decrypt": "UnsupportedOperation"} {
		members, code := c.call(t, 0, action, map[string]string{"KeyId": id, "CiphertextBlob": "none"})
		if code != want {
			t.Errorf("%s is answered with %q %v, want %q", action, code, members, want)
		}
	}
}

// Each gateway and the operator use a token in sessions of their own, in processes of their own.
func TestTokens(t *testing.T) {
	s := start(t)
	recipient, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	for name, store := range s.tokens {
		t.Run(name, func(t *testing.T) {
			on := *s
			on.id, on.key = s.accessKey(t, name, store)
			life(t, newSDK{&on, ""}, recipient)
		})
	}
}

// life leads a key through its life, with each request at the other replica.
func life(t *testing.T, c caller, recipient *rsa.PrivateKey) {
	t.Helper()
	replica := 0
	call := func(want, action string, parameters map[string]string) map[string]string {
		t.Helper()
		var members map[string]string
		replica = 1 - replica
		eventually(t, func() error { // the other replica sees a change a moment later
			var code string
			if members, code = c.call(t, replica, action, parameters); code != want {
				return fmt.Errorf("%s is answered with %q %v, want %q", action, code, members, want)
			}
			return nil
		})
		return members
	}
	id := call("", "CreateKey", map[string]string{"Origin": "EXTERNAL", "Description": "from * a ~ client + 中文"})["KeyMetadata.KeyId"]
	key := map[string]string{"KeyId": id}
	if got := call("", "DescribeKey", key); got["KeyMetadata.KeyState"] != "PendingImport" || got["KeyMetadata.Description"] != "from * a ~ client + 中文" {
		t.Errorf("The key is %v", got)
	}
	call("Rejected.PendingImport", "GenerateDataKeyWithoutPlaintext", key)
	parameters := call("", "GetParametersForImport", map[string]string{"KeyId": id, "WrappingKeySpec": "RSA_2048", "WrappingAlgorithm": "RSAES_OAEP_SHA_256"})
	material := make([]byte, 32)
	_, _ = rand.Read(material)
	importIt := map[string]string{
		"KeyId": id, "ImportToken": parameters["ImportToken"], "EncryptedKeyMaterial": encrypt(t, parameters["PublicKey"], material), "KeyMaterialExpireUnix": "4102444800",
	}
	call("", "ImportKeyMaterial", importIt)
	long := `{"a":"` + strings.Repeat("x y+", 1900) + `","b":"2"}` // 7,6 thousand characters, in the query
	blob := call("", "GenerateDataKeyWithoutPlaintext", map[string]string{"KeyId": id, "EncryptionContext": long})["CiphertextBlob"]
	spki, err := x509.MarshalPKIXPublicKey(recipient.Public())
	must(t, err)
	export := map[string]string{
		"CiphertextBlob": blob, "EncryptionContext": long, "PublicKeyBlob": base64.StdEncoding.EncodeToString(spki), "WrappingKeySpec": "RSA_2048",
		"WrappingAlgorithm": "RSAES_OAEP_SHA_256",
	}
	exported := call("", "ExportDataKey", export)
	raw, err := base64.StdEncoding.DecodeString(exported["ExportedDataKey"])
	must(t, err)
	if plain, err := rsa.DecryptOAEP(sha256.New(), nil, recipient, raw, nil); err != nil || len(plain) != 32 || exported["KeyId"] != id {
		t.Errorf("The export is %v: %v", exported, err)
	}
	dry := map[string]string{"DryRun": "true"}
	for name, value := range export {
		dry[name] = value
	}
	call("DryRunOperationError", "ExportDataKey", dry)
	export["WrappingKeySpec"] = "EC_SM2"
	call("InvalidParameter", "ExportDataKey", export)
	call("", "DisableKey", key)
	call("Rejected.Disabled", "GenerateDataKeyWithoutPlaintext", key)
	call("", "EnableKey", key)
	call("", "ListKeys", map[string]string{"PageSize": "100"})
	call("", "ScheduleKeyDeletion", map[string]string{"KeyId": id, "PendingWindowInDays": "7"})
	call("Rejected.PendingDeletion", "GenerateDataKeyWithoutPlaintext", key)
	call("", "CancelKeyDeletion", key)
	call("", "DeleteKeyMaterial", key)
	call("Rejected.PendingImport", "GenerateDataKeyWithoutPlaintext", key)
	call("Forbidden.KeyNotFound", "DescribeKey", map[string]string{"KeyId": "00000000-0000-4000-8000-000000000000"})
}

func encrypt(t *testing.T, publicKey string, material []byte) string {
	t.Helper()
	der, err := base64.StdEncoding.DecodeString(publicKey)
	must(t, err)
	public, err := x509.ParsePKIXPublicKey(der)
	must(t, err)
	out, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, public.(*rsa.PublicKey), material, nil)
	must(t, err)
	return base64.StdEncoding.EncodeToString(out)
}

// newSDK is github.com/alibabacloud-go/kms-20160120.
type newSDK struct {
	*site
	algorithm string
}

func (c newSDK) call(t *testing.T, gateway int, action string, p map[string]string) (map[string]string, string) {
	t.Helper()
	config := &openapi.Config{
		AccessKeyId: tea.String(c.id), AccessKeySecret: tea.String(c.key), Endpoint: tea.String(c.gateways[gateway]), Protocol: tea.String("https"),
		Ca: tea.String(c.ca), RegionId: tea.String("keyconvoy"),
	}
	if c.algorithm != "" {
		config.SignatureAlgorithm = tea.String(c.algorithm)
	}
	k, err := kms.NewClient(config)
	must(t, err)
	get := func(name string) *string {
		if p[name] == "" {
			return nil
		}
		return tea.String(p[name])
	}
	context := contextOf(t, p["EncryptionContext"])
	id := get("KeyId")
	out := map[string]string{}
	switch action {
	case "CreateKey":
		r, err := k.CreateKey(&kms.CreateKeyRequest{Origin: get("Origin"), Description: get("Description")})
		if err == nil {
			out["KeyMetadata.KeyId"] = tea.StringValue(r.Body.KeyMetadata.KeyId)
		}
		return out, codeOf(t, err)
	case "DescribeKey":
		r, err := k.DescribeKey(&kms.DescribeKeyRequest{KeyId: id})
		if err == nil {
			out["KeyMetadata.KeyState"], out["KeyMetadata.Description"] = tea.StringValue(r.Body.KeyMetadata.KeyState), tea.StringValue(r.Body.KeyMetadata.Description)
		}
		return out, codeOf(t, err)
	case "GetParametersForImport":
		r, err := k.GetParametersForImport(&kms.GetParametersForImportRequest{KeyId: id, WrappingAlgorithm: get("WrappingAlgorithm"), WrappingKeySpec: get("WrappingKeySpec")})
		if err == nil {
			out["PublicKey"], out["ImportToken"] = tea.StringValue(r.Body.PublicKey), tea.StringValue(r.Body.ImportToken)
		}
		return out, codeOf(t, err)
	case "ImportKeyMaterial":
		_, err := k.ImportKeyMaterial(&kms.ImportKeyMaterialRequest{
			KeyId: id, ImportToken: get("ImportToken"), EncryptedKeyMaterial: get("EncryptedKeyMaterial"), KeyMaterialExpireUnix: tea.Int64(4102444800),
		})
		return out, codeOf(t, err)
	case "GenerateDataKeyWithoutPlaintext":
		r, err := k.GenerateDataKeyWithoutPlaintext(&kms.GenerateDataKeyWithoutPlaintextRequest{KeyId: id, EncryptionContext: context})
		if err == nil {
			out["CiphertextBlob"] = tea.StringValue(r.Body.CiphertextBlob)
		}
		return out, codeOf(t, err)
	case "ExportDataKey":
		r, err := k.ExportDataKey(&kms.ExportDataKeyRequest{
			CiphertextBlob: get("CiphertextBlob"), EncryptionContext: context, PublicKeyBlob: get("PublicKeyBlob"), WrappingKeySpec: get("WrappingKeySpec"),
			WrappingAlgorithm: get("WrappingAlgorithm"), DryRun: get("DryRun"),
		})
		if err == nil {
			out["ExportedDataKey"], out["KeyId"] = tea.StringValue(r.Body.ExportedDataKey), tea.StringValue(r.Body.KeyId)
		}
		return out, codeOf(t, err)
	case "DisableKey":
		_, err = k.DisableKey(&kms.DisableKeyRequest{KeyId: id})
	case "EnableKey":
		_, err = k.EnableKey(&kms.EnableKeyRequest{KeyId: id})
	case "ListKeys":
		r, listErr := k.ListKeys(&kms.ListKeysRequest{PageSize: tea.Int32(100)})
		if err = listErr; err == nil && len(r.Body.Keys.Key) == 0 {
			t.Error("ListKeys returned no key")
		}
	case "ScheduleKeyDeletion":
		_, err = k.ScheduleKeyDeletion(&kms.ScheduleKeyDeletionRequest{KeyId: id, PendingWindowInDays: tea.Int32(7)})
	case "CancelKeyDeletion":
		_, err = k.CancelKeyDeletion(&kms.CancelKeyDeletionRequest{KeyId: id})
	case "DeleteKeyMaterial":
		_, err = k.DeleteKeyMaterial(&kms.DeleteKeyMaterialRequest{KeyId: id})
	default:
		t.Fatalf("the client is not asked for %s", action)
	}
	return out, codeOf(t, err)
}

// contextOf returns an EncryptionContext as the client takes it.
func contextOf(t *testing.T, text string) map[string]interface{} {
	t.Helper()
	if text == "" {
		return nil
	}
	out := map[string]interface{}{}
	must(t, unmarshal(text, &out))
	return out
}

// codeOf returns the code of an error of the new SDK.
func codeOf(t *testing.T, err error) string {
	t.Helper()
	if err == nil {
		return ""
	}
	var coded interface{ GetCode() *string }
	if errors.As(err, &coded) {
		return tea.StringValue(coded.GetCode())
	}
	var sdk *tea.SDKError
	if errors.As(err, &sdk) {
		return tea.StringValue(sdk.Code)
	}
	t.Errorf("The client returned a %T: %v", err, err)
	return err.Error()
}

// oldSDK is github.com/aliyun/alibaba-cloud-sdk-go, by its generic request.
type oldSDK struct {
	*site
	format, method string
}

func (c oldSDK) call(t *testing.T, gateway int, action string, p map[string]string) (map[string]string, string) {
	t.Helper()
	k, err := oldkms.NewClientWithAccessKey("keyconvoy", c.id, c.key)
	must(t, err)
	k.SetTransport(&http.Transport{TLSClientConfig: c.trust()})
	if c.format == "XML" && action == "ExportDataKey" && p["DryRun"] == "" && p["WrappingKeySpec"] == "RSA_2048" {
		return c.exportTyped(t, k, gateway, p)
	}
	request := requests.NewCommonRequest()
	request.Domain, request.Scheme, request.Version, request.ApiName, request.Method = c.gateways[gateway], "https", "2016-01-20", action, c.method
	request.QueryParams = p
	request.AcceptFormat = c.format
	response, err := k.ProcessCommonRequest(request)
	if err != nil {
		var server *sdkerrors.ServerError
		if !errors.As(err, &server) {
			return nil, err.Error()
		}
		if c.format == "XML" { // of which the client parses no errors
			return nil, between(server.Message(), "<Code>", "</Code>")
		}
		return nil, server.ErrorCode()
	}
	if c.format == "XML" {
		return xmlMembers(response.GetHttpContentString()), ""
	}
	members, err := jsonMembers(response.GetHttpContentString())
	must(t, err)
	return members, ""
}

// exportTyped parses the answer in XML into the client's own type.
func (c oldSDK) exportTyped(t *testing.T, k *oldkms.Client, gateway int, p map[string]string) (map[string]string, string) {
	t.Helper()
	request := oldkms.CreateExportDataKeyRequest()
	request.Domain, request.Scheme, request.AcceptFormat = c.gateways[gateway], "https", "XML"
	request.CiphertextBlob, request.PublicKeyBlob, request.WrappingKeySpec = p["CiphertextBlob"], p["PublicKeyBlob"], p["WrappingKeySpec"]
	request.WrappingAlgorithm, request.EncryptionContext = p["WrappingAlgorithm"], p["EncryptionContext"]
	response, err := k.ExportDataKey(request)
	if err != nil {
		return nil, err.Error()
	}
	return map[string]string{"ExportedDataKey": response.ExportedDataKey, "KeyId": response.KeyId}, ""
}

// node is a client on npm.
type node struct {
	*site
	client, mode string
}

func (c node) call(t *testing.T, gateway int, action string, p map[string]string) (map[string]string, string) {
	t.Helper()
	if _, err := os.Stat(filepath.Join("node", "node_modules")); err != nil {
		t.Fatal("The npm packages are missing. Run make gateway-clients, which installs them.")
	}
	cmd := exec.CommandContext(t.Context(), "node", "call.js")
	cmd.Dir = "node"
	cmd.Env = append(os.Environ(), "NODE_EXTRA_CA_CERTS="+c.caFile)
	cmd.Stdin = strings.NewReader(toJSON(map[string]any{
		"client": c.client, "mode": c.mode, "endpoint": c.gateways[gateway], "id": c.id, "secret": c.key, "action": action, "parameters": p,
	}))
	out, err := cmd.Output()
	if err != nil {
		var failed *exec.ExitError
		if errors.As(err, &failed) {
			t.Fatalf("%v: %s", err, failed.Stderr)
		}
		t.Fatal(err)
	}
	var result struct {
		Code string
		Body any
	}
	must(t, unmarshal(string(out), &result))
	members, err := jsonMembers(toJSON(result.Body))
	must(t, err)
	return members, result.Code
}
