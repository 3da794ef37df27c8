package controllers_test

import (
	"testing"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
)

// The owner changes their mind after the operator has looked at the object, and before it destroys the key.
func TestImportedKey_ownersLastWord_keepsTheKey(t *testing.T) {
	t.Parallel()
	t.Run("the deletion is called off when its window is over", func(t *testing.T) {
		clock, read := testClock(), &beforeRead{path: "/importedkeys/key"}
		o := startOperator(t, harness.WithClock(clock), read.option())
		o.store(t, onSoftware)
		key := o.enabledKey(t, "key", nil)
		o.desire(t, key, v1alpha1.DesiredPendingDeletion, 7)
		o.keyIs(t, key, kms.StatePendingDeletion)
		clock.SetTime(key.Status.DeletionTime.Time)
		inHook := key.DeepCopy() // the hook runs beside the test
		read.arm(func() { o.desire(t, inHook, v1alpha1.DesiredEnabled, 0) })
		o.Touch(t, key)
		o.keyIs(t, key, kms.StateEnabled)
		if !o.inModule(t, key) || o.Calls()["DestroyKey"] != 0 {
			t.Error("the key was destroyed")
		}
	})
	t.Run("the policy becomes Retain when the object is deleted", func(t *testing.T) {
		read := &beforeRead{path: "/importedkeys/key"}
		o := startOperator(t, read.option())
		o.store(t, onSoftware)
		key := o.enabledKey(t, "key", nil, withDeletionPolicy(v1alpha1.DeletionDelete))
		inHook := key.DeepCopy()
		read.arm(func() {
			o.Change(t, inHook, func() { inHook.Spec.DeletionPolicy = v1alpha1.DeletionRetain })
		})
		o.Remove(t, key)
		o.Gone(t, key.DeepCopy())
		if !o.inModule(t, key) || o.Calls()["DestroyKey"] != 0 {
			t.Error("the key was destroyed")
		}
	})
}
