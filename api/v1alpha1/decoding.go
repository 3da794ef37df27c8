package v1alpha1

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/json"
)

// InvalidField is a field of a stored object that holds a value that its type cannot hold.
type InvalidField struct {
	// Path of the field, such as spec.material.expireTime.
	Path string
	// Want says what a value of the field is.
	Want string
}

// Decoding says how the decoding of an object ended. An object's kind decodes what it can and leaves out the rest:
// the list and the watch of a kind would otherwise end at the first value that is not valid, and with them the
// work for every other object. An object with invalid fields must not be used as if those fields were absent.
type Decoding struct {
	// InvalidFields are the fields that were left out.
	InvalidFields []InvalidField
}

// Invalid returns the fields that could not be decoded.
func (d *Decoding) Invalid() []InvalidField { return d.InvalidFields }

// The kinds decode field by field when they do not decode as a whole.

// UnmarshalJSON implements json.Unmarshaler.
func (k *KeyStore) UnmarshalJSON(data []byte) error {
	type plain KeyStore
	return k.decode(data, (*plain)(k))
}

// UnmarshalJSON implements json.Unmarshaler.
func (k *ClusterKeyStore) UnmarshalJSON(data []byte) error {
	type plain ClusterKeyStore
	return k.decode(data, (*plain)(k))
}

// UnmarshalJSON implements json.Unmarshaler.
func (k *ImportedKey) UnmarshalJSON(data []byte) error {
	type plain ImportedKey
	return k.decode(data, (*plain)(k))
}

// UnmarshalJSON implements json.Unmarshaler.
func (k *GeneratedKey) UnmarshalJSON(data []byte) error {
	type plain GeneratedKey
	return k.decode(data, (*plain)(k))
}

// UnmarshalJSON implements json.Unmarshaler.
func (k *DataKey) UnmarshalJSON(data []byte) error {
	type plain DataKey
	return k.decode(data, (*plain)(k))
}

// UnmarshalJSON implements json.Unmarshaler.
func (e *ExportedDataKey) UnmarshalJSON(data []byte) error {
	type plain ExportedDataKey
	return e.decode(data, (*plain)(e))
}

// UnmarshalJSON implements json.Unmarshaler.
func (e *ClusterExportedDataKey) UnmarshalJSON(data []byte) error {
	type plain ClusterExportedDataKey
	return e.decode(data, (*plain)(e))
}

// UnmarshalJSON implements json.Unmarshaler.
func (k *AccessKey) UnmarshalJSON(data []byte) error {
	type plain AccessKey
	return k.decode(data, (*plain)(k))
}

// decode decodes an object, of which plain is the same without this method. Only metadata that cannot be decoded is
// an error: the API server decodes metadata itself, so it never stores such an object.
func (d *Decoding) decode(data []byte, plain any) error {
	d.InvalidFields = nil
	whole := json.Unmarshal(data, plain)
	if whole == nil {
		return nil
	}
	var object map[string]any
	if err := json.Unmarshal(data, &object); err != nil {
		return err
	}
	into := reflect.ValueOf(plain).Elem()
	var invalid []InvalidField
	for _, part := range []string{"spec", "status"} {
		value, ok := object[part]
		if ok && !takeOut(value, fieldsOf(into.Type())[part], part, &invalid) {
			delete(object, part)
		}
	}
	rest, err := json.Marshal(object)
	if err != nil {
		return err
	}
	into.SetZero() // what the first attempt left
	if err := json.Unmarshal(rest, plain); err != nil {
		return fmt.Errorf("%w; without its invalid fields: %w", whole, err)
	}
	slices.SortFunc(invalid, func(a, b InvalidField) int { return strings.Compare(a.Path, b.Path) })
	d.InvalidFields = invalid
	return nil
}

// takeOut takes the fields out of a value that its type cannot hold, and says whether it holds the rest. A list or
// map goes as a whole: without one of its elements it would mean something else.
func takeOut(value any, t reflect.Type, path string, invalid *[]InvalidField) bool {
	text, err := json.Marshal(value)
	if err == nil && json.Unmarshal(text, reflect.New(t).Interface()) == nil {
		return true
	}
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	object, isObject := value.(map[string]any)
	if !isObject || t.Kind() != reflect.Struct || t == timeType {
		*invalid = append(*invalid, InvalidField{Path: path, Want: wanted(t)})
		return false
	}
	for name, field := range fieldsOf(t) {
		if inner, ok := object[name]; ok && !takeOut(inner, field, path+"."+name, invalid) {
			delete(object, name)
		}
	}
	return true
}

// fieldsOf are the types of a struct's fields by their names in JSON.
func fieldsOf(t reflect.Type) map[string]reflect.Type {
	fields := map[string]reflect.Type{}
	for _, f := range reflect.VisibleFields(t) {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name != "" && name != "-" {
			fields[name] = f.Type
		}
	}
	return fields
}

var timeType = reflect.TypeFor[metav1.Time]()

// wanted says what a value of a type is.
func wanted(t reflect.Type) string {
	switch {
	case t == timeType:
		return "a time such as 2027-01-01T00:00:00Z (RFC 3339)"
	case t.Kind() == reflect.Int32 || t.Kind() == reflect.Int64:
		return fmt.Sprintf("a whole number of at most %d bits", t.Bits())
	case t.Kind() == reflect.String:
		return "a text"
	case t.Kind() == reflect.Bool:
		return "true or false"
	case t.Kind() == reflect.Slice:
		return "a list of valid elements"
	}
	return "an object of valid values"
}
