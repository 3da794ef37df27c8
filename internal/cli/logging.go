package cli

import (
	"errors"
	"fmt"

	"github.com/go-logr/logr"
	"go.uber.org/zap/zapcore"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"

	"github.com/keyconvoy/keyconvoy/internal/reconciler"
)

// maxVerbosity limits --zap-log-level. From 6 on client-go logs requests, from 7
// on their headers, from 8 on their bodies: PINs, root keys, whole Secrets.
const maxVerbosity = 5

// logOptions are the defaults of the --zap-… flags: no stack traces, because the stack is always that of the common
// reconcile frame.
func logOptions() zap.Options { return zap.Options{StacktraceLevel: zapcore.PanicLevel} }

// setLogger gives the operator and all libraries one logger.
func setLogger(o *zap.Options) {
	logger := logr.New(guardedSink{zap.New(zap.UseFlagOptions(o)).GetSink()})
	ctrl.SetLogger(logger)
	// client-go logs through klog, or through the logger in its context, which is the reconciler's. The verbosity of
	// klog is always 0.
	klog.SetLoggerWithOptions(logger.WithName("client"), klog.ContextualLogger(true))
}

// guardedSink filters everything that is logged, so that no library logs the contents of objects.
type guardedSink struct{ logr.LogSink }

// Init implements logr.LogSink.
func (s guardedSink) Init(info logr.RuntimeInfo) { s.LogSink.Init(info) }

// Enabled implements logr.LogSink.
func (s guardedSink) Enabled(level int) bool {
	return level <= maxVerbosity && s.LogSink.Enabled(level)
}

// debugOnly are messages that controller-runtime logs dozens of times at each start, with pointers.
var debugOnly = map[string]bool{"Starting EventSource": true, "Starting Controller": true, "Starting workers": true}

// Info implements logr.LogSink.
func (s guardedSink) Info(level int, message string, keysAndValues ...any) {
	if debugOnly[message] {
		level = max(level, 1)
	}
	if s.Enabled(level) {
		s.LogSink.Info(level, message, harmless(keysAndValues)...)
	}
}

// Error implements logr.LogSink. controller-runtime logs each retried error at each attempt, but the reconciler has
// already logged it once.
func (s guardedSink) Error(err error, message string, keysAndValues ...any) {
	var own *reconciler.Error
	if message == "Reconciler error" && errors.As(err, &own) {
		s.Info(1, "The operator retries", append(keysAndValues, "reason", own.Reason)...)
		return
	}
	s.LogSink.Error(err, message, harmless(keysAndValues)...)
}

// WithValues implements logr.LogSink.
func (s guardedSink) WithValues(keysAndValues ...any) logr.LogSink {
	return guardedSink{s.LogSink.WithValues(harmless(keysAndValues)...)}
}

// WithName implements logr.LogSink.
func (s guardedSink) WithName(name string) logr.LogSink { return guardedSink{s.LogSink.WithName(name)} }

// harmless replaces objects, which --zap-devel prints completely, with their names, and bytes with their number.
func harmless(keysAndValues []any) []any {
	out := make([]any, len(keysAndValues))
	for i, v := range keysAndValues {
		switch v := v.(type) {
		case client.Object:
			out[i] = fmt.Sprintf("%T %s", v, client.ObjectKeyFromObject(v))
		case runtime.Object:
			out[i] = fmt.Sprintf("%T", v)
		case []byte:
			out[i] = fmt.Sprintf("%d bytes", len(v))
		default:
			out[i] = v
		}
	}
	return out
}
