package kms_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// The documented table of states. What it does not have is refused, and changes nothing.
func TestNext(t *testing.T) {
	t.Parallel()
	type step struct {
		from  kms.KeyState
		event kms.Event
	}
	const (
		pendingImport, enabled, disabled = kms.StatePendingImport, kms.StateEnabled, kms.StateDisabled
		pendingDeletion, deleted         = kms.StatePendingDeletion, kms.StateDeleted
	)
	table := map[step]kms.KeyState{
		{pendingImport, kms.EventImportKeyMaterial}:   enabled,
		{enabled, kms.EventImportKeyMaterial}:         enabled,
		{disabled, kms.EventImportKeyMaterial}:        disabled,
		{pendingImport, kms.EventMaterialGone}:        pendingImport,
		{enabled, kms.EventMaterialGone}:              pendingImport,
		{disabled, kms.EventMaterialGone}:             pendingImport,
		{pendingDeletion, kms.EventMaterialGone}:      pendingDeletion,
		{enabled, kms.EventEnableKey}:                 enabled,
		{disabled, kms.EventEnableKey}:                enabled,
		{enabled, kms.EventDisableKey}:                disabled,
		{disabled, kms.EventDisableKey}:               disabled,
		{pendingImport, kms.EventScheduleKeyDeletion}: pendingDeletion,
		{enabled, kms.EventScheduleKeyDeletion}:       pendingDeletion,
		{disabled, kms.EventScheduleKeyDeletion}:      pendingDeletion,
		{pendingDeletion, kms.EventCancelKeyDeletion}: enabled,
		{pendingDeletion, kms.EventWindowOver}:        deleted,
	}
	for _, from := range append(kms.KeyStates(), "of a later version") {
		for _, event := range append(kms.Events(), "of a later version") {
			for _, material := range []bool{true, false} {
				want, ok := table[step{from, event}]
				if event == kms.EventCancelKeyDeletion && ok && !material {
					want = pendingImport
				}
				got, err := kms.Next(from, event, material)
				switch {
				case ok && (err != nil || got != want):
					t.Errorf("%s and %s: %s, %v; want %s", from, event, got, err, want)
				case !ok && from == deleted:
					wantError(t, err, kms.ForbiddenKeyNotFound)
				case !ok:
					wantError(t, err, kms.RejectedStateModifiedFailed)
				}
				if err != nil && got != from {
					t.Errorf("%s is refused %s and becomes %s", from, event, got)
				}
			}
		}
	}
}

func TestStateAt_expiryIsAMatterOfTheClock(t *testing.T) {
	t.Parallel()
	end := time.Unix(2_000_000_000, 0)
	for _, tc := range []struct {
		state kms.KeyState
		now   time.Time
		want  kms.KeyState
	}{
		{kms.StateEnabled, end.Add(-time.Nanosecond), kms.StateEnabled},
		{kms.StateEnabled, end, kms.StatePendingImport},
		{kms.StateDisabled, end, kms.StatePendingImport},
		{kms.StatePendingDeletion, end, kms.StatePendingDeletion},
		{kms.StatePendingImport, end, kms.StatePendingImport},
		{kms.StateDeleted, end, kms.StateDeleted},
	} {
		key := kms.Key{State: tc.state, MaterialExpireTime: end}
		if got := key.StateAt(tc.now); got != tc.want {
			t.Errorf("%s at %s is %s, want %s", tc.state, tc.now, got, tc.want)
		}
	}
	if got := (kms.Key{State: kms.StateEnabled}).StateAt(end.AddDate(1000, 0, 0)); got != kms.StateEnabled {
		t.Errorf("material without an end makes a key %s", got)
	}
}

// Nobody has to notice: an operation looks at the clock itself, though the material is still there.
func TestOperations_afterTheMaterialsEnd_areRefused(t *testing.T) {
	t.Parallel()
	s := newService(t)
	key, material := s.enabled(t, hsm.AES256)
	blob := s.dataKey(t, key, nil)
	key.MaterialExpireTime = s.clock.Now().Add(time.Hour)
	use := func() []error {
		_, generated := s.GenerateDataKeyWithoutPlaintext(t.Context(), kms.GenerateDataKeyRequest{Key: key})
		_, exported := s.ExportDataKey(t.Context(), export(t, key, blob, wrapping.ECSM2))
		return []error{generated, exported, s.VerifyDataKey(t.Context(), key, blob, nil)}
	}
	if errs := use(); slices.ContainsFunc(errs, func(err error) bool { return err != nil }) {
		t.Errorf("before the end: %v", errs)
	}
	s.clock.set(key.MaterialExpireTime)
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
	now := s.clock.Now().Unix()
	for _, tc := range []struct {
		at int64
		ok bool
	}{
		{0, true}, {now + 1, true}, {9007199254740991, true},
		{-1, false}, {1, false}, {now, false}, {9007199254740992, false},
	} {
		req := good
		req.KeyMaterialExpireUnix = tc.at
		_, err := s.ImportKeyMaterial(t.Context(), req)
		switch {
		case tc.ok && err != nil:
			t.Errorf("%d: %v", tc.at, err)
		case !tc.ok:
			wantError(t, err, kms.InvalidParameter, "KeyMaterialExpireUnix")
		}
	}
}

func TestAdoptKey(t *testing.T) {
	t.Parallel()
	s := newService(t)
	lost := newKey(hsm.AES256)
	lost.Owner = "team-a"
	imported, err := s.ImportKeyMaterial(t.Context(), request(t, lost, s.parameters(t, sm2(lost)), wrapping.SM2PKE, random(32)))
	if err != nil {
		t.Fatal(err)
	}
	lost.State = kms.StateEnabled
	blob := s.dataKey(t, lost, nil)

	restored := newKey(hsm.AES256)
	restored.Owner, restored.Adopted = "team-a", lost.VersionID()
	got, err := s.AdoptKey(t.Context(), restored)
	if err != nil || got.Fingerprint != imported.Fingerprint || got.Custody != "" {
		t.Errorf("AdoptKey = %+v, %v; want fingerprint %s", got, err, imported.Fingerprint)
	}
	restored.State = kms.StateEnabled
	if err := s.VerifyDataKey(t.Context(), restored, blob, nil); err != nil {
		t.Errorf("a data key from before the loss: %v", err)
	}

	notFound := map[string]string{}
	for sentence, tc := range map[string]struct {
		change func(*kms.Key)
		code   kms.Code
		says   string
	}{
		"a key of another owner": {func(k *kms.Key) { k.Owner = "team-b" }, kms.ForbiddenKeyVersionNotFound, "imported from a namespace called team-b"},
		"a key that is not there": {func(k *kms.Key) { k.Owner, k.Adopted = "team-b", newKey(hsm.AES256).VersionID() },
			kms.ForbiddenKeyVersionNotFound, "imported from a namespace called team-b"},
		"a key of another type":     {func(k *kms.Key) { k.Spec = hsm.AES128 }, kms.InvalidParameter, "KeySpec: The key in the module is AES_256, not AES_128."},
		"a key with other material": {func(k *kms.Key) { k.Fingerprint = &hsm.Fingerprint{1} }, kms.InvalidKeyMaterial, imported.Fingerprint.String()},
	} {
		key := restored
		tc.change(&key)
		_, err := s.AdoptKey(t.Context(), key)
		public := wantError(t, err, tc.code, tc.says)
		if tc.code == kms.ForbiddenKeyVersionNotFound {
			notFound[sentence] = strings.ReplaceAll(public, key.VersionID().String(), "ID")
		}
	}
	wantSame(t, notFound)
	s.module.FailAll("FindKey", hsm.Errorf(hsm.Unavailable, "it does not answer"))
	_, err = s.AdoptKey(t.Context(), restored)
	wantError(t, err, kms.ServiceUnavailableTemporary)
}
