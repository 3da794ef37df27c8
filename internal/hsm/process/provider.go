package process

import (
	"context"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/software"
)

// Library is a PKCS#11 library that the administrator allows, and what its process may do.
type Library struct {
	// Path and Parameters are those of pkcs11.Config.
	Path       string
	Parameters string
	// Timeout bounds each call into the library; 0 means 30 seconds. Calls that generate a key pair, initialize the library
	// or log in may take four times as long.
	Timeout time.Duration
	// Paths are the files and directories that the library may use, in addition to its own directory and those of the system's
	// libraries.
	Paths []Path
	// Environment are the names of environment variables that the library reads, in addition to those that are well known.
	Environment []string
	// Unrestricted: the library may use all files.
	Unrestricted bool
}

// Path is a file or a directory with all that it contains.
type Path struct {
	Name     string
	Writable bool
}

// String returns the path as on the command line.
func (p Path) String() string {
	if p.Writable {
		return p.Name + ":rw"
	}
	return p.Name
}

// Options are the options of a Provider.
type Options struct {
	// Find returns the library of a name, or an *hsm.Error.
	Find func(name string) (Library, error)
	// Command is the program, with its arguments, that calls Serve. It gets the name of the library as its last argument.
	Command []string
	// Log gets a line for each start and each end of a child.
	Log logr.Logger
	// Now is the clock for the delay between starts; nil means time.Now.
	Now func() time.Time
}

// Provider implements hsm.Provider and hsm.Lister. It opens PKCS#11 modules in child processes, and software stores in this process.
type Provider struct {
	options  Options
	restarts *prometheus.CounterVec

	mu        sync.Mutex
	libraries map[string]*library
}

var (
	_ hsm.Provider = (*Provider)(nil)
	_ hsm.Lister   = (*Provider)(nil)
)

// New returns a provider without children.
func New(options Options) *Provider {
	if options.Now == nil {
		options.Now = time.Now
	}
	return &Provider{options: options, libraries: map[string]*library{}, restarts: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "keyconvoy_module_process_restarts_total",
		Help: "How often the operator started the process of a PKCS#11 library again, by the cause of the end of the former one.",
	}, []string{"module", "cause"})}
}

// Metrics returns the number of restarts.
func (p *Provider) Metrics() prometheus.Collector { return p.restarts }

// Open implements hsm.Provider.
func (p *Provider) Open(ctx context.Context, cfg hsm.Config) (hsm.Module, error) {
	if cfg.Library == "" {
		return software.Open(ctx, software.Config{Storage: cfg.Storage, AllowPKCS1v15Import: cfg.AllowPKCS1v15Import})
	}
	if err := ctx.Err(); err != nil {
		return nil, timeoutError(err)
	}
	allowed, err := p.options.Find(cfg.Library)
	if err != nil {
		return nil, err
	}
	c, err := p.library(cfg.Library).acquire(ctx, allowed)
	if err != nil {
		return nil, err
	}
	m := c.newModule(cfg)
	if err := m.open(ctx, cfg); err != nil {
		return nil, err
	}
	return m, nil
}

// List implements hsm.Lister.
func (p *Provider) List(ctx context.Context, name string) (hsm.LibraryInfo, error) {
	var none hsm.LibraryInfo
	allowed, err := p.options.Find(name)
	if err != nil {
		return none, err
	}
	l := p.library(name)
	c, err := l.acquire(ctx, allowed)
	if err != nil {
		return none, err
	}
	defer l.release(c)
	var reply incomingReply
	if err := c.call(ctx, "List", &ListRequest{Timeout: remaining(ctx)}, &reply); err != nil {
		return none, err
	}
	return decodeReply[hsm.LibraryInfo](reply)
}

func (p *Provider) library(name string) *library {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.libraries[name]
	if l == nil {
		l = newLibrary(name, p)
		p.libraries[name] = l
	}
	return l
}

// timeoutError is the error of a call whose context is done.
func timeoutError(cause error) *hsm.Error {
	return hsm.Wrap(hsm.Unavailable, cause, "the cryptographic module did not respond in time")
}
