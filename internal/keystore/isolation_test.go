package keystore_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	clocktesting "k8s.io/utils/clock/testing"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/keystore"
)

// use returns the time that a call of Use took, and its error.
func use(lane *keystore.Lane, f func(keystore.Session) error) (time.Duration, error) {
	start := time.Now()
	err := lane.Use(context.Background(), "team-a", hsmRef, f)
	return time.Since(start), err
}

func nothing(keystore.Session) error { return nil }

// Half of a controller's workers may use one key store. A call waits a second for one of them; the next ones do not wait.
func TestUse_ofABusyStore_givesTheWorkerBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, _ := newRegistry(withStore())
		openIn(r)
		lane, end := r.Lane(4), make(chan struct{})
		for range 2 {
			go func() {
				_, _ = use(lane, func(keystore.Session) error { <-end; return nil })
			}()
		}
		synctest.Wait()
		for _, want := range []time.Duration{time.Second, 0, 0} {
			took, err := use(lane, nothing)
			if stateOf(t, err) != keystore.Busy || took != want {
				t.Errorf("after %s: %v; want Busy after %s", took, err, want)
			}
		}
		var busy *keystore.NotReadyError
		if _, err := use(lane, nothing); !errors.As(err, &busy) || busy.Settled() || busy.RetryAfter() != 2*time.Second {
			t.Errorf("a busy key store must be tried again in two seconds and needs no status: %v", err)
		}
		if took, err := use(r.Lane(4), nothing); took != 0 || err != nil {
			t.Errorf("another controller: %v after %s", err, took)
		}
		end <- struct{}{}
		synctest.Wait()
		if took, err := use(lane, nothing); took != 0 || err != nil {
			t.Errorf("after a call has ended: %v after %s", err, took)
		}
		close(end)
	})
}

// silent is a module that answers no call.
type silent struct{ *hsmtest.Recorder }

func (silent) Describe(context.Context) (hsm.Description, error) { return hsm.Description{}, nil }

func (silent) Close(context.Context) error { return nil }

func (silent) ListKeys(ctx context.Context) ([]hsm.Key, error) { return nil, answerNothing(ctx) }

func (silent) Check(ctx context.Context) error { return answerNothing(ctx) }

func answerNothing(ctx context.Context) error {
	<-ctx.Done()
	return hsm.Wrap(hsm.Unavailable, ctx.Err(), "the cryptographic module did not respond in time")
}

// A check ends after ten seconds, and with it the calls that wait for the module.
func TestCheck_ofASilentModule_endsTheCalls(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := keystore.New(withStore(), hsmtest.Provider(func(context.Context, hsm.Config) (hsm.Module, error) {
			return silent{hsmtest.Wrap(nil)}, nil
		}), clocktesting.NewFakePassiveClock(time.Unix(0, 0)))
		openIn(r)
		ended := make(chan time.Duration, 1)
		go func() {
			took, _ := use(r.Lane(16), func(ops keystore.Session) error {
				_, err := ops.MasterKeys(context.Background())
				return err
			})
			ended <- took
		}()
		synctest.Wait()
		if _, _, err := r.Check(context.Background(), id); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the check ends with %v", err)
		}
		if took := <-ended; took != 10*time.Second {
			t.Errorf("the call ends after %s", took)
		}
		if _, err := use(r.Lane(16), nothing); stateOf(t, err) != keystore.Failing {
			t.Errorf("the next call: %v", err)
		}
	})
}

// losable returns a registry, and what ends the process of the module that it opened last.
func losable() (r *keystore.Registry, lose func(*hsm.Error)) {
	var lost func(*hsm.Error)
	r = keystore.New(withStore(), hsmtest.Provider(func(_ context.Context, cfg hsm.Config) (hsm.Module, error) {
		lost = cfg.Lost
		return notClosable{hsmtest.Wrap(nil)}, nil
	}), clocktesting.NewFakePassiveClock(time.Unix(0, 0)))
	openIn(r)
	return r, func(failure *hsm.Error) { lost(failure) }
}

// A module whose process ended must be opened again, and its key store reports that once.
func TestOpen_moduleIsLost_mustBeOpenedAgain(t *testing.T) {
	t.Parallel()
	r, lose := losable()
	failure := hsm.Errorf(hsm.Unavailable, "the process was ended by signal SIGSEGV")
	lose(failure)
	if r.Config(id) != "" || r.Loss(id) != failure {
		t.Errorf("config %q, loss %v", r.Config(id), r.Loss(id))
	}
	if _, err := use(r.Lane(16), nothing); stateOf(t, err) != keystore.Failing {
		t.Errorf("it is used: %v", err)
	}
	r.Close(id)
	openIn(r)
	if _, err := use(r.Lane(16), nothing); err != nil || r.Config(id) != "config" || r.Loss(id) != failure {
		t.Errorf("opened again: %v, config %q, loss %v", err, r.Config(id), r.Loss(id))
	}
	r.Reported(id, failure)
	if r.Loss(id) != nil {
		t.Error("it is reported twice")
	}
}

// The end of a process costs no key store whose module was closed before.
func TestClose_moduleIsLostAfterwards_isNotReported(t *testing.T) {
	t.Parallel()
	r, lose := losable()
	r.Close(id)
	lose(hsm.Errorf(hsm.Unavailable, "the process ended"))
	if r.Loss(id) != nil {
		t.Error("it is reported")
	}
}
