package main

import (
	"context"

	"golang.org/x/sync/errgroup"
)

// forEach calls a function n times, with the given concurrency, and stops at the first error.
func forEach(ctx context.Context, n, concurrency int, do func(ctx context.Context, i int) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(concurrency)
	for i := range n {
		if ctx.Err() != nil {
			break
		}
		group.Go(func() error { return do(ctx, i) })
	}
	return group.Wait()
}
