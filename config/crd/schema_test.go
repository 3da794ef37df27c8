package crd_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	. "github.com/onsi/gomega"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/testenv"
)

func TestSchema_refuses(t *testing.T) {
	t.Parallel()
	long := func(n int) string { return strings.Repeat("a", n) }
	for sentence, tc := range map[string]struct {
		plural string
		spec   string
		field  string
		says   string
	}{
		"a library's path in the place of its name":    {"keystores", `{type: PKCS11, pkcs11: {module: /usr/lib/softhsm/libsofthsm2.so, token: {label: l}}}`, "spec.pkcs11.module", "should match"},
		"a token without a label":                      {"keystores", `{type: PKCS11, pkcs11: {module: m, token: {serial: "1"}}}`, "spec.pkcs11.token.label", "Required"},
		"a token label longer than PKCS#11 has":        {"keystores", `{type: PKCS11, pkcs11: {module: m, token: {label: ` + long(33) + `}}}`, "spec.pkcs11.token.label", "32"},
		"a token serial longer than PKCS#11 has":       {"keystores", `{type: PKCS11, pkcs11: {module: m, token: {label: l, serial: ` + long(17) + `}}}`, "spec.pkcs11.token.serial", "16"},
		"a token model longer than PKCS#11 has":        {"keystores", `{type: PKCS11, pkcs11: {module: m, token: {label: l, model: ` + long(17) + `}}}`, "spec.pkcs11.token.model", "16"},
		"a PIN Secret without an entry":                {"keystores", `{type: PKCS11, pkcs11: {module: m, token: {label: l}, pinSecretRef: {name: s}}}`, "spec.pkcs11.pinSecretRef.key", "Required"},
		"an entry key that no Secret can have":         {"keystores", `{type: PKCS11, pkcs11: {module: m, token: {label: l}, pinSecretRef: {name: s, key: a/b}}}`, "spec.pkcs11.pinSecretRef.key", "should match"},
		"no session at all":                            {"keystores", `{type: PKCS11, pkcs11: {module: m, token: {label: l}, maxSessions: 0}}`, "spec.pkcs11.maxSessions", "greater than or equal to 1"},
		"more sessions than any module has":            {"keystores", `{type: PKCS11, pkcs11: {module: m, token: {label: l}, maxSessions: 1025}}`, "spec.pkcs11.maxSessions", "less than or equal to 1024"},
		"a custody that does not exist":                {"keystores", `{type: Software, custody: Module}`, "spec.custody", "Unsupported value"},
		"a custody of a cluster's that does not exist": {"clusterkeystores", `{type: Software, custody: Software}`, "spec.custody", "Unsupported value"},

		"a key spec as the cloud API writes it":      {"importedkeys", strings.Replace(imported, "AES_256", "Aliyun_AES_256", 1) + `}`, "spec.keySpec", "Unsupported value"},
		"a key without a key spec":                   {"importedkeys", strings.Replace(imported, "keySpec: AES_256, ", "", 1) + `}`, "spec.keySpec", "Required"},
		"a key without a key store":                  {"importedkeys", strings.Replace(imported, "keyStoreRef: {kind: KeyStore, name: s}, ", "", 1) + `}`, "spec.keyStoreRef", "Required"},
		"a key store of another kind":                {"importedkeys", strings.Replace(imported, "kind: KeyStore", "kind: Secret", 1) + `}`, "spec.keyStoreRef.kind", "Unsupported value"},
		"a name that no object can have":             {"importedkeys", strings.Replace(imported, "name: s", "name: ../s", 1) + `}`, "spec.keyStoreRef.name", "should match"},
		"a key store without a name":                 {"importedkeys", strings.Replace(imported, "name: s", `name: ""`, 1) + `}`, "spec.keyStoreRef.name", "at least 1"},
		"a wrapping key of RSA-1024":                 {"importedkeys", strings.Replace(imported, "RSA_2048", "RSA_1024", 1) + `}`, "spec.importParameters.wrappingKeySpec", "Unsupported value"},
		"a wrapping algorithm that does not exist":   {"importedkeys", strings.Replace(imported, "RSAES_OAEP_SHA_256", "RSAES_OAEP_SHA_512", 1) + `}`, "spec.importParameters.wrappingAlgorithm", "Unsupported value"},
		"a deletion policy that does not exist":      {"importedkeys", imported + `, deletionPolicy: Orphan}`, "spec.deletionPolicy", "Unsupported value"},
		"a state that cannot be requested":           {"importedkeys", imported + `, desiredState: PendingImport}`, "spec.desiredState", "Unsupported value"},
		"a window of six days":                       {"importedkeys", imported + `, desiredState: PendingDeletion, pendingWindowInDays: 6}`, "spec.pendingWindowInDays", "greater than or equal to 7"},
		"a window of 367 days":                       {"importedkeys", imported + `, desiredState: PendingDeletion, pendingWindowInDays: 367}`, "spec.pendingWindowInDays", "less than or equal to 366"},
		"a selector with an operator of its own":     {"importedkeys", exportPolicy(`namespaces: {from: Selector, selector: {matchExpressions: [{key: a, operator: Like}]}}`), "spec.exportPolicy.namespaces.selector.matchExpressions[0].operator", "Unsupported value"},
		"a selector of 33 labels":                    {"importedkeys", exportPolicy(`namespaces: {from: Selector, selector: {matchLabels: ` + pairs(33) + `}}`), "spec.exportPolicy.namespaces.selector.matchLabels", "32"},
		"a selector with 33 requirements":            {"importedkeys", exportPolicy(`namespaces: {from: Selector, selector: {matchExpressions: [` + strings.Repeat(`{key: a, operator: Exists},`, 33) + `]}}`), "spec.exportPolicy.namespaces.selector.matchExpressions", "32"},
		"a selector with 33 values":                  {"importedkeys", exportPolicy(`namespaces: {from: Selector, selector: {matchExpressions: [{key: a, operator: In, values: [` + strings.Repeat(`a,`, 33) + `]}]}}`), "spec.exportPolicy.namespaces.selector.matchExpressions[0].values", "32"},
		"a selector of a value that no label has":    {"importedkeys", exportPolicy(`namespaces: {from: Selector, selector: {matchLabels: {a: ` + long(64) + `}}}`), "spec.exportPolicy.namespaces.selector.matchLabels.a", "63"},
		"adoption of what is no fingerprint":         {"importedkeys", imported + `, adopt: {keyVersionID: "b0000000-0000-5000-8000-000000000000", materialFingerprint: ` + long(33) + `}}`, "spec.adopt.materialFingerprint", "32"},
		"an expiry that is no time":                  {"importedkeys", material(`encryptedKeyMaterial: AA==, importToken: AA==, expireTime: tomorrow`), "spec.material.expireTime", "should match"},
		"adoption of what is no key version":         {"importedkeys", imported + `, adopt: {keyVersionID: "B0000000-0000-5000-8000-000000000000"}}`, "spec.adopt.keyVersionID", "should match"},
		"adoption in an unknown way":                 {"importedkeys", imported + `, adopt: {type: ByLabel}}`, "spec.adopt.type", "Unsupported value"},
		"consent to namespaces of no sort":           {"importedkeys", exportPolicy(`namespaces: {from: Some}`), "spec.exportPolicy.namespaces.from", "Unsupported value"},
		"consent to PKCS#1 v1.5":                     {"importedkeys", exportPolicy(`wrappingAlgorithms: [RSAES_PKCS1_V1_5]`), "spec.exportPolicy.wrappingAlgorithms[0]", "Unsupported value"},
		"consent to no algorithm":                    {"importedkeys", exportPolicy(`wrappingAlgorithms: []`), "spec.exportPolicy.wrappingAlgorithms", "at least 1"},
		"consent to an algorithm twice":              {"importedkeys", exportPolicy(`wrappingAlgorithms: [SM2PKE, SM2PKE]`), "spec.exportPolicy.wrappingAlgorithms[1]", "Duplicate"},
		"consent to no recipient":                    {"importedkeys", exportPolicy(`recipients: []`), "spec.exportPolicy.recipients", "at least 1"},
		"consent to a fingerprint of openssl's sort": {"importedkeys", exportPolicy(`recipients: [{fingerprint: "AB:CD"}]`), "spec.exportPolicy.recipients[0].fingerprint", "should match"},
		"consent to a fingerprint in capitals":       {"importedkeys", exportPolicy(`recipients: [{fingerprint: "SHA256:` + strings.Repeat("A", 64) + `"}]`), "spec.exportPolicy.recipients[0].fingerprint", "should match"},
		"consent to 257 recipients":                  {"importedkeys", exportPolicy(`recipients: [` + strings.Repeat(`{fingerprint: "SHA256:`+strings.Repeat("a", 64)+`"},`, 257) + `]`), "spec.exportPolicy.recipients", "256"},
		"a namespace that cannot be":                 {"exporteddatakeys", strings.Replace(exported, "{name: d}", "{name: d, namespace: a.b}", 1) + `}`, "spec.dataKeyRef.namespace", "should match"},
		"a namespace longer than any":                {"exporteddatakeys", strings.Replace(exported, "{name: d}", "{name: d, namespace: "+long(64)+"}", 1) + `}`, "spec.dataKeyRef.namespace", "63"},
		"empty material":                             {"importedkeys", material(`encryptedKeyMaterial: "", importToken: AA==`), "spec.material.encryptedKeyMaterial", "at least 1"},
		"material longer than any":                   {"importedkeys", material(`encryptedKeyMaterial: ` + long(4097) + `, importToken: AA==`), "spec.material.encryptedKeyMaterial", "4096"},
		"an import token longer than any":            {"importedkeys", material(`encryptedKeyMaterial: AA==, importToken: ` + long(1025)), "spec.material.importToken", "1024"},

		"a data key of a kind that has no keys":             {"datakeys", strings.Replace(dataKey, "ImportedKey", "Secret", 1) + `}`, "spec.keyRef.kind", "Unsupported value"},
		"a data key without a key":                          {"datakeys", `{keySpec: AES_256}`, "spec.keyRef", "Required"},
		"a data key spec that does not exist":               {"datakeys", dataKey + `, keySpec: AES_192}`, "spec.keySpec", "Unsupported value"},
		"a data key of no bytes":                            {"datakeys", dataKey + `, numberOfBytes: 0}`, "spec.numberOfBytes", "greater than or equal to 1"},
		"a data key of more than 1024 bytes":                {"datakeys", dataKey + `, numberOfBytes: 1025}`, "spec.numberOfBytes", "less than or equal to 1024"},
		"a context value longer than a context":             {"datakeys", dataKey + `, encryptionContext: {a: ` + long(8186) + `}}`, "spec.encryptionContext.a", "8185"},
		"a context of more pairs than 8192 characters have": {"datakeys", dataKey + `, encryptionContext: ` + pairs(1171) + `}`, "spec.encryptionContext", "1170"},
		"more labels than 32":                               {"datakeys", dataKey + `, target: {labels: ` + pairs(33) + `}}`, "spec.target.labels", "32"},
		"more annotations than 32":                          {"datakeys", dataKey + `, target: {annotations: ` + pairs(33) + `}}`, "spec.target.annotations", "32"},
		"an annotation longer than 1024":                    {"datakeys", dataKey + `, target: {annotations: {a: ` + long(1025) + `}}}`, "spec.target.annotations.a", "1024"},
		"a blob longer than any":                            {"datakeys", dataKey + `, ciphertextBlob: ` + long(4097) + `}`, "spec.ciphertextBlob", "4096"},
		"an export under PKCS#1 v1.5":                       {"exporteddatakeys", wrappedWith("RSA_2048", "RSAES_PKCS1_V1_5") + `}`, "spec.wrappingAlgorithm", "Unsupported value"},
		"an export under RSA-1024":                          {"exporteddatakeys", wrappedWith("RSA_1024", "RSAES_OAEP_SHA_256") + `}`, "spec.wrappingKeySpec", "Unsupported value"},
		"an export without a recipient":                     {"exporteddatakeys", `{dataKeyRef: {name: d}, wrappingKeySpec: RSA_2048, wrappingAlgorithm: RSAES_OAEP_SHA_256}`, "spec.publicKey", "Required"},
		"an SM2 format that does not exist":                 {"exporteddatakeys", wrappedWith("EC_SM2", "SM2PKE") + `, sm2CiphertextFormat: C2C1C3}`, "spec.sm2CiphertextFormat", "Unsupported value"},
		"a delivery that does not exist":                    {"exporteddatakeys", exported + `, delivery: ConfigMap}`, "spec.delivery", "Unsupported value"},
		"an empty public key":                               {"exporteddatakeys", recipient(`type: Blob, blob: ""`), "spec.publicKey.blob", "at least 1"},
		"a public key longer than any":                      {"exporteddatakeys", recipient(`type: Blob, blob: ` + long(16385)), "spec.publicKey.blob", "16384"},
		"one for all, of no namespace":                      {"clusterexporteddatakeys", strings.Replace(clusterExport(distributed), "namespace: home, ", "", 1), "spec.template.dataKeyRef.namespace", "Required"},
		"one for all, of no data key":                       {"clusterexporteddatakeys", strings.Replace(clusterExport(distributed), ", name: d", "", 1), "spec.template.dataKeyRef.name", "Required"},
		"one for all that selects nothing":                  {"clusterexporteddatakeys", strings.Replace(clusterExport(distributed), "namespaceSelector: {matchLabels: {team: a}}, ", "", 1), "spec.namespaceSelector", "Required"},
		"one for all without a template":                    {"clusterexporteddatakeys", `{namespaceSelector: {}}`, "spec.template", "Required"},
		"one for all under PKCS#1 v1.5":                     {"clusterexporteddatakeys", distributedWith("RSA_2048", "RSAES_PKCS1_V1_5", ""), "spec.template.wrappingAlgorithm", "Unsupported value"},
		"one for all in a format of its own":                {"clusterexporteddatakeys", distributedWith("EC_SM2", "SM2PKE", ", sm2CiphertextFormat: C2C1C3"), "spec.template.sm2CiphertextFormat", "Unsupported value"},
		"a target with a name longer than a name":           {"exporteddatakeys", exported + `, target: {name: ` + long(254) + `}}`, "spec.target.name", "253"},
	} {
		t.Run(sentence, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			env := testenv.Start(t)
			err := tryCreate(t.Context(), env.Client, object(t, tc.plural, "default", tc.spec))
			g.Expect(causes(g, err)).To(ContainElement(And(HavePrefix(tc.field+": "), ContainSubstring(tc.says))))
		})
	}
}

// What a later version may understand must not be taken and ignored by this one.
func TestSchema_knowsNoFieldWithoutBehaviour(t *testing.T) {
	t.Parallel()
	for sentence, tc := range map[string]struct{ plural, spec string }{
		"consent by name": {"importedkeys", exportPolicy(`namespaces: {from: Same, names: [a]}`)},
		"a template":      {"exporteddatakeys", exported + `, template: {}}`},
		"a blob for all":  {"clusterexporteddatakeys", clusterExport(distributed + `, ciphertextBlob: AA==`)},
		"a key for all":   {"clusterexporteddatakeys", strings.Replace(clusterExport(distributed), "blob: AA==", "importedKeyRef: {name: i}", 1)},
		"mechanisms":      {"keystores", `{type: PKCS11, pkcs11: {module: m, token: {label: l}, mechanisms: {a: b}}}`},
	} {
		t.Run(sentence, func(t *testing.T) {
			t.Parallel()
			env := testenv.Start(t)
			err := tryCreate(t.Context(), env.Client, object(t, tc.plural, "default", tc.spec))
			NewWithT(t).Expect(err).To(MatchError(ContainSubstring("unknown field")))
		})
	}
}

// The longest of everything at once: limits that people can really reach.
func TestSchema_acceptsTheLongest(t *testing.T) {
	t.Parallel()
	long := func(n int) string { return strings.Repeat("a", n) }
	for sentence, tc := range map[string]struct{ plural, spec string }{
		"a token":   {"keystores", `{type: PKCS11, pkcs11: {module: ` + long(63) + `, token: {label: ` + long(32) + `, serial: ` + long(16) + `, model: ` + long(16) + `}, maxSessions: 1024}}`},
		"material":  {"importedkeys", material(`encryptedKeyMaterial: ` + long(4096) + `, importToken: ` + long(1024))},
		"consent":   {"importedkeys", exportPolicy(`recipients: [` + strings.Repeat(`{fingerprint: "SHA256:`+strings.Repeat("a", 64)+`"},`, 256) + `]`)},
		"a context": {"datakeys", dataKey + `, numberOfBytes: 1024, encryptionContext: ` + pairs(712) + `, target: {labels: ` + pairs(32) + `, annotations: {a: ` + long(1024) + `}}}`},
		"a blob":    {"exporteddatakeys", strings.Replace(exported, `dataKeyRef: {name: d}`, `keyRef: {kind: ImportedKey, name: k}, ciphertextBlob: `+long(4096), 1) + `, encryptionContext: {a: ` + long(8184) + `}}`},
		"a key":     {"exporteddatakeys", recipient(`type: Blob, blob: ` + long(16384))},
		"one key":   {"clusterexporteddatakeys", strings.Replace(clusterExport(distributed), "blob: AA==", "blob: "+long(16384), 1)},
	} {
		t.Run(sentence, func(t *testing.T) {
			t.Parallel()
			env := testenv.Start(t)
			NewWithT(t).Expect(tryCreate(t.Context(), env.Client, object(t, tc.plural, "default", tc.spec))).To(Succeed())
		})
	}
}

// pairs is a map of n entries, in YAML.
func pairs(n int) string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprintf("k%d: v", i)
	}
	return "{" + strings.Join(all, ", ") + "}"
}

// An API server keeps what it is given: each value has a limit, so that it is not filled by accident, and
// so that the cost of the rules is bounded.
func TestSchema_boundsEveryStringListAndMap(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	for plural, schema := range schemas(t) {
		walk(schema, "", func(path string, s *apiextensionsv1.JSONSchemaProps) {
			switch {
			case path == "apiVersion" || path == "kind" || strings.HasPrefix(path, "metadata"):
			case s.Type == "string" && s.Format != "date-time" && len(s.Enum) == 0:
				g.Expect(s.MaxLength).NotTo(BeNil(), "%s %s has no maxLength", plural, path)
			case s.Type == "array":
				g.Expect(s.MaxItems).NotTo(BeNil(), "%s %s has no maxItems", plural, path)
			case s.AdditionalProperties != nil:
				g.Expect(s.MaxProperties).NotTo(BeNil(), "%s %s has no maxProperties", plural, path)
			}
		})
	}
}

// What the cluster has is what Git has: Argo CD shows a default of the schema as drift.
func TestSchema_hasNoDefaults(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	for plural, schema := range schemas(t) {
		walk(schema, "", func(path string, s *apiextensionsv1.JSONSchemaProps) {
			g.Expect(s.Default).To(BeNil(), "%s %s has a default", plural, path)
			g.Expect(s.XPreserveUnknownFields).To(BeNil(), "%s %s accepts unknown fields", plural, path)
		})
	}
}

func TestSchema_describesEveryField(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	for plural, schema := range schemas(t) {
		walk(schema, "", func(path string, s *apiextensionsv1.JSONSchemaProps) {
			if path == "metadata" || strings.HasSuffix(path, "[]") || slices.Contains([]string{"spec", "status"}, path) {
				return
			}
			g.Expect(s.Description).NotTo(BeEmpty(), "%s %s: kubectl explain has nothing to say", plural, path)
		})
	}
}

// kubectl apply without --server-side keeps the whole object in an annotation.
func TestCRDs_areSmallEnoughForClientSideApply(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	const limit = 262144 // all annotations of an object together
	for plural, crd := range crds(t) {
		crd.ManagedFields, crd.Status = nil, apiextensionsv1.CustomResourceDefinitionStatus{}
		text, err := json.Marshal(crd)
		g.Expect(err).NotTo(HaveOccurred())
		// Half of it: there is room to grow before an installation breaks.
		g.Expect(len(text)).To(BeNumerically("<", limit/2), plural)
	}
}

func crds(t testing.TB) map[string]*apiextensionsv1.CustomResourceDefinition {
	t.Helper()
	env := testenv.Start(t)
	all := map[string]*apiextensionsv1.CustomResourceDefinition{}
	for plural := range kinds {
		crd := &apiextensionsv1.CustomResourceDefinition{}
		key := client.ObjectKey{Name: plural + "." + v1alpha1.GroupVersion.Group}
		if err := env.Client.Get(t.Context(), key, crd); err != nil {
			t.Fatal(err)
		}
		all[plural] = crd
	}
	return all
}

func schemas(t testing.TB) map[string]*apiextensionsv1.JSONSchemaProps {
	t.Helper()
	all := map[string]*apiextensionsv1.JSONSchemaProps{}
	for plural, crd := range crds(t) {
		for _, version := range crd.Spec.Versions {
			all[plural] = version.Schema.OpenAPIV3Schema
		}
	}
	return all
}
