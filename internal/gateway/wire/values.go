package wire

import (
	"encoding/json"
	"strconv"

	"github.com/keyconvoy/keyconvoy/internal/b64"
)

// Parameters are those of an operation. Errors of its methods name the parameter.
type Parameters struct{ all map[string]string }

// NewParameters returns parameters.
func NewParameters(all map[string]string) Parameters { return Parameters{all} }

// Get returns a parameter, "" for none.
func (p Parameters) Get(name string) string { return p.all[name] }

// Required returns a parameter that must be there.
func (p Parameters) Required(name string) (string, error) {
	if p.all[name] == "" {
		return "", missing(name)
	}
	return p.all[name], nil
}

// Binary returns a required parameter in Base64, in which line breaks may be.
func (p Parameters) Binary(name string) ([]byte, error) {
	text, err := p.Required(name)
	if err != nil {
		return nil, err
	}
	raw, err := b64.Decode(text)
	if err != nil {
		return nil, invalid(name, "It is not Base64.")
	}
	return raw, nil
}

// Int returns a whole number between two limits, or the default where there is none.
func (p Parameters) Int(name string, byDefault, least, most int64) (int64, error) {
	text := p.all[name]
	if text == "" {
		return byDefault, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < least || n > most {
		return 0, invalid(name, "It must be a whole number from %d to %d.", least, most)
	}
	return n, nil
}

// Bool returns true or false, which is the default.
func (p Parameters) Bool(name string) (bool, error) {
	switch p.all[name] {
	case "", "false", "False":
		return false, nil
	case "true", "True":
		return true, nil
	}
	return false, invalid(name, "It must be true or false.")
}

// OneOf returns a parameter that must have one of some values, of which the first is the default.
func (p Parameters) OneOf(name string, values ...string) (string, error) {
	text := p.all[name]
	if text == "" {
		return values[0], nil
	}
	for _, value := range values {
		if text == value {
			return value, nil
		}
	}
	return "", invalid(name, "It must be one of: %s.", listOf(values))
}

func listOf(values []string) string {
	text := values[0]
	for _, value := range values[1:] {
		text += ", " + value
	}
	return text
}

// Map returns a JSON object of strings, nil for none.
func (p Parameters) Map(name string) (map[string]string, error) {
	var out map[string]string
	if err := p.JSON(name, &out); err != nil {
		return nil, invalid(name, "It must be a JSON object whose values are strings.")
	}
	return out, nil
}

// JSON decodes a parameter. It leaves out as it is where there is no such parameter.
func (p Parameters) JSON(name string, out any) error {
	if p.all[name] == "" {
		return nil
	}
	if err := json.Unmarshal([]byte(p.all[name]), out); err != nil {
		return invalid(name, "It is not JSON of the documented form.")
	}
	return nil
}
