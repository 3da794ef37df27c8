package hsm_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
)

func TestKindOf(t *testing.T) {
	t.Parallel()
	for sentence, tc := range map[string]struct {
		err  error
		want hsm.Kind
	}{
		"no error":             {nil, ""},
		"an *Error":            {hsm.Errorf(hsm.Locked, "the PIN was rejected"), hsm.Locked},
		"a wrapped *Error":     {fmt.Errorf("opening: %w", hsm.Wrap(hsm.NotFound, nil, "")), hsm.NotFound},
		"an *Error in another": {hsm.Wrap(hsm.Unavailable, hsm.Errorf(hsm.Internal, ""), ""), hsm.Unavailable},
		"any other error":      {errors.New("disk full"), hsm.Internal},
	} {
		t.Run(sentence, func(t *testing.T) {
			t.Parallel()
			if got := hsm.KindOf(tc.err); got != tc.want {
				t.Errorf("KindOf = %q, want %q", got, tc.want)
			}
		})
	}
}

func TestError_hasTheCauseInItsTextAndItsChain(t *testing.T) {
	t.Parallel()
	err := hsm.Wrap(hsm.Unavailable, context.Canceled, "try again later")
	if got, want := err.Error(), "Unavailable: try again later: context canceled"; got != want {
		t.Errorf("Error() = %q, want %q", got, want)
	}
	if !errors.Is(err, context.Canceled) {
		t.Error("the cause is not in the chain")
	}
}
