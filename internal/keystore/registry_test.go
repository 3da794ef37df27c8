package keystore_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/workqueue"
	clocktesting "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/keystore"
	"github.com/keyconvoy/keyconvoy/internal/kms"
)

var hsmRef = v1alpha1.KeyStoreReference{Kind: keystore.KindKeyStore, Name: "hsm"}

// id is the key store that hsmRef names from the namespace team-a.
var id = keystore.IDOf("team-a", hsmRef)

// cluster is a cache with one key store, or none.
type cluster struct {
	store *v1alpha1.KeyStore
}

func (c cluster) Get(_ context.Context, key client.ObjectKey, into client.Object, _ ...client.GetOption) error {
	store, ok := into.(*v1alpha1.KeyStore)
	if !ok || c.store == nil || client.ObjectKeyFromObject(c.store) != key {
		return apierrors.NewNotFound(v1alpha1.GroupVersion.WithResource("keystores").GroupResource(), key.Name)
	}
	c.store.DeepCopyInto(store)
	return nil
}

func (c cluster) List(context.Context, client.ObjectList, ...client.ListOption) error {
	return errors.New("the registry lists nothing")
}

func withStore() cluster {
	return cluster{&v1alpha1.KeyStore{ObjectMeta: metav1.ObjectMeta{Namespace: "team-a", Name: "hsm"}}}
}

// newRegistry returns a registry whose modules fail every call that a test does not allow, and the last one opened.
func newRegistry(c cluster) (*keystore.Registry, *hsmtest.Recorder) {
	recorder := hsmtest.Wrap(nil)
	recorder.FailAll("Check", hsm.Errorf(hsm.Unavailable, "the device does not answer"))
	open := hsmtest.Provider(func(context.Context, hsm.Config) (hsm.Module, error) { return notClosable{recorder}, nil })
	return keystore.New(c, open, clocktesting.NewFakePassiveClock(time.Unix(0, 0))), recorder
}

// notClosable is a module whose Close calls no other module.
type notClosable struct{ *hsmtest.Recorder }

func (notClosable) Close(context.Context) error { return nil }

func (notClosable) Describe(context.Context) (hsm.Description, error) { return hsm.Description{}, nil }

func accepted(hsm.Description) error { return nil }

func stateOf(t *testing.T, err error) keystore.State {
	t.Helper()
	var notReady *keystore.NotReadyError
	if !errors.As(err, &notReady) {
		t.Fatalf("the error is %v", err)
	}
	return notReady.State
}

func TestUse_ofAStoreThatIsNotReady_saysItsState(t *testing.T) {
	t.Parallel()
	deleting := withStore()
	deleting.store.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)}
	for name, c := range map[string]struct {
		cluster cluster
		prepare func(*keystore.Registry)
		want    keystore.State
	}{
		"it does not exist":                {cluster{}, func(*keystore.Registry) {}, keystore.Absent},
		"it was not looked at yet":         {withStore(), func(*keystore.Registry) {}, keystore.Opening},
		"its module did not open":          {withStore(), func(r *keystore.Registry) { r.MarkTried(id) }, keystore.Failing},
		"it is being deleted":              {deleting, func(r *keystore.Registry) { openIn(r) }, keystore.Deleting},
		"its PIN was taken away":           {withStore(), func(r *keystore.Registry) { openIn(r); r.Withdraw(id) }, keystore.Failing},
		"its module was closed":            {withStore(), func(r *keystore.Registry) { openIn(r); r.Close(id) }, keystore.Failing},
		"its module failed the last check": {withStore(), func(r *keystore.Registry) { openIn(r); _, _, _ = r.Check(context.Background(), id) }, keystore.Failing},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, _ := newRegistry(c.cluster)
			c.prepare(r)
			err := r.Lane(16).Use(t.Context(), "team-a", hsmRef, func(keystore.Session) error {
				t.Error("it was used")
				return nil
			})
			if got := stateOf(t, err); got != c.want {
				t.Errorf("the state is %s, want %s", got, c.want)
			}
		})
	}
}

func openIn(r *keystore.Registry) {
	r.MarkTried(id)
	if err := r.Open(context.Background(), id, "config", hsm.Config{}, accepted); err != nil {
		panic(err)
	}
}

// A key store is opened on another token while a call uses the former one: the call is still in the former.
func TestUse_whileTheStoreIsOpenedOnAnotherToken_keepsItsOwn(t *testing.T) {
	t.Parallel()
	serial := "1"
	r := keystore.New(withStore(), hsmtest.Provider(func(context.Context, hsm.Config) (hsm.Module, error) {
		return onToken{hsmtest.Wrap(nil), serial}, nil
	}), clocktesting.NewFakePassiveClock(time.Unix(0, 0)))
	openIn(r)
	err := r.Lane(16).Use(t.Context(), "team-a", hsmRef, func(former keystore.Session) error {
		r.Close(id)
		serial = "2"
		openIn(r)
		if now := r.Token(id); former.Token != "//1" || now != "//2" {
			t.Errorf("the call is in %q, and the key store has %q open", former.Token, now)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

type onToken struct {
	*hsmtest.Recorder
	serial string
}

func (m onToken) Describe(context.Context) (hsm.Description, error) {
	return hsm.Description{Info: hsm.Info{Serial: m.serial}}, nil
}

func (onToken) Close(context.Context) error { return nil }

// A module can be cleaned up while its key store is being deleted, or after its PIN was removed.
func TestCleanUp_worksInAStoreThatIsWithdrawnOrDeleted(t *testing.T) {
	t.Parallel()
	c := withStore()
	c.store.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)}
	r, _ := newRegistry(c)
	openIn(r)
	r.Withdraw(id)
	called := false
	if err := r.Lane(16).CleanUp(t.Context(), id, func(keystore.Session) error { called = true; return nil }); err != nil || !called {
		t.Errorf("called: %t, error: %v", called, err)
	}
}

// A module that was refused is closed and never used.
func TestOpen_ofAModuleThatIsRefused_leavesNothingOpen(t *testing.T) {
	t.Parallel()
	var closed atomic.Bool
	r := keystore.New(withStore(), hsmtest.Provider(func(context.Context, hsm.Config) (hsm.Module, error) {
		return closing{hsmtest.Wrap(nil), &closed}, nil
	}), clocktesting.NewFakePassiveClock(time.Unix(0, 0)))
	refused := errors.New("it does not protect its keys")
	if err := r.Open(t.Context(), id, "config", hsm.Config{}, func(hsm.Description) error { return refused }); !errors.Is(err, refused) {
		t.Errorf("the error is %v", err)
	}
	if r.Config(id) != "" || !closed.Load() {
		t.Errorf("config %q, closed: %t", r.Config(id), closed.Load())
	}
}

type closing struct {
	*hsmtest.Recorder
	closed *atomic.Bool
}

func (closing) Describe(context.Context) (hsm.Description, error) { return hsm.Description{}, nil }

func (c closing) Close(context.Context) error {
	c.closed.Store(true)
	return nil
}

// A module is closed when its last call ends, and Close does not wait for that.
func TestClose_whileACallIsInTheModule_closesAfterIt(t *testing.T) {
	t.Parallel()
	var closed atomic.Bool
	r := keystore.New(withStore(), hsmtest.Provider(func(context.Context, hsm.Config) (hsm.Module, error) {
		return closing{hsmtest.Wrap(nil), &closed}, nil
	}), clocktesting.NewFakePassiveClock(time.Unix(0, 0)))
	openIn(r)
	err := r.Lane(16).Use(t.Context(), "team-a", hsmRef, func(keystore.Session) error {
		r.Close(id)
		if closed.Load() {
			t.Error("the module was closed during a call")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, closed.Load)
}

// A call that finds the module unavailable has its key store checked, once until the check.
func TestChanges_reportSuspectsOnce_andAnnouncements(t *testing.T) {
	t.Parallel()
	r, recorder := newRegistry(withStore())
	changes := make(chan keystore.Change, 8)
	queue := workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[reconcile.Request]())
	defer queue.ShutDown()
	source := r.Changes(func(_ context.Context, c keystore.Change) []reconcile.Request {
		changes <- c
		return nil
	})
	if err := source.Start(t.Context(), queue); err != nil {
		t.Fatal(err)
	}
	openIn(r)
	recorder.FailAll("ListKeys", hsm.Errorf(hsm.Unavailable, "the device does not answer"))
	for range 2 {
		err := r.Lane(16).Use(t.Context(), "team-a", hsmRef, func(ops keystore.Session) error {
			_, err := ops.MasterKeys(t.Context())
			return err
		})
		if kms.CodeOf(err) != kms.ServiceUnavailableTemporary {
			t.Fatalf("the error is %v", err)
		}
	}
	r.Announce(t.Context(), id, keystore.Ready)
	for _, want := range []keystore.State{keystore.Suspect, keystore.Ready} {
		if got := <-changes; got != (keystore.Change{ID: id, State: want}) {
			t.Errorf("the change is %v, want %s", got, want)
		}
	}
}

func TestCheck_afterAFailedOne_saysSo(t *testing.T) {
	t.Parallel()
	r, _ := newRegistry(withStore())
	openIn(r)
	if _, before, err := r.Check(t.Context(), id); before || err == nil {
		t.Errorf("failed before: %t, error: %v", before, err)
	}
	if _, before, err := r.Check(t.Context(), id); !before || err == nil {
		t.Errorf("failed before: %t, error: %v", before, err)
	}
	if _, _, err := r.Check(t.Context(), keystore.ID{Kind: keystore.KindKeyStore, Namespace: "team-a", Name: "other"}); kms.CodeOf(err) != kms.ServiceUnavailableTemporary {
		t.Errorf("a key store without a module: %v", err)
	}
}

// A wrong result makes all since the last good check suspect, until that is reported, and the module must be opened again.
func TestCheck_wrongResult_saysSinceWhen(t *testing.T) {
	t.Parallel()
	clock := clocktesting.NewFakePassiveClock(time.Unix(100, 0))
	recorder := hsmtest.Wrap(works{})
	recorder.Before("Check", func() { clock.SetTime(clock.Now().Add(time.Second)) }) // it takes a while
	r := keystore.New(withStore(), hsmtest.Provider(func(context.Context, hsm.Config) (hsm.Module, error) { return notClosable{recorder}, nil }), clock)
	openIn(r)
	if got := r.Right(id); !got.Equal(time.Unix(100, 0)) {
		t.Errorf("after the opening, results are right since %v", got)
	}
	for _, kind := range []hsm.Kind{"", hsm.Unavailable, hsm.WrongResult} {
		var err error
		if kind != "" {
			err = hsm.Errorf(kind, "")
		}
		recorder.FailAll("Check", err)
		clock.SetTime(clock.Now().Add(time.Minute))
		_, _, _ = r.Check(t.Context(), id)
		if since := r.WrongSince(id); since.IsZero() != (kind != hsm.WrongResult) {
			t.Errorf("after %q, results are wrong since %v", kind, since)
		}
	}
	if since := r.WrongSince(id); !since.Equal(time.Unix(160, 0)) || !r.Right(id).Equal(since) {
		t.Errorf("results are wrong since %v, want the begin of the only good check", since)
	}
	if r.Config(id) != "" {
		t.Error("the module need not be opened again")
	}
	r.Close(id)
	openIn(r)
	_, _, _ = r.Check(t.Context(), id)
	if since := r.WrongSince(id); !since.Equal(time.Unix(160, 0)) {
		t.Errorf("after another wrong result, which was not reported either, results are wrong since %v", since)
	}
	if r.WrongReported(id); !r.WrongSince(id).IsZero() {
		t.Error("a wrong result is reported again")
	}
}

// works is a module that passes its checks.
type works struct{ hsm.Module }

func (works) Check(context.Context) error { return nil }

// capable is a module with these capabilities, whose checks end with an error.
type capable struct {
	hsm.Module
	can   []hsm.Capability
	check error
}

func (c *capable) Check(context.Context) error { return c.check }

func (c *capable) Close(context.Context) error { return nil }

func (c *capable) Describe(context.Context) (hsm.Description, error) {
	return hsm.Description{Capabilities: slices.Clone(c.can)}, nil
}

// While the fault lasts, the self-test finds that a module supports less. It must not be used with less custody.
func TestOpen_afterAWrongResult_refusesAModuleThatSupportsLess(t *testing.T) {
	t.Parallel()
	inside := hsm.Capability{Operation: hsm.OperationExport, Algorithm: "RSAES_OAEP_SHA_1", Custody: hsm.CustodyModule}
	outside := inside
	outside.Custody = hsm.CustodyHost
	var module *capable
	r := keystore.New(withStore(), hsmtest.Provider(func(context.Context, hsm.Config) (hsm.Module, error) { return module, nil }),
		clocktesting.NewFakePassiveClock(time.Unix(0, 0)))
	open := func(config string, can ...hsm.Capability) error {
		r.Close(id)
		module = &capable{can: can}
		return r.Open(t.Context(), id, config, hsm.Config{}, accepted)
	}
	if err := errors.Join(open("config", outside), open("config", inside), open("config", outside), open("config", inside)); err != nil {
		t.Fatalf("without a wrong result: %v", err)
	}
	module.check = hsm.Errorf(hsm.WrongResult, "")
	_, _, _ = r.Check(t.Context(), id)
	detail := hsmtest.WantKind(t, open("config", outside), hsm.WrongResult, "Open of a module that supports less")
	if !strings.Contains(detail, "Export RSAES_OAEP_SHA_1 with custody Module") {
		t.Errorf("%q does not name the capability", detail)
	}
	if r.Config(id) != "" {
		t.Error("the module is used")
	}
	if err := open("another", outside); err != nil {
		t.Errorf("with another configuration: %v", err)
	}
	if err := open("config", inside, outside); err != nil {
		t.Errorf("a module that supports more: %v", err)
	}
	if _, _, err := r.Check(t.Context(), id); err != nil {
		t.Error(err)
	}
	if err := open("config", outside); err != nil {
		t.Errorf("after a check that found right results: %v", err)
	}
}

// A module that hangs does not keep the operator from ending.
func TestCloseAll_withACallThatHangs_endsWithItsContext(t *testing.T) {
	t.Parallel()
	r, _ := newRegistry(withStore())
	openIn(r)
	end := make(chan struct{})
	inside := make(chan struct{})
	go func() {
		_ = r.Lane(16).Use(context.Background(), "team-a", hsmRef, func(keystore.Session) error {
			close(inside)
			<-end
			return nil
		})
	}()
	<-inside
	defer close(end)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r.CloseAll(ctx)
}

func waitFor(t *testing.T, done func() bool) {
	t.Helper()
	for range time.Tick(time.Millisecond) {
		if done() {
			return
		}
		if t.Context().Err() != nil {
			t.Fatal("it never happened")
		}
	}
}
