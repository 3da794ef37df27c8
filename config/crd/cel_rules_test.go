package crd_test

import "strings"

const (
	dataKey   = `{keyRef: {kind: ImportedKey, name: k}`
	ofBlob    = `keyRef: {kind: ImportedKey, name: k, namespace: keys}, ciphertextBlob: AA==`
	exported  = `{dataKeyRef: {name: d}, publicKey: {type: Blob, blob: AA==}, wrappingKeySpec: RSA_2048, wrappingAlgorithm: RSAES_OAEP_SHA_256`
	imported  = `{keyStoreRef: {kind: KeyStore, name: s}, keySpec: AES_256, importParameters: {wrappingKeySpec: RSA_2048, wrappingAlgorithm: RSAES_OAEP_SHA_256}`
	generated = `{keyStoreRef: {kind: KeyStore, name: s}, keySpec: AES_256`
	pkcs11    = `type: PKCS11, pkcs11: {module: m, token: {label: l}}`
)

func recipient(fields string) string {
	return `{dataKeyRef: {name: d}, wrappingKeySpec: RSA_2048, wrappingAlgorithm: RSAES_OAEP_SHA_256, publicKey: {` + fields + `}}`
}

// clusterExport exports to all namespaces that match; template is all of the template but its braces.
func clusterExport(template string) string {
	return `{namespaceSelector: {matchLabels: {team: a}}, template: {` + template + `}}`
}

const (
	fromDataKey = `dataKeyRef: {namespace: home, name: d}, `
	underRSA    = `wrappingKeySpec: RSA_2048, wrappingAlgorithm: RSAES_OAEP_SHA_256`
	distributed = fromDataKey + `publicKey: {type: Blob, blob: AA==}, ` + underRSA
)

// members are the fields of the unions, by their names.
var members = map[string]string{
	"pkcs11": `pkcs11: {module: m, token: {label: l}}`, "blob": `blob: AA==`,
	"secretKeyRef": `secretKeyRef: {name: e, key: k}`, "configMapKeyRef": `configMapKeyRef: {name: e, key: k}`,
	"importedKeyRef": `importedKeyRef: {name: i}`,
}

// typeOf is the name of a field of a union as a type.
func typeOf(field string) string { return strings.ToUpper(field[:1]) + field[1:] }

// unionRules has an entry for each field of a union: it must be set with its type, and only then.
func unionRules(kind, path string, spec func(fields string) string, fields ...string) map[rule]map[string]examples {
	all := map[rule]map[string]examples{}
	for _, field := range fields {
		e := examples{rejected: []string{spec(`type: ` + typeOf(field))}}
		for _, other := range fields {
			e.accepted = append(e.accepted, spec(member(other)))
			if other != field {
				e.rejected = append(e.rejected, spec(member(other)+`, `+members[field]))
			}
		}
		all[rule{kind, path, field + " must be set if type is " + typeOf(field) + ", and only then"}] = only(e)
	}
	return all
}

var ofPKCS11 = examples{
	accepted: []string{`{type: Software}`, `{` + pkcs11 + `}`},
	rejected: []string{`{type: PKCS11}`, `{type: Software, ` + members["pkcs11"] + `}`},
}

var noCustodyInSoftware = examples{
	accepted: []string{`{type: Software}`, `{type: Software, custody: HostAllowed}`, `{` + pkcs11 + `, custody: ModuleOnly}`},
	rejected: []string{`{type: Software, custody: ModuleOnly}`},
}

var noProtectionInSoftware = examples{
	accepted: []string{`{type: Software, keyProtection: NotEnforcedAllowed}`, `{` + pkcs11 + `, keyProtection: EnforcedOnly}`},
	rejected: []string{`{type: Software, keyProtection: EnforcedOnly}`},
}

// noExchange are examples of key stores that keep their keys.
var noExchange = examples{
	before:   `{type: Software}`,
	accepted: []string{`{type: Software, allowPKCS1V15Import: true}`},
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

func first(a, _ examples) map[string]examples { return only(a) }

func second(_, b examples) map[string]examples { return only(b) }

const (
	labelNameRule = "the name of a label has at most 317 characters"
	valuesRule    = "the operators In and NotIn require values; Exists and DoesNotExist must have none"
	labelsRule    = "the name of a label has at most 317 characters, and its value 63"
	notesRule     = "the name of an annotation has at most 317 characters"
	contextRule   = "the EncryptionContext must be at most 8192 characters long as JSON"
)

const blobExported = `{` + ofBlob + `, publicKey: {type: Blob, blob: AA==}, wrappingKeySpec: RSA_2048, wrappingAlgorithm: RSAES_OAEP_SHA_256`

// ruleExamples has each rule of each kind, and for rules about changes the cases from which one starts.
var ruleExamples = joined(map[rule]map[string]examples{
	{"generatedkeys", "spec.exportPolicy.namespaces.selector.matchLabels", labelNameRule}:     first(selectors(generatedPolicySelector())),
	{"generatedkeys", "spec.exportPolicy.namespaces.selector.matchExpressions[]", valuesRule}: second(selectors(generatedPolicySelector())),
	{"importedkeys", "spec.exportPolicy.namespaces.selector.matchLabels", labelNameRule}:      first(selectors(exportPolicySelector())),
	{"importedkeys", "spec.exportPolicy.namespaces.selector.matchExpressions[]", valuesRule}:  second(selectors(exportPolicySelector())),
	{"clusterkeystores", "spec.allowedNamespaces.matchLabels", labelNameRule}:                 first(selectors(`{type: Software, allowedNamespaces: `, `}`)),
	{"clusterkeystores", "spec.allowedNamespaces.matchExpressions[]", valuesRule}:             second(selectors(`{type: Software, allowedNamespaces: `, `}`)),
	{"clusterexporteddatakeys", "spec.namespaceSelector.matchLabels", labelNameRule}:          first(selectors(`{namespaceSelector: `, `, template: {`+distributed+`}}`)),
	{"clusterexporteddatakeys", "spec.namespaceSelector.matchExpressions[]", valuesRule}:      second(selectors(`{namespaceSelector: `, `, template: {`+distributed+`}}`)),

	{"datakeys", "spec.target.labels", labelsRule}:                             only(targetMetadata(dataKey, "labels", 63)),
	{"datakeys", "spec.target.annotations", notesRule}:                         only(targetMetadata(dataKey, "annotations", 1024)),
	{"exporteddatakeys", "spec.target.labels", labelsRule}:                     only(targetMetadata(exported, "labels", 63)),
	{"exporteddatakeys", "spec.target.annotations", notesRule}:                 only(targetMetadata(exported, "annotations", 1024)),
	{"clusterexporteddatakeys", "spec.template.target.labels", labelsRule}:     ofTemplate(only(targetMetadata(`{`+distributed, "labels", 63))),
	{"clusterexporteddatakeys", "spec.template.target.annotations", notesRule}: ofTemplate(only(targetMetadata(`{`+distributed, "annotations", 1024))),

	{"datakeys", "spec.encryptionContext", contextRule}:         only(contexts(dataKey)),
	{"exporteddatakeys", "spec.encryptionContext", contextRule}: only(contexts(blobExported)),

	{"clusterkeystores", "spec", "pkcs11 must be set if type is PKCS11, and only then"}:                                           only(ofPKCS11),
	{"keystores", "spec", "pkcs11 must be set if type is PKCS11, and only then"}:                                                  only(ofPKCS11),
	{"clusterkeystores", "spec", "the software store is not a cryptographic module: custody ModuleOnly requires type PKCS11"}:     only(noCustodyInSoftware),
	{"keystores", "spec", "the software store is not a cryptographic module: custody ModuleOnly requires type PKCS11"}:            only(noCustodyInSoftware),
	{"clusterkeystores", "spec", "the software store keeps its keys in Secrets: keyProtection EnforcedOnly requires type PKCS11"}: only(noProtectionInSoftware),
	{"keystores", "spec", "the software store keeps its keys in Secrets: keyProtection EnforcedOnly requires type PKCS11"}:        only(noProtectionInSoftware),
	{"clusterkeystores", "spec", "type cannot be changed: the keys would be left behind; create another key store"}:               only(noExchange),
	{"keystores", "spec", "type cannot be changed: the keys would be left behind; create another key store"}:                      only(noExchange),

	{"importedkeys", "spec.material", "exactly one of encryptedKeyMaterial and encryptedKeyMaterialFrom must be set"}: only(examples{
		accepted: []string{
			material(`encryptedKeyMaterial: AA==, importToken: AA==`),
			material(`encryptedKeyMaterialFrom: {` + member("secretKeyRef") + `}, importToken: AA==`),
		},
		rejected: []string{
			material(`importToken: AA==`),
			material(`encryptedKeyMaterial: AA==, encryptedKeyMaterialFrom: {` + member("secretKeyRef") + `}, importToken: AA==`),
		},
	}),
	{"importedkeys", "spec.material", "exactly one of importToken and importTokenFrom must be set"}: only(examples{
		accepted: []string{
			material(`encryptedKeyMaterial: AA==, importToken: AA==`),
			material(`encryptedKeyMaterial: AA==, importTokenFrom: {` + member("configMapKeyRef") + `}`),
		},
		rejected: []string{
			material(`encryptedKeyMaterial: AA==`),
			material(`encryptedKeyMaterial: AA==, importToken: AA==, importTokenFrom: {` + member("configMapKeyRef") + `}`),
		},
	}),
	{"importedkeys", "spec.importParameters", "EC_SM2 requires SM2PKE; RSA key specs require RSAES_OAEP_SHA_256, RSAES_OAEP_SHA_1 or RSAES_PKCS1_V1_5"}: only(examples{
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
	{"importedkeys", "spec", "keySpec cannot be changed: create another ImportedKey"}: only(examples{
		before:   imported + `}`,
		accepted: []string{imported + `, deletionPolicy: Delete}`, material(`encryptedKeyMaterial: AA==, importToken: AA==`)},
		rejected: []string{strings.Replace(imported, "AES_256", "SM4", 1) + `}`},
	}),
	{"importedkeys", "spec", "adopt cannot be changed: create another ImportedKey"}: {
		"given": {
			before:   imported + adopting("0") + `}`,
			accepted: []string{imported + adopting("0") + `, desiredState: Disabled}`},
			rejected: []string{imported + adopting("1") + `}`, imported + `}`, imported + `, adopt: {type: ByName}}`},
		},
		"not given": {
			before:   imported + `}`,
			accepted: []string{imported + `, desiredState: Disabled}`},
			rejected: []string{imported + adopting("0") + `}`, imported + `, adopt: {type: ByName}}`},
		},
	},
	{"importedkeys", "spec.adopt", "keyVersionID must be set, unless type is ByName, which takes no other field"}: only(examples{
		accepted: []string{
			imported + adopting("0") + `}`, imported + `, adopt: {type: ByVersion, keyVersionID: "` + aVersion + `"}}`, imported + `, adopt: {type: ByName}}`,
		},
		rejected: []string{
			imported + `, adopt: {}}`, imported + `, adopt: {type: ByVersion}}`, imported + `, adopt: {type: ByName, keyVersionID: "` + aVersion + `"}}`,
		},
	}),
	{"importedkeys", "spec.adopt", "materialFingerprint requires keyVersionID"}: only(examples{
		accepted: []string{
			imported + `, adopt: {keyVersionID: "` + aVersion + `", materialFingerprint: "` + strings.Repeat("0", 32) + `"}}`,
		},
		rejected: []string{imported + `, adopt: {type: ByName, materialFingerprint: "` + strings.Repeat("0", 32) + `"}}`},
	}),
	{"importedkeys", "spec", "pendingWindowInDays requires desiredState PendingDeletion"}: only(examples{
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
	{"generatedkeys", "spec", "keyStoreRef cannot be changed: a key does not move between modules; export a data key instead"}: only(examples{
		before:   generated + `}`,
		accepted: []string{generated + `, rotation: {interval: 168h}}`},
		rejected: []string{
			strings.Replace(generated, "name: s", "name: other", 1) + `}`,
			strings.Replace(generated, "kind: KeyStore", "kind: ClusterKeyStore", 1) + `}`,
		},
	}),
	{"accesskeys", "spec", "serviceAccountName cannot be changed: create another AccessKey"}: only(examples{
		before:   `{serviceAccountName: app}`,
		accepted: []string{`{serviceAccountName: app, disabled: true, expireTime: "2090-01-01T00:00:00Z"}`},
		rejected: []string{`{serviceAccountName: admin}`},
	}),
	{"generatedkeys", "spec", "keySpec cannot be changed: create another GeneratedKey"}: only(examples{
		before:   generated + `}`,
		accepted: []string{generated + `, deletionPolicy: Delete}`},
		rejected: []string{strings.Replace(generated, "AES_256", "SM4", 1) + `}`},
	}),
	{"generatedkeys", "spec", "adopt cannot be changed: create another GeneratedKey"}: {
		"given": {
			before:   generated + `, adopt: {type: ByName}}`,
			accepted: []string{generated + `, adopt: {type: ByName}, desiredState: Disabled}`},
			rejected: []string{generated + `, adopt: {type: ByVersion, keyVersionIDs: ["` + aVersion + `"]}}`, generated + `}`},
		},
		"not given": {
			before:   generated + `}`,
			accepted: []string{generated + `, desiredState: Disabled}`},
			rejected: []string{generated + `, adopt: {type: ByName}}`},
		},
	},
	{"generatedkeys", "spec.adopt", "keyVersionIDs must be set if type is ByVersion, and only then"}: only(examples{
		accepted: []string{
			generated + `, adopt: {type: ByName}}`, generated + `, adopt: {type: ByVersion, keyVersionIDs: ["` + aVersion + `"]}}`,
		},
		rejected: []string{
			generated + `, adopt: {type: ByVersion}}`, generated + `, adopt: {type: ByName, keyVersionIDs: ["` + aVersion + `"]}}`,
		},
	}),
	{"generatedkeys", "spec", "pendingWindowInDays requires desiredState PendingDeletion"}: only(examples{
		accepted: []string{
			generated + `, desiredState: PendingDeletion}`,
			generated + `, desiredState: PendingDeletion, pendingWindowInDays: 7}`,
			generated + `, desiredState: PendingDeletion, pendingWindowInDays: 366}`,
		},
		rejected: []string{
			generated + `, pendingWindowInDays: 7}`,
			generated + `, desiredState: Enabled, pendingWindowInDays: 7}`,
			generated + `, desiredState: Disabled, pendingWindowInDays: 7}`,
		},
	}),
	{"generatedkeys", "spec.rotation.interval", "interval must be between 168h (7 days) and 17520h (730 days)"}: only(examples{
		accepted: []string{
			generated + `, rotation: {interval: 168h}}`, generated + `, rotation: {interval: 2160h}}`, generated + `, rotation: {interval: 17520h}}`,
		},
		rejected: []string{
			generated + `, rotation: {interval: 167h}}`, generated + `, rotation: {interval: 17521h}}`, generated + `, rotation: {interval: 99999h}}`,
		},
	}),
	{"generatedkeys", "spec.exportPolicy.namespaces", "selector must be set if from is Selector, and only then"}: only(examples{
		accepted: []string{generated + `, exportPolicy: {namespaces: {from: Selector, selector: {matchLabels: {team: a}}}}}`},
		rejected: []string{
			generated + `, exportPolicy: {namespaces: {from: Selector}}}`,
			generated + `, exportPolicy: {namespaces: {from: All, selector: {}}}}`,
		},
	}),
	{"importedkeys", "spec.exportPolicy.namespaces", "selector must be set if from is Selector, and only then"}: only(examples{
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

	{"datakeys", "spec", "keySpec cannot be changed: create another DataKey"}: {
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
	{"datakeys", "spec", "numberOfBytes cannot be changed: create another DataKey"}: {
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
	{"datakeys", "spec", "encryptionContext cannot be changed: create another DataKey"}: {
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
	{"datakeys", "spec", "ciphertextBlob cannot be changed once set: create another DataKey"}: {
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
	{"datakeys", "spec", "target.name cannot be changed: create another DataKey"}: targetName(dataKey),

	{"exporteddatakeys", "spec", "exactly one of dataKeyRef and ciphertextBlob must be set"}: only(examples{
		accepted: []string{exported + `}`, strings.Replace(exported, `dataKeyRef: {name: d}`, ofBlob, 1) + `}`},
		rejected: []string{exported + `, ` + ofBlob + `}`, strings.Replace(exported, `dataKeyRef: {name: d}, `, ``, 1) + `}`},
	}),
	{"exporteddatakeys", "spec", "ciphertextBlob requires keyRef, the master key that the blob was made under; dataKeyRef excludes it"}: only(examples{
		accepted: []string{strings.Replace(exported, `dataKeyRef: {name: d}`, ofBlob, 1) + `}`},
		rejected: []string{strings.Replace(exported, `dataKeyRef: {name: d}`, `ciphertextBlob: AA==`, 1) + `}`, exported + `, keyRef: {kind: ImportedKey, name: k}}`},
	}),
	{"exporteddatakeys", "spec", "encryptionContext requires ciphertextBlob: a DataKey has its own context"}: only(examples{
		accepted: []string{strings.Replace(exported, `dataKeyRef: {name: d}`, ofBlob, 1) + `, encryptionContext: {a: b}}`},
		rejected: []string{exported + `, encryptionContext: {a: b}}`},
	}),
	{"exporteddatakeys", "spec", "EC_SM2 requires SM2PKE; RSA key specs require RSAES_OAEP_SHA_256 or RSAES_OAEP_SHA_1"}: only(examples{
		accepted: []string{
			wrappedWith("RSA_2048", "RSAES_OAEP_SHA_256") + `}`, wrappedWith("RSA_3072", "RSAES_OAEP_SHA_1") + `}`,
			wrappedWith("RSA_4096", "RSAES_OAEP_SHA_256") + `}`, wrappedWith("EC_SM2", "SM2PKE") + `}`,
		},
		rejected: []string{wrappedWith("RSA_2048", "SM2PKE") + `}`, wrappedWith("EC_SM2", "RSAES_OAEP_SHA_1") + `}`},
	}),
	{"exporteddatakeys", "spec", "sm2CiphertextFormat requires wrappingAlgorithm SM2PKE"}: only(examples{
		accepted: []string{
			wrappedWith("EC_SM2", "SM2PKE") + `, sm2CiphertextFormat: ASN1}`,
			wrappedWith("EC_SM2", "SM2PKE") + `, sm2CiphertextFormat: C1C2C3}`,
			wrappedWith("EC_SM2", "SM2PKE") + `, sm2CiphertextFormat: C1C3C2}`,
		},
		rejected: []string{exported + `, sm2CiphertextFormat: C1C3C2}`},
	}),
	{"exporteddatakeys", "spec", "target must not be set if delivery is Status, which writes no Secret"}: only(examples{
		accepted: []string{exported + `, delivery: Status}`, exported + `, delivery: Secret, target: {name: a}}`, exported + `, target: {name: a}}`},
		rejected: []string{exported + `, delivery: Status, target: {name: a}}`, exported + `, delivery: Status, target: {}}`},
	}),
	{"exporteddatakeys", "spec", "delivery cannot be changed: create another ExportedDataKey"}: {
		"Secret": {
			before:   exported + `, delivery: Secret}`,
			accepted: []string{exported + `, delivery: Secret, target: {labels: {team: a}}}`, exported + `}`},
			rejected: []string{exported + `, delivery: Status}`},
		},
		"not given": {
			before:   exported + `}`,
			accepted: []string{exported + `, delivery: Secret}`},
			rejected: []string{exported + `, delivery: Status}`},
		},
		"Status": {
			before:   exported + `, delivery: Status}`,
			accepted: []string{exported + `, delivery: Status, dryRun: true}`},
			rejected: []string{exported + `, delivery: Secret}`, exported + `}`},
		},
	},
	{"exporteddatakeys", "spec", "target.name cannot be changed: create another ExportedDataKey"}: targetName(exported),

	{"clusterexporteddatakeys", "spec", "target.name cannot be changed: create another ClusterExportedDataKey"}: ofTemplate(targetName(`{` + distributed)),
	{"clusterexporteddatakeys", "spec.template", "EC_SM2 requires SM2PKE; RSA key specs require RSAES_OAEP_SHA_256 or RSAES_OAEP_SHA_1"}: only(examples{
		accepted: []string{
			distributedWith("RSA_2048", "RSAES_OAEP_SHA_256", ""), distributedWith("RSA_3072", "RSAES_OAEP_SHA_1", ""),
			distributedWith("RSA_4096", "RSAES_OAEP_SHA_256", ""), distributedWith("EC_SM2", "SM2PKE", ""),
		},
		rejected: []string{distributedWith("RSA_2048", "SM2PKE", ""), distributedWith("EC_SM2", "RSAES_OAEP_SHA_256", "")},
	}),
	{"clusterexporteddatakeys", "spec.template", "sm2CiphertextFormat requires wrappingAlgorithm SM2PKE"}: only(examples{
		accepted: []string{distributedWith("EC_SM2", "SM2PKE", ", sm2CiphertextFormat: ASN1")},
		rejected: []string{distributedWith("RSA_2048", "RSAES_OAEP_SHA_256", ", sm2CiphertextFormat: ASN1")},
	}),
},
	unionRules("exporteddatakeys", "spec.publicKey", recipient, "blob", "secretKeyRef", "configMapKeyRef", "importedKeyRef"),
	unionRules("clusterexporteddatakeys", "spec.template.publicKey", distributedTo, "blob", "secretKeyRef", "configMapKeyRef"),
	unionRules("importedkeys", "spec.material.encryptedKeyMaterialFrom", materialFrom, "secretKeyRef", "configMapKeyRef"),
	unionRules("importedkeys", "spec.material.importTokenFrom", importTokenFrom, "secretKeyRef", "configMapKeyRef"),
)
