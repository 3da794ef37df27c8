package crd_test

import (
	"fmt"
	"strings"
)

func material(fields string) string { return imported + `, material: {` + fields + `}}` }

func wrappedWith(spec, algorithm string) string {
	return fmt.Sprintf(`{dataKeyRef: {name: d}, publicKey: {type: Blob, blob: AA==}, wrappingKeySpec: %s, wrappingAlgorithm: %s`, spec, algorithm)
}

func importedWith(spec, algorithm string) string {
	return fmt.Sprintf(`{keyStoreRef: {kind: KeyStore, name: s}, keySpec: AES_256, importParameters: {wrappingKeySpec: %s, wrappingAlgorithm: %s}}`, spec, algorithm)
}

const aVersion = "00000000-0000-5000-8000-000000000000"

// adopting is a field of an imported key; the digit tells one key version from another.
func adopting(digit string) string {
	return `, adopt: {keyVersionID: "` + digit + aVersion[1:] + `"}`
}

func exportPolicySelector() (before, after string) {
	return imported + `, exportPolicy: {namespaces: {from: Selector, selector: `, `}}}`
}

func generatedPolicySelector() (before, after string) {
	return generated + `, exportPolicy: {namespaces: {from: Selector, selector: `, `}}}`
}

func exportPolicy(fields string) string { return imported + `, exportPolicy: {` + fields + `}}` }

func distributedWith(spec, algorithm, rest string) string {
	return clusterExport(fromDataKey + `publicKey: {type: Blob, blob: AA==}, wrappingKeySpec: ` + spec + `, wrappingAlgorithm: ` + algorithm + rest)
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
		changed := examples{accepted: templates(e.accepted), rejected: templates(e.rejected)}
		if e.before != "" {
			changed.before = template(e.before)
		}
		out[start] = changed
	}
	return out
}

// member is a field of a union and its type.
func member(field string) string { return `type: ` + typeOf(field) + `, ` + members[field] }

// materialFrom is a source of the material, and importTokenFrom one of its import token.
func materialFrom(fields string) string {
	return material(`encryptedKeyMaterialFrom: {` + fields + `}, importToken: AA==`)
}

func importTokenFrom(fields string) string {
	return material(`encryptedKeyMaterial: AA==, importTokenFrom: {` + fields + `}`)
}

// contexts are EncryptionContexts in a spec of which start is the first part.
func contexts(start string) examples {
	with := func(text string) string { return start + `, encryptionContext: {` + text + `}}` }
	long := func(n int) string { return strings.Repeat("a", n) }
	return examples{
		accepted: []string{
			with(``), with(`a: b`), with(`a: ` + long(8184)), with(`? ` + long(8184) + ` : b`), with(`"": ` + long(8185)),
			with(`a: ` + long(4088) + `, b: ` + long(4089)), with(`a: ` + strings.Repeat("密", 8184)),
		},
		rejected: []string{
			with(`a: ` + long(8185)), with(`? ` + long(8185) + ` : b`), with(`? ` + long(100000) + ` : b`),
			with(`a: ` + long(4088) + `, b: ` + long(4090)), with(`a: ` + strings.Repeat("密", 8185)),
		},
	}
}

// targetMetadata are labels or annotations of a target, whose values are at most that long.
func targetMetadata(start, field string, value int) examples {
	with := func(name, value int) string {
		return start + `, target: {` + field + `: {` + strings.Repeat("a", name) + `: ` + strings.Repeat("a", value) + `}}}`
	}
	e := examples{accepted: []string{with(1, 1), with(317, value)}, rejected: []string{with(318, 1)}}
	if field == "labels" {
		e.rejected = append(e.rejected, with(1, value+1))
	}
	return e
}

// selectors are label selectors in a spec of which before and after are the rest: rules for names, and for values.
func selectors(before, after string) (names, values examples) {
	with := func(text string) string { return before + `{` + text + `}` + after }
	name := func(n int) string { return with(`matchLabels: {` + strings.Repeat("a", n) + `: b}`) }
	names = examples{accepted: []string{with(``), name(1), name(317)}, rejected: []string{name(318)}}
	needs := func(text string) string { return with(`matchExpressions: [{key: a, operator: ` + text + `}]`) }
	values = examples{
		accepted: []string{needs(`In, values: [a]`), needs(`NotIn, values: [a, b]`), needs(`Exists`), needs(`DoesNotExist`), needs(`Exists, values: []`)},
		rejected: []string{needs(`In`), needs(`NotIn`), needs(`In, values: []`), needs(`Exists, values: [a]`), needs(`DoesNotExist, values: [a]`)},
	}
	return names, values
}
