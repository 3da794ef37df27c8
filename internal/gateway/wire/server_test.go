package wire

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
)

func TestServer_acceptsEachSignature(t *testing.T) {
	t.Parallel()
	get := v1("Echo", map[string]string{"Text": hardText, "SignatureType": ""})
	get.method = http.MethodGet
	form := v1("Echo", nil)
	form.form.Set("Text", hardText)
	onlyForm := v1("Echo", map[string]string{"Text": hardText})
	onlyForm.form, onlyForm.query = onlyForm.query, url.Values{}
	onlyForm.sign(testSecret)
	onlyForm.form.Set("Signature", onlyForm.query.Get("Signature"))
	onlyForm.query = url.Values{}
	inForm := onlyForm.request()
	milliseconds := v1("Echo", map[string]string{"Text": hardText, "Timestamp": "2026-01-02T03:04:05.678Z"})
	milliseconds.query.Del("SignatureNonce")
	for name, r := range map[string]*http.Request{
		"V1 in the query":                         v1("Echo", map[string]string{"Text": hardText}).sign(testSecret),
		"V1 by GET, with an empty parameter":      get.sign(testSecret),
		"V1 with a form":                          form.sign(testSecret),
		"V1 in a form with the signature":         inForm,
		"V1 without a nonce, with milliseconds":   milliseconds.sign(testSecret),
		"V1 fourteen minutes late":                v1("Echo", map[string]string{"Text": hardText, "Timestamp": "2026-01-02T02:50:05Z"}).sign(testSecret),
		"V1 fourteen minutes early":               v1("Echo", map[string]string{"Text": hardText, "Timestamp": "2026-01-02T03:18:05Z"}).sign(testSecret),
		"ACS3 with SHA-256":                       acs3Request("ACS3-HMAC-SHA256", "Echo", url.Values{"Text": {hardText}}, "", ""),
		"ACS3 with SM3":                           acs3Request("ACS3-HMAC-SM3", "Echo", url.Values{"Text": {hardText}}, "", ""),
		"ACS3 with a form":                        acs3Request("ACS3-HMAC-SHA256", "Echo", nil, "application/x-www-form-urlencoded", url.Values{"Text": {hardText}}.Encode()),
		"ACS3 with a JSON body, and a null in it": acs3Request("ACS3-HMAC-SM3", "Echo", nil, "application/json; charset=utf-8", `{"Text":`+string(must(json.Marshal(hardText)))+`,"None":null}`),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, observed := serve(&double{})
			got := do(t, s, r)
			if got.status != http.StatusOK || got.Text != hardText || got.Code != "" {
				t.Fatalf("The answer is %d %s", got.status, got.body)
			}
			if want := []string{"Echo OK true"}; !slices.Equal(*observed, want) {
				t.Errorf("Observed %v, want %v", *observed, want)
			}
		})
	}
}

func TestServer_refuses(t *testing.T) {
	t.Parallel()
	change := func(name, value string) *http.Request {
		return v1("Echo", map[string]string{name: value}).sign(testSecret)
	}
	without := func(name string) *http.Request {
		s := v1("Echo", nil)
		s.query.Del(name)
		return s.sign(testSecret)
	}
	after := func(edit func(*http.Request)) *http.Request {
		r := acs3Request("ACS3-HMAC-SHA256", "Echo", url.Values{"Text": {"x"}}, "", "")
		edit(r)
		return r
	}
	withBody := func(contentType, body string) *http.Request {
		return acs3Request("ACS3-HMAC-SHA256", "Echo", nil, contentType, body)
	}
	var pairs, members []string
	for i := range maxParameters + 1 {
		pairs, members = append(pairs, fmt.Sprintf("p%d=", i)), append(members, fmt.Sprintf(`"p%d":null`, i))
	}
	many, manyJSON := strings.Join(pairs, "&"), "{"+strings.Join(members, ",")+"}"
	jsonV1 := v1("Echo", nil).sign(testSecret)
	jsonV1.Body, jsonV1.ContentLength = io.NopCloser(strings.NewReader(`{"Text":"x"}`)), 12
	jsonV1.Header.Set("Content-Type", "application/json")
	head := v1("Echo", nil)
	head.method = http.MethodPut
	path := v1("Echo", nil).sign(testSecret)
	path.URL.Path = "/kms"
	for name, c := range map[string]struct {
		r      *http.Request
		status int
		code   string
	}{
		"another method":                  {head.sign(testSecret), 403, "UnsupportedHTTPMethod"},
		"another path":                    {path, 404, "InvalidAction.NotFound"},
		"an unknown access key":           {change("AccessKeyId", "KCNONE"), 404, "InvalidAccessKeyId.NotFound"},
		"a wrong secret":                  {v1("Echo", nil).sign("another"), 400, "SignatureDoesNotMatch"},
		"a time 16 minutes ago":           {change("Timestamp", "2026-01-02T02:48:05Z"), 400, "InvalidTimeStamp.Expired"},
		"a time in 16 minutes":            {change("Timestamp", "2026-01-02T03:20:06Z"), 400, "InvalidTimeStamp.Expired"},
		"a time in another form":          {change("Timestamp", "yesterday"), 400, "InvalidParameter"},
		"no signature":                    {v1("Echo", nil).request(), 400, "IncompleteSignature"},
		"no access key":                   {without("AccessKeyId"), 400, "MissingParameter"},
		"no time":                         {without("Timestamp"), 400, "MissingParameter"},
		"no version":                      {without("Version"), 400, "MissingParameter"},
		"no action":                       {without("Action"), 400, "MissingParameter"},
		"another version":                 {change("Version", "2015-01-01"), 400, "InvalidVersion"},
		"another action":                  {change("Action", "Sing"), 404, "InvalidAction.NotFound"},
		"another method of V1":            {change("SignatureMethod", "HMAC-MD5"), 400, "InvalidParameter"},
		"another version of V1":           {change("SignatureVersion", "2.0"), 400, "InvalidParameter"},
		"a JSON body under V1":            {jsonV1, 400, "InvalidParameter"},
		"an operation's own refusal":      {v1("Refuse", nil).sign(testSecret), 403, "Forbidden.NoPermission"},
		"an error that has no code":       {change("AccessKeyId", "KCBROKEN"), 500, "InternalFailure"},
		"another scheme of authorization": {after(func(r *http.Request) { r.Header.Set("Authorization", "Bearer x") }), 400, "IncompleteSignature"},
		"another algorithm": {after(func(r *http.Request) {
			r.Header.Set("Authorization", "ACS3-HMAC-MD5 Credential=x,SignedHeaders=host,Signature=00")
		}), 400, "IncompleteSignature"},
		"an ACS3 signature without headers": {after(func(r *http.Request) {
			r.Header.Set("Authorization", "ACS3-HMAC-SHA256 Credential=x,SignedHeaders=host,Signature=00")
		}), 400, "IncompleteSignature"},
		"a query that was changed":              {after(func(r *http.Request) { r.URL.RawQuery = "Text=y" }), 400, "SignatureDoesNotMatch"},
		"an action that was changed":            {after(func(r *http.Request) { r.Header.Set("x-acs-action", "Refuse") }), 400, "SignatureDoesNotMatch"},
		"a nonce that was added":                {after(func(r *http.Request) { r.Header.Set("x-acs-signature-nonce", "another") }), 400, "SignatureDoesNotMatch"},
		"a host that a proxy changed":           {after(func(r *http.Request) { r.Host = "internal" }), 400, "SignatureDoesNotMatch"},
		"a nonce with white space":              {after(func(r *http.Request) { r.Header["X-Acs-Signature-Nonce"][0] += "\u00a0" }), 400, "IncompleteSignature"},
		"a host with white space":               {after(func(r *http.Request) { r.Host += " " }), 400, "IncompleteSignature"},
		"a signed header twice":                 {after(func(r *http.Request) { r.Header.Add("x-acs-action", "Refuse") }), 400, "IncompleteSignature"},
		"a body that was changed":               {after(func(r *http.Request) { r.Body = io.NopCloser(strings.NewReader(" ")) }), 400, "IncompleteSignature"},
		"a body of another type":                {withBody("text/plain", "x"), 400, "InvalidParameter"},
		"a body that is no JSON":                {withBody("application/json", "{"), 400, "InvalidParameter"},
		"a JSON list":                           {withBody("application/json", "[]"), 400, "InvalidParameter"},
		"too many parameters in the query":      {after(func(r *http.Request) { r.URL.RawQuery = many }), 400, "InvalidParameter"},
		"too many parameters in a form":         {withBody("application/x-www-form-urlencoded", many), 400, "InvalidParameter"},
		"too many parameters in JSON":           {withBody("application/json", manyJSON), 400, "InvalidParameter"},
		"two JSON objects":                      {withBody("application/json", "{}{}"), 400, "InvalidParameter"},
		"a name twice in JSON":                  {withBody("application/json", `{"Text":"a","Text":"b"}`), 400, "InvalidParameter"},
		"a body that is too long":               {withBody("application/x-www-form-urlencoded", "Text="+strings.Repeat("x", MaxBody)), 400, "InvalidParameter"},
		"a parameter that is not UTF-8":         {after(func(r *http.Request) { r.URL.RawQuery = "Text=%ff" }), 400, "InvalidParameter"},
		"a query that is not URL-encoded":       {after(func(r *http.Request) { r.URL.RawQuery = "Text=%zz" }), 400, "InvalidParameter"},
		"a parameter twice in the query":        {after(func(r *http.Request) { r.URL.RawQuery = "Text=a&Text=b" }), 400, "InvalidParameter"},
		"a parameter in the query and the body": {acs3Request("ACS3-HMAC-SHA256", "Echo", url.Values{"Text": {"a"}}, "application/x-www-form-urlencoded", "Text=b"), 400, "InvalidParameter"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := &double{}
			s, _ := serve(d)
			got := do(t, s, c.r)
			if got.status != c.status || got.Code != c.code {
				t.Fatalf("The answer is %d %s", got.status, got.body)
			}
			if got.Message == "" || got.Recommend == "" || got.HostID != c.r.Host {
				t.Errorf("The error lacks a member: %s", got.body)
			}
			if strings.Contains(got.body, "private cause") || len(d.calls) > 0 {
				t.Errorf("It was performed, or reveals a cause: %s", got.body)
			}
		})
	}
}

// The old Go SDK compares the end of the message with its own text.
func TestServer_wrongSecret_saysWhatWasSigned(t *testing.T) {
	t.Parallel()
	s, _ := serve(&double{})
	got := do(t, s, v1("Echo", map[string]string{"Text": "a b"}).sign("another"))
	const begins = "Specified signature is not matched with our calculation. server string to sign is:POST&%2F&AccessKeyId%3D"
	if !strings.HasPrefix(got.Message, begins) || !strings.Contains(got.Message, "Text%3Da%2520b%26") {
		t.Errorf("The message is %s", got.Message)
	}
}

func TestServer_wrongSecret_doesNotRepeatALongText(t *testing.T) {
	t.Parallel()
	s, _ := serve(&double{})
	got := do(t, s, v1("Echo", map[string]string{"Text": strings.Repeat("x", maxEchoed)}).sign("another"))
	if got.Code != "SignatureDoesNotMatch" || strings.Contains(got.body, "xxx") {
		t.Errorf("The answer has %d bytes: %.300s", len(got.body), got.body)
	}
}

func TestServer_disabledKey_isToldOnlyToItsHolder(t *testing.T) {
	t.Parallel()
	s, _ := serve(&double{disabled: true})
	if got := do(t, s, v1("Echo", nil).sign(testSecret)); got.status != 403 || got.Code != "Forbidden.AccessKey" {
		t.Errorf("The answer is %s", got.body)
	}
	if got := do(t, s, v1("Echo", nil).sign("another")); got.Code != "SignatureDoesNotMatch" {
		t.Errorf("The answer to a wrong secret is %s", got.body)
	}
}

func TestServer_replay_isRefused(t *testing.T) {
	t.Parallel()
	noNonce := func() *http.Request {
		s := v1("Echo", map[string]string{"Timestamp": "2026-01-02T03:04:05.001Z"})
		s.query.Del("SignatureNonce")
		return s.sign(testSecret)
	}
	for name, again := range map[string]func() *http.Request{
		"with its nonce":  func() *http.Request { return v1("Echo", nil).sign(testSecret) },
		"without a nonce": noNonce,
		"with ACS3":       func() *http.Request { return acs3Request("ACS3-HMAC-SHA256", "Echo", nil, "", "") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := &double{}
			s, _ := serve(d)
			if got := do(t, s, again()); got.status != http.StatusOK {
				t.Fatalf("The first answer is %s", got.body)
			}
			if got := do(t, s, again()); got.Code != "SignatureNonceUsed" || len(d.calls) != 1 {
				t.Errorf("The second answer is %s", got.body)
			}
		})
	}
}

// A nonce that came with a wrong signature must not block the one who signs with it.
func TestServer_wrongSignature_usesNoNonce(t *testing.T) {
	t.Parallel()
	s, _ := serve(&double{})
	if got := do(t, s, v1("Echo", nil).sign("another")); got.Code != "SignatureDoesNotMatch" {
		t.Fatalf("The answer is %s", got.body)
	}
	if got := do(t, s, v1("Echo", nil).sign(testSecret)); got.status != http.StatusOK {
		t.Errorf("The answer is %s", got.body)
	}
}

func TestServer_format(t *testing.T) {
	t.Parallel()
	accept := acs3Request("ACS3-HMAC-SHA256", "Refuse", nil, "", "")
	accept.Header.Set("Accept", "application/xml;q=0.9")
	for name, c := range map[string]struct {
		r                     *http.Request
		contentType, contains string
	}{
		"XML":         {v1("Echo", map[string]string{"Format": "XML", "Text": "<&>"}).sign(testSecret), "application/xml", "<EchoResponse><Text>&lt;&amp;&gt;</Text><RequestId>"},
		"XML error":   {v1("Refuse", map[string]string{"Format": "XML"}).sign(testSecret), "text/xml;charset=utf-8", "<Error><RequestId>"},
		"Accept":      {accept, "text/xml;charset=utf-8", "<Code>Forbidden.NoPermission</Code></Error>"},
		"json":        {v1("Echo", map[string]string{"Format": "json"}).sign(testSecret), "application/json", `{"Text":"","RequestId":"`},
		"another one": {v1("Echo", map[string]string{"Format": "YAML"}).sign(testSecret), "application/json", `{"Text":`},
		"without it":  {acs3Request("ACS3-HMAC-SHA256", "Echo", nil, "", ""), "application/json", `{"Text":`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, _ := serve(&double{})
			got := do(t, s, c.r)
			if got.header.Get("Content-Type") != c.contentType || !strings.Contains(got.body, c.contains) {
				t.Errorf("The answer is %s: %s", got.header.Get("Content-Type"), got.body)
			}
		})
	}
}

// occupy sends n requests, of several access keys in turn, and returns when the server counts them. The channel gets their answers.
func occupy(t *testing.T, s *Server, n int, counted func() int, ids ...string) (answered chan int) {
	t.Helper()
	answered = make(chan int)
	for i := range n {
		r := echoOf(ids[i%len(ids)], fmt.Sprint(i))
		go func() {
			w := httptest.NewRecorder()
			s.ServeHTTP(w, r)
			answered <- w.Code
		}()
	}
	until(t, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return counted() == n
	})
	return answered
}

// echoOf is a request of an access key.
func echoOf(id, nonce string) *http.Request {
	return v1("Echo", map[string]string{"AccessKeyId": id, "SignatureNonce": nonce}).sign(testSecret)
}

// wantServed receives the answers to n requests.
func wantServed(t *testing.T, answered chan int, n int) {
	t.Helper()
	for range n {
		if status := <-answered; status != http.StatusOK {
			t.Errorf("One was answered with %d", status)
		}
	}
}

func TestServer_tooManyRequestsOfAKey_areThrottled(t *testing.T) {
	t.Parallel()
	d := &double{enter: make(chan struct{})}
	s, _ := serve(d)
	answered := occupy(t, s, MaxKeyRequests, func() int { return s.byKey[testID] }, testID)
	if got := do(t, s, echoOf(testID, "one too many")); got.status != 429 || got.Code != "Rejected.Throttling" {
		t.Errorf("The answer is %d %s", got.status, got.body)
	}
	close(d.enter)
	wantServed(t, answered, MaxKeyRequests)
	if got := do(t, s, echoOf(testID, "after them")); got.status != http.StatusOK {
		t.Errorf("The answer after them is %s", got.body)
	}
}

// A tenant can have any number of access keys.
func TestServer_tooManyRequestsOfATenant_areThrottled(t *testing.T) {
	t.Parallel()
	d := &double{enter: make(chan struct{}), tenants: map[string]string{"first": "a", "second": "a", "third": "a", "stranger": "b"}}
	s, _ := serve(d)
	answered := occupy(t, s, MaxTenantRequests, func() int { return s.byTenant["a"] }, "first", "second")
	if got := do(t, s, echoOf("third", "one too many")); got.status != 429 || got.Code != "Rejected.Throttling" {
		t.Errorf("The answer is %d %s", got.status, got.body)
	}
	another := occupy(t, s, 1, func() int { return s.byTenant["b"] }, "stranger")
	close(d.enter)
	wantServed(t, another, 1)
	wantServed(t, answered, MaxTenantRequests)
	if got := do(t, s, echoOf("third", "after them")); got.status != http.StatusOK {
		t.Errorf("The answer after them is %s", got.body)
	}
	if len(s.byKey) > 0 || len(s.byTenant) > 0 {
		t.Errorf("Requests are still counted: %v, %v", s.byKey, s.byTenant)
	}
}

func TestServer_tooManyRequests_areThrottledBeforeTheirSignature(t *testing.T) {
	t.Parallel()
	s, observed := serve(&double{})
	for range MaxRequests {
		s.all <- struct{}{}
	}
	if got := do(t, s, v1("Echo", nil).sign("another")); got.status != 429 {
		t.Errorf("The answer is %s", got.body)
	}
	if want := []string{" Rejected.Throttling false"}; !slices.Equal(*observed, want) {
		t.Errorf("Observed %v, want %v", *observed, want)
	}
}

func TestServer_bodies_waitForTheirTurn(t *testing.T) {
	t.Parallel()
	s, _ := serve(&double{})
	for range maxBodies {
		s.bodies <- struct{}{} // a client that sends slowly
	}
	inBody := func(nonce string) *http.Request {
		r := v1("Echo", map[string]string{"SignatureNonce": nonce})
		r.form.Set("Text", "in the body")
		return r.sign(testSecret)
	}
	ended, end := context.WithCancel(t.Context())
	end()
	if got := do(t, s, inBody("gives up").WithContext(ended)); got.status != 429 || got.Code != "Rejected.Throttling" {
		t.Errorf("While other bodies are read, the answer is %d %s", got.status, got.body)
	}
	answered := make(chan reply)
	go func() { answered <- do(t, s, inBody("waits")) }()
	<-s.bodies
	if got := <-answered; got.status != http.StatusOK {
		t.Errorf("After one of them, the answer is %s", got.body)
	}
}
