package v1alpha1_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	. "github.com/onsi/gomega"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/internal/testenv"
)

// A rule is one XValidation of a CRD.
type rule struct {
	plural  string
	path    string
	message string
}

func (r rule) String() string { return fmt.Sprintf("%s %s: %s", r.plural, r.path, r.message) }

// examples are specs that a rule accepts and refuses. Where before is set, the rule is about changes, and
// they are changes of it.
type examples struct {
	before   string
	accepted []string
	rejected []string
}

const (
	dataKey  = `{keyRef: {kind: ImportedKey, name: k}`
	exported = `{dataKeyRef: {name: d}, publicKey: {blob: AA==}, wrappingKeySpec: RSA_2048, wrappingAlgorithm: RSAES_OAEP_SHA_256`
	imported = `{keyStoreRef: {kind: KeyStore, name: s}, keySpec: AES_256, importParameters: {wrappingKeySpec: RSA_2048, wrappingAlgorithm: RSAES_OAEP_SHA_256}`
	pkcs11   = `pkcs11: {module: m, token: {label: l}}`
)

func material(fields string) string { return imported + `, material: {` + fields + `}}` }

func recipient(fields string) string {
	return `{dataKeyRef: {name: d}, wrappingKeySpec: RSA_2048, wrappingAlgorithm: RSAES_OAEP_SHA_256, publicKey: {` + fields + `}}`
}

func wrappedWith(spec, algorithm string) string {
	return fmt.Sprintf(`{dataKeyRef: {name: d}, publicKey: {blob: AA==}, wrappingKeySpec: %s, wrappingAlgorithm: %s`, spec, algorithm)
}

func importedWith(spec, algorithm string) string {
	return fmt.Sprintf(`{keyStoreRef: {kind: KeyStore, name: s}, keySpec: AES_256, importParameters: {wrappingKeySpec: %s, wrappingAlgorithm: %s}}`, spec, algorithm)
}

// adopting is a field of an imported key; the digit tells one key version from another.
func adopting(digit string) string {
	return `, adopt: {keyVersionID: "` + digit + `0000000-0000-5000-8000-000000000000"}`
}

func exportPolicy(fields string) string { return imported + `, exportPolicy: {` + fields + `}}` }

// clusterExport exports to all namespaces that match; template is all of the template but its braces.
func clusterExport(template string) string {
	return `{namespaceSelector: {matchLabels: {team: a}}, template: {` + template + `}}`
}

const (
	fromDataKey = `dataKeyRef: {namespace: home, name: d}, `
	underRSA    = `wrappingKeySpec: RSA_2048, wrappingAlgorithm: RSAES_OAEP_SHA_256`
	distributed = fromDataKey + `publicKey: {blob: AA==}, ` + underRSA
)

func distributedWith(spec, algorithm, rest string) string {
	return clusterExport(fromDataKey + `publicKey: {blob: AA==}, wrappingKeySpec: ` + spec + `, wrappingAlgorithm: ` + algorithm + rest)
}

func distributedTo(fields string) string {
	return clusterExport(fromDataKey + `publicKey: {` + fields + `}, ` + underRSA)
}

// ofTemplate makes examples of a template from those of a whole spec.
func ofTemplate(all map[string]examples) map[string]examples {
	template := func(spec string) string {
		return clusterExport(strings.TrimSuffix(strings.TrimPrefix(spec, `{`), `}`))
	}
	templates := func(specs []string) (out []string) {
		for _, spec := range specs {
			out = append(out, template(spec))
		}
		return out
	}
	out := map[string]examples{}
	for start, e := range all {
		out[start] = examples{before: template(e.before), accepted: templates(e.accepted), rejected: templates(e.rejected)}
	}
	return out
}

func entryRef(kind string) string { return kind + `: {name: e, key: k}` }

// entrySource are the examples of a field that reads an entry; the rest of the material is given.
func entrySource(field, rest string) examples {
	return examples{
		accepted: []string{
			material(field + `: {` + entryRef("secretKeyRef") + `}, ` + rest),
			material(field + `: {` + entryRef("configMapKeyRef") + `}, ` + rest),
		},
		rejected: []string{
			material(field + `: {}, ` + rest),
			material(field + `: {` + entryRef("secretKeyRef") + `, ` + entryRef("configMapKeyRef") + `}, ` + rest),
		},
	}
}

var oneModule = examples{
	accepted: []string{`{software: {}}`, `{` + pkcs11 + `}`},
	rejected: []string{`{}`, `{software: {}, ` + pkcs11 + `}`},
}

var noCustodyInSoftware = examples{
	accepted: []string{`{software: {}}`, `{software: {}, custody: HostAllowed}`, `{` + pkcs11 + `, custody: ModuleOnly}`},
	rejected: []string{`{software: {}, custody: ModuleOnly}`},
}

// noExchange are examples of key stores that keep their keys.
var noExchange = examples{
	before:   `{software: {}}`,
	accepted: []string{`{software: {}, allowPKCS1V15Import: true}`},
	rejected: []string{`{` + pkcs11 + `}`},
}

// targetName are the examples of a target's name that stays as it is.
func targetName(spec string) map[string]examples {
	rest := []string{
		spec + `, target: {name: b}}`,
		spec + `, target: {}}`,
		spec + `}`,
	}
	return map[string]examples{
		"named": {
			before:   spec + `, target: {name: a}}`,
			accepted: []string{spec + `, target: {name: a, labels: {team: a}, annotations: {team: a}}}`},
			rejected: rest,
		},
		"not named": {
			before:   spec + `}`,
			accepted: []string{spec + `, target: {labels: {team: a}}}`, spec + `, target: {}}`},
			rejected: rest[:1],
		},
		"with an empty target": {
			before:   spec + `, target: {labels: {team: a}}}`,
			accepted: rest[1:],
			rejected: rest[:1],
		},
	}
}

func only(e examples) map[string]examples { return map[string]examples{"": e} }

// ruleExamples has each rule of each kind, and for rules about changes the cases from which one starts.
var ruleExamples = map[rule]map[string]examples{
	{"clusterkeystores", "spec", "exactly one of software and pkcs11 is needed"}:                                                   only(oneModule),
	{"keystores", "spec", "exactly one of software and pkcs11 is needed"}:                                                          only(oneModule),
	{"clusterkeystores", "spec", "the software store is not a cryptographic module: custody ModuleOnly needs pkcs11"}:              only(noCustodyInSoftware),
	{"keystores", "spec", "the software store is not a cryptographic module: custody ModuleOnly needs pkcs11"}:                     only(noCustodyInSoftware),
	{"clusterkeystores", "spec", "software and pkcs11 cannot be exchanged: the keys would be left behind; make another key store"}: only(noExchange),
	{"keystores", "spec", "software and pkcs11 cannot be exchanged: the keys would be left behind; make another key store"}:        only(noExchange),
	{"importedkeys", "spec.material.encryptedKeyMaterialFrom", "exactly one of secretKeyRef and configMapKeyRef is needed"}:        only(entrySource("encryptedKeyMaterialFrom", "importToken: AA==")),
	{"importedkeys", "spec.material.importTokenFrom", "exactly one of secretKeyRef and configMapKeyRef is needed"}:                 only(entrySource("importTokenFrom", "encryptedKeyMaterial: AA==")),

	{"importedkeys", "spec.material", "exactly one of encryptedKeyMaterial and encryptedKeyMaterialFrom is needed"}: only(examples{
		accepted: []string{
			material(`encryptedKeyMaterial: AA==, importToken: AA==`),
			material(`encryptedKeyMaterialFrom: {` + entryRef("secretKeyRef") + `}, importToken: AA==`),
		},
		rejected: []string{
			material(`importToken: AA==`),
			material(`encryptedKeyMaterial: AA==, encryptedKeyMaterialFrom: {` + entryRef("secretKeyRef") + `}, importToken: AA==`),
		},
	}),
	{"importedkeys", "spec.material", "exactly one of importToken and importTokenFrom is needed"}: only(examples{
		accepted: []string{
			material(`encryptedKeyMaterial: AA==, importToken: AA==`),
			material(`encryptedKeyMaterial: AA==, importTokenFrom: {` + entryRef("configMapKeyRef") + `}`),
		},
		rejected: []string{
			material(`encryptedKeyMaterial: AA==`),
			material(`encryptedKeyMaterial: AA==, importToken: AA==, importTokenFrom: {` + entryRef("configMapKeyRef") + `}`),
		},
	}),
	{"importedkeys", "spec.importParameters", "EC_SM2 goes with SM2PKE, and RSA key specs with RSAES_OAEP_SHA_256, RSAES_OAEP_SHA_1 or RSAES_PKCS1_V1_5"}: only(examples{
		accepted: []string{
			importedWith("RSA_2048", "RSAES_OAEP_SHA_256"), importedWith("RSA_3072", "RSAES_OAEP_SHA_1"),
			importedWith("RSA_4096", "RSAES_PKCS1_V1_5"), importedWith("EC_SM2", "SM2PKE"),
		},
		rejected: []string{importedWith("RSA_2048", "SM2PKE"), importedWith("EC_SM2", "RSAES_OAEP_SHA_256")},
	}),
	{"importedkeys", "spec", "keyStoreRef cannot be changed: a key does not move between modules; export a data key instead"}: only(examples{
		before:   imported + `}`,
		accepted: []string{strings.Replace(imported, "RSA_2048", "RSA_3072", 1) + `}`},
		rejected: []string{
			strings.Replace(imported, "name: s", "name: other", 1) + `}`,
			strings.Replace(imported, "kind: KeyStore", "kind: ClusterKeyStore", 1) + `}`,
		},
	}),
	{"importedkeys", "spec", "keySpec cannot be changed: make another ImportedKey"}: only(examples{
		before:   imported + `}`,
		accepted: []string{imported + `, deletionPolicy: Delete}`, material(`encryptedKeyMaterial: AA==, importToken: AA==`)},
		rejected: []string{strings.Replace(imported, "AES_256", "SM4", 1) + `}`},
	}),
	{"importedkeys", "spec", "adopt cannot be changed: make another ImportedKey"}: {
		"given": {
			before:   imported + adopting("0") + `}`,
			accepted: []string{imported + adopting("0") + `, desiredState: Disabled}`},
			rejected: []string{imported + adopting("1") + `}`, imported + `}`},
		},
		"not given": {
			before:   imported + `}`,
			accepted: []string{imported + `, desiredState: Disabled}`},
			rejected: []string{imported + adopting("0") + `}`},
		},
	},
	{"importedkeys", "spec", "pendingWindowInDays goes with desiredState PendingDeletion"}: only(examples{
		accepted: []string{
			imported + `, desiredState: PendingDeletion}`,
			imported + `, desiredState: PendingDeletion, pendingWindowInDays: 7}`,
			imported + `, desiredState: PendingDeletion, pendingWindowInDays: 366}`,
		},
		rejected: []string{
			imported + `, pendingWindowInDays: 7}`,
			imported + `, desiredState: Enabled, pendingWindowInDays: 7}`,
			imported + `, desiredState: Disabled, pendingWindowInDays: 7}`,
		},
	}),
	{"importedkeys", "spec.exportPolicy.namespaces", "selector goes with from: Selector"}: only(examples{
		accepted: []string{
			exportPolicy(`namespaces: {from: Same}`), exportPolicy(`namespaces: {from: All}`),
			exportPolicy(`namespaces: {from: Selector, selector: {matchLabels: {team: a}}}`),
			exportPolicy(`namespaces: {from: Selector, selector: {}}`),
		},
		rejected: []string{
			exportPolicy(`namespaces: {from: Selector}`),
			exportPolicy(`namespaces: {from: Same, selector: {matchLabels: {team: a}}}`),
			exportPolicy(`namespaces: {from: All, selector: {}}`),
		},
	}),

	{"datakeys", "spec", "keyRef cannot be changed: make another DataKey"}: only(examples{
		before:   dataKey + `}`,
		accepted: []string{dataKey + `, target: {labels: {team: a}}}`},
		rejected: []string{strings.Replace(dataKey, "name: k", "name: other", 1) + `}`},
	}),
	{"datakeys", "spec", "keySpec cannot be changed: make another DataKey"}: {
		"given": {
			before:   dataKey + `, keySpec: AES_256}`,
			accepted: []string{dataKey + `, keySpec: AES_256, target: {labels: {team: a}}}`},
			rejected: []string{dataKey + `, keySpec: AES_128}`, dataKey + `}`},
		},
		"not given": {
			before:   dataKey + `}`,
			accepted: []string{dataKey + `}`},
			rejected: []string{dataKey + `, keySpec: AES_256}`},
		},
	},
	{"datakeys", "spec", "numberOfBytes cannot be changed: make another DataKey"}: {
		"given": {
			before:   dataKey + `, numberOfBytes: 32}`,
			accepted: []string{dataKey + `, numberOfBytes: 32, target: {labels: {team: a}}}`},
			rejected: []string{dataKey + `, numberOfBytes: 64}`, dataKey + `}`},
		},
		"not given": {
			before:   dataKey + `}`,
			accepted: []string{dataKey + `}`},
			rejected: []string{dataKey + `, numberOfBytes: 32}`},
		},
	},
	{"datakeys", "spec", "encryptionContext cannot be changed: make another DataKey"}: {
		"given": {
			before:   dataKey + `, encryptionContext: {a: b, c: d}}`,
			accepted: []string{dataKey + `, encryptionContext: {c: d, a: b}, target: {labels: {team: a}}}`},
			rejected: []string{dataKey + `, encryptionContext: {a: b}}`, dataKey + `, encryptionContext: {a: b, c: e}}`, dataKey + `}`},
		},
		"not given": {
			before:   dataKey + `}`,
			accepted: []string{dataKey + `}`},
			rejected: []string{dataKey + `, encryptionContext: {a: b}}`},
		},
	},
	{"datakeys", "spec", "ciphertextBlob cannot be changed once set: make another DataKey"}: {
		"given": {
			before:   dataKey + `, ciphertextBlob: AA==}`,
			accepted: []string{dataKey + `, ciphertextBlob: AA==, target: {labels: {team: a}}}`},
			rejected: []string{dataKey + `, ciphertextBlob: AQ==}`, dataKey + `}`},
		},
		"not given": {
			before:   dataKey + `}`,
			accepted: []string{dataKey + `, ciphertextBlob: AA==}`},
		},
	},
	{"datakeys", "spec", "target.name cannot be changed: make another DataKey"}: targetName(dataKey),

	{"exporteddatakeys", "spec", "exactly one of dataKeyRef and ciphertextBlob is needed"}: only(examples{
		accepted: []string{exported + `}`, strings.Replace(exported, `dataKeyRef: {name: d}`, `ciphertextBlob: AA==`, 1) + `}`},
		rejected: []string{exported + `, ciphertextBlob: AA==}`, strings.Replace(exported, `dataKeyRef: {name: d}, `, ``, 1) + `}`},
	}),
	{"exporteddatakeys", "spec", "encryptionContext goes with ciphertextBlob: a DataKey brings its own"}: only(examples{
		accepted: []string{strings.Replace(exported, `dataKeyRef: {name: d}`, `ciphertextBlob: AA==`, 1) + `, encryptionContext: {a: b}}`},
		rejected: []string{exported + `, encryptionContext: {a: b}}`},
	}),
	{"exporteddatakeys", "spec", "EC_SM2 goes with SM2PKE, and RSA key specs with RSAES_OAEP_SHA_256 or RSAES_OAEP_SHA_1"}: only(examples{
		accepted: []string{
			wrappedWith("RSA_2048", "RSAES_OAEP_SHA_256") + `}`, wrappedWith("RSA_3072", "RSAES_OAEP_SHA_1") + `}`,
			wrappedWith("RSA_4096", "RSAES_OAEP_SHA_256") + `}`, wrappedWith("EC_SM2", "SM2PKE") + `}`,
		},
		rejected: []string{wrappedWith("RSA_2048", "SM2PKE") + `}`, wrappedWith("EC_SM2", "RSAES_OAEP_SHA_1") + `}`},
	}),
	{"exporteddatakeys", "spec", "sm2CiphertextFormat goes with SM2PKE"}: only(examples{
		accepted: []string{
			wrappedWith("EC_SM2", "SM2PKE") + `, sm2CiphertextFormat: ASN1}`,
			wrappedWith("EC_SM2", "SM2PKE") + `, sm2CiphertextFormat: C1C2C3}`,
			wrappedWith("EC_SM2", "SM2PKE") + `, sm2CiphertextFormat: C1C3C2}`,
		},
		rejected: []string{exported + `, sm2CiphertextFormat: C1C3C2}`},
	}),
	{"exporteddatakeys", "spec", "target.name cannot be changed: make another ExportedDataKey"}: targetName(exported),
	{"exporteddatakeys", "spec.publicKey", "exactly one of blob, secretKeyRef, configMapKeyRef and importedKeyRef is needed"}: only(examples{
		accepted: []string{
			recipient(`blob: AA==`), recipient(entryRef("secretKeyRef")), recipient(entryRef("configMapKeyRef")),
			recipient(`importedKeyRef: {name: i}`),
		},
		rejected: []string{
			recipient(``),
			recipient(`blob: AA==, ` + entryRef("secretKeyRef")),
			recipient(entryRef("secretKeyRef") + `, ` + entryRef("configMapKeyRef")),
			recipient(entryRef("configMapKeyRef") + `, importedKeyRef: {name: i}`),
			recipient(`blob: AA==, ` + entryRef("secretKeyRef") + `, ` + entryRef("configMapKeyRef") + `, importedKeyRef: {name: i}`),
		},
	}),

	{"clusterexporteddatakeys", "spec", "target.name cannot be changed: make another ClusterExportedDataKey"}: ofTemplate(targetName(`{` + distributed)),
	{"clusterexporteddatakeys", "spec.template.publicKey", "exactly one of blob, secretKeyRef and configMapKeyRef is needed"}: only(examples{
		accepted: []string{distributedTo(`blob: AA==`), distributedTo(entryRef("secretKeyRef")), distributedTo(entryRef("configMapKeyRef"))},
		rejected: []string{
			distributedTo(``),
			distributedTo(`blob: AA==, ` + entryRef("secretKeyRef")),
			distributedTo(entryRef("secretKeyRef") + `, ` + entryRef("configMapKeyRef")),
		},
	}),
	{"clusterexporteddatakeys", "spec.template", "EC_SM2 goes with SM2PKE, and RSA key specs with RSAES_OAEP_SHA_256 or RSAES_OAEP_SHA_1"}: only(examples{
		accepted: []string{
			distributedWith("RSA_2048", "RSAES_OAEP_SHA_256", ""), distributedWith("RSA_3072", "RSAES_OAEP_SHA_1", ""),
			distributedWith("RSA_4096", "RSAES_OAEP_SHA_256", ""), distributedWith("EC_SM2", "SM2PKE", ""),
		},
		rejected: []string{distributedWith("RSA_2048", "SM2PKE", ""), distributedWith("EC_SM2", "RSAES_OAEP_SHA_256", "")},
	}),
	{"clusterexporteddatakeys", "spec.template", "sm2CiphertextFormat goes with SM2PKE"}: only(examples{
		accepted: []string{distributedWith("EC_SM2", "SM2PKE", ", sm2CiphertextFormat: ASN1")},
		rejected: []string{distributedWith("RSA_2048", "RSAES_OAEP_SHA_256", ", sm2CiphertextFormat: ASN1")},
	}),
}

func TestRules_acceptAndRefuse(t *testing.T) {
	t.Parallel()
	for r, starts := range ruleExamples {
		for start, e := range starts {
			t.Run(strings.TrimSpace(r.String()+" "+start), func(t *testing.T) {
				t.Parallel()
				g := NewWithT(t)
				env := testenv.Start(t)
				ns := env.Namespace(t)
				try := func(spec string) error { return tryCreate(t.Context(), env.Client, object(t, r.plural, ns, spec)) }
				if e.before != "" {
					existing := object(t, r.plural, ns, e.before)
					g.Expect(strict(env.Client).Create(t.Context(), existing)).To(Succeed())
					try = func(spec string) error {
						changed := existing.DeepCopy()
						changed.Object["spec"] = object(t, r.plural, ns, spec).Object["spec"]
						return strict(env.Client).Update(t.Context(), changed, client.DryRunAll)
					}
				}
				for _, spec := range e.accepted {
					g.Expect(try(spec)).To(Succeed(), spec)
				}
				for _, spec := range e.rejected {
					// By this rule and no other, or the example would not say anything about it.
					g.Expect(causes(g, try(spec))).To(ConsistOf(And(HavePrefix(r.path+": "), HaveSuffix(": "+r.message))), spec)
				}
			})
		}
	}
}

// A rule that nobody tests may not say what it means.
func TestRules_eachHasExamples(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)

	found := map[rule]int{}
	for plural, schema := range schemas(t) {
		walk(schema, "", func(path string, s *apiextensionsv1.JSONSchemaProps) {
			for _, v := range s.XValidations {
				found[rule{plural, path, v.Message}]++
			}
		})
	}
	g.Expect(slices.Collect(maps.Keys(ruleExamples))).To(ConsistOf(slices.Collect(maps.Keys(found))))
	for r, n := range found {
		g.Expect(n).To(Equal(1), "%s: two rules with one message cannot be told apart", r)
		accepted, rejected := 0, 0
		for _, e := range ruleExamples[r] {
			accepted += len(e.accepted)
			rejected += len(e.rejected)
		}
		g.Expect(accepted).NotTo(BeZero(), "%s", r)
		g.Expect(rejected).NotTo(BeZero(), "%s", r)
	}
}

// walk visits a schema and all that is in it. Paths are as in the server's errors; an element of a list or
// map is "[]".
func walk(s *apiextensionsv1.JSONSchemaProps, path string, visit func(path string, s *apiextensionsv1.JSONSchemaProps)) {
	visit(path, s)
	for name, property := range s.Properties {
		walk(&property, strings.TrimPrefix(path+"."+name, "."), visit)
	}
	if s.Items != nil && s.Items.Schema != nil {
		walk(s.Items.Schema, path+"[]", visit)
	}
	if s.AdditionalProperties != nil && s.AdditionalProperties.Schema != nil {
		walk(s.AdditionalProperties.Schema, path+"[]", visit)
	}
}
