package kms

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

const (
	// readyPairs is how many pairs of each type are kept ready.
	readyPairs = 2
	// readyTime is how long a pair is kept ready. After that, an import token could not last for TokenLifetime.
	readyTime = 24 * time.Hour
	// maxLeftPairs is how many ready pairs of other processes a module may have. With more, no pair is made: processes that end again
	// and again must not fill a token.
	maxLeftPairs = 32
	// retryTime is how long a pair is kept for a caller that did not wait for it.
	retryTime = 5 * time.Minute
	// generationTime bounds the generation of a pair whose caller may no longer wait for it.
	generationTime = time.Minute
	// maxGenerations and maxNamespaceGenerations bound the generations that callers asked for, at a time.
	maxGenerations          = 16
	maxNamespaceGenerations = 4
)

// stockOwner is the owner of the pairs that are kept ready. It is no key: the UIDs of objects are UUIDs of version 4.
var stockOwner = uuid.MustParse("8b0b7f0e-53a5-5c1e-9d5e-2f6d1b7c4a90")

// Stock keeps import key pairs of one module ready, because some clients do not wait until an RSA key pair is generated.
//
// A pair is given out once: two keys with one pair would let the owner of one import material that was wrapped for the other.
// Therefore a process never gives out the pairs of another one. They expire, as all pairs do.
type Stock struct {
	mu      sync.Mutex
	asked   map[wrapping.KeySpec]bool
	ready   []readyPair
	given   map[uuid.UUID]givenPair // by the pair
	running map[generation]*running
	filling bool
	closed  bool
}

// readyPair is a pair that has not been given out.
type readyPair struct {
	hsm.WrappingKey

	key   uuid.UUID // for which it was generated; uuid.Nil for any key
	until time.Time // when it is too old to be given out
}

// givenPair is who has a pair of the stock. The module does not know it.
type givenPair struct {
	key       uuid.UUID
	namespace string
	notAfter  time.Time
}

// generation is what callers wait for.
type generation struct {
	key       uuid.UUID
	namespace string
	spec      wrapping.KeySpec
}

// running is a generation in progress. err is set before done is closed.
type running struct {
	done chan struct{}
	err  error
}

// NewStock returns an empty stock.
func NewStock() *Stock {
	return &Stock{asked: map[wrapping.KeySpec]bool{}, given: map[uuid.UUID]givenPair{}, running: map[generation]*running{}}
}

// stocks reports whether there is a stock of pairs of a type. Those of SM2 are generated in no time.
func (o Operations) stocks(spec wrapping.KeySpec) bool {
	return o.Stock != nil && spec != wrapping.ECSM2
}

// stockedPair returns a pair that is ready, or waits until one is generated. If the caller does not wait, the pair is kept for the
// same key: the caller will ask again.
func (o Operations) stockedPair(ctx context.Context, req ImportParametersRequest) (hsm.WrappingKey, time.Time, error) {
	for {
		now := o.now()
		if taken, ok := o.Stock.take(req, now); ok {
			others, exists, err := o.makeRoom(ctx, hsm.WrappingKeyRequest{ID: taken.ID, Owner: req.Key.ID, Namespace: req.Key.Namespace})
			if err != nil {
				o.Stock.put(taken)
				return hsm.WrappingKey{}, others, err
			}
			if !exists { // someone emptied the token
				continue
			}
			pair := taken.WrappingKey
			pair.NotAfter = earlier(pair.NotAfter, lifetimeFrom(now))
			return pair, others, nil
		}
		if err := o.generatePair(ctx, req); err != nil {
			return hsm.WrappingKey{}, time.Time{}, err
		}
	}
}

// lifetimeFrom returns when what is issued now expires.
func lifetimeFrom(now time.Time) time.Time { return now.Add(TokenLifetime).UTC().Truncate(time.Second) }

// generatePair puts a new pair for a key into the stock. A caller that asks again waits for the generation that it began before.
// Errors: Rejected.Throttling, those of the module, and ServiceUnavailableTemporary if the context ends.
func (o Operations) generatePair(ctx context.Context, req ImportParametersRequest) error {
	s := o.Stock
	is, err := s.start(generation{req.Key.ID, req.Key.Namespace, req.WrappingKeySpec}, func() (readyPair, error) {
		detached, cancel := context.WithTimeout(context.WithoutCancel(ctx), generationTime)
		defer cancel()
		now := o.now()
		want := hsm.WrappingKeyRequest{
			ID: uuid.New(), Owner: req.Key.ID, Namespace: req.Key.Namespace, Spec: req.WrappingKeySpec, NotAfter: lifetimeFrom(now),
		}
		if _, _, err := o.makeRoom(detached, want); err != nil {
			return readyPair{}, err
		}
		pair, err := o.Module.CreateWrappingKey(detached, want)
		return readyPair{pair, req.Key.ID, o.now().Add(retryTime)}, FromModule(err)
	})
	if err != nil {
		return err
	}
	select {
	case <-is.done:
		return is.err
	case <-ctx.Done():
		return &Error{Code: ServiceUnavailableTemporary, Err: ctx.Err(), Detail: "The module is generating an import key pair. Retry: the next request gets it."}
	}
}

// start begins a generation, or returns the one in progress. It ends although its caller does not wait.
func (s *Stock) start(g generation, create func() (readyPair, error)) (*running, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if is := s.running[g]; is != nil {
		return is, nil
	}
	ofNamespace := 0
	for other := range s.running {
		if other.namespace == g.namespace {
			ofNamespace++
		}
	}
	if len(s.running) >= maxGenerations || ofNamespace >= maxNamespaceGenerations {
		return nil, &Error{Code: RejectedThrottling, Detail: "The module is generating as many import key pairs as it may at a time. Retry with backoff."}
	}
	is := &running{done: make(chan struct{})}
	s.running[g] = is
	go func() {
		pair, err := create()
		s.mu.Lock()
		defer s.mu.Unlock()
		if is.err = err; err == nil && !s.closed {
			s.ready = append(s.ready, pair)
		}
		delete(s.running, g)
		close(is.done)
	}()
	return is, nil
}

// take gives out a pair: one that was generated for the key, or one for any key.
func (s *Stock) take(req ImportParametersRequest, now time.Time) (readyPair, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked[req.WrappingKeySpec] = true
	best := -1
	for i, pair := range s.ready {
		if pair.Spec != req.WrappingKeySpec || !now.Before(pair.until) {
			continue
		}
		if pair.key == req.Key.ID {
			best = i
			break
		}
		if pair.key == uuid.Nil && best < 0 {
			best = i
		}
	}
	if best < 0 {
		return readyPair{}, false
	}
	pair := s.ready[best]
	s.ready = slices.Delete(s.ready, best, best+1)
	for id, other := range s.given {
		if !now.Before(other.notAfter) {
			delete(s.given, id)
		}
	}
	s.given[pair.ID] = givenPair{req.Key.ID, req.Key.Namespace, pair.NotAfter}
	return pair, true
}

// put adds a pair that has not been given out.
func (s *Stock) put(pair readyPair) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.given, pair.ID)
	s.ready = append(s.ready, pair)
}

// attributed returns a pair from a list of the module with the owner to which it was given.
func (s *Stock) attributed(pair hsm.WrappingKey) hsm.WrappingKey {
	if s == nil {
		return pair
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if given, ok := s.given[pair.ID]; ok {
		pair.Owner, pair.Namespace = given.key, given.namespace
	}
	return pair
}

// FillStock makes pairs of the types that were asked for, and of those of specs, until as many are ready as should be. It does nothing
// without a stock, and while another call fills it.
func (o Operations) FillStock(ctx context.Context, specs ...wrapping.KeySpec) error {
	if o.Stock == nil || !o.Stock.beginFilling(specs) {
		return nil
	}
	err := o.fill(ctx)
	o.Stock.endFilling()
	return err
}

func (o Operations) fill(ctx context.Context) error {
	for _, pair := range o.Stock.takeOld(o.now()) {
		if err := o.Module.DestroyWrappingKey(ctx, pair.ID); err != nil {
			return FromModule(err)
		}
	}
	if o.Stock.lacks() == "" {
		return nil
	}
	if full, err := o.hasLeftPairs(ctx); err != nil || full {
		return err
	}
	for spec := o.Stock.lacks(); spec != ""; spec = o.Stock.lacks() {
		until := o.now().Add(readyTime)
		pair, err := o.Module.CreateWrappingKey(ctx, hsm.WrappingKeyRequest{
			ID: uuid.New(), Owner: stockOwner, Spec: spec, NotAfter: lifetimeFrom(until).Add(time.Second),
		})
		if err != nil {
			return FromModule(err)
		}
		o.Stock.put(readyPair{WrappingKey: pair, until: until})
	}
	return nil
}

// hasLeftPairs reports whether the module has so many ready pairs of other processes that no more are made.
func (o Operations) hasLeftPairs(ctx context.Context) (bool, error) {
	pairs, err := o.Module.ListWrappingKeys(ctx)
	if err != nil {
		return false, FromModule(err)
	}
	now, left := o.now(), 0
	for _, pair := range pairs {
		if pair.Owner == stockOwner && now.Before(pair.NotAfter) && !o.Stock.knows(pair.ID) {
			left++
		}
	}
	return left > maxLeftPairs, nil
}

// knows reports whether a pair is ready, or was given out.
func (s *Stock) knows(id uuid.UUID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, given := s.given[id]
	return given || slices.ContainsFunc(s.ready, func(pair readyPair) bool { return pair.ID == id })
}

// beginFilling reports whether no other call fills the stock.
func (s *Stock) beginFilling(specs []wrapping.KeySpec) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, spec := range specs {
		s.asked[spec] = true
	}
	if s.filling || s.closed {
		return false
	}
	s.filling = true
	return true
}

func (s *Stock) endFilling() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.filling = false
}

// lacks returns a type of which too few pairs are ready, "" for none.
func (s *Stock) lacks() wrapping.KeySpec {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ""
	}
	ready := map[wrapping.KeySpec]int{}
	for _, pair := range s.ready {
		if pair.key == uuid.Nil {
			ready[pair.Spec]++
		}
	}
	lacking := wrapping.KeySpec("")
	for spec := range s.asked {
		if ready[spec] < readyPairs && (lacking == "" || cmp.Or(cmp.Compare(ready[spec], ready[lacking]), cmp.Compare(spec, lacking)) < 0) {
			lacking = spec
		}
	}
	return lacking
}

// takeOld removes the pairs that are too old to be given out.
func (s *Stock) takeOld(now time.Time) (old []readyPair) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ready = slices.DeleteFunc(s.ready, func(pair readyPair) bool {
		if now.Before(pair.until) {
			return false
		}
		old = append(old, pair)
		return true
	})
	return old
}

// Discard destroys the pairs that are ready, before their module is closed. Those that it cannot destroy expire.
func (s *Stock) Discard(ctx context.Context, module hsm.Keys) {
	s.mu.Lock()
	ready := s.ready
	s.ready, s.closed = nil, true
	s.mu.Unlock()
	for _, pair := range ready {
		if module.DestroyWrappingKey(ctx, pair.ID) != nil {
			return
		}
	}
}
