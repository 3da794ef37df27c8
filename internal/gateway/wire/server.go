// Package wire is the protocol of the documented key management API (API version 2016-01-20) as a server: it reads requests,
// verifies their signatures, and writes the answers that official clients parse. It knows no operation and no Kubernetes.
package wire

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/redact"
)

// APIVersion is the version of the documented API.
const APIVersion = "2016-01-20"

// The limits of the requests at a time.
const (
	// MaxRequests is how many requests are served.
	MaxRequests = 256
	// MaxKeyRequests is how many requests of one access key are served, so that one does not starve the others.
	MaxKeyRequests = 64
	// MaxTenantRequests is how many requests of one tenant are served, because a tenant can have many access keys.
	MaxTenantRequests = MaxRequests / 2
	// maxBodies is how many bodies are read. A client may send one slowly before it is known.
	maxBodies = 16
)

// bodyWait is how long a request waits for its turn to send a body.
const bodyWait = 3 * time.Second

// RequestTime bounds the work for a request. Some official clients wait for 10 seconds.
const RequestTime = 9 * time.Second

// AccessKey is who may send requests.
type AccessKey struct {
	ID       string
	Secret   redact.Bytes
	Disabled bool
	// Tenant groups the access keys that share a limit of requests.
	Tenant string
	// Holder is what Keys knows of it.
	Holder any
}

// Keys finds access keys. It returns nil for one that does not exist.
type Keys interface {
	Find(ctx context.Context, id string) (*AccessKey, error)
}

// Request is a request whose signature is right.
type Request struct {
	ID         string // RequestId of the answer
	Action     string
	Parameters Parameters
	AccessKey  *AccessKey
	Source     netip.Addr
	Time       time.Time // when it was received
	// Note is what Operations keeps of the request for the Observer.
	Note any
}

// Operations perform requests. An error is a *kms.Error or an *Error; of any other, the client learns nothing.
type Operations interface {
	// Has reports whether there is an operation of that name, also one that is not supported.
	Has(action string) bool
	// Do performs a request.
	Do(ctx context.Context, r *Request) (Object, error)
}

// Observer is told of each request that was answered. r is nil where the signature was not verified.
type Observer func(r *Request, action string, err error, duration time.Duration)

// Server serves the protocol.
type Server struct {
	Keys       Keys
	Operations Operations
	Observe    Observer
	Now        func() time.Time

	nonces *nonces
	all    chan struct{} // has a place for each request
	bodies chan struct{}

	mu       sync.Mutex
	byKey    map[string]int // requests that are served
	byTenant map[string]int
}

// New returns a server.
func New(keys Keys, operations Operations, observe Observer, now func() time.Time) *Server {
	return &Server{
		Keys: keys, Operations: operations, Observe: observe, Now: now,
		nonces: newNonces(), all: make(chan struct{}, MaxRequests), bodies: make(chan struct{}, maxBodies), byKey: map[string]int{}, byTenant: map[string]int{},
	}
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := s.Now()
	e := &exchange{server: s, request: &Request{ID: uuid.NewString(), Source: sourceOf(r), Time: start}, asXML: wantsXML(r)}
	body, err := e.serve(w, r)
	answer(w, e.asXML, e.request.ID, r.Host, e.action, body, err)
	verified := e.request
	if verified.AccessKey == nil {
		verified = nil
	}
	s.Observe(verified, e.action, err, s.Now().Sub(start))
}

// exchange is one request and its answer.
type exchange struct {
	server  *Server
	request *Request
	asXML   bool
	action  string // only if there is such an operation: it becomes the label of a metric
}

func (e *exchange) serve(w http.ResponseWriter, r *http.Request) (Object, error) {
	if r.Method != http.MethodPost && r.Method != http.MethodGet {
		return nil, &Error{Code: UnsupportedMethod}
	}
	if r.URL.Path != "/" {
		return nil, &Error{Code: UnknownAction, Detail: "All operations are at the path /."}
	}
	m, err := e.receive(w, r)
	if err != nil {
		return nil, err
	}
	if format := m.all()["Format"]; format != "" {
		e.asXML = strings.EqualFold(format, "XML")
	}
	release, err := e.server.enter()
	if err != nil {
		return nil, err
	}
	defer release()
	ctx, cancel := context.WithTimeout(r.Context(), RequestTime)
	defer cancel()
	c, err := e.authenticate(ctx, m)
	if err != nil {
		return nil, err
	}
	leave, err := e.server.enterKey(e.request.AccessKey)
	if err != nil {
		return nil, err
	}
	defer leave()
	return e.perform(ctx, c)
}

// receive reads the request.
func (e *exchange) receive(w http.ResponseWriter, r *http.Request) (*message, error) {
	if r.ContentLength != 0 {
		waiting, cancel := context.WithTimeout(r.Context(), bodyWait)
		defer cancel()
		select {
		case e.server.bodies <- struct{}{}:
			defer func() { <-e.server.bodies }()
		case <-waiting.Done():
			return nil, throttled("The gateway reads as many bodies as it can. Retry with backoff.")
		}
		r.Body = http.MaxBytesReader(w, r.Body, MaxBody)
	}
	return receive(r)
}

// authenticate checks in the order that gives each client the right message: key, signature, time, nonce.
func (e *exchange) authenticate(ctx context.Context, m *message) (claims, error) {
	s := e.server
	c, err := m.read()
	if err != nil {
		return c, err
	}
	key, err := s.Keys.Find(ctx, c.accessKeyID)
	if err != nil {
		return c, err
	}
	if key == nil {
		return c, &Error{Code: UnknownAccessKey}
	}
	signature, err := c.verify(key.Secret)
	if err != nil {
		return c, err
	}
	e.request.AccessKey = key
	e.action = c.action
	if !s.Operations.Has(c.action) {
		e.action = ""
	}
	if key.Disabled {
		return c, &Error{Code: DisabledAccessKey}
	}
	until, err := c.checkTime(e.request.Time)
	if err != nil {
		return c, err
	}
	if c.nonce == "" {
		c.nonce = "signature " + signature // some clients send no nonce, but the time in milliseconds
	}
	return c, s.nonces.use(c.accessKeyID, c.nonce, e.request.Time, until)
}

// perform checks version and action, and performs the operation.
func (e *exchange) perform(ctx context.Context, c claims) (Object, error) {
	switch {
	case c.version == "":
		return nil, missing("Version")
	case c.version != APIVersion:
		return nil, &Error{Code: InvalidVersion, Detail: "It must be " + APIVersion + "."}
	case c.action == "":
		return nil, missing("Action")
	case e.action == "":
		return nil, &Error{Code: UnknownAction}
	}
	e.request.Action, e.request.Parameters = c.action, Parameters{c.parameters}
	return e.server.Operations.Do(ctx, e.request)
}

// enter takes a place for a request.
func (s *Server) enter() (leave func(), err error) {
	select {
	case s.all <- struct{}{}:
		return func() { <-s.all }, nil
	default:
		return nil, throttled("The gateway serves as many requests as it can. Retry with backoff.")
	}
}

// enterKey takes a place for a request of an access key.
func (s *Server) enterKey(key *AccessKey) (leave func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byKey[key.ID] >= MaxKeyRequests {
		return nil, throttled("The access key has too many requests at a time. Retry with backoff.")
	}
	if s.byTenant[key.Tenant] >= MaxTenantRequests {
		return nil, throttled("The access keys of the namespace have too many requests at a time. Retry with backoff.")
	}
	s.byKey[key.ID]++
	s.byTenant[key.Tenant]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		leaveOne(s.byKey, key.ID)
		leaveOne(s.byTenant, key.Tenant)
	}, nil
}

// leaveOne counts one request less.
func leaveOne(counts map[string]int, of string) {
	if counts[of]--; counts[of] == 0 {
		delete(counts, of)
	}
}

// wantsXML reports whether a client asks for XML in the header Accept. The parameter Format comes first.
func wantsXML(r *http.Request) bool {
	accepted := strings.Split(r.Header.Get("Accept"), ",")
	return slices.ContainsFunc(accepted, func(one string) bool {
		kind, _, _ := strings.Cut(strings.TrimSpace(one), ";")
		return kind == "application/xml" || kind == "text/xml"
	})
}

func sourceOf(r *http.Request) netip.Addr {
	host, _, _ := net.SplitHostPort(r.RemoteAddr)
	addr, _ := netip.ParseAddr(host)
	return addr.Unmap().WithZone("")
}
