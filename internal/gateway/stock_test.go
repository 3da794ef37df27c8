package gateway_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/hsm/inprocess"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
)

// Some clients wait 3 seconds, and an RSA pair can take longer.
func TestGateway_getParametersForImport_doesNotWaitForAPair(t *testing.T) {
	t.Parallel()
	o, r := run(t)
	var created atomic.Int32
	var hang atomic.Bool
	release := make(chan struct{})
	defer close(release)
	slow := start(t, o, func(s *settings) {
		s.modules = hsmtest.Provider(func(ctx context.Context, cfg hsm.Config) (hsm.Module, error) {
			module, err := inprocess.Provider(nil).Open(ctx, cfg)
			if err != nil {
				return nil, err
			}
			return hsm.Intercept(module, func(ctx context.Context, method string, next func(context.Context) error) error {
				if method != "CreateWrappingKey" {
					return next(ctx)
				}
				if hang.Load() {
					select {
					case <-release:
					case <-ctx.Done():
						return hsm.Wrap(hsm.Unavailable, ctx.Err(), "")
					}
				}
				defer created.Add(1)
				return next(ctx)
			}), nil
		})
	})
	c := r.allow(t, o.Namespace, "admin", all...)
	id := createKey(t, slow, c, map[string]string{"Origin": "EXTERNAL"})
	pair := map[string]string{"KeyId": id, "WrappingKeySpec": "RSA_2048", "WrappingAlgorithm": "RSAES_OAEP_SHA_256"}
	first := slow.eventually(t, c, "GetParametersForImport", pair, "")
	harness.Eventually(t, func() string {
		if n := created.Load(); n < 3 {
			return fmt.Sprintf("%d pairs were generated, want that of the first call, and two that are ready", n)
		}
		return ""
	})
	hang.Store(true)
	second := slow.eventually(t, c, "GetParametersForImport", pair, "")
	if first.text(t, "PublicKey") == second.text(t, "PublicKey") {
		t.Error("Two answers have one pair")
	}
	importIt := map[string]string{
		"KeyId": id, "ImportToken": second.text(t, "ImportToken"), "EncryptedKeyMaterial": wrapped(t, second.text(t, "PublicKey"), material(t)),
	}
	r.eventually(t, c, "DescribeKey", map[string]string{"KeyId": id}, "")
	r.ok(t, c, "ImportKeyMaterial", importIt)
}
