package wire

import (
	"hash/maphash"
	"sync"
	"time"
)

const (
	// maxNonces bounds the nonces that are remembered for one access key: it may send so many requests in 15 minutes.
	maxNonces = 1 << 20
	// noncePeriod is how long the nonces of a set are collected. A set is forgotten as a whole.
	noncePeriod = time.Minute
)

// nonces remembers the nonces of requests, by access key, until the requests would be refused for their time anyway. It has
// keyed hashes of 64 bits: a million of them collide with a probability of 1 in 37 million.
type nonces struct {
	seed maphash.Seed

	mu   sync.Mutex
	byID map[string]*nonceSets
}

// nonceSets are the nonces of an access key, by the period in which they may be forgotten.
type nonceSets struct {
	sets  map[int64]map[uint64]struct{}
	count int
}

func newNonces() *nonces { return &nonces{seed: maphash.MakeSeed(), byID: map[string]*nonceSets{}} }

// use records a nonce until a time. It fails if the nonce was used, or if there are too many.
func (n *nonces) use(id, nonce string, now, until time.Time) error {
	hashed := maphash.String(n.seed, nonce)
	n.mu.Lock()
	defer n.mu.Unlock()
	own := n.byID[id]
	if own == nil {
		n.forget(now)
		own = &nonceSets{sets: map[int64]map[uint64]struct{}{}}
		n.byID[id] = own
	}
	own.forget(now)
	for _, set := range own.sets {
		if _, used := set[hashed]; used {
			return &Error{Code: NonceUsed}
		}
	}
	if own.count >= maxNonces {
		return throttled("The access key has sent too many requests in 15 minutes.")
	}
	period := periodOf(until) + 1
	if own.sets[period] == nil {
		own.sets[period] = map[uint64]struct{}{}
	}
	own.sets[period][hashed] = struct{}{}
	own.count++
	return nil
}

func periodOf(at time.Time) int64 { return at.Unix() / int64(noncePeriod/time.Second) }

// forget removes the access keys that have sent nothing for a while.
func (n *nonces) forget(now time.Time) {
	for id, own := range n.byID {
		if own.forget(now); own.count == 0 {
			delete(n.byID, id)
		}
	}
}

func (s *nonceSets) forget(now time.Time) {
	for period, set := range s.sets {
		if period < periodOf(now) {
			s.count -= len(set)
			delete(s.sets, period)
		}
	}
}
