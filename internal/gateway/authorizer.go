package gateway

import (
	"context"
	"sync"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
)

const (
	// decisionLifetime is how long a decision of the API server's authorizer is used.
	decisionLifetime = 10 * time.Second
	// maxDecisions bounds the decisions in memory.
	maxDecisions = 50_000
	// reviewTime bounds one question to the API server.
	reviewTime = 3 * time.Second
)

// account is a ServiceAccount. Another one with the name has another UID.
type account struct{ namespace, name, uid string }

// access is what an account wants to do.
type access struct {
	account

	verb, resource  string
	namespace, name string // of the object; name is empty for all
}

// authorizer asks the API server's authorizer, as other front doors do.
type authorizer struct {
	api   client.Client // not cached
	clock clock.PassiveClock

	mu        sync.Mutex
	decisions map[access]decision
	accounts  map[account]decision
}

type decision struct {
	allowed bool
	until   time.Time
}

func newAuthorizer(api client.Client, c clock.PassiveClock) *authorizer {
	return &authorizer{api: api, clock: c, decisions: map[access]decision{}, accounts: map[account]decision{}}
}

// may reports whether an account may do something. An account that does not exist may do nothing, whatever is bound to its name.
func (a *authorizer) may(ctx context.Context, want access) (bool, error) {
	exists, err := remembered(a, a.accounts, want.account, func() (bool, error) { return a.exists(ctx, want.account) })
	if err != nil || !exists {
		return false, err
	}
	return remembered(a, a.decisions, want, func() (bool, error) { return a.review(ctx, want) })
}

// remembered returns a decision that is not too old, or asks.
func remembered[K comparable](a *authorizer, in map[K]decision, key K, ask func() (bool, error)) (bool, error) {
	now := a.clock.Now()
	a.mu.Lock()
	known, ok := in[key]
	a.mu.Unlock()
	if ok && now.Before(known.until) {
		return known.allowed, nil
	}
	allowed, err := ask()
	if err != nil {
		return false, unavailable(err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(in) >= maxDecisions {
		for old, d := range in {
			if !now.Before(d.until) || len(in) >= maxDecisions {
				delete(in, old)
			}
		}
	}
	in[key] = decision{allowed, now.Add(decisionLifetime)}
	return allowed, nil
}

func (a *authorizer) exists(ctx context.Context, who account) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, reviewTime)
	defer cancel()
	m := &metav1.PartialObjectMetadata{}
	m.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("ServiceAccount"))
	err := a.api.Get(ctx, client.ObjectKey{Namespace: who.namespace, Name: who.name}, m)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	return err == nil && m.DeletionTimestamp.IsZero() && string(m.UID) == who.uid, err
}

func (a *authorizer) review(ctx context.Context, want access) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, reviewTime)
	defer cancel()
	review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User:   "system:serviceaccount:" + want.account.namespace + ":" + want.account.name,
		UID:    want.account.uid,
		Groups: []string{"system:serviceaccounts", "system:serviceaccounts:" + want.account.namespace, "system:authenticated"},
		ResourceAttributes: &authorizationv1.ResourceAttributes{
			Namespace: want.namespace, Name: want.name, Verb: want.verb, Resource: want.resource,
			Group: v1alpha1.GroupVersion.Group, Version: v1alpha1.GroupVersion.Version,
		},
	}}
	err := a.api.Create(ctx, review)
	return err == nil && review.Status.Allowed, err
}
