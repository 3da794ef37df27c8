package keystore

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
)

// newModuleCalls makes the histogram of module calls. result is "OK" or the kind of error.
func newModuleCalls() *prometheus.HistogramVec {
	calls := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "keyconvoy_module_call_duration_seconds",
		Help:    "How long calls into cryptographic modules took, by operation and result.",
		Buckets: []float64{0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5, 30},
	}, []string{"operation", "result"})
	calls.WithLabelValues("Check", string(hsm.WrongResult)) // at 0, so that an alert sees the first one as an increase
	return calls
}

// suspectAfter is how long a call may take until the module is checked.
const suspectAfter = 5 * time.Second

// measure returns the interceptor of a module. It measures the calls that reach a device, which Describe and Close do not, and
// has the module checked soon after a call that the module did not answer, or not yet. It gives up calls when the check fails.
func (r *Registry) measure(id ID, m *module) hsm.Interceptor {
	return func(ctx context.Context, method string, next func(context.Context) error) error {
		if method == "Describe" || method == "Close" {
			return next(ctx)
		}
		start := time.Now()
		err := r.guard(ctx, id, m, method, next)
		result := "OK"
		if err != nil {
			result = string(hsm.KindOf(err))
		}
		if result == string(hsm.Unavailable) && method != "Check" {
			r.suspect(id)
		}
		r.calls.WithLabelValues(method, result).Observe(time.Since(start).Seconds())
		return err
	}
}

// guard watches how long a call takes. A check has a deadline of its own, and generating a key pair takes long.
func (r *Registry) guard(ctx context.Context, id ID, m *module, method string, next func(context.Context) error) error {
	switch method {
	case "Check":
		return next(ctx)
	case "CreateWrappingKey":
		m.slow.Add(1)
		defer m.slow.Add(-1)
	default:
		defer time.AfterFunc(suspectAfter, func() { r.suspect(id) }).Stop()
	}
	r.mu.RLock()
	calls := m.calls
	r.mu.RUnlock()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(calls, cancel)()
	err := next(ctx)
	if hsm.KindOf(err) != hsm.Unavailable {
		m.answered.Add(1)
	}
	return err
}
