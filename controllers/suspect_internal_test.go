package controllers

import (
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
)

// at returns the time that many seconds after an arbitrary one, and a fraction of a second.
func at(seconds float64) time.Time {
	return time.Unix(1_800_000_000, 0).Add(time.Duration(seconds * float64(time.Second)))
}

func TestSuspectPeriod_bothEndsCount(t *testing.T) {
	t.Parallel()
	var periods []v1alpha1.SuspectPeriod
	periods = beginSuspectPeriod(periods, at(10.7))
	endSuspectPeriod(periods, at(20.2))
	periods = beginSuspectPeriod(periods, at(40))
	for second, want := range map[float64]bool{9.9: false, 10: true, 10.9: true, 15: true, 20: true, 20.9: true, 21: false, 39.9: false, 40: true, 1e6: true} {
		when := metav1.NewTime(at(second))
		if got := suspectPeriod(periods, &when) != nil; got != want {
			t.Errorf("after %v s: suspect is %t, want %t", second, got, want)
		}
	}
	if suspectPeriod(periods, nil) != nil {
		t.Error("what has no time is suspect")
	}
}

func TestBeginSuspectPeriod_whileOneLasts_keepsIt(t *testing.T) {
	t.Parallel()
	periods := beginSuspectPeriod(nil, at(10))
	periods = beginSuspectPeriod(periods, at(20))
	if len(periods) != 1 || !periods[0].From.Time.Equal(at(10)) || periods[0].To != nil {
		t.Errorf("the periods are %v", periods)
	}
	endSuspectPeriod(periods, at(30))
	endSuspectPeriod(periods, at(40))
	if !periods[0].To.Time.Equal(at(30)) {
		t.Errorf("the period ends at %v", periods[0].To)
	}
}

// No time may be lost: an export of it may not have been repeated yet.
func TestBeginSuspectPeriod_tooMany_mergesTheOldest(t *testing.T) {
	t.Parallel()
	var periods []v1alpha1.SuspectPeriod
	for i := range maxSuspectPeriods + 2 {
		periods = beginSuspectPeriod(periods, at(float64(10*i)))
		endSuspectPeriod(periods, at(float64(10*i+5)))
	}
	if len(periods) != maxSuspectPeriods {
		t.Fatalf("%d periods, want %d", len(periods), maxSuspectPeriods)
	}
	if first := periods[0]; !first.From.Time.Equal(at(0)) || !first.To.Time.Equal(at(25)) {
		t.Errorf("the first period is %v", first)
	}
	if second := periods[1]; !second.From.Time.Equal(at(30)) {
		t.Errorf("the second period is %v", second)
	}
}

// A module whose self-test succeeds and whose checks fail would otherwise have all exports repeated every few seconds.
func TestOpenRightAfter_growsWithTheWrongResultsOfAnHour(t *testing.T) {
	t.Parallel()
	now := time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)
	ended := func(ago time.Duration) v1alpha1.SuspectPeriod {
		to := metav1.NewTime(now.Add(-ago))
		return v1alpha1.SuspectPeriod{From: metav1.NewTime(to.Add(-time.Minute)), To: &to}
	}
	for want, periods := range map[time.Duration][]v1alpha1.SuspectPeriod{
		5 * time.Second:  {ended(2 * time.Hour), {From: metav1.NewTime(now)}},
		20 * time.Second: {ended(2 * time.Hour), ended(time.Minute)},
		80 * time.Second: {ended(59 * time.Minute), ended(time.Minute)},
		10 * time.Minute: {ended(9 * time.Minute), ended(8 * time.Minute), ended(7 * time.Minute), ended(6 * time.Minute), ended(5 * time.Minute), ended(time.Minute)},
	} {
		if got := openRightAfter(periods, now); got != want {
			t.Errorf("after %d wrong results: %s, want %s", len(periods), got, want)
		}
	}
}
