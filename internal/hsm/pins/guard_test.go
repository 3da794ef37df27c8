package pins_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/keyconvoy/keyconvoy/internal/hsm/pins"
	"github.com/keyconvoy/keyconvoy/internal/hsm/pins/pinstest"
	"github.com/keyconvoy/keyconvoy/internal/redact"
)

// bench is a token with a PIN and a guard.
type bench struct {
	*testing.T
	*pins.Guard
	clock   *pinstest.Clock
	storage *pinstest.Memory
	right   string
	tried   int // number of calls of C_Login
	counts  bool
	low     bool // the token reports a low count
}

func newBench(t *testing.T) *bench {
	b := &bench{T: t, clock: &pinstest.Clock{}, storage: &pinstest.Memory{}, right: "1234"}
	b.restart()
	return b
}

func (b *bench) restart() { b.Guard = pins.New(b.storage, b.clock.Now) }

func (b *bench) wait(d time.Duration) { b.clock.Advance(d) }

func presented(namespace, pin string) pins.Presented {
	return pins.Presented{
		Token:  pins.Token{Library: "/lib/hsm.so", Manufacturer: "maker", Model: "model", Serial: "1"},
		Origin: pins.Origin{Namespace: namespace, Source: "uid of " + namespace}, PIN: redact.Bytes(pin),
	}
}

var errWrong = errors.New("the token rejects the PIN")

// logIn presents a PIN to a token that is not logged in.
func (b *bench) logIn(p pins.Presented) error {
	b.Helper()
	attempt, err := b.Begin(b.Context(), p, pins.Asked{CountLow: b.low})
	if err != nil {
		return err
	}
	b.tried++
	if string(p.PIN) != b.right {
		b.low = b.counts
		attempt.End(b.Context(), pins.Refused)
		return errWrong
	}
	b.low = false
	attempt.End(b.Context(), pins.Accepted)
	return nil
}

// compare presents a PIN to a token that is logged in.
func (b *bench) compare(p pins.Presented) error {
	b.Helper()
	attempt, err := b.Begin(b.Context(), p, pins.Asked{LoggedIn: true})
	if err != nil {
		return err
	}
	if string(p.PIN) != b.right {
		attempt.End(b.Context(), pins.Other)
		return errWrong
	}
	attempt.End(b.Context(), pins.Accepted)
	return nil
}

func (b *bench) want(got, want error, what string) {
	b.Helper()
	if !errors.Is(got, want) || (want == nil && got != nil) {
		b.Errorf("%s: %v; want %v", what, got, want)
	}
}

func TestGuard_guessing_endsForItsNamespaceOnly(t *testing.T) {
	b := newBench(t)
	for n := range 18 {
		want := errWrong
		if n >= 5 {
			want = pins.ErrUsedUp
		}
		b.want(b.logIn(presented("thief", fmt.Sprint("wrong", n))), want, fmt.Sprint("guess ", n))
		b.restart() // a restart returns no guess
	}
	if b.tried != 5 {
		t.Errorf("the token got %d PINs, want 5", b.tried)
	}
	b.want(b.logIn(presented("thief", b.right)), pins.ErrUsedUp, "the right PIN after too many guesses")
	b.want(b.logIn(presented("tenant", b.right)), nil, "the right PIN in another namespace")
	b.want(b.logIn(presented("thief", b.right)), pins.ErrUsedUp, "the right PIN, which is known now: another answer would reveal it")
	b.wait(9 * time.Minute)
	b.want(b.logIn(presented("thief", "other")), pins.ErrUsedUp, "a guess after nine minutes")
	b.wait(time.Minute)
	b.want(b.logIn(presented("thief", "other")), errWrong, "a guess after ten minutes")
	b.want(b.logIn(presented("thief", "another")), pins.ErrUsedUp, "a second guess")
	b.wait(10 * time.Minute)
	b.want(b.logIn(presented("thief", b.right)), nil, "the right PIN after ten more minutes")
	b.wait(24 * time.Hour)
	b.tried = 0
	for n := range 6 {
		_ = b.logIn(presented("late", fmt.Sprint("late", n)))
	}
	if b.tried != 5 {
		t.Errorf("after a day %d guesses are left, want 5", b.tried)
	}
}

// A process that ends during C_Login leaves the guard without an answer.
func TestGuard_attemptWithoutAnEnd_isNotRepeated(t *testing.T) {
	b := newBench(t)
	wrong := presented("tenant", "4321")
	if _, err := b.Begin(b.Context(), wrong, pins.Asked{}); err != nil {
		t.Fatal(err)
	}
	b.want(b.logIn(wrong), pins.ErrInterrupted, "the same PIN")
	b.restart()
	b.want(b.logIn(wrong), pins.ErrInterrupted, "the same PIN after a restart")
	b.wait(24 * time.Hour)
	b.want(b.logIn(wrong), pins.ErrInterrupted, "the same PIN after a day")
	if b.tried != 0 {
		t.Errorf("the token got %d more PINs", b.tried)
	}
	again := wrong
	again.Source = "uid of a new Secret"
	b.want(b.logIn(again), errWrong, "the PIN in a new Secret")
	b.want(b.logIn(again), pins.ErrRefused, "the PIN that was rejected")
	b.want(b.logIn(presented("tenant", b.right)), nil, "another PIN")

	attempt, err := b.Begin(b.Context(), presented("tenant", b.right), pins.Asked{})
	b.want(err, nil, "the right PIN")
	_ = attempt // the process ends
	b.restart()
	b.want(b.logIn(presented("tenant", b.right)), nil, "the right PIN, which the token accepted before")
}

// The API server is down when the token answers. The process knows the answer, and the record gets it later.
func TestGuard_outcomeThatCannotBeSaved_isNotLost(t *testing.T) {
	for outcome, want := range map[pins.Outcome]error{pins.Accepted: nil, pins.Refused: pins.ErrRefused, pins.Undecided: nil} {
		b := newBench(t)
		p := presented("tenant", b.right)
		attempt, err := b.Begin(b.Context(), p, pins.Asked{})
		b.want(err, nil, "the first attempt")
		b.storage.Fail(errors.New("down"))
		attempt.End(b.Context(), outcome)
		b.storage.Fail(nil)
		b.want(b.logIn(p), want, fmt.Sprintf("the same PIN after it was %s", outcome))
		b.want(b.logIn(presented("tenant", "4321")), errWrong, "another PIN, which is recorded")
		b.restart()
		b.want(b.logIn(p), want, fmt.Sprintf("the same PIN after it was %s, and a restart", outcome))
	}
}

// A token that does not answer has not counted the PIN.
func TestGuard_undecidedAttempt_mayBeRepeated(t *testing.T) {
	b := newBench(t)
	for range 9 {
		attempt, err := b.Begin(b.Context(), presented("tenant", b.right), pins.Asked{})
		if err != nil {
			t.Fatal(err)
		}
		attempt.End(b.Context(), pins.Undecided)
		b.restart()
	}
	b.want(b.logIn(presented("tenant", b.right)), nil, "the right PIN")
}

func TestGuard_comparison_usesUpAGuess(t *testing.T) {
	b := newBench(t)
	b.want(b.logIn(presented("tenant", b.right)), nil, "the first login")
	for n := range 5 {
		wrong := presented("thief", fmt.Sprint("wrong", n))
		b.want(b.compare(wrong), errWrong, "a guess")
		b.want(b.compare(wrong), pins.ErrOther, "the same again, which uses up no guess")
	}
	b.want(b.compare(presented("thief", "sixth")), pins.ErrUsedUp, "a sixth guess")
	b.want(b.compare(presented("thief", b.right)), pins.ErrUsedUp, "the right PIN: another answer would reveal it")
	b.want(b.logIn(presented("thief", "sixth")), pins.ErrUsedUp, "a sixth guess after the logout")
	b.want(b.compare(presented("tenant", b.right)), nil, "the connected key store")
	b.want(b.compare(presented("neighbour", b.right)), nil, "another namespace with the right PIN")
	if b.tried != 1 {
		t.Errorf("the token got %d PINs, want 1", b.tried)
	}
}

func TestGuard_namespaceThatPresentedTheRightPIN_isNeverLockedOut(t *testing.T) {
	b := newBench(t)
	b.want(b.logIn(presented("tenant", b.right)), nil, "the first login")
	for n := range 20 {
		_ = b.logIn(presented("tenant", fmt.Sprint("wrong", n)))
		_ = b.compare(presented("tenant", fmt.Sprint("other", n)))
		_ = b.logIn(presented("thief", fmt.Sprint("wrong", n)))
	}
	b.restart()
	b.want(b.logIn(presented("tenant", b.right)), nil, "the right PIN")
	b.want(b.compare(presented("tenant", b.right)), nil, "the right PIN")
}

func TestGuard_rejectedPIN_isNotTriedAgainUntilItsSecretIsReplaced(t *testing.T) {
	b := newBench(t)
	b.want(b.logIn(presented("tenant", "4321")), errWrong, "the first attempt")
	for range 3 {
		b.restart()
		b.wait(24 * time.Hour)
		b.want(b.logIn(presented("tenant", "4321")), pins.ErrRefused, "the same again")
	}
	b.right = "4321" // the PIN of the token was changed
	b.want(b.logIn(presented("tenant", "4321")), pins.ErrRefused, "from the same Secret")
	replaced := presented("tenant", "4321")
	replaced.Source = "another Secret"
	b.want(b.logIn(replaced), nil, "from another Secret")
	b.want(b.logIn(presented("tenant", "4321")), nil, "from the first Secret, now that it is the right PIN")
	if b.tried != 3 {
		t.Errorf("the token got %d PINs, want 3", b.tried)
	}
}

func TestGuard_tokenWithACounter_keepsAttempts(t *testing.T) {
	b := newBench(t)
	b.counts = true
	b.want(b.logIn(presented("tenant", b.right)), nil, "the first login")
	b.want(b.logIn(presented("thief", "wrong")), errWrong, "a guess")
	for n := range 4 {
		for range 2 { // the same again uses up no guess
			b.want(b.logIn(presented("thief", fmt.Sprint("wrong", n))), pins.ErrCountLow, "another guess")
		}
		b.want(b.logIn(presented(fmt.Sprint("thief", n), "wrong")), pins.ErrCountLow, "a guess from another namespace")
	}
	b.want(b.logIn(presented("thief", "sixth")), pins.ErrUsedUp, "a sixth guess")
	b.want(b.logIn(presented("thief", b.right)), pins.ErrUsedUp, "the right PIN after five guesses: another answer would reveal it")
	if b.tried != 2 {
		t.Errorf("the token got %d PINs, want 2", b.tried)
	}
	b.want(b.logIn(presented("neighbour", b.right)), nil, "the right PIN")
	if b.low {
		t.Error("a login does not reset the count")
	}
}

// As long as the right PIN is not known, each tenant may correct a PIN once.
func TestGuard_tokenWithACounter_rightPINNotKnown_allowsACorrection(t *testing.T) {
	b := newBench(t)
	b.counts = true
	for n, want := range []error{errWrong, errWrong, pins.ErrCountLow, pins.ErrCountLow} {
		b.want(b.logIn(presented("thief", fmt.Sprint("wrong", n))), want, fmt.Sprint("guess ", n))
	}
	admin := presented("operator", "wrong")
	admin.Administrator = true
	for n := range 5 {
		admin.PIN = redact.Bytes(fmt.Sprint("wrong", n))
		b.want(b.logIn(admin), errWrong, "a PIN of an administrator")
	}
	b.want(b.logIn(presented("tenant", "typo")), errWrong, "a PIN of a tenant")
	b.want(b.logIn(presented("tenant", b.right)), nil, "the correction")
}

func TestGuard_PINOfTheTokenChanged_trustsNoNamespace(t *testing.T) {
	b := newBench(t)
	for _, namespace := range []string{"a", "b"} {
		b.want(b.logIn(presented(namespace, b.right)), nil, "the first login")
	}
	b.right = "9999"
	b.want(b.logIn(presented("a", "1234")), errWrong, "the old PIN")
	b.tried = 0
	for range 3 {
		b.want(b.logIn(presented("a", "1234")), pins.ErrRefused, "the old PIN again")
	}
	if b.tried != 0 {
		t.Errorf("the old PIN is tried %d times", b.tried)
	}
	b.want(b.logIn(presented("a", "9999")), nil, "the new PIN")
	for n := range 5 {
		_ = b.compare(presented("b", fmt.Sprint("wrong", n)))
	}
	b.want(b.compare(presented("b", "9999")), pins.ErrUsedUp, "the new PIN in namespace b, which has not presented it")
}

func TestGuard_crashDuringAnAttempt_usesUpTheGuess(t *testing.T) {
	b := newBench(t)
	for n := range 8 {
		_, err := b.Begin(t.Context(), presented("thief", fmt.Sprint("wrong", n)), pins.Asked{})
		if n < 5 {
			b.want(err, nil, "a guess")
		} else {
			b.want(err, pins.ErrUsedUp, "a sixth guess")
		}
		b.restart()
	}
}

func TestGuard_tokenDoesNotAnswer_returnsTheGuess(t *testing.T) {
	b := newBench(t)
	for range 20 {
		attempt, err := b.Begin(t.Context(), presented("tenant", b.right), pins.Asked{})
		if err != nil {
			t.Fatal(err)
		}
		attempt.End(t.Context(), pins.Undecided)
	}
	b.want(b.logIn(presented("tenant", b.right)), nil, "the PIN when the token answers again")
}

func TestGuard_storageFails_allowsOnlyTheRightPIN(t *testing.T) {
	b := newBench(t)
	down := errors.New("down")
	b.want(b.logIn(presented("tenant", b.right)), nil, "the first login")
	b.storage.Fail(down)
	b.want(b.logIn(presented("neighbour", b.right)), nil, "the right PIN in another namespace: there is no guess to record")
	b.want(b.logIn(presented("thief", "wrong")), down, "a guess that cannot be recorded")
	b.want(b.logIn(presented("thief", "wrong")), down, "a guess without the record")
	b.want(b.logIn(presented("tenant", b.right)), nil, "the connected key store")
	b.storage.Fail(nil)
	b.want(b.logIn(presented("thief", "wrong")), errWrong, "a guess")
	if b.tried != 4 {
		t.Errorf("the token got %d PINs, want 4", b.tried)
	}
}

func TestGuard_recordWrittenByAnotherGuard_isNotOverwritten(t *testing.T) {
	b := newBench(t)
	b.want(b.logIn(presented("tenant", "0")), errWrong, "a guess")
	other := pins.New(b.storage, b.clock.Now)
	for n := range 5 {
		attempt, err := other.Begin(t.Context(), presented("thief", fmt.Sprint(n)), pins.Asked{})
		if err != nil {
			t.Fatal(err)
		}
		attempt.End(t.Context(), pins.Refused)
	}
	if err := b.logIn(presented("thief", "x")); err == nil || errors.Is(err, errWrong) {
		t.Errorf("a guess on an old record: %v", err)
	}
	b.want(b.logIn(presented("thief", "x")), pins.ErrUsedUp, "a guess on the new record")
}

func TestGuard_noChange_savesNothing(t *testing.T) {
	b := newBench(t)
	b.want(b.logIn(presented("tenant", b.right)), nil, "the first login")
	b.want(b.logIn(presented("tenant", "wrong")), errWrong, "a guess")
	saves := b.storage.Saves()
	for range 3 {
		b.restart()
		b.want(b.logIn(presented("tenant", b.right)), nil, "the right PIN")
		b.want(b.compare(presented("tenant", b.right)), nil, "the right PIN")
		b.want(b.logIn(presented("tenant", "wrong")), pins.ErrRefused, "the rejected PIN")
	}
	if n := b.storage.Saves(); n != saves {
		t.Errorf("%d saves without a change", n-saves)
	}
}

func TestGuard_record_hasNoPINAndIsBounded(t *testing.T) {
	b := newBench(t)
	b.right = "very-secret-pin"
	b.want(b.logIn(presented("tenant", b.right)), nil, "the first login")
	for n := range 1030 {
		_ = b.compare(presented(fmt.Sprintf("namespace-%060d", n), "wrong-secret-pin"))
	}
	content := b.storage.Content()
	if strings.Contains(content, "secret-pin") {
		t.Error("the record has a PIN")
	}
	if len(content) > 512<<10 {
		t.Errorf("the record has %d bytes", len(content))
	}
	b.want(b.compare(presented("namespace", "other")), pins.ErrUsedUp, "a guess while the record is full")
	b.want(b.compare(presented("tenant", b.right)), nil, "the connected key store")
	b.wait(time.Hour)
	b.want(b.compare(presented("namespace", "other")), errWrong, "a guess when the record has room")
}

func TestGuard_clockSetBack_returnsTheGuesses(t *testing.T) {
	b := newBench(t)
	_ = b.logIn(presented("tenant", "wrong"))
	for n := range 4 {
		_ = b.logIn(presented("tenant", fmt.Sprint("wrong", n)))
	}
	b.wait(-time.Second)
	b.want(b.logIn(presented("tenant", "another")), pins.ErrUsedUp, "a second back")
	b.wait(-365 * 24 * time.Hour)
	b.want(b.logIn(presented("tenant", b.right)), nil, "a year back")
}

func TestGuard_damagedRecord_triesNothing(t *testing.T) {
	for _, content := range []string{"{", "{}", `{"key":"AA=="}`, "null"} {
		b := newBench(t)
		if _, err := b.storage.Save(t.Context(), []byte(content), ""); err != nil {
			t.Fatal(err)
		}
		if err := b.logIn(presented("tenant", b.right)); err == nil || b.tried != 0 {
			t.Errorf("%q: %v, and the token got %d PINs", content, err, b.tried)
		}
	}
}
