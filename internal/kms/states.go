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

// transitions are the state machines by origin. Other transitions fail with Rejected.StateModifiedFailed.
var transitions = map[Origin]map[KeyState]map[Event]KeyState{OriginExternal: external, OriginModule: generated}

// external is the state machine of a key whose material is imported.
var external = map[KeyState]map[Event]KeyState{
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

// generated is the state machine of a key that the module generates. It is created Enabled, and always has its material.
var generated = map[KeyState]map[Event]KeyState{
	StateEnabled: {
		EventEnableKey:           StateEnabled,
		EventDisableKey:          StateDisabled,
		EventScheduleKeyDeletion: StatePendingDeletion,
	},
	StateDisabled: {
		EventEnableKey:           StateEnabled,
		EventDisableKey:          StateDisabled,
		EventScheduleKeyDeletion: StatePendingDeletion,
	},
	StatePendingDeletion: {
		EventCancelKeyDeletion: StateEnabled,
		EventWindowOver:        StateDeleted,
	},
}

// Next returns the state of a key after an event. If the deletion of a key with origin EXTERNAL is cancelled, material decides
// between Enabled and PendingImport: it is whether the key has its material.
func Next(origin Origin, state KeyState, event Event, material bool) (KeyState, error) {
	if state == StateDeleted {
		return state, &Error{Code: ForbiddenKeyNotFound}
	}
	next, ok := transitions[origin][state][event]
	if !ok {
		return state, &Error{Code: RejectedStateModifiedFailed}
	}
	if origin == OriginExternal && event == EventCancelKeyDeletion && !material {
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

// permit is Permit for the key at a time.
func (k Key) permit(op Operation, now time.Time) error { return Permit(op, k.Origin, k.StateAt(now)) }

// Operation names an operation.
type Operation string

// The operations that depend on the origin and the state of the key. Transitions between states are in Next; material can be
// deleted in every state.
const (
	OpGetParametersForImport Operation = "GetParametersForImport"
	OpImportKeyMaterial      Operation = "ImportKeyMaterial"
	OpCreateKeyVersion       Operation = "CreateKeyVersion"
	OpGenerateDataKey        Operation = "GenerateDataKeyWithoutPlaintext"
	OpExportDataKey          Operation = "ExportDataKey"
	OpReEncrypt              Operation = "ReEncrypt"
)

// useOfMaterial is, for each state, the error of an operation that uses the material or adds to it.
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
	OpCreateKeyVersion:       useOfMaterial,
	OpGenerateDataKey:        useOfMaterial,
	OpExportDataKey:          useOfMaterial,
	OpReEncrypt:              useOfMaterial,
}

// originOf are the operations that keys of one origin allow. The others do not depend on the origin.
var originOf = map[Operation]Origin{
	OpGetParametersForImport: OriginExternal,
	OpImportKeyMaterial:      OriginExternal,
	OpCreateKeyVersion:       OriginModule,
}

// Permit decides whether a key of an origin and in a state allows an operation.
func Permit(op Operation, origin Origin, state KeyState) error {
	answers, known := refusals[op]
	if !known {
		return &Error{Code: UnsupportedOperation}
	}
	if only, limited := originOf[op]; limited && only != origin {
		return &Error{Code: UnsupportedOrigin}
	}
	if state == StateDeleted {
		return &Error{Code: ForbiddenKeyNotFound, Detail: "The key was destroyed."}
	}
	code, listed := answers[state]
	if usesMaterial := op != OpGetParametersForImport && op != OpImportKeyMaterial; usesMaterial && !listed {
		code = RejectedUnavailable
	}
	if code != "" {
		return &Error{Code: code}
	}
	return nil
}
