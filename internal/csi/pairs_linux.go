package csi

import (
	"context"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/keyconvoy/keyconvoy/internal/fetch"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// readyPairs is how many key pairs are kept ready: more pods than usually start on a node at once.
const readyPairs = 64

// Pairs keeps key pairs ready, because the generation of an RSA key takes longer than the rest of a fetch. Each is used once.
// They are in memory only.
type Pairs struct {
	ready      chan *wrapping.PrivateKey
	generating chan struct{} // limits how many are generated for pods at the same time
}

// NewPairs returns Pairs, which Fill fills.
func NewPairs() *Pairs {
	return &Pairs{ready: make(chan *wrapping.PrivateKey, readyPairs), generating: make(chan struct{}, runtime.GOMAXPROCS(0))}
}

// lowestPriority is that of a thread that runs when no other one of the process wants to.
const lowestPriority = 19

// Fill generates key pairs until ctx ends, whenever there are fewer than there should be. It yields to what pods wait for.
func (p *Pairs) Fill(ctx context.Context) error {
	runtime.LockOSThread() // without an unlock: the thread ends with the goroutine
	if err := unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), lowestPriority); err != nil {
		return err
	}
	for ctx.Err() == nil {
		pair, err := fetch.Generate(ctx, wrapping.RSA2048)
		if err != nil {
			return err
		}
		select {
		case p.ready <- pair:
		case <-ctx.Done():
		}
	}
	return nil
}

// Take is a fetch.KeyPairs.
func (p *Pairs) Take(ctx context.Context, spec wrapping.KeySpec) (*wrapping.PrivateKey, error) {
	if spec == wrapping.ECSM2 { // takes less than a millisecond
		return fetch.Generate(ctx, spec)
	}
	var ready <-chan *wrapping.PrivateKey
	if spec == wrapping.RSA2048 {
		ready = p.ready
	}
	select {
	case pair := <-ready:
		return pair, nil
	default:
	}
	select {
	case pair := <-ready:
		return pair, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case p.generating <- struct{}{}:
		defer func() { <-p.generating }()
		return fetch.Generate(ctx, spec)
	}
}
