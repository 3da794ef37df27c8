package gateway

import (
	"context"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/keystore"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

const (
	// maxFills is how many key stores are filled at a time. Generating pairs in software takes processor time from requests.
	maxFills = 8
	// fillTime bounds the filling of one key store.
	fillTime = time.Minute
)

// filler keeps import key pairs ready in the key stores in which they are asked for. The next request tries again what failed.
type filler struct {
	ctx   context.Context //nolint:containedctx // of the gateway: filling lasts longer than the request
	lane  *keystore.Lane
	fills chan struct{}
}

func newFiller(ctx context.Context, registry *keystore.Registry) *filler {
	return &filler{ctx: ctx, lane: registry.Lane(maxFills), fills: make(chan struct{}, maxFills)}
}

// fill fills a key store in the background, with pairs of the types that were asked for there, and of specs.
func (f *filler) fill(namespace string, store v1alpha1.KeyStoreReference, specs ...wrapping.KeySpec) {
	select {
	case f.fills <- struct{}{}:
	default:
		return
	}
	go func() {
		defer func() { <-f.fills }()
		ctx, cancel := context.WithTimeout(f.ctx, fillTime)
		defer cancel()
		err := f.lane.Use(ctx, namespace, store, func(ops keystore.Session) error { return ops.FillStock(ctx, specs...) })
		if err != nil && f.ctx.Err() == nil {
			log.FromContext(f.ctx).Info("No import key pairs could be generated in advance", "keyStore", keystore.IDOf(namespace, store).String(), "error", err.Error())
		}
	}()
}
