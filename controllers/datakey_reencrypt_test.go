package controllers_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
)

func onRotation(s *v1alpha1.DataKeySpec) {
	s.Reencryption = &v1alpha1.ReencryptionSpec{Policy: v1alpha1.ReencryptOnRotation}
}

// movedTo waits until a data key is under a version, with the former blob in its Secret, and checks that both say the same.
func (o *operator) movedTo(t testing.TB, k *v1alpha1.DataKey, version string, former v1alpha1.DataKeyStatus) {
	t.Helper()
	o.Until(t, k, func() string {
		if k.Status.KeyVersionID != version {
			return "the data key is under " + k.Status.KeyVersionID + ", want " + version
		}
		return ""
	})
	o.Ready(t, k)
	s := o.secretOf(t, k.Name)
	digest := former.DataKeyDigest
	if digest == "" {
		digest = sha256Hex(former.CiphertextBlob)
	}
	if string(s.Data["ciphertextBlob"]) != k.Status.CiphertextBlob || string(s.Data["previousCiphertextBlob"]) != former.CiphertextBlob || len(s.Data) != 2 {
		t.Errorf("the Secret has %q, the status %q, and the former blob is %q", s.Data, k.Status.CiphertextBlob, former.CiphertextBlob)
	}
	if k.Status.DataKeyDigest != digest || s.Annotations["keyconvoy.io/data-key-digest"] != digest || s.Annotations["keyconvoy.io/blob-tag"] != k.Status.BlobTag {
		t.Errorf("the data key is %q in the status and %q in the Secret, want %q", k.Status.DataKeyDigest, s.Annotations, digest)
	}
}

// A Secret that is as the operator left it is not read. One that someone changes meanwhile is, and the change stays.
func TestDataKey_onRotation_secretIsReadOnlyIfItChanged(t *testing.T) {
	t.Parallel()
	var changes, read atomic.Bool
	var change func()
	var once sync.Once
	o := startOperator(t, harness.WithConfig(func(cfg *rest.Config) {
		cfg.Wrap(func(next http.RoundTripper) http.RoundTripper {
			return roundTripper(func(r *http.Request) (*http.Response, error) {
				if strings.HasSuffix(r.URL.Path, "/secrets/dek") {
					read.Store(read.Load() || r.Method == http.MethodGet)
					if changes.Load() && r.Method == http.MethodPatch {
						once.Do(change)
					}
				}
				return next.RoundTrip(r)
			})
		})
	}))
	o.store(t, onSoftware)
	key := o.generated(t, "key")
	k := o.dataKey(t, "dek", underGenerated("key"), onRotation)
	for _, changed := range []bool{false, true} {
		former := *k.Status.DeepCopy()
		change = func() {
			secret := o.secretOf(t, "dek")
			secret.Labels["team"] = "ledger"
			if err := o.Client.Update(t.Context(), secret); err != nil {
				t.Error(err)
			}
		}
		changes.Store(changed)
		read.Store(false)
		o.rotate(t, key, fmt.Sprint(changed))
		o.movedTo(t, k, key.Status.PrimaryVersion, former)
		if is := read.Load(); is != changed {
			t.Errorf("the Secret was read: %t, changed: %t", is, changed)
		}
	}
	if o.secretOf(t, "dek").Labels["team"] != "ledger" {
		t.Error("the label of someone else was removed")
	}
}

func TestDataKey_onRotation_followsThePrimaryVersion(t *testing.T) {
	t.Parallel()
	for store, custody := range map[string]v1alpha1.Custody{onSoftware: "Software", onSoftHSM: "Module", onNSS: "Module"} {
		t.Run(store, func(t *testing.T) {
			o := startOperator(t)
			o.store(t, store)
			key := o.generated(t, "key", generatedWith(v1alpha1.DeletionDelete))
			k := o.dataKey(t, "dek", underGenerated("key"), onRotation, withContext(map[string]v1alpha1.ContextValue{"app": "ledger"}))
			stays := o.dataKey(t, "stays", underGenerated("key"))
			e := o.export(t, "e", ofDataKey("dek"), toBlob(sm2Recipient().public.Base64()), withSM2)
			plain := o.openExport(t, e, sm2Recipient())
			exported := e.ResourceVersion
			for i := range 2 {
				former := *k.Status.DeepCopy()
				o.rotate(t, key, fmt.Sprint(i))
				o.movedTo(t, k, key.Status.PrimaryVersion, former)
				if k.Status.Custody != custody || k.Status.KeyID != string(key.UID) {
					t.Errorf("the data key is %s", harness.JSON(k.Status))
				}
			}
			// The data key is the same, so its exports are not made again. The next one reports the new version.
			o.Settled(t, e)
			if o.Read(t, e); e.ResourceVersion != exported {
				t.Errorf("the export changed: %s", harness.JSON(e.Status))
			}
			again := o.export(t, "again", ofDataKey("dek"), toBlob(sm2Recipient().public.Base64()), withSM2)
			if !bytes.Equal(o.openExport(t, again, sm2Recipient()), plain) || again.Status.KeyVersionID != key.Status.PrimaryVersion {
				t.Errorf("the next export is %s, or of another data key", harness.JSON(again.Status))
			}
			if o.Read(t, stays); stays.Status.KeyVersionID != key.Status.Versions[0].KeyVersionID || stays.Status.DataKeyDigest != "" {
				t.Error("a data key that does not ask for it was re-encrypted")
			}
		})
	}
}

func TestDataKey_reencryption_costsTwoWritesAndThenNothing(t *testing.T) {
	t.Parallel()
	const many = 20
	o := startOperator(t, harness.WithHealth(time.Hour))
	store := o.store(t, onSoftware)
	key := o.generated(t, "key")
	var keys []*v1alpha1.DataKey
	var former []v1alpha1.DataKeyStatus
	for i := range many {
		k := newDataKey(fmt.Sprint("dek-", i), underGenerated("key"), onRotation)
		o.Make(t, k)
		keys = append(keys, k)
	}
	for _, k := range keys {
		o.Ready(t, k)
		o.Settled(t, k)
		former = append(former, *k.Status.DeepCopy())
	}
	o.ForgetCounts()
	o.rotate(t, key, "now")
	o.Event(t, key, "KeyRotated")
	for i, k := range keys {
		o.movedTo(t, k, key.Status.PrimaryVersion, former[i])
		o.Settled(t, k)
	}
	wantCounts(t, "a rotation", o.Writes(), map[string]int{
		"patch generatedkeys/status": 1, "create events": 1, "create secrets": 1, // the new version, in the software store
		"apply secrets": many, "patch datakeys/status": many,
	})
	wantCounts(t, "a rotation", o.Calls(), map[string]int{
		"FindKey": 1, "GenerateKey": 1, // FindKey: whose versions the key has
		"ReencryptDataKey": 2 * many, "Authenticate": many, // there, and back to verify it
	})
	o.Restart(t)
	for _, k := range keys {
		o.Settled(t, k)
	}
	o.Settled(t, store, key)
	counts := o.Requests.In(o.Namespace)
	wantCounts(t, "a restart", counts.Writes, map[string]int{})
	wantCounts(t, "a restart", o.Calls(), map[string]int{})
}

func TestDataKey_keyRefChanged_movesUnderTheOtherKey(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	to := o.generated(t, "other", generatedSpec(hsm.SM4))
	k := o.dataKey(t, "dek")
	plain := o.dataKeyBytes(t, k)
	e := o.export(t, "e", ofDataKey("dek"), toBlob(sm2Recipient().public.Base64()), withSM2)
	former := *k.Status.DeepCopy()
	o.Change(t, k, func() { underGenerated("other")(&k.Spec) })
	o.movedTo(t, k, to.Status.PrimaryVersion, former)
	if k.Status.KeyID != string(to.UID) {
		t.Errorf("the data key is %s", harness.JSON(k.Status))
	}
	// The new key's owner decides about the export that stands.
	o.Change(t, to, func() {
		to.Spec.ExportPolicy = &v1alpha1.ExportPolicy{WrappingAlgorithms: []v1alpha1.ExportAlgorithm{"RSAES_OAEP_SHA_256"}}
	})
	o.withdrawn(t, e)
	o.Change(t, to, func() { to.Spec.ExportPolicy = nil })
	o.Ready(t, e)
	if !bytes.Equal(o.openExport(t, e, sm2Recipient()), plain) {
		t.Error("the data key is another one")
	}
	// And back.
	former = *k.Status.DeepCopy()
	o.Change(t, k, func() { k.Spec.KeyRef = v1alpha1.KeyReference{Kind: "ImportedKey", Name: "key"} })
	o.movedTo(t, k, o.key(t).Status.KeyVersionID, former)
}

func TestDataKey_keyRefToAnotherStore_isRefused(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	second := &v1alpha1.KeyStore{ObjectMeta: named("second"), Spec: storeSpec(onSoftware)}
	o.Make(t, second)
	o.Ready(t, second)
	o.generated(t, "other", func(s *v1alpha1.GeneratedKeySpec) { s.KeyStoreRef.Name = "second" })
	k := o.dataKey(t, "dek")
	blob := k.Status.CiphertextBlob
	o.Change(t, k, func() { underGenerated("other")(&k.Spec) })
	o.Stalls(t, k, kms.InvalidParameter.Reason(), "keyRef", "is in another key store", "export the data key")
	if k.Status.CiphertextBlob != blob || string(o.secretOf(t, "dek").Data["ciphertextBlob"]) != blob {
		t.Error("the blob changed")
	}
	o.Change(t, k, func() { k.Spec.KeyRef = v1alpha1.KeyReference{Kind: "ImportedKey", Name: "key"} })
	o.Ready(t, k)
}

func TestDataKey_whoseFormerKeyIsDisabled_waitsWithWhatItHas(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	to := o.generated(t, "other")
	k := o.dataKey(t, "dek")
	former := *k.Status.DeepCopy()
	o.desire(t, o.key(t), v1alpha1.DesiredDisabled, 0)
	o.keyIs(t, o.key(t), kms.StateDisabled)
	o.Change(t, k, func() { underGenerated("other")(&k.Spec) })
	o.Waits(t, k, kms.RejectedDisabled.Reason())
	e := newExport("e", ofDataKey("dek"), toBlob(sm2Recipient().public.Base64()), withSM2)
	o.Make(t, e)
	o.Waits(t, e, kms.ForbiddenKeyVersionNotFound.Reason(), "is being moved", "See the conditions of the DataKey")
	if k.Status.CiphertextBlob != former.CiphertextBlob {
		t.Error("the blob changed")
	}
	o.desire(t, o.key(t), v1alpha1.DesiredEnabled, 0)
	o.movedTo(t, k, to.Status.PrimaryVersion, former)
	o.Ready(t, e)
}

// Secrets outlive their DataKeys. A user who may use one key only must not move a data key from another one by making a DataKey
// again.
func TestDataKey_madeAgainUnderAnotherKey_doesNotMoveWhatItFinds(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	o.generated(t, "other")
	k := o.dataKey(t, "dek")
	blob := k.Status.CiphertextBlob
	o.Remove(t, k)
	o.Gone(t, k)
	again := newDataKey("dek", underGenerated("other"), onRotation)
	o.Make(t, again)
	o.Stalls(t, again, kms.InvalidParameter.Reason(), "cannot be decrypted")
	given := newDataKey("given", underGenerated("other"), onRotation, withBlob(blob))
	o.Make(t, given)
	o.Stalls(t, given, kms.InvalidParameter.Reason(), "cannot be decrypted")
	if string(o.secretOf(t, "dek").Data["ciphertextBlob"]) != blob {
		t.Error("the Secret changed")
	}
}

// Backups carry no status. What is in the Secret is the data key that spec.ciphertextBlob in Git names, re-encrypted.
func TestDataKey_reencrypted_isTakenOverFromItsSecret(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftware)
	key := o.generated(t, "key")
	first := o.dataKey(t, "first", underGenerated("key"))
	k := o.dataKey(t, "dek", underGenerated("key"), onRotation, withBlob(first.Status.CiphertextBlob))
	plain := o.dataKeyBytes(t, k)
	former := *k.Status.DeepCopy()
	o.rotate(t, key, "now")
	o.movedTo(t, k, key.Status.PrimaryVersion, former)
	moved := *k.Status.DeepCopy()
	o.Stop(t)
	o.loseStatus(t, k)
	o.Start(t)
	o.Ready(t, k)
	if k.Status.CiphertextBlob != moved.CiphertextBlob || k.Status.DataKeyDigest != moved.DataKeyDigest || k.Status.Custody != v1alpha1.CustodyUnknown {
		t.Errorf("the status is %s, and was %s", harness.JSON(k.Status), harness.JSON(moved))
	}
	again := o.export(t, "again", ofDataKey("dek"), toBlob(sm2Recipient().public.Base64()), withSM2)
	if !bytes.Equal(o.openExport(t, again, sm2Recipient()), plain) {
		t.Error("the data key is another one")
	}
}

// After a rotation, someone puts the current blob of the data key into Git. It stays the same data key at the next rotations, and
// when its status is lost.
func TestDataKey_currentBlobInTheSpec_agreesAfterTheNextRotation(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftware)
	key := o.generated(t, "key")
	k := o.dataKey(t, "dek", underGenerated("key"), onRotation)
	o.rotate(t, key, "first")
	o.movedTo(t, k, key.Status.PrimaryVersion, *k.Status.DeepCopy())
	second := k.Status.CiphertextBlob
	o.Change(t, k, func() { k.Spec.CiphertextBlob = second })
	o.Until(t, k, func() string {
		if k.Status.AcceptedDigest != sha256Hex(second) {
			return "the blob is not accepted: " + harness.JSON(k.Status)
		}
		return ""
	})
	o.Ready(t, k)
	for i := range 2 {
		former := *k.Status.DeepCopy()
		o.rotate(t, key, fmt.Sprint(i))
		o.movedTo(t, k, key.Status.PrimaryVersion, former)
	}
	moved := *k.Status.DeepCopy()
	o.Stop(t)
	o.loseStatus(t, k)
	o.Start(t)
	o.Ready(t, k)
	if s := k.Status; s.CiphertextBlob != moved.CiphertextBlob || s.DataKeyDigest != moved.DataKeyDigest || s.AcceptedDigest != moved.AcceptedDigest || s.Custody != moved.Custody {
		t.Errorf("the status is %s, and was %s", harness.JSON(s), harness.JSON(moved))
	}
}

// The operator ended after it had written the Secret and before it wrote the status.
func TestDataKey_reencrypted_butNotInItsStatus_keepsItsCustody(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftware)
	key := o.generated(t, "key")
	k := o.dataKey(t, "dek", underGenerated("key"), onRotation)
	former := *k.Status.DeepCopy()
	o.rotate(t, key, "now")
	o.movedTo(t, k, key.Status.PrimaryVersion, former)
	moved := *k.Status.DeepCopy()
	o.Stop(t)
	o.forceStatus(t, k, func() { k.Status = *former.DeepCopy() })
	o.Start(t)
	o.movedTo(t, k, key.Status.PrimaryVersion, former)
	if k.Status.CiphertextBlob != moved.CiphertextBlob || k.Status.Custody != "Software" {
		t.Errorf("the status is %s, and was %s", harness.JSON(k.Status), harness.JSON(moved))
	}
}

// The digest says which data key it is, and exports are approved for it. A user who may write Secrets must not choose it.
func TestDataKey_digestInTheSecretThatTheOperatorDidNotWrite_isRefused(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftware)
	o.generated(t, "key")
	k := o.dataKey(t, "dek", underGenerated("key"))
	o.Stop(t)
	o.loseStatus(t, k)
	s := o.secretOf(t, "dek")
	o.Change(t, s, func() {
		metav1.SetMetaDataAnnotation(&s.ObjectMeta, "keyconvoy.io/data-key-digest", sha256Hex("another"))
	})
	o.Start(t)
	o.Stalls(t, k, kms.InvalidParameter.Reason(), "no valid tag")
}

// Someone puts the former blob with its tag back. The data key is the same, and stays under the primary version.
func TestDataKey_formerBlobPutBackIntoTheSecret_isReplaced(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftware)
	key := o.generated(t, "key")
	k := o.dataKey(t, "dek", underGenerated("key"), onRotation)
	before, former := o.secretOf(t, "dek"), *k.Status.DeepCopy()
	o.rotate(t, key, "now")
	o.movedTo(t, k, key.Status.PrimaryVersion, former)
	blob := k.Status.CiphertextBlob
	s := o.secretOf(t, "dek")
	o.Change(t, s, func() {
		s.Data = before.Data
		s.Annotations = before.Annotations
	})
	o.secretWith(t, "dek", func(s *corev1.Secret) string {
		if got := string(s.Data["ciphertextBlob"]); got != blob {
			return "the Secret has " + got
		}
		return ""
	})
	o.Ready(t, k)
	if k.Status.CiphertextBlob != blob {
		t.Error("the status has another blob")
	}
}

func sha256Hex(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}
