package wire

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"testing"
)

// The examples in the documentation of ExportDataKey, with shortened values.
const (
	exampleQuery = "Action=ExportDataKey&CiphertextBlob=ODZhOWVmZDktM2QxNi00ODk0LWJkNGYtMWZjNDNmM2YyYWJmS7Fm%2Bg%3D%3D" +
		"&PublicKeyBlob=MIIBIjANBg%3D%3D&WrappingKeySpec=RSA_2048&WrappingAlgorithm=RSAES_OAEP_SHA_256&DryRun=false"
	exampleJSON = `{
  "KeyVersionId" : "2ab1a983-7072-4bbc-a582-584b5bd8****",
  "KeyId" : "202b9877-5a25-46e3-a763-e20791b5****",
  "RequestId" : "4bd560a1-729e-45f1-a3d9-b2a33d61046b",
  "ExportedDataKey" : "BQKP+1zK6+ZEMxTP5qaVzcsgXtWplYBKm0NXdSnB5Fzl/g=="
}`
	exampleXML = `<ExportDataKeyResponse>
    <KeyVersionId>2ab1a983-7072-4bbc-a582-584b5bd8****</KeyVersionId>
    <KeyId>202b9877-5a25-46e3-a763-e20791b5****</KeyId>
    <RequestId>4bd560a1-729e-45f1-a3d9-b2a33d61046b</RequestId>
    <ExportedDataKey>BQKP+1zK6+ZEMxTP5qaVzcsgXtWplYBKm0NXdSnB5Fzl/g==</ExportedDataKey>
</ExportDataKeyResponse>`
)

func exampleObject() Object {
	return Object{
		{"KeyVersionId", "2ab1a983-7072-4bbc-a582-584b5bd8****"}, {"KeyId", "202b9877-5a25-46e3-a763-e20791b5****"},
		{"ExportedDataKey", "BQKP+1zK6+ZEMxTP5qaVzcsgXtWplYBKm0NXdSnB5Fzl/g=="},
	}
}

func TestAnswer_isTheDocumentedExample(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		xml         bool
		contentType string
		example     string
		decode      func(*testing.T, string) map[string]string
	}{
		"JSON": {false, "application/json", exampleJSON, decodeJSON},
		"XML":  {true, "application/xml", exampleXML, decodeXML},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := httptest.NewRecorder()
			answer(w, c.xml, "4bd560a1-729e-45f1-a3d9-b2a33d61046b", "kms.test", "ExportDataKey", exampleObject(), nil)
			if w.Code != http.StatusOK || w.Header().Get("Content-Type") != c.contentType {
				t.Errorf("It is %d %s", w.Code, w.Header().Get("Content-Type"))
			}
			if got, want := c.decode(t, w.Body.String()), c.decode(t, c.example); !maps.Equal(got, want) || len(got) == 0 {
				t.Errorf("It is %v, want %v", got, want)
			}
		})
	}
}

func decodeJSON(t *testing.T, text string) map[string]string {
	t.Helper()
	var out map[string]string
	if err := json.Unmarshal([]byte(text), &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// decodeXML returns the elements, and the root as "".
func decodeXML(t *testing.T, text string) map[string]string {
	t.Helper()
	out := map[string]string{}
	decoder, depth, name := xml.NewDecoder(bytes.NewReader([]byte(text))), 0, ""
	for {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		switch token := token.(type) {
		case xml.StartElement:
			if depth++; depth == 1 {
				out[""] = token.Name.Local
			}
			name = token.Name.Local
		case xml.EndElement:
			depth--
			name = ""
		case xml.CharData:
			if depth == 2 && name != "" {
				out[name] = string(token)
			}
		}
	}
}

func TestReceive_readsTheDocumentedExample(t *testing.T) {
	t.Parallel()
	m, err := receive(httptest.NewRequest(http.MethodGet, "/?"+exampleQuery, nil))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"CiphertextBlob": "ODZhOWVmZDktM2QxNi00ODk0LWJkNGYtMWZjNDNmM2YyYWJmS7Fm+g==", "PublicKeyBlob": "MIIBIjANBg==",
		"WrappingKeySpec": "RSA_2048", "WrappingAlgorithm": "RSAES_OAEP_SHA_256", "DryRun": "false",
	}
	if got := operation(m.all()); !maps.Equal(got, want) {
		t.Errorf("The parameters are %v, want %v", got, want)
	}
}
