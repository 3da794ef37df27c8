package crd_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	. "github.com/onsi/gomega"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/testenv"
)

// raw is a value as it is written in JSON: 1.0 and 1 are two.
type raw = json.RawMessage

// edgeTimes are texts that some check or other takes for a time.
var edgeTimes = []string{
	"2090-01-01T00:00:00Z", "2090-01-01t00:00:00Z", "2090-01-01T00:00:00z", "2090-01-01t00:00:00z", "2090-01-01 00:00:00Z",
	"2090-01-01T00:00:00+23:59", "2090-01-01T00:00:00-23:59", "2090-01-01T00:00:00+24:00", "2090-01-01T00:00:00+25:00",
	"2090-01-01T00:00:00+99:99", "2090-01-01T00:00:00-00:00", "2090-01-01T00:00:00+00:60", "2090-01-01T00:00:00+0000",
	"2090-01-01T00:00:00x5Z", "2090-01-01T00:00:00.5Z", "2090-01-01T00:00:00,5Z", "2090-01-01T00:00:00.Z", "2090-01-01T00:00:00.123456789Z",
	"2090-01-01T00:00:00.1234567890123456789Z", "2090-01-01T00:00:60Z", "2090-01-01T23:59:60Z", "2090-01-01T24:00:00Z", "2090-01-01T23:60:00Z",
	"2090-01-01T0:00:00Z", "2090-1-1T00:00:00Z", "2090-02-29T00:00:00Z", "2092-02-29T00:00:00Z", "2090-02-30T00:00:00Z", "2090-13-01T00:00:00Z",
	"2090-00-00T00:00:00Z", "2090-01-01T00:00:00", "2090-01-01", "2090-01-01T00:00Z", "", "Z", "null", "never", "0000-01-01T00:00:00Z",
	"0001-01-01T00:00:00Z", "-001-01-01T00:00:00Z", "1969-12-31T23:59:59Z", "1970-01-01T00:00:00Z", "1970-01-01T00:00:01Z",
	"9999-12-31T23:59:59Z", "9999-12-31T23:59:59.999999999Z", "9999-12-31T23:59:59-00:01", "9999-12-31T23:59:59-23:59", "0000-01-01T00:00:00+23:59",
	"10000-01-01T00:00:00Z", "2090-01-01T00:00:00Z\n", "2090-01-01T00:00:00Zt", " 2090-01-01T00:00:00Z", "２０９０-01-01T00:00:00Z",
}

// edgeNumbers are numbers as JSON may write them.
var edgeNumbers = []string{
	"0", "-0", "-0.0", "1", "1.0", "1e0", "1E+0", "10e-1", "1.5", "7", "8.0", "30", "1e3", "1.0e3", "-1", "1e-3",
	"2147483647", "2147483648", "2.147483647e9", "4294967296", "9007199254740991", "9007199254740992", "9007199254740993",
	"9223372036854775807", "9223372036854775808", "18446744073709551616", "1e18", "1e19", "1e20", "1e21", "1e22", "1e100", "1e308",
	"-9223372036854775808", "-9223372036854775809", "-1e21", "123456789012345678901234567890",
}

// edgeTexts are texts that a text field may be given.
func edgeTexts(s *apiextensionsv1.JSONSchemaProps) []string {
	texts := []string{
		"", "a", "A", "a b", "é", "密", "\u0000", "\u2028", "\ufffd", "😀", "null", "true", "1", "1e3", "AA==", "a/b", "a.b-c_d", "A\n", "\ta", "<&>",
		"b0000000-0000-5000-8000-000000000000", "SHA256:" + strings.Repeat("a", 64), strings.Repeat("f", 32),
	}
	if s.MaxLength != nil {
		texts = append(texts, strings.Repeat("a", int(*s.MaxLength)), strings.Repeat("密", int(*s.MaxLength)), strings.Repeat("a", int(*s.MaxLength)+1))
	}
	return texts
}

// values are what a field of a schema is tried with: edge values, values of other types, and some at random.
func values(s *apiextensionsv1.JSONSchemaProps, random *rand.Rand) (all []raw) {
	add := func(values ...string) {
		for _, v := range values {
			all = append(all, raw(v))
		}
	}
	text := func(values ...string) {
		for _, v := range values {
			quoted, _ := json.Marshal(v)
			add(string(quoted))
		}
	}
	add("null", "true", "1.5", `"x"`, "[]", "{}", "[null]", `{"a": null}`)
	switch {
	case s.Format == "date-time" || strings.Contains(s.Pattern, "T("):
		text(edgeTimes...)
		for range 8 {
			at := time.Unix(random.Int64N(300_000_000_000)-40_000_000_000, random.Int64N(1e9))
			zone := time.FixedZone("", random.IntN(48*3600)-24*3600)
			text(at.UTC().Format(time.RFC3339), at.In(zone).Format(time.RFC3339Nano))
		}
	case s.Type == "integer":
		add(edgeNumbers...)
		for range 5 {
			add(fmt.Sprint(random.Int64()), fmt.Sprint(random.Int32()), fmt.Sprint(random.Float64()*1e20), fmt.Sprintf("%de%d", random.IntN(100), random.IntN(30)))
		}
	case s.Type == "boolean":
		add("false", "0", "1")
		text("true", "false")
	case len(s.Enum) > 0:
		for _, v := range s.Enum {
			add(string(v.Raw))
		}
	case s.Type == "string":
		text(edgeTexts(s)...)
	case s.AdditionalProperties != nil:
		add(`{"": ""}`, `{"a": "b"}`, `{"a": "b", "密": "c"}`, `{"a": 1}`, `{"a": {}}`)
	case s.Type == "array":
		add(`[1]`, `["a"]`, `[{}]`, `[[]]`, `[""]`)
	}
	return all
}

// wholeSpecs are specs that together have each field of a kind.
var wholeSpecs = map[string][]string{
	"keystores": {
		`{type: Software, custody: HostAllowed, keyProtection: NotEnforcedAllowed, allowPKCS1V15Import: true}`,
		`{type: PKCS11, pkcs11: {module: m, token: {label: l, serial: s, model: m}, pinSecretRef: {name: s, key: k}, maxSessions: 8}}`,
	},
	"clusterkeystores": {
		`{type: Software, custody: HostAllowed, keyProtection: NotEnforcedAllowed, allowPKCS1V15Import: true, allowedNamespaces: ` + wholeSelector + `}`,
		`{type: PKCS11, pkcs11: {module: m, token: {label: l, serial: s, model: m}, pinSecretRef: {name: s, key: k}, maxSessions: 8}}`,
	},
	"importedkeys": {
		imported + `, desiredState: PendingDeletion, pendingWindowInDays: 7, deletionPolicy: Retain, adopt: {keyVersionID: b0000000-0000-5000-8000-000000000000, materialFingerprint: ` + strings.Repeat("f", 32) + `},
			exportPolicy: {namespaces: {from: Selector, selector: ` + wholeSelector + `}, recipients: [{fingerprint: "SHA256:` + strings.Repeat("a", 64) + `"}], wrappingAlgorithms: [SM2PKE]},
			material: {encryptedKeyMaterial: AA==, importToken: AA==, expireTime: "2090-01-01T00:00:00Z"}}`,
		imported + `, adopt: {type: ByName}}`,
		material(`encryptedKeyMaterialFrom: {` + member("secretKeyRef") + `}, importTokenFrom: {` + member("secretKeyRef") + `}`),
		material(`encryptedKeyMaterialFrom: {` + member("configMapKeyRef") + `}, importTokenFrom: {` + member("configMapKeyRef") + `}`),
	},
	"generatedkeys": {
		generated + `, desiredState: PendingDeletion, pendingWindowInDays: 7, deletionPolicy: Retain, rotation: {interval: 2160h}, adopt: {type: ByVersion, keyVersionIDs: ["` + aVersion + `"]},
			exportPolicy: {namespaces: {from: Selector, selector: ` + wholeSelector + `}, recipients: [{fingerprint: "SHA256:` + strings.Repeat("a", 64) + `"}], wrappingAlgorithms: [SM2PKE]}}`,
	},
	"accesskeys": {`{serviceAccountName: app, keyStoreRef: {kind: KeyStore, name: s}, disabled: true, expireTime: "2090-01-01T00:00:00Z"}`},
	"datakeys":   {dataKey + `, reencryption: {policy: OnRotation}, keySpec: AES_256, numberOfBytes: 32, encryptionContext: {a: b}, ciphertextBlob: AA==, target: ` + wholeTarget + `}}`},
	"exporteddatakeys": {
		strings.Replace(exported, "{name: d}", `{name: d, namespace: a, digest: "`+strings.Repeat("0", 64)+`"}`, 1) + `, dryRun: true, target: ` + wholeTarget + `, immutable: true}}`,
		strings.Replace(strings.Replace(blobExported, "RSA_2048", "EC_SM2", 1), "RSAES_OAEP_SHA_256", "SM2PKE", 1) + `, encryptionContext: {a: b}, sm2CiphertextFormat: ASN1}`,
		recipient(member("secretKeyRef")), recipient(member("configMapKeyRef")), recipient(member("importedKeyRef")), exported + `, delivery: Status}`,
	},
	"clusterexporteddatakeys": {
		`{namespaceSelector: ` + wholeSelector + `, template: {` + distributed + `, target: ` + wholeTarget + `, immutable: true}}}`,
		distributedWith("EC_SM2", "SM2PKE", `, sm2CiphertextFormat: ASN1`), distributedTo(member("secretKeyRef")), distributedTo(member("configMapKeyRef")),
	},
}

const (
	wholeSelector = `{matchLabels: {a: b}, matchExpressions: [{key: a, operator: In, values: [b]}]}`
	wholeTarget   = `{name: t, labels: {a: b}, annotations: {a: b}` // closed by who uses it
)

// A place is a field of an object that is tried with values: its path in the schema, and how to set it.
type place struct {
	path   string
	schema *apiextensionsv1.JSONSchemaProps
	set    func(any)
	was    any
}

// places are the fields of a value, and of what is in it.
func places(value any, s *apiextensionsv1.JSONSchemaProps, path string) (all []place) {
	add := func(at string, schema *apiextensionsv1.JSONSchemaProps, inner any, set func(any)) {
		all = append(all, place{at, schema, set, inner})
		all = append(all, places(inner, schema, at)...)
	}
	switch v := value.(type) {
	case map[string]any:
		for _, name := range slices.Sorted(maps.Keys(v)) {
			set := func(r any) { v[name] = r }
			if s.AdditionalProperties != nil {
				add(path+"[]", s.AdditionalProperties.Schema, v[name], set)
			} else if property, ok := s.Properties[name]; ok {
				add(path+"."+name, &property, v[name], set)
			}
		}
	case []any:
		for i, inner := range v {
			add(path+"[]", s.Items.Schema, inner, func(r any) { v[i] = r })
		}
	}
	return all
}

// server asks the API server what it would keep, without a client that decodes.
type server struct {
	http *http.Client
	base string
}

func (s server) ask(t testing.TB, method, path, contentType string, body any) (kept []byte, accepted bool) {
	t.Helper()
	text, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	request, err := http.NewRequestWithContext(t.Context(), method, s.base+path+"?dryRun=All&fieldValidation=Ignore", bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", contentType)
	response, err := s.http.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	kept, err = io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	switch response.StatusCode {
	case http.StatusOK, http.StatusCreated:
		return kept, true
	case http.StatusBadRequest, http.StatusUnprocessableEntity:
		return nil, false
	}
	t.Fatalf("%s %s answers %s to %s: %s", method, path, response.Status, text, kept)
	return nil, false
}

// decodable is a kind as a client has it.
type decodable interface {
	client.Object
	Invalid() []v1alpha1.InvalidField
}

// trial tries the fields of one kind.
type trial struct {
	server
	collection string
	kind       decodable
	accepted   map[string]int
}

// try tries each place of an object with values. send asks the server about the object as it is then.
func (tr *trial) try(t testing.TB, random *rand.Rand, all []place, send func(testing.TB) ([]byte, bool), sendAgain func(testing.TB, decodable) bool) {
	t.Helper()
	for _, p := range all {
		tr.accepted[p.path]++ // the value that the object has
		for _, value := range values(p.schema, random) {
			p.set(value)
			kept, accepted := send(t)
			p.set(p.was)
			if !accepted {
				continue
			}
			object := reflect.New(reflect.TypeOf(tr.kind).Elem()).Interface().(decodable)
			if err := json.Unmarshal(kept, object); err != nil {
				t.Errorf("%s = %s is accepted, and the object does not decode: %v", p.path, value, err)
			} else if invalid := object.Invalid(); len(invalid) > 0 {
				t.Errorf("%s = %s is accepted, and does not decode: %v", p.path, value, invalid)
			} else if !sendAgain(t, object) {
				t.Errorf("%s = %s is accepted and decodes, and what is encoded again is refused", p.path, value)
			}
		}
	}
}

// What the schema of a kind accepts, its Go type must decode, and encode again so that the schema accepts it: a list
// fails as a whole when one of its objects does not decode, and a status that is refused is never written.
func TestSchema_acceptsOnlyWhatDecodes(t *testing.T) {
	t.Parallel()
	const seed = 1
	env := testenv.Start(t)
	httpClient, err := rest.HTTPClientFor(env.Config)
	if err != nil {
		t.Fatal(err)
	}
	ns := env.Namespace(t)
	for _, whole := range withStatus(ns) {
		plural := strings.ToLower(reflect.TypeOf(whole).Elem().Name()) + "s"
		t.Run(plural, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			random := rand.New(rand.NewPCG(seed, seed))
			schema := schemas(t)[plural]
			collection := "/apis/" + v1alpha1.GroupVersion.String() + "/" + plural
			if whole.GetNamespace() != "" {
				collection = "/apis/" + v1alpha1.GroupVersion.String() + "/namespaces/" + ns + "/" + plural
			}
			tr := &trial{
				server: server{httpClient, strings.TrimSuffix(env.Config.Host, "/")}, collection: collection,
				kind: whole.(decodable), accepted: map[string]int{},
			}

			for _, spec := range wholeSpecs[plural] {
				o := object(t, plural, ns, spec).Object
				again := func(t testing.TB, o decodable) bool {
					o.SetResourceVersion("")
					o.SetUID("")
					_, accepted := tr.ask(t, http.MethodPost, collection, "application/json", o)
					return accepted
				}
				specSchema := schema.Properties["spec"]
				send := func(t testing.TB) ([]byte, bool) {
					return tr.ask(t, http.MethodPost, collection, "application/json", o)
				}
				if _, accepted := send(t); !accepted {
					t.Fatalf("the server refuses %s", spec)
				}
				tr.try(t, random, places(o["spec"], &specSchema, "spec"), send, again)
			}

			status := statusOf(g, whole)
			g.Expect(strict(env.Client).Create(t.Context(), whole)).To(Succeed())
			patch := func(t testing.TB, status any) ([]byte, bool) {
				return tr.ask(t, http.MethodPatch, collection+"/"+ns+"/status", "application/merge-patch+json", map[string]any{"status": status})
			}
			again := func(t testing.TB, o decodable) bool {
				_, accepted := patch(t, statusOf(NewWithT(t), o))
				return accepted
			}
			statusSchema := schema.Properties["status"]
			send := func(t testing.TB) ([]byte, bool) { return patch(t, status) }
			if _, accepted := send(t); !accepted {
				t.Fatalf("the server refuses %v", status)
			}
			tr.try(t, random, places(status, &statusSchema, "status"), send, again)

			walk(schema, "", func(path string, _ *apiextensionsv1.JSONSchemaProps) {
				if strings.HasPrefix(path, "spec.") || strings.HasPrefix(path, "status.") {
					g.Expect(tr.accepted).To(HaveKey(path), "no value of the field is tried: add it to wholeSpecs or withStatus")
				}
			})
		})
	}
}
