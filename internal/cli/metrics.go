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
	// reviewTimeout bounds one question to the API server.
	reviewTimeout = 10 * time.Second
	// reviewsAtOnce bounds how much of the API server's patience strangers can use up in the operator's name.
	reviewsAtOnce = 2
)

// metricsReader lets those read the metrics whom the API server knows by their token, and allows "get" on the
// path: RBAC with nonResourceURLs. It asks each time, which costs a scraper two requests a scrape.
//
// The filter that comes with controller-runtime does the same with the API server's own library, which makes the
// binary a quarter larger, and the process with it.
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

// The answers to those who may not.
var (
	errUnknown   = errors.New("show a token of an account that the cluster knows (Authorization: Bearer)")
	errForbidden = errors.New(`the account may not "get" this path: bind it to the role metrics-reader`)
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
		case req.Context().Err() != nil: // whoever asked has gone
		default:
			log.Error(err, "Asking the API server who reads the metrics")
			http.Error(w, "the API server does not say whether you may", http.StatusInternalServerError)
		}
	}), nil
}

// check returns errUnknown, errForbidden, or why the API server could not be asked.
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
