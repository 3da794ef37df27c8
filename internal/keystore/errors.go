package keystore

import (
	"fmt"
	"time"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
)

// State is what a key store can do now.
type State string

const (
	// Ready key stores have a module open that works.
	Ready State = "Ready"
	// Absent key stores do not exist.
	Absent State = "Absent"
	// Opening key stores have not been looked at since the operator's start.
	Opening State = "Opening"
	// Failing key stores have no module open, or one that failed its last check.
	Failing State = "Failing"
	// Suspect key stores are Ready, but a call found that their module does not answer: a check must decide.
	Suspect State = "Suspect"
	// Busy key stores are Ready, and as many calls as a controller may make at a time are in progress.
	Busy State = "Busy"
	// Deleting key stores only clean up what is in their modules.
	Deleting State = "Deleting"
	// Invalid key stores have a field that cannot be decoded.
	Invalid State = "Invalid"
)

// NotReadyError reports that a key store cannot be used now. A change of the key store's state (Registry.Changes) or of
// its object tells when to try again.
type NotReadyError struct {
	ID    ID
	State State
}

// Error implements error.
func (e *NotReadyError) Error() string { return e.Reason() + ": " + e.Message() }

// Reason returns the reason for conditions.
func (e *NotReadyError) Reason() string {
	if e.State == Absent {
		return v1alpha1.ReasonKeyStoreNotFound
	}
	return v1alpha1.ReasonKeyStoreNotReady
}

// Message returns the message for conditions.
func (e *NotReadyError) Message() string {
	var says string
	switch e.State {
	case Absent:
		says = "does not exist. The operator continues when it is created."
	case Opening:
		says = "is being opened."
	case Busy:
		says = "is busy. The operator tries again."
	case Deleting:
		says = "is being deleted. It only cleans up what is in its module."
	case Invalid:
		says = "has a field that is invalid. Its conditions name the field."
	default:
		says = "is not ready. See its conditions."
	}
	return fmt.Sprintf("%s %q %s", e.ID.Kind, e.ID.Name, says)
}

// Settled reports whether the state is known. While a key store is being opened it is not, and objects that are not Ready
// are told how the opening ended: a status that said so meanwhile would be a write for every waiting object at each start.
// Nor is a status worth its write while a key store is busy.
func (e *NotReadyError) Settled() bool { return e.State != Opening && e.State != Busy }

// RetryAfter returns when to try again, or 0 if a change of the key store's state tells.
func (e *NotReadyError) RetryAfter() time.Duration {
	if e.State == Busy {
		return busyFor
	}
	return 0
}
