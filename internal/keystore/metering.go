package keystore

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
)

// newModuleCalls makes the histogram of module calls. result is "OK" or the kind of error.
func newModuleCalls() *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "keyconvoy_module_call_duration_seconds",
		Help:    "How long calls into cryptographic modules took, by operation and result.",
		Buckets: []float64{0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5, 30},
	}, []string{"operation", "result"})
}

// measure returns an interceptor that measures the calls that reach a device, which Describe and Close do not. It calls unavailable after a call that the
// module did not answer, unless that was a check, whose caller knows.
func measure(calls *prometheus.HistogramVec, unavailable func()) hsm.Interceptor {
	return func(ctx context.Context, method string, next func(context.Context) error) error {
		if method == "Describe" || method == "Close" {
			return next(ctx)
		}
		start := time.Now()
		err := next(ctx)
		result := "OK"
		if err != nil {
			result = string(hsm.KindOf(err))
		}
		if result == string(hsm.Unavailable) && method != "Check" {
			unavailable()
		}
		calls.WithLabelValues(method, result).Observe(time.Since(start).Seconds())
		return err
	}
}
