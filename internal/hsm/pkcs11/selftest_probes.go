//go:build cgo

package pkcs11

import (
	"errors"
	"slices"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/pkcs11/token"
)

// notReturned is the failure of a probe that has not returned.
const notReturned = "the call did not return"

// probeLog records the probes of a self-test. It publishes a copy before and after each, so that a self-test that hangs shows
// where.
type probeLog struct {
	publish func([]hsm.Probe)
	all     []hsm.Probe
}

// begin adds a probe, which is the last one until the next call.
func (l *probeLog) begin(p hsm.Probe) {
	p.Failure = notReturned
	l.all = append(l.all, p)
	l.publish(slices.Clone(l.all))
}

// end sets the result of the last probe.
func (l *probeLog) end(err error) {
	last := &l.all[len(l.all)-1]
	last.Succeeded, last.Failure = err == nil, describeFailure(err)
	l.publish(slices.Clone(l.all))
}

// describeFailure returns the function and the return code of a failed probe, or a text of this repository.
func describeFailure(err error) string {
	if err == nil {
		return ""
	}
	if code := token.DescribeCode(err); code != "" {
		return code
	}
	var e *hsm.Error
	switch {
	case errors.Is(err, errNotDone):
		return errNotDone.Error()
	case errors.As(err, &e) && e.Detail != "":
		return e.Detail
	}
	return "wrong result"
}

// withProbes adds the probes of the self-test to the error with which it ended.
func withProbes(err error, probes *[]hsm.Probe) error {
	var e *hsm.Error
	if probes == nil || !errors.As(err, &e) {
		return err
	}
	with := *e // e may be shared
	with.Probes = *probes
	return &with
}
