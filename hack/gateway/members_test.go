//go:build cgo

package gateway

import (
	"encoding/json"
	"encoding/xml"
	"fmt"
	"strings"
)

func unmarshal(text string, out any) error { return json.Unmarshal([]byte(text), out) }

func toJSON(value any) string {
	text, err := json.Marshal(value)
	if err != nil {
		panic(err)
	}
	return string(text)
}

// jsonMembers returns the members of an answer, with the path to each as its name.
func jsonMembers(text string) (map[string]string, error) {
	var body any
	if err := unmarshal(text, &body); err != nil {
		return nil, err
	}
	out := map[string]string{}
	flatten("", body, out)
	return out, nil
}

func flatten(path string, value any, out map[string]string) {
	object, ok := value.(map[string]any)
	if !ok {
		out[strings.TrimPrefix(path, ".")] = fmt.Sprint(value)
		return
	}
	for name, inner := range object {
		flatten(path+"."+name, inner, out)
	}
}

// xmlMembers does so for an answer in XML, without the root.
func xmlMembers(text string) map[string]string {
	out := map[string]string{}
	var path []string
	decoder := xml.NewDecoder(strings.NewReader(text))
	for {
		token, err := decoder.Token()
		if err != nil {
			return out
		}
		switch token := token.(type) {
		case xml.StartElement:
			path = append(path, token.Name.Local)
		case xml.EndElement:
			path = path[:len(path)-1]
		case xml.CharData:
			if len(path) > 1 {
				out[strings.Join(path[1:], ".")] += string(token)
			}
		}
	}
}

func between(text, first, last string) string {
	_, rest, _ := strings.Cut(text, first)
	found, _, _ := strings.Cut(rest, last)
	return found
}
