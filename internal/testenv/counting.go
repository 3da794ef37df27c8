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
	// Verb is get, list, watch, create, update, patch, apply, delete or deletecollection. For a path that is not a
	// resource (discovery, health) it is the HTTP method.
	Verb string
	// Resource is the plural, with its subresource: secrets, exporteddatakeys/status. For a path that is not a resource
	// it is the path.
	Resource  string
	Namespace string // empty for cluster-wide resources
	Name      string // empty for list, watch and create
	// Metadata is true if the request was for metadata only.
	Metadata bool
}

// String returns the verb and the resource, as in Counts.
func (r Request) String() string { return r.Verb + " " + r.Resource }

// Counter records the requests that were sent through its configuration.
type Counter struct {
	mu       sync.Mutex
	requests []Request
}

// Counting returns a copy of the administrator's configuration, and a Counter of the requests through it.
func (e *Env) Counting() (*rest.Config, *Counter) { return Count(e.Config) }

// Count returns a copy of a configuration, and a Counter of the requests through it.
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

// Reset deletes the recorded requests.
func (c *Counter) Reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.requests = nil
}

// Requests returns the requests since the last Reset, in order.
func (c *Counter) Requests() []Request {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.requests)
}

// Counts are numbers of requests by verb and resource, such as "apply secrets" or
// "patch exporteddatakeys/status". A map without entries is empty, not nil.
type Counts struct {
	Writes  map[string]int // including "create events"
	Reads   map[string]int // single objects
	Lists   map[string]int
	Watches map[string]int
}

// In counts the requests for objects of a namespace, so that tests in other namespaces do not affect the counts. An empty
// namespace stands for cluster-wide resources, and for lists and watches of all namespaces.
func (c *Counter) In(namespace string) Counts {
	return c.Where(func(r Request) bool { return r.Namespace == namespace })
}

// All counts all requests.
func (c *Counter) All() Counts { return c.Where(func(Request) bool { return true }) }

// Where counts the requests for which keep returns true, except those for paths that are not resources.
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

// parse interprets the path of a request by the conventions of the API server:
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
	// A namespace is itself an object, with its own subresources.
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
