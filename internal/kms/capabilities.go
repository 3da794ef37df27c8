package kms

import (
	"context"
	"fmt"
	"strings"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
)

// supported checks the results of the module's self-test, so that an unsupported request fails before anything is
// created.
func (o Operations) supported(ctx context.Context, op hsm.Operation, algorithm string) error {
	described, err := o.Module.Describe(ctx)
	if err != nil {
		return FromModule(err)
	}
	var can []string
	for _, c := range described.Capabilities {
		if c.Operation != op {
			continue
		}
		if c.Algorithm == algorithm {
			return nil
		}
		can = append(can, c.Algorithm)
	}
	return &Error{Code: UnsupportedOperation, Detail: notOffered(op, algorithm, can)}
}

func notOffered(op hsm.Operation, algorithm string, can []string) string {
	if len(can) == 0 {
		return fmt.Sprintf("The key store does not support %s.", op)
	}
	return fmt.Sprintf("The key store does not support %s %s, or its custody policy forbids it. Supported: %s (see status.capabilities).",
		op, algorithm, strings.Join(can, ", "))
}
