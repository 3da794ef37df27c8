package controllers_test

import (
	"slices"
	"testing"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
	"github.com/keyconvoy/keyconvoy/internal/kms"
)

// A token that was initialised anew has the label and the PIN of the one before, and none of its keys. What
// needs one of them says so, and nothing takes their place.
func TestToken_initialisedAnew_nothingIsMadeAnew(t *testing.T) {
	t.Parallel()
	for name, restart := range map[string]bool{"while the operator runs": false, "before it starts": true} {
		t.Run(name, func(t *testing.T) {
			tokenInitialisedAnew(t, restart)
		})
	}
}

func tokenInitialisedAnew(t *testing.T, restart bool) {
	token := ownToken(t)
	o := startOperator(t)
	o.givePIN(t, o.Namespace, token.PIN)
	store := &v1alpha1.KeyStore{ObjectMeta: named("store"), Spec: tokenSpec(onSoftHSM, token.Label)}
	o.Make(t, store)
	o.Ready(t, store)
	rsa := under("RSA_2048", "RSAES_OAEP_SHA_1")
	material := o.material(32)
	key := o.enabledKey(t, "key", material, rsa)
	waiting := o.pendingKey(t, "waiting", rsa)
	dataKey := o.dataKey(t, "dek")
	export := o.export(t, "export", withRSA("RSAES_OAEP_SHA_1"))
	blob, exported := dataKey.Status.CiphertextBlob, o.exportedBytes(t, export)

	if restart {
		o.Stop(t)
	}
	tokens.Reinitialise(t, token)
	if restart {
		o.Start(t)
	}
	o.Ready(t, store)
	o.Settled(t, key, waiting, dataKey, export)

	late := newDataKey("late")
	lateExport := newExport("late-export", withRSA("RSAES_OAEP_SHA_1"))
	o.Make(t, late, lateExport)
	o.Waits(t, late, kms.ForbiddenKeyVersionNotFound.Reason(), "Forbidden.KeyVersionNotFound: ")
	o.Waits(t, lateExport, kms.ForbiddenKeyVersionNotFound.Reason(), "Forbidden.KeyVersionNotFound: ")
	o.absent(t, "late")
	o.absent(t, "late-export")

	// Parameters from before are no good: their pair no longer exists, nor does the key of their token.
	p := waiting.Status.ImportParameters
	o.give(t, waiting, inline(wrapUnder(t, p, o.material(32)), p.ImportToken))
	o.Stalls(t, waiting, kms.InvalidImportToken.Reason())
	if o.inModule(t, key) || o.inModule(t, waiting) {
		t.Error("a key came into the new token by itself")
	}

	// What there was stays as it was, and comes back with the same material.
	o.Ready(t, dataKey)
	o.Ready(t, export)
	if dataKey.Status.CiphertextBlob != blob || string(o.exportedBytes(t, export)) != string(exported) {
		t.Error("a data key or an export was made anew")
	}
	o.importsAgain(t, key, "1", material, noEnd)
	o.keyIs(t, key, kms.StateEnabled)
	o.Ready(t, late, lateExport)

	// And what is in the token now is readable for the next user who logs in to it.
	want := "secret " + labelOf(key)
	if got := listToken(t, token); !slices.Contains(got, want) {
		t.Errorf("the token holds %q", got)
	}
	o.Restart(t)
	o.export(t, "next", withRSA("RSAES_OAEP_SHA_1"))
}
