package kms

import "time"

// KeyState is the state of a key.
type KeyState string

// The key states.
const (
	StatePendingImport   KeyState = "PendingImport"
	StateEnabled         KeyState = "Enabled"
	StateDisabled        KeyState = "Disabled"
	StatePendingDeletion KeyState = "PendingDeletion"
	// StateDeleted is a key that was destroyed. The documented service removes such a key; here its object still
	// exists and shows the state.
	StateDeleted KeyState = "Deleted"
)

// KeyStates lists every state.
func KeyStates() []KeyState {
	return []KeyState{StatePendingImport, StateEnabled, StateDisabled, StatePendingDeletion, StateDeleted}
}

// Event is an event that can change the state of a key.
type Event string

// The events.
const (
	EventImportKeyMaterial   Event = "ImportKeyMaterial"
	EventMaterialGone        Event = "MaterialGone" // it expired, or was deleted
	EventEnableKey           Event = "EnableKey"
	EventDisableKey          Event = "DisableKey"
	EventScheduleKeyDeletion Event = "ScheduleKeyDeletion"
	EventCancelKeyDeletion   Event = "CancelKeyDeletion"
	EventWindowOver          Event = "WindowOver" // the window of a pending deletion has passed
)

// Events lists every event.
func Events() []Event {
	return []Event{EventImportKeyMaterial, EventMaterialGone, EventEnableKey, EventDisableKey,
		EventScheduleKeyDeletion, EventCancelKeyDeletion, EventWindowOver}
}

// The window of a pending deletion, in days.
const (
	MinPendingWindowInDays     = 7
	MaxPendingWindowInDays     = 366
	DefaultPendingWindowInDays = 30
)

// transitions is the state machine of a key with origin EXTERNAL. Other transitions fail with
// Rejected.StateModifiedFailed.
var transitions = map[KeyState]map[Event]KeyState{
	StatePendingImport: {
		EventImportKeyMaterial:   StateEnabled,
		EventMaterialGone:        StatePendingImport,
		EventScheduleKeyDeletion: StatePendingDeletion,
	},
	StateEnabled: {
		EventImportKeyMaterial:   StateEnabled,
		EventMaterialGone:        StatePendingImport,
		EventEnableKey:           StateEnabled,
		EventDisableKey:          StateDisabled,
		EventScheduleKeyDeletion: StatePendingDeletion,
	},
	StateDisabled: {
		EventImportKeyMaterial:   StateDisabled,
		EventMaterialGone:        StatePendingImport,
		EventEnableKey:           StateEnabled,
		EventDisableKey:          StateDisabled,
		EventScheduleKeyDeletion: StatePendingDeletion,
	},
	StatePendingDeletion: {
		EventMaterialGone:      StatePendingDeletion,
		EventCancelKeyDeletion: StateEnabled,
		EventWindowOver:        StateDeleted,
	},
}

// Next returns the state of a key after an event. If a deletion is cancelled, material decides between Enabled and
// PendingImport: it is whether the key has its material.
func Next(state KeyState, event Event, material bool) (KeyState, error) {
	if state == StateDeleted {
		return state, &Error{Code: ForbiddenKeyNotFound}
	}
	next, ok := transitions[state][event]
	if !ok {
		return state, &Error{Code: RejectedStateModifiedFailed}
	}
	if event == EventCancelKeyDeletion && !material {
		return StatePendingImport, nil
	}
	return next, nil
}

// StateAt returns the key's state at a time. Material expires by the clock, even before the operator has noticed and
// destroyed it.
func (k Key) StateAt(now time.Time) KeyState {
	end := k.Primary.ExpireTime
	ended := !end.IsZero() && !now.Before(end)
	if ended && (k.State == StateEnabled || k.State == StateDisabled) {
		return StatePendingImport
	}
	return k.State
}

// Operation names an operation.
type Operation string

// The operations that depend on the state of the key. Transitions between states are in Next; material can be deleted in
// every state.
const (
	OpGetParametersForImport Operation = "GetParametersForImport"
	OpImportKeyMaterial      Operation = "ImportKeyMaterial"
	OpGenerateDataKey        Operation = "GenerateDataKeyWithoutPlaintext"
	OpExportDataKey          Operation = "ExportDataKey"
)

// useOfMaterial is, for each state, the error of an operation that uses the material.
var useOfMaterial = map[KeyState]Code{
	StatePendingImport:   RejectedPendingImport,
	StateEnabled:         "",
	StateDisabled:        RejectedDisabled,
	StatePendingDeletion: RejectedPendingDeletion,
}

// refusals are the errors of each operation, by state. Operations that are not listed are allowed.
var refusals = map[Operation]map[KeyState]Code{
	OpGetParametersForImport: {},
	OpImportKeyMaterial:      {StatePendingDeletion: RejectedStateModifiedFailed},
	OpGenerateDataKey:        useOfMaterial,
	OpExportDataKey:          useOfMaterial,
}

// Permit decides whether a key in a state allows an operation.
func Permit(op Operation, state KeyState) error {
	answers, known := refusals[op]
	if !known {
		return &Error{Code: UnsupportedOperation}
	}
	if state == StateDeleted {
		return &Error{Code: ForbiddenKeyNotFound, Detail: "The key was destroyed."}
	}
	code, listed := answers[state]
	if usesMaterial := op == OpGenerateDataKey || op == OpExportDataKey; usesMaterial && !listed {
		code = RejectedUnavailable
	}
	if code != "" {
		return &Error{Code: code}
	}
	return nil
}
