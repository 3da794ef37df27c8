package wire

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/keyconvoy/keyconvoy/internal/redact"
)

// Whatever a client sends, it is answered in a form that clients parse, and nothing is performed.
func FuzzServer(f *testing.F) {
	f.Add("POST", "AccessKeyId="+testID+"&Action=Echo&Signature=x&Timestamp=2026-01-02T03:04:05Z&Version="+APIVersion, "", "", "")
	f.Add("GET", "Format=XML&a=%ff", "ACS3-HMAC-SM3 Credential=x,SignedHeaders=host;x-acs-action,Signature=0", "application/json", `{"a":1}`)
	f.Add("PUT", "a=1&a=2", "ACS", "application/x-www-form-urlencoded", "b=%zz")
	f.Fuzz(func(t *testing.T, method, query, authorization, contentType, body string) {
		r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(body))
		r.Method, r.URL.RawQuery = method, query
		r.Header.Set("Authorization", authorization)
		if authorization == "" {
			r.Header.Del("Authorization")
		}
		r.Header.Set("Content-Type", contentType)
		for _, name := range []string{headerAction, headerVersion, headerDate, headerPayload} {
			r.Header.Set(name, body)
		}
		d := &double{}
		s, _ := serve(d)
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		if w.Code < 400 || w.Code > 599 || len(d.calls) > 0 {
			t.Fatalf("It was answered with %d: %s", w.Code, w.Body)
		}
		var parsed struct {
			Code, Message string
			RequestID     string `json:"RequestId" xml:"RequestId"`
		}
		decode := json.Unmarshal
		if strings.Contains(w.Header().Get("Content-Type"), "xml") {
			decode = xml.Unmarshal
		}
		if err := decode(w.Body.Bytes(), &parsed); err != nil || parsed.Code == "" || parsed.Message == "" || parsed.RequestID == "" {
			t.Fatalf("The answer is not parsed (%v): %s", err, w.Body)
		}
	})
}

// Whatever the parameters are, a request that a client signs is accepted, and one with another value is not.
func FuzzCanonicalV1(f *testing.F) {
	f.Add("Text", hardText, "other")
	f.Add("a b", "", "~*")
	f.Fuzz(func(t *testing.T, name, value, other string) {
		if name == "" || name == "Signature" || !utf8.ValidString(name) || !utf8.ValidString(value) || !utf8.ValidString(other) || value == other {
			return // no client sends it
		}
		s := v1("Echo", map[string]string{name: value})
		m, err := receive(s.sign(testSecret))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := verifyV1(m.method, m.all(), redact.Bytes(testSecret)); err != nil {
			t.Fatalf("It is refused: %v", err)
		}
		m.query[name] = other
		if _, err := verifyV1(m.method, m.all(), redact.Bytes(testSecret)); err == nil {
			t.Fatal("Another value is accepted")
		}
	})
}

// The same for ACS3, over the query and the body.
func FuzzCanonicalACS3(f *testing.F) {
	f.Add("Text", hardText, "body", true)
	f.Add("a b", "", "", false)
	f.Fuzz(func(t *testing.T, name, value, body string, sm3 bool) {
		if !utf8.ValidString(name) || !utf8.ValidString(value) {
			return // no client sends it
		}
		algorithm := "ACS3-HMAC-SHA256"
		if sm3 {
			algorithm = "ACS3-HMAC-SM3"
		}
		r := acs3Request(algorithm, "Echo", url.Values{name: {value}}, "application/x-www-form-urlencoded", body)
		content, _ := io.ReadAll(r.Body)
		query, err := single("The query", r.URL.RawQuery)
		if err != nil {
			t.Fatal(err)
		}
		m := &message{method: r.Method, host: r.Host, header: r.Header, body: content, query: query}
		c, err := m.readACS3(r.Header.Get("Authorization"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.verify(redact.Bytes(testSecret)); err != nil {
			t.Fatalf("It is refused: %v", err)
		}
		m.query[name] = value + "x"
		if _, err := c.verify(redact.Bytes(testSecret)); err == nil {
			t.Fatal("Another value is accepted")
		}
		m.query[name] = value
		m.body = append(m.body, 'x')
		if _, err := c.verify(redact.Bytes(testSecret)); err == nil {
			t.Fatal("Another body is accepted")
		}
	})
}

// Whatever the texts are, both writers write what parsers read as the same.
func FuzzWriters(f *testing.F) {
	f.Add(hardText, "<a>&\"\x00", 7, true)
	f.Fuzz(func(t *testing.T, text, other string, number int, flag bool) {
		object := Object{
			{"Text", text}, {"Number", number}, {"Flag", flag},
			{"List", Object{{"Item", []Object{{{"Text", other}}, {{"Text", text}}}}}}, {"Empty", Object{{"Item", []Object{}}}},
		}
		type list struct {
			Item []struct{ Text string }
		}
		var parsed struct {
			Text   string
			Number int
			Flag   bool
			List   list
			Empty  list
		}
		var out bytes.Buffer
		writeJSON(&out, object)
		if err := json.Unmarshal(out.Bytes(), &parsed); err != nil {
			t.Fatalf("%v: %s", err, out.Bytes())
		}
		valid := strings.ToValidUTF8
		if utf8.ValidString(text) && parsed.Text != text || parsed.Number != number || parsed.Flag != flag || len(parsed.List.Item) != 2 || parsed.Empty.Item == nil {
			t.Errorf("JSON reads as %+v", parsed)
		}
		parsed.Text, parsed.List = "", list{}
		out.Reset()
		writeXML(&out, "Response", object)
		if err := xml.Unmarshal(out.Bytes(), &parsed); err != nil && !errors.Is(err, io.EOF) {
			t.Fatalf("%v: %s", err, out.Bytes())
		}
		if printable(text) && parsed.Text != valid(text, "\ufffd") || parsed.Number != number || parsed.Flag != flag || len(parsed.List.Item) != 2 {
			t.Errorf("XML reads as %+v", parsed)
		}
	})
}

// printable reports whether XML can hold a text.
func printable(text string) bool {
	for _, r := range text {
		if r < 0x20 && r != '\t' && r != '\n' || r == utf8.RuneError || r == 0xfffe || r == 0xffff {
			return false
		}
	}
	return true
}
