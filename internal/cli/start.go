package cli

import (
	"context"
	"errors"

	ctrl "sigs.k8s.io/controller-runtime"
)

// cachesFilled is part of a manager and knows whether its caches are filled, because the manager starts it afterwards.
type cachesFilled struct{ done chan struct{} }

func newCachesFilled() *cachesFilled { return &cachesFilled{make(chan struct{})} }

// Start implements manager.Runnable.
func (f *cachesFilled) Start(ctx context.Context) error {
	close(f.done)
	<-ctx.Done()
	return nil
}

// NeedLeaderElection implements manager.LeaderElectionRunnable: the caches of each replica are filled.
func (f *cachesFilled) NeedLeaderElection() bool { return false }

// check returns an error while the caches are not filled.
func (f *cachesFilled) check() error {
	select {
	case <-f.done:
		return nil
	default:
		return errors.New("the caches are not filled yet")
	}
}

// run runs the manager until ctx ends. The manager of controller-runtime 0.25 does not end while its caches are not filled, for
// example because a permission is missing: it waits for them in a loop that occupies a processor. Nothing that must be completed
// has begun by then, so run does not wait for it.
func (f *cachesFilled) run(ctx context.Context, mgr ctrl.Manager) error {
	ended := make(chan error, 1)
	go func() { ended <- mgr.Start(ctx) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	if f.check() != nil {
		return nil //nolint:nilerr // it is no failure to be stopped early
	}
	return <-ended
}
