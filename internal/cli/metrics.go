package cli

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/go-logr/logr"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
)

const (
	// reviewTimeout limits one request to the API server.
	reviewTimeout = 10 * time.Second
	// reviewsAtOnce limits the load on the API server that unauthenticated clients can cause.
	reviewsAtOnce = 2
)

// metricsReader serves the metrics to clients whose token the API server authenticates and that may "get" the path
// (RBAC with nonResourceURLs). It makes two requests to the API server for each scrape.
//
// The filter in controller-runtime does the same with the API server's own library, which makes the binary and the
// process a quarter larger.
type metricsReader struct {
	client client.Client
	asking chan struct{}
}

// onlyMetricsReaders is a metricsserver.Options.FilterProvider.
func onlyMetricsReaders(cfg *rest.Config, httpClient *http.Client) (metricsserver.Filter, error) {
	c, err := client.New(cfg, client.Options{HTTPClient: httpClient, Scheme: scheme.Scheme})
	r := &metricsReader{client: c, asking: make(chan struct{}, reviewsAtOnce)}
	return r.filter, err
}

// The responses to clients without access.
var (
	errUnknown   = errors.New("authentication required: send a token of an account of this cluster (Authorization: Bearer)")
	errForbidden = errors.New(`permission denied: this account may not "get" this path; bind it to the role metrics-reader`)
)

func (r *metricsReader) filter(log logr.Logger, next http.Handler) (http.Handler, error) {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		switch err := r.check(req); {
		case err == nil:
			next.ServeHTTP(w, req)
		case errors.Is(err, errUnknown):
			http.Error(w, err.Error(), http.StatusUnauthorized)
		case errors.Is(err, errForbidden):
			http.Error(w, err.Error(), http.StatusForbidden)
		case req.Context().Err() != nil: // the client has disconnected
		default:
			log.Error(err, "Authorizing a request for metrics failed")
			http.Error(w, "the API server did not authorize the request: see the operator's log", http.StatusInternalServerError)
		}
	}), nil
}

// check returns errUnknown, errForbidden, or the error of the request to the API server.
func (r *metricsReader) check(req *http.Request) error {
	how, token, _ := strings.Cut(req.Header.Get("Authorization"), " ")
	if !strings.EqualFold(how, "Bearer") || token == "" {
		return errUnknown
	}
	ctx, cancel := context.WithTimeout(req.Context(), reviewTimeout)
	defer cancel()
	select {
	case r.asking <- struct{}{}:
		defer func() { <-r.asking }()
	case <-ctx.Done():
		return ctx.Err()
	}
	who := &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token}}
	if err := r.client.Create(ctx, who); err != nil {
		return err
	}
	if !who.Status.Authenticated {
		return errUnknown
	}
	return r.authorize(ctx, who.Status.User, req.URL.Path)
}

func (r *metricsReader) authorize(ctx context.Context, user authenticationv1.UserInfo, path string) error {
	extra := map[string]authorizationv1.ExtraValue{}
	for key, values := range user.Extra {
		extra[key] = authorizationv1.ExtraValue(values)
	}
	may := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User: user.Username, UID: user.UID, Groups: user.Groups, Extra: extra,
		NonResourceAttributes: &authorizationv1.NonResourceAttributes{Path: path, Verb: "get"},
	}}
	if err := r.client.Create(ctx, may); err != nil {
		return err
	}
	if !may.Status.Allowed {
		return errForbidden
	}
	return nil
}
