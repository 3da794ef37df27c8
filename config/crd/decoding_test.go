package crd_test

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"

	. "github.com/onsi/gomega"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
)

// An object with any one of its fields spoiled, in any way, decodes: the field is named and left out, and the rest is
// as it was. So no object of one namespace can stop the list of all.
func TestDecoding_namesAnInvalidField_andKeepsTheRest(t *testing.T) {
	t.Parallel()
	for _, whole := range withStatus("test") {
		t.Run(reflect.TypeOf(whole).Elem().Name(), func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			text, err := json.Marshal(whole)
			g.Expect(err).NotTo(HaveOccurred())
			var tree map[string]any
			g.Expect(json.Unmarshal(text, &tree)).To(Succeed())
			delete(tree["metadata"].(map[string]any), "creationTimestamp")
			spoiled := 0
			for _, part := range []string{"spec", "status"} {
				for _, leaf := range leaves(tree, part) {
					for _, value := range []any{raw(`1e21`), raw(`9223372036854775808`), "2090-01-01t00:00:00z", raw(`{"x": 1}`), raw(`[[1]]`), true} {
						leaf.set(value)
						bad, err := json.Marshal(map[string]any{"items": []any{tree, tree}})
						g.Expect(err).NotTo(HaveOccurred())
						leaf.set(leaf.was)
						list := reflect.New(reflect.StructOf([]reflect.StructField{
							{Name: "Items", Type: reflect.SliceOf(reflect.TypeOf(whole).Elem()), Tag: `json:"items"`},
						}))
						g.Expect(json.Unmarshal(bad, list.Interface())).To(Succeed(), "%s = %v", leaf.path, value)
						object := list.Elem().Field(0).Index(0).Addr().Interface().(decodable)
						g.Expect(object.GetName()).To(Equal("test"))
						switch invalid := object.Invalid(); len(invalid) {
						case 0: // a value of the field's type
						case 1:
							spoiled++
							g.Expect(leaf.path).To(HavePrefix(invalid[0].Path))
							g.Expect(invalid[0].Want).NotTo(BeEmpty())
							rest := encoded(g, object)
							g.Expect(rest[leaf.path]).To(Or(BeNil(), BeZero()), leaf.path)
							for path, value := range encoded(g, whole) {
								if !strings.HasPrefix(path, invalid[0].Path) && rest[path] != nil {
									g.Expect(rest[path]).To(Equal(value), "%s, after %s was spoiled", path, leaf.path)
								}
							}
						default:
							t.Errorf("%s = %v makes more than one field invalid: %v", leaf.path, value, invalid)
						}
					}
				}
			}
			g.Expect(spoiled).To(BeNumerically(">", 20))
		})
	}
}

func TestDecoding_forgetsFormerFaults(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	key := &v1alpha1.ImportedKey{}
	g.Expect(json.Unmarshal([]byte(`{"spec": {"keySpec": "SM4", "material": {"importToken": "t", "expireTime": "2090-01-01t00:00:00z"}}}`), key)).To(Succeed())
	g.Expect(key.Invalid()).To(Equal([]v1alpha1.InvalidField{{Path: "spec.material.expireTime", Want: "a time such as 2027-01-01T00:00:00Z (RFC 3339)"}}))
	g.Expect(key.Spec.KeySpec).To(BeEquivalentTo("SM4"))
	g.Expect(key.Spec.Material.ImportToken).To(Equal("t"))
	g.Expect(key.DeepCopy().Invalid()).To(Equal(key.Invalid()))
	text, err := json.Marshal(key)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(string(text)).NotTo(ContainSubstring("nvalid"), "what was left out is no part of the object")

	g.Expect(json.Unmarshal([]byte(`{"spec": {"material": {"expireTime": "2090-01-01T00:00:00Z"}}}`), key)).To(Succeed())
	g.Expect(key.Invalid()).To(BeEmpty())
}

// Only the API server writes metadata, and it decodes it itself.
func TestDecoding_ofInvalidMetadata_fails(t *testing.T) {
	t.Parallel()
	NewWithT(t).Expect(json.Unmarshal([]byte(`{"metadata": {"creationTimestamp": "now"}}`), &v1alpha1.DataKey{})).NotTo(Succeed())
}

// leaves are the values in a part of an object that hold no others.
func leaves(tree map[string]any, part string) (all []place) {
	var visit func(value any, path string, set func(any))
	visit = func(value any, path string, set func(any)) {
		switch v := value.(type) {
		case map[string]any:
			for name, inner := range v {
				visit(inner, path+"."+name, func(x any) { v[name] = x })
			}
		case []any:
			for i, inner := range v {
				visit(inner, path, func(x any) { v[i] = x })
			}
		default:
			all = append(all, place{path: path, set: set, was: value})
		}
	}
	visit(tree[part], part, func(x any) { tree[part] = x })
	slices.SortFunc(all, func(a, b place) int { return strings.Compare(a.path, b.path) })
	return all
}

// encoded are an object's values by their paths.
func encoded(g Gomega, o any) map[string]any {
	text, err := json.Marshal(o)
	g.Expect(err).NotTo(HaveOccurred())
	var tree map[string]any
	g.Expect(json.Unmarshal(text, &tree)).To(Succeed())
	values := map[string]any{}
	for _, part := range []string{"spec", "status"} {
		for _, leaf := range leaves(tree, part) {
			values[leaf.path] = leaf.was
		}
	}
	return values
}
