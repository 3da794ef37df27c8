package testenv

import (
	"net/http"
	"slices"
	"strings"
	"sync"

	"k8s.io/client-go/rest"
)

// Request is one request that was sent to the API server.
type Request struct {
	// Verb is get, list, watch, create, update, patch, apply, delete or deletecollection; for what
	// is no resource (discovery, health) the HTTP method.
	Verb string
	// Resource is the plural, with its subresource: secrets, exporteddatakeys/status. For what is no
	// resource it is the path.
	Resource  string
	Namespace string // empty for what has none
	Name      string // empty for list, watch and create
	// Metadata is set when only metadata was asked for.
	Metadata bool
}

// String is the verb and the resource, as Counts have them.
func (r Request) String() string { return r.Verb + " " + r.Resource }

// Counter keeps the requests that were sent through its configuration.
type Counter struct {
	mu       sync.Mutex
	requests []Request
}

// Counting returns a copy of the administrator's configuration, and a Counter of what is sent through it.
func (e *Env) Counting() (*rest.Config, *Counter) { return Count(e.Config) }

// Count returns a copy of a configuration, and a Counter of what is sent through it.
func Count(cfg *rest.Config) (*rest.Config, *Counter) {
	counter := &Counter{}
	counted := rest.CopyConfig(cfg)
	counted.Wrap(func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(req *http.Request) (*http.Response, error) {
			counter.add(parse(req))
			return next.RoundTrip(req)
		})
	})
	return counted, counter
}

type roundTripper func(*http.Request) (*http.Response, error)

// RoundTrip implements http.RoundTripper.
func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

func (c *Counter) add(r Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.requests = append(c.requests, r)
}

// Reset forgets what was counted.
func (c *Counter) Reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.requests = nil
}

// Requests returns what was sent since the last Reset, in order.
func (c *Counter) Requests() []Request {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.requests)
}

// Counts are numbers of requests by verb and resource, such as "apply secrets" or
// "patch exporteddatakeys/status". A map without entries is empty, not nil.
type Counts struct {
	Writes  map[string]int // events too: "create events"
	Reads   map[string]int // single objects
	Lists   map[string]int
	Watches map[string]int
}

// In counts the requests that name objects of a namespace; those of tests in other namespaces do not
// disturb. An empty namespace stands for cluster-wide resources, lists and watches.
func (c *Counter) In(namespace string) Counts {
	return c.Where(func(r Request) bool { return r.Namespace == namespace })
}

// All counts all requests.
func (c *Counter) All() Counts { return c.Where(func(Request) bool { return true }) }

// Where counts the requests for which keep is true. Requests for what is no resource are left out.
func (c *Counter) Where(keep func(Request) bool) Counts {
	counts := Counts{Writes: map[string]int{}, Reads: map[string]int{}, Lists: map[string]int{}, Watches: map[string]int{}}
	for _, r := range c.Requests() {
		if strings.HasPrefix(r.Resource, "/") || !keep(r) {
			continue
		}
		switch r.Verb {
		case "get":
			counts.Reads[r.String()]++
		case "list":
			counts.Lists[r.String()]++
		case "watch":
			counts.Watches[r.String()]++
		default:
			counts.Writes[r.String()]++
		}
	}
	return counts
}

// parse reads a request as the API server's conventions have it:
//
//	/api/v1 or /apis/GROUP/VERSION, then [namespaces/NAMESPACE/]RESOURCE[/NAME[/SUBRESOURCE]]
func parse(req *http.Request) Request {
	parts := strings.Split(strings.Trim(req.URL.Path, "/"), "/")
	switch {
	case parts[0] == "api" && len(parts) > 2:
		parts = parts[2:]
	case parts[0] == "apis" && len(parts) > 3:
		parts = parts[3:]
	default:
		return Request{Verb: req.Method, Resource: req.URL.Path}
	}
	r := Request{Metadata: strings.Contains(req.Header.Get("Accept"), "as=PartialObjectMetadata")}
	// A namespace is an object too, with subresources of its own.
	if parts[0] == "namespaces" && len(parts) > 2 && parts[2] != "status" && parts[2] != "finalize" {
		r.Namespace, parts = parts[1], parts[2:]
	}
	r.Resource = parts[0]
	if len(parts) > 1 {
		r.Name = parts[1]
	}
	if len(parts) > 2 {
		r.Resource += "/" + strings.Join(parts[2:], "/")
	}
	r.Verb = verb(req, r.Name)
	return r
}

func verb(req *http.Request, name string) string {
	switch req.Method {
	case http.MethodGet, http.MethodHead:
		if watch := req.URL.Query().Get("watch"); watch == "true" || watch == "1" {
			return "watch"
		}
		if name == "" {
			return "list"
		}
		return "get"
	case http.MethodPost:
		return "create"
	case http.MethodPut:
		return "update"
	case http.MethodPatch:
		if strings.HasPrefix(req.Header.Get("Content-Type"), "application/apply-patch") {
			return "apply"
		}
		return "patch"
	case http.MethodDelete:
		if name == "" {
			return "deletecollection"
		}
		return "delete"
	}
	return strings.ToLower(req.Method)
}
