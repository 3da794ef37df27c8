package wire

import (
	"context"
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"hash"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emmansun/gmsm/sm3"

	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/redact"
)

const (
	testID     = "KCAAAAAAAAAAAAAAAAAAAAAAAAAA"
	testSecret = "the secret of the tests"
)

// now is the time of the server in all tests.
var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// double is what a Server needs. Its operation returns the parameters that it was given.
type double struct {
	disabled bool
	tenants  map[string]string // of more access keys, by their identifiers
	enter    chan struct{}     // each call takes one; nil for none

	mu    sync.Mutex
	calls []*Request
}

func (d *double) Find(_ context.Context, id string) (*AccessKey, error) {
	if id == "KCBROKEN" {
		return nil, errors.New("a private cause")
	}
	if id != testID && d.tenants[id] == "" {
		return nil, nil
	}
	return &AccessKey{ID: id, Secret: redact.Bytes(testSecret), Disabled: d.disabled, Tenant: d.tenants[id]}, nil
}

func (d *double) Has(action string) bool { return action == "Echo" || action == "Refuse" }

func (d *double) Do(_ context.Context, r *Request) (Object, error) {
	if r.Action == "Refuse" {
		return nil, &kms.Error{Code: kms.ForbiddenNoPermission, Detail: "No <one> may."}
	}
	if d.enter != nil {
		<-d.enter
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.calls = append(d.calls, r)
	return Object{{"Text", r.Parameters.Get("Text")}}, nil
}

func serve(d *double) (*Server, *[]string) {
	var observed []string
	return New(d, d, func(r *Request, action string, err error, _ time.Duration) {
		d.mu.Lock()
		defer d.mu.Unlock()
		observed = append(observed, fmt.Sprintf("%s %s %t", action, CodeOf(err), r != nil))
	}, func() time.Time { return now }), &observed
}

// signed is a second implementation of both signatures.
type signed struct {
	method string
	query  url.Values
	form   url.Values
	header http.Header
}

func v1(action string, parameters map[string]string) *signed {
	s := &signed{method: http.MethodPost, query: url.Values{}, form: url.Values{}, header: http.Header{}}
	for name, value := range map[string]string{
		"AccessKeyId": testID, "Action": action, "Format": "JSON", "SignatureMethod": "HMAC-SHA1", "SignatureNonce": fmt.Sprint("nonce ", len(parameters)),
		"SignatureVersion": "1.0", "Timestamp": now.Format(time.RFC3339), "Version": APIVersion,
	} {
		s.query.Set(name, value)
	}
	for name, value := range parameters {
		s.query.Set(name, value)
	}
	return s
}

func (s *signed) sign(secret string) *http.Request {
	all := url.Values{}
	for _, from := range []url.Values{s.query, s.form} {
		for name := range from {
			all.Set(name, from.Get(name))
		}
	}
	escape := func(text string) string {
		return strings.NewReplacer("+", "%20", "*", "%2A", "%7E", "~").Replace(url.QueryEscape(text))
	}
	var pairs []string
	for name := range all {
		pairs = append(pairs, escape(name)+"="+escape(all.Get(name)))
	}
	slices.Sort(pairs)
	mac := hmac.New(sha1.New, []byte(secret+"&"))
	mac.Write([]byte(s.method + "&%2F&" + escape(strings.Join(pairs, "&"))))
	s.query.Set("Signature", base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	return s.request()
}

func (s *signed) request() *http.Request {
	r := httptest.NewRequest(s.method, "https://kms.test:8443/?"+s.query.Encode(), strings.NewReader(s.form.Encode()))
	r.Host = "kms.test:8443"
	for name, values := range s.header {
		r.Header[name] = values
	}
	if len(s.form) > 0 {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	return r
}

func acs3Request(algorithm, action string, query url.Values, contentType, body string) *http.Request {
	newHash := map[string]func() hash.Hash{"ACS3-HMAC-SHA256": sha256.New, "ACS3-HMAC-SM3": sm3.New}[algorithm]
	digest := func(text string) string {
		h := newHash()
		h.Write([]byte(text))
		return hex.EncodeToString(h.Sum(nil))
	}
	r := httptest.NewRequest(http.MethodPost, "https://kms.test:8443/?"+query.Encode(), strings.NewReader(body))
	r.Host = "kms.test:8443"
	for name, value := range map[string]string{
		"x-acs-action": action, "x-acs-version": APIVersion, "x-acs-date": now.Format(time.RFC3339),
		"x-acs-signature-nonce": "nonce " + algorithm, "x-acs-content-sha256": digest(body),
	} {
		r.Header.Set(name, value)
	}
	names := []string{"host", "x-acs-action", "x-acs-content-sha256", "x-acs-date", "x-acs-signature-nonce", "x-acs-version"}
	if body != "" {
		r.Header.Set("Content-Type", contentType)
		names = append([]string{"content-type"}, names...)
	}
	lines := ""
	for _, name := range names {
		value := r.Header.Get(name)
		if name == "host" {
			value = r.Host
		}
		lines += name + ":" + value + "\n"
	}
	canonicalQuery := strings.NewReplacer("+", "%20", "*", "%2A", "%7E", "~").Replace(query.Encode())
	request := "POST\n/\n" + canonicalQuery + "\n" + lines + "\n" + strings.Join(names, ";") + "\n" + digest(body)
	mac := hmac.New(newHash, []byte(testSecret))
	mac.Write([]byte(algorithm + "\n" + digest(request)))
	r.Header.Set("Authorization", fmt.Sprintf("%s Credential=%s,SignedHeaders=%s,Signature=%x", algorithm, testID, strings.Join(names, ";"), mac.Sum(nil)))
	return r
}

type reply struct {
	status             int
	header             http.Header
	body               string
	Code               string
	Text               string
	Message, Recommend string
	HostID             string `json:"HostId" xml:"HostId"`
	RequestID          string `json:"RequestId" xml:"RequestId"`
}

func do(t *testing.T, s http.Handler, r *http.Request) reply {
	t.Helper()
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	out := reply{status: w.Code, header: w.Header(), body: w.Body.String()}
	decode := json.Unmarshal
	if strings.Contains(w.Header().Get("Content-Type"), "xml") {
		decode = xml.Unmarshal
	}
	if err := decode(w.Body.Bytes(), &out); err != nil {
		t.Fatalf("The answer is not of its Content-Type %s: %v: %s", w.Header().Get("Content-Type"), err, out.body)
	}
	if out.RequestID == "" || out.RequestID != w.Header().Get("x-acs-request-id") {
		t.Errorf("RequestId is %q, and the header %q", out.RequestID, w.Header().Get("x-acs-request-id"))
	}
	return out
}

const hardText = "a b+c*d~e/f?g=h&i%j\u4e2d\u6587'()!"

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

func until(t *testing.T, done func() bool) {
	t.Helper()
	deadline := time.After(time.Minute)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("It did not happen within a minute")
		}
	}
}
