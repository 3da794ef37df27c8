package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"unicode/utf8"
)

// MaxBody is the maximum length of a request's body in bytes.
const MaxBody = 1 << 20

// maxParameters bounds the parameters of a query or a body, which cost many times their length in memory before the client is known.
const maxParameters = 200

// message is a request as it was received, before anything of it is trusted.
type message struct {
	method string
	host   string
	header http.Header
	body   []byte
	query  map[string]string // decoded
	form   map[string]string // decoded, of a body of either type
	// jsonBody: form is from a JSON body, which signature V1 does not cover.
	jsonBody bool
}

// receive reads a request. The caller has limited the body.
func receive(r *http.Request) (*message, error) {
	m := &message{method: r.Method, host: r.Host, header: r.Header}
	var err error
	if m.query, err = single("The query", r.URL.RawQuery); err != nil {
		return nil, err
	}
	if m.body, err = io.ReadAll(r.Body); err != nil {
		var tooLong *http.MaxBytesError
		if errors.As(err, &tooLong) {
			return nil, invalid("", "The body is longer than %d bytes, the maximum.", MaxBody)
		}
		return nil, invalid("", "The body cannot be read, or was sent too slowly.")
	}
	if err := m.parseBody(); err != nil {
		return nil, err
	}
	for name := range m.form {
		if _, twice := m.query[name]; twice {
			return nil, duplicate(name)
		}
	}
	return m, nil
}

// parseBody sets form. Clients send a Content-Type with an empty body, too.
func (m *message) parseBody() (err error) {
	if len(bytes.TrimSpace(m.body)) == 0 {
		return nil
	}
	contentType, _, err := mime.ParseMediaType(m.header.Get("Content-Type"))
	if err != nil {
		contentType = ""
	}
	switch contentType {
	case "application/x-www-form-urlencoded":
		m.form, err = single("The body", string(m.body))
		return err
	case "application/json":
		m.jsonBody = true
		m.form, err = flatObject(m.body)
		return err
	}
	return invalid("", "The Content-Type of a body must be application/x-www-form-urlencoded or application/json.")
}

// single decodes parameters of which each occurs once. No client sends a name twice, and each signature would have to say which
// value it covers.
func single(what, encoded string) (map[string]string, error) {
	if strings.Count(encoded, "&") >= maxParameters {
		return nil, tooMany(what)
	}
	values, err := url.ParseQuery(encoded)
	if err != nil {
		return nil, invalid("", "%s is not URL-encoded.", what)
	}
	out := make(map[string]string, len(values))
	for name, all := range values {
		if len(all) > 1 {
			return nil, duplicate(name)
		}
		if !utf8.ValidString(name) || !utf8.ValidString(all[0]) {
			return nil, invalid("", "%s has a parameter that is not UTF-8.", what)
		}
		out[name] = all[0]
	}
	return out, nil
}

// flatObject decodes a JSON object of parameters. A value that is not a string is its JSON text.
func flatObject(body []byte) (map[string]string, error) {
	fault := invalid("", "The body is not a JSON object of parameters.")
	if !utf8.Valid(body) {
		return nil, fault
	}
	decoder := json.NewDecoder(bytes.NewReader(body))
	if token, err := decoder.Token(); err != nil || token != json.Delim('{') {
		return nil, fault
	}
	out := map[string]string{}
	for n := 0; decoder.More(); n++ {
		if n == maxParameters {
			return nil, tooMany("The body")
		}
		token, err := decoder.Token()
		name, isName := token.(string)
		if err != nil || !isName {
			return nil, fault
		}
		if _, twice := out[name]; twice {
			return nil, duplicate(name)
		}
		var value json.RawMessage
		if err := decoder.Decode(&value); err != nil {
			return nil, fault
		}
		var text string
		switch {
		case string(value) == "null":
			continue
		case json.Unmarshal(value, &text) == nil:
			out[name] = text
		default:
			out[name] = string(value)
		}
	}
	if _, err := decoder.Token(); err != nil { // the end of the object
		return nil, fault
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, fault
	}
	return out, nil
}

func tooMany(what string) error {
	return invalid("", "%s has more than %d parameters, the maximum.", what, maxParameters)
}

func duplicate(name string) error {
	const longest = 64
	if len(name) > longest {
		return invalid("", "A parameter occurs more than once.")
	}
	return invalid(name, "It occurs more than once.")
}
