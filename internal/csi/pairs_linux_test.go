package csi_test

import (
	"context"
	"testing"

	"github.com/keyconvoy/keyconvoy/internal/csi"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

func TestPairs_areUsedOnce(t *testing.T) {
	t.Parallel()
	pairs := csi.NewPairs()
	ctx, cancel := context.WithCancel(t.Context())
	filled := make(chan error)
	go func() { filled <- pairs.Fill(ctx) }()
	seen := map[string]bool{}
	for _, spec := range []wrapping.KeySpec{wrapping.RSA2048, wrapping.RSA2048, wrapping.RSA2048, wrapping.RSA3072, wrapping.ECSM2, wrapping.ECSM2} {
		pair, err := pairs.Take(t.Context(), spec)
		if err != nil {
			t.Fatal(err)
		}
		if pair.Public().Spec() != spec || seen[pair.Public().Fingerprint()] {
			t.Errorf("the pair is of type %s, or was used before", pair.Public().Spec())
		}
		seen[pair.Public().Fingerprint()] = true
	}
	cancel()
	if err := <-filled; err != nil {
		t.Error(err)
	}
	if _, err := pairs.Take(ctx, "RSA_1024"); err == nil {
		t.Error("there is a pair of an unknown type")
	}
}
