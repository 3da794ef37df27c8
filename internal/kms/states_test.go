package kms_test

import (
	"math"
	"slices"
	"testing"
	"time"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// refused stands in the tables for an event that the state does not take: the key stays as it is.
const refused kms.KeyState = ""

// nexts are the states after each event. material says whether the key has its material, where that makes a difference.
type nexts = map[kms.KeyState]map[kms.Event]struct{ withMaterial, without kms.KeyState }

// nextStates are the documented state machines in full: every origin, every state, and every event in it.
var nextStates = map[kms.Origin]nexts{kms.OriginExternal: external, kms.OriginModule: generated}

// generated keys have no material that comes or goes. PendingImport is a state that none of them has.
var generated = nexts{
	kms.StatePendingImport: {
		kms.EventImportKeyMaterial:   {refused, refused},
		kms.EventMaterialGone:        {refused, refused},
		kms.EventEnableKey:           {refused, refused},
		kms.EventDisableKey:          {refused, refused},
		kms.EventScheduleKeyDeletion: {refused, refused},
		kms.EventCancelKeyDeletion:   {refused, refused},
		kms.EventWindowOver:          {refused, refused},
	},
	kms.StateEnabled: {
		kms.EventImportKeyMaterial:   {refused, refused},
		kms.EventMaterialGone:        {refused, refused},
		kms.EventEnableKey:           {kms.StateEnabled, kms.StateEnabled},
		kms.EventDisableKey:          {kms.StateDisabled, kms.StateDisabled},
		kms.EventScheduleKeyDeletion: {kms.StatePendingDeletion, kms.StatePendingDeletion},
		kms.EventCancelKeyDeletion:   {refused, refused},
		kms.EventWindowOver:          {refused, refused},
	},
	kms.StateDisabled: {
		kms.EventImportKeyMaterial:   {refused, refused},
		kms.EventMaterialGone:        {refused, refused},
		kms.EventEnableKey:           {kms.StateEnabled, kms.StateEnabled},
		kms.EventDisableKey:          {kms.StateDisabled, kms.StateDisabled},
		kms.EventScheduleKeyDeletion: {kms.StatePendingDeletion, kms.StatePendingDeletion},
		kms.EventCancelKeyDeletion:   {refused, refused},
		kms.EventWindowOver:          {refused, refused},
	},
	kms.StatePendingDeletion: {
		kms.EventImportKeyMaterial:   {refused, refused},
		kms.EventMaterialGone:        {refused, refused},
		kms.EventEnableKey:           {refused, refused},
		kms.EventDisableKey:          {refused, refused},
		kms.EventScheduleKeyDeletion: {refused, refused},
		kms.EventCancelKeyDeletion:   {kms.StateEnabled, kms.StateEnabled},
		kms.EventWindowOver:          {kms.StateDeleted, kms.StateDeleted},
	},
	kms.StateDeleted: {
		kms.EventImportKeyMaterial:   {refused, refused},
		kms.EventMaterialGone:        {refused, refused},
		kms.EventEnableKey:           {refused, refused},
		kms.EventDisableKey:          {refused, refused},
		kms.EventScheduleKeyDeletion: {refused, refused},
		kms.EventCancelKeyDeletion:   {refused, refused},
		kms.EventWindowOver:          {refused, refused},
	},
}

var external = nexts{
	kms.StatePendingImport: {
		kms.EventImportKeyMaterial:   {kms.StateEnabled, kms.StateEnabled},
		kms.EventMaterialGone:        {kms.StatePendingImport, kms.StatePendingImport},
		kms.EventEnableKey:           {refused, refused},
		kms.EventDisableKey:          {refused, refused},
		kms.EventScheduleKeyDeletion: {kms.StatePendingDeletion, kms.StatePendingDeletion},
		kms.EventCancelKeyDeletion:   {refused, refused},
		kms.EventWindowOver:          {refused, refused},
	},
	kms.StateEnabled: {
		kms.EventImportKeyMaterial:   {kms.StateEnabled, kms.StateEnabled},
		kms.EventMaterialGone:        {kms.StatePendingImport, kms.StatePendingImport},
		kms.EventEnableKey:           {kms.StateEnabled, kms.StateEnabled},
		kms.EventDisableKey:          {kms.StateDisabled, kms.StateDisabled},
		kms.EventScheduleKeyDeletion: {kms.StatePendingDeletion, kms.StatePendingDeletion},
		kms.EventCancelKeyDeletion:   {refused, refused},
		kms.EventWindowOver:          {refused, refused},
	},
	kms.StateDisabled: {
		kms.EventImportKeyMaterial:   {kms.StateDisabled, kms.StateDisabled},
		kms.EventMaterialGone:        {kms.StatePendingImport, kms.StatePendingImport},
		kms.EventEnableKey:           {kms.StateEnabled, kms.StateEnabled},
		kms.EventDisableKey:          {kms.StateDisabled, kms.StateDisabled},
		kms.EventScheduleKeyDeletion: {kms.StatePendingDeletion, kms.StatePendingDeletion},
		kms.EventCancelKeyDeletion:   {refused, refused},
		kms.EventWindowOver:          {refused, refused},
	},
	kms.StatePendingDeletion: {
		kms.EventImportKeyMaterial:   {refused, refused},
		kms.EventMaterialGone:        {kms.StatePendingDeletion, kms.StatePendingDeletion},
		kms.EventEnableKey:           {refused, refused},
		kms.EventDisableKey:          {refused, refused},
		kms.EventScheduleKeyDeletion: {refused, refused},
		kms.EventCancelKeyDeletion:   {kms.StateEnabled, kms.StatePendingImport},
		kms.EventWindowOver:          {kms.StateDeleted, kms.StateDeleted},
	},
	kms.StateDeleted: {
		kms.EventImportKeyMaterial:   {refused, refused},
		kms.EventMaterialGone:        {refused, refused},
		kms.EventEnableKey:           {refused, refused},
		kms.EventDisableKey:          {refused, refused},
		kms.EventScheduleKeyDeletion: {refused, refused},
		kms.EventCancelKeyDeletion:   {refused, refused},
		kms.EventWindowOver:          {refused, refused},
	},
}

func TestNext_everyStateAndEveryEvent(t *testing.T) {
	t.Parallel()
	for _, origin := range kms.Origins() {
		for _, from := range kms.KeyStates() {
			for _, event := range kms.Events() {
				want, listed := nextStates[origin][from][event]
				if !listed {
					t.Errorf("%s, %s and %s are not in the table: what comes of them?", origin, from, event)
					continue
				}
				for material, to := range map[bool]kms.KeyState{true: want.withMaterial, false: want.without} {
					got, err := kms.Next(origin, from, event, material)
					switch {
					case to != refused && (err != nil || got != to):
						t.Errorf("%s, %s and %s (material: %t): %s, %v; want %s", origin, from, event, material, got, err, to)
					case to == refused && got != from:
						t.Errorf("%s, %s refuses %s and becomes %s", origin, from, event, got)
					case to == refused && from == kms.StateDeleted:
						wantError(t, err, kms.ForbiddenKeyNotFound)
					case to == refused:
						wantError(t, err, kms.RejectedStateModifiedFailed)
					}
				}
			}
		}
	}
}

// A status may have been written by a later version, and a status is what states come from.
func TestNext_unknownStatesAndEvents_areRefused(t *testing.T) {
	t.Parallel()
	for _, event := range append(kms.Events(), "of a later version") {
		got, err := kms.Next(kms.OriginExternal, "of a later version", event, true)
		wantError(t, err, kms.RejectedStateModifiedFailed)
		if got != "of a later version" {
			t.Errorf("%s makes it %s", event, got)
		}
	}
	for _, state := range kms.KeyStates() {
		wantError(t, kms.Permit(kms.OpCreateKeyVersion, kms.OriginModule, ""), kms.RejectedUnavailable)
		for _, origin := range append(kms.Origins(), "of a later version") {
			if got, err := kms.Next(origin, state, "of a later version", true); err == nil || got != state {
				t.Errorf("%s, %s: %s, %v", origin, state, got, err)
			}
		}
	}
}

// answers are what a key in each state says to each operation; "" is yes. What only keys of the other origin allow is not here.
var answers = map[kms.Origin]map[kms.Operation]map[kms.KeyState]kms.Code{
	kms.OriginExternal: {
		kms.OpGetParametersForImport: {
			kms.StatePendingImport: "", kms.StateEnabled: "", kms.StateDisabled: "", kms.StatePendingDeletion: "",
			kms.StateDeleted: kms.ForbiddenKeyNotFound,
		},
		kms.OpImportKeyMaterial: {
			kms.StatePendingImport: "", kms.StateEnabled: "", kms.StateDisabled: "",
			kms.StatePendingDeletion: kms.RejectedStateModifiedFailed, kms.StateDeleted: kms.ForbiddenKeyNotFound,
		},
		kms.OpGenerateDataKey: usesMaterial, kms.OpExportDataKey: usesMaterial, kms.OpReEncrypt: usesMaterial,
	},
	kms.OriginModule: {
		kms.OpCreateKeyVersion: usesMaterial, kms.OpGenerateDataKey: usesMaterial, kms.OpExportDataKey: usesMaterial, kms.OpReEncrypt: usesMaterial,
	},
}

var usesMaterial = map[kms.KeyState]kms.Code{
	kms.StatePendingImport: kms.RejectedPendingImport, kms.StateEnabled: "", kms.StateDisabled: kms.RejectedDisabled,
	kms.StatePendingDeletion: kms.RejectedPendingDeletion, kms.StateDeleted: kms.ForbiddenKeyNotFound,
}

// everyOperation are the operations of either origin.
var everyOperation = []kms.Operation{
	kms.OpGetParametersForImport, kms.OpImportKeyMaterial, kms.OpCreateKeyVersion,
	kms.OpGenerateDataKey, kms.OpExportDataKey, kms.OpReEncrypt,
}

func TestPermit_everyOperationInEveryState(t *testing.T) {
	t.Parallel()
	for _, origin := range kms.Origins() {
		for _, op := range everyOperation {
			byState, allowed := answers[origin][op]
			for _, state := range kms.KeyStates() {
				want, listed := byState[state]
				if !allowed {
					want = kms.UnsupportedOrigin
				} else if !listed {
					t.Errorf("%s, %s of a key that is %s is not in the table: what does it answer?", origin, op, state)
					continue
				}
				err := kms.Permit(op, origin, state)
				if kms.CodeOf(err) != want {
					t.Errorf("%s, %s of a key that is %s: %v, want %q", origin, op, state, err, want)
				} else if err != nil {
					wantError(t, err, want)
				}
			}
		}
	}
	for _, origin := range append(kms.Origins(), "of a later version") {
		for _, state := range kms.KeyStates() {
			wantError(t, kms.Permit("of a later version", origin, state), kms.UnsupportedOperation)
		}
		for _, op := range []kms.Operation{kms.OpGenerateDataKey, kms.OpExportDataKey, kms.OpReEncrypt} {
			wantError(t, kms.Permit(op, origin, "of a later version"), kms.RejectedUnavailable)
			wantError(t, kms.Permit(op, origin, ""), kms.RejectedUnavailable)
		}
	}
}

func TestStateAt_expiryIsAMatterOfTheClock(t *testing.T) {
	t.Parallel()
	end := time.Unix(2_000_000_000, 0)
	after := map[kms.KeyState]kms.KeyState{
		kms.StatePendingImport:   kms.StatePendingImport,
		kms.StateEnabled:         kms.StatePendingImport,
		kms.StateDisabled:        kms.StatePendingImport,
		kms.StatePendingDeletion: kms.StatePendingDeletion,
		kms.StateDeleted:         kms.StateDeleted,
	}
	for _, state := range kms.KeyStates() {
		ended, listed := after[state]
		if !listed {
			t.Errorf("%s is not in the table: what is it once the material has ended?", state)
			continue
		}
		for sentence, tc := range map[string]struct {
			end, now time.Time
			want     kms.KeyState
		}{
			"a nanosecond before the end":         {end, end.Add(-time.Nanosecond), state},
			"at the very instant":                 {end, end, ended},
			"at that instant in another zone":     {end, end.In(time.FixedZone("", 8*3600)), ended},
			"a nanosecond after it":               {end, end.Add(time.Nanosecond), ended},
			"a thousand years after it":           {end, end.AddDate(1000, 0, 0), ended},
			"material without an end, long hence": {time.Time{}, end.AddDate(1000, 0, 0), state},
		} {
			key := kms.Key{State: state, Primary: kms.Version{ExpireTime: tc.end}}
			if got := key.StateAt(tc.now); got != tc.want {
				t.Errorf("%s, %s: %s, want %s", state, sentence, got, tc.want)
			}
		}
	}
}

func TestGetParametersForImport_ofADestroyedKey_makesNothing(t *testing.T) {
	t.Parallel()
	s := newService(t)
	key := newKey(hsm.AES256)
	key.State = kms.StateDeleted
	_, err := s.GetParametersForImport(t.Context(), sm2(key))
	wantError(t, err, kms.ForbiddenKeyNotFound)
	if calls := s.module.Calls(); len(calls) > 0 {
		t.Errorf("the module was asked: %v", calls)
	}
}

// Nothing has to happen first: an operation looks at the clock itself, though the material is still there.
func TestOperations_afterTheMaterialsEnd_areRefused(t *testing.T) {
	t.Parallel()
	s := newService(t)
	key, material := s.enabled(t, hsm.AES256)
	blob := s.dataKey(t, key, nil)
	key.Primary.ExpireTime = s.clock.Now().Add(time.Hour)
	use := func() []error {
		_, generated := s.GenerateDataKeyWithoutPlaintext(t.Context(), kms.GenerateDataKeyRequest{Key: key})
		_, exported := s.ExportDataKey(t.Context(), export(t, key, blob, wrapping.ECSM2))
		return []error{generated, exported, s.VerifyDataKey(t.Context(), key, blob, nil)}
	}
	if errs := use(); slices.ContainsFunc(errs, func(err error) bool { return err != nil }) {
		t.Errorf("before the end: %v", errs)
	}
	s.clock.set(key.Primary.ExpireTime)
	for _, err := range use() {
		wantError(t, err, kms.RejectedPendingImport)
	}
	if _, err := s.ImportKeyMaterial(t.Context(), request(t, key, s.parameters(t, sm2(key)), wrapping.SM2PKE, material)); err != nil {
		t.Errorf("the same material again: %v", err)
	}
}

func TestImportKeyMaterial_takesAnEndToCome(t *testing.T) {
	t.Parallel()
	s := newService(t)
	key, material := s.enabled(t, hsm.AES256)
	good := request(t, key, s.parameters(t, sm2(key)), wrapping.SM2PKE, material)
	now := s.clock.Now().Unix() // half a second ago
	for sentence, tc := range map[string]struct {
		at int64
		ok bool
	}{
		"before there was time":           {-1, false},
		"the least integer":               {math.MinInt64, false},
		"long past":                       {1, false},
		"a second ago":                    {now - 1, false},
		"now":                             {now, false},
		"the first second of Unix time":   {0, false},
		"the next second":                 {now + 1, true},
		"the last second of year 9999":    {253402300799, true},
		"the first second of year 10000":  {253402300800, false},
		"as far as JSON carries integers": {9007199254740991, false},
		"the greatest integer":            {math.MaxInt64, false},
		"milliseconds taken for seconds":  {now * 1000, false},
		"nanoseconds taken for seconds":   {now * 1_000_000_000, false},
	} {
		s.module.Reset()
		req := good
		req.KeyMaterialExpireUnix = &tc.at
		_, err := s.ImportKeyMaterial(t.Context(), req)
		switch {
		case tc.ok && err != nil:
			t.Errorf("%s (%d): %v", sentence, tc.at, err)
		case !tc.ok:
			wantError(t, err, kms.InvalidParameter, "KeyMaterialExpireUnix", "The time is")
			if calls := s.module.Calls(); len(calls) > 0 {
				t.Errorf("%s: the module was asked: %v", sentence, calls)
			}
		}
	}
}
