package controllers_test

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
)

// renew asks for new import parameters and returns them.
func (o *operator) renew(t testing.TB, key *v1alpha1.ImportedKey, value string) *v1alpha1.ImportParameters {
	t.Helper()
	var former string
	if p := key.Status.ImportParameters; p != nil {
		former = p.PublicKeyFingerprint
	}
	o.Annotate(t, key, v1alpha1.AnnotationRenewImportParameters, value)
	o.Until(t, key, func() string {
		if p := key.Status.ImportParameters; p == nil || p.PublicKeyFingerprint == former {
			return "there are no new import parameters"
		}
		return ""
	})
	return key.Status.ImportParameters
}

func flipped(b []byte) []byte {
	b = bytes.Clone(b)
	b[len(b)/2] ^= 0x41
	return b
}

func decoded(t testing.TB, text string) []byte {
	t.Helper()
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// Each is refused, changes nothing, and does not keep the right material from being imported.
func TestImportedKey_materialThatIsNoGood_isRefused(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftware)
	other := o.pendingKey(t, "other")
	encode := base64.StdEncoding.EncodeToString
	var mu sync.Mutex
	unopened := map[string]string{} // what is said of material that does not unwrap

	number := 0
	for name, c := range map[string]struct {
		rsa      bool
		give     func(t testing.TB, key *v1alpha1.ImportedKey, p *v1alpha1.ImportParameters, material []byte) *v1alpha1.MaterialSpec
		code     kms.Code
		says     string
		unopened bool
	}{
		"wrapped material that is damaged": {
			give: func(t testing.TB, _ *v1alpha1.ImportedKey, p *v1alpha1.ImportParameters, m []byte) *v1alpha1.MaterialSpec {
				w := wrapUnder(t, p, m)
				w[len(w)-1] ^= 0x41
				return inline(w, p.ImportToken)
			},
			code: kms.InvalidKeyMaterial, unopened: true,
		},
		"wrapped material that is cut short": {
			give: func(t testing.TB, _ *v1alpha1.ImportedKey, p *v1alpha1.ImportParameters, m []byte) *v1alpha1.MaterialSpec {
				w := wrapUnder(t, p, m)
				return inline(w[:len(w)-1], p.ImportToken)
			},
			code: kms.InvalidKeyMaterial, says: "bytes were received",
		},
		"material that was not wrapped at all": {
			give: func(_ testing.TB, _ *v1alpha1.ImportedKey, p *v1alpha1.ImportParameters, m []byte) *v1alpha1.MaterialSpec {
				return inline(m, p.ImportToken)
			},
			code: kms.InvalidKeyMaterial, says: "as long as the material itself",
		},
		"RSA-OAEP with another hash than was asked for": {
			rsa: true,
			give: func(t testing.TB, _ *v1alpha1.ImportedKey, p *v1alpha1.ImportParameters, m []byte) *v1alpha1.MaterialSpec {
				wrong := *p
				wrong.WrappingAlgorithm = "RSAES_OAEP_SHA_1"
				return inline(opensslWrap(t, &wrong, m), p.ImportToken)
			},
			code: kms.InvalidKeyMaterial, says: "SHA-256 for the hash and for MGF1",
		},
		"material wrapped under another pair than the token's": {
			give: func(t testing.TB, key *v1alpha1.ImportedKey, p *v1alpha1.ImportParameters, m []byte) *v1alpha1.MaterialSpec {
				former := *p
				fresh := o.renew(t, key, "1")
				return inline(wrapUnder(t, &former, m), fresh.ImportToken)
			},
			code: kms.InvalidKeyMaterial, unopened: true,
		},
		"material that is a byte too short": {
			give: func(t testing.TB, _ *v1alpha1.ImportedKey, p *v1alpha1.ImportParameters, m []byte) *v1alpha1.MaterialSpec {
				return inline(wrapUnder(t, p, m[1:]), p.ImportToken)
			},
			code: kms.InvalidKeyMaterial, says: "32",
		},
		"material of another key type": {
			give: func(t testing.TB, _ *v1alpha1.ImportedKey, p *v1alpha1.ImportParameters, m []byte) *v1alpha1.MaterialSpec {
				return inline(wrapUnder(t, p, m[16:]), p.ImportToken)
			},
			code: kms.InvalidKeyMaterial, says: "32",
		},
		"another key's token": {
			give: func(t testing.TB, _ *v1alpha1.ImportedKey, p *v1alpha1.ImportParameters, m []byte) *v1alpha1.MaterialSpec {
				return inline(wrapUnder(t, p, m), other.Status.ImportParameters.ImportToken)
			},
			code: kms.InvalidImportToken, says: "token",
		},
		"a token that was altered": {
			give: func(t testing.TB, _ *v1alpha1.ImportedKey, p *v1alpha1.ImportParameters, m []byte) *v1alpha1.MaterialSpec {
				return inline(wrapUnder(t, p, m), encode(flipped(decoded(t, p.ImportToken))))
			},
			code: kms.InvalidImportToken, says: "token",
		},
		"a token that was cut short": {
			give: func(t testing.TB, _ *v1alpha1.ImportedKey, p *v1alpha1.ImportParameters, m []byte) *v1alpha1.MaterialSpec {
				raw := decoded(t, p.ImportToken)
				return inline(wrapUnder(t, p, m), encode(raw[:len(raw)-1]))
			},
			code: kms.InvalidImportToken, says: "token",
		},
		"wrapped material that is no Base64": {
			give: func(_ testing.TB, _ *v1alpha1.ImportedKey, p *v1alpha1.ImportParameters, _ []byte) *v1alpha1.MaterialSpec {
				return &v1alpha1.MaterialSpec{EncryptedKeyMaterial: "this is *not* Base64", ImportToken: p.ImportToken}
			},
			code: kms.InvalidParameter, says: "EncryptedKeyMaterial: It is not standard Base64",
		},
		"a token that is no Base64": {
			give: func(t testing.TB, _ *v1alpha1.ImportedKey, p *v1alpha1.ImportParameters, m []byte) *v1alpha1.MaterialSpec {
				return &v1alpha1.MaterialSpec{EncryptedKeyMaterial: encode(wrapUnder(t, p, m)), ImportToken: "nor_is-this"}
			},
			code: kms.InvalidParameter, says: "ImportToken: It is not standard Base64",
		},
	} {
		number++
		keyName := fmt.Sprintf("key-%d", number)
		t.Run(name, func(t *testing.T) {
			var change []func(*v1alpha1.ImportedKeySpec)
			if c.rsa {
				change = append(change, under("RSA_2048", "RSAES_OAEP_SHA_256"))
			}
			key := o.pendingKey(t, keyName, change...)
			p := key.Status.ImportParameters.DeepCopy()
			material := o.material(32)
			o.give(t, key, c.give(t, key, p, material))
			message := o.Stalls(t, key, c.code.Reason(), string(c.code)+": ", c.says)
			if c.unopened {
				mu.Lock()
				unopened[message] = name
				mu.Unlock()
			}
			if s := key.Status; s.KeyState != "PendingImport" || s.MaterialFingerprint != "" || s.InputsDigest != "" || s.Custody != "" {
				t.Errorf("a refused import left something: %s", harness.JSON(s))
			}
			o.Event(t, key, c.code.Reason())
			o.give(t, key, inline(wrapUnder(t, p, material), p.ImportToken))
			o.enabled(t, key)
		})
	}
	t.Cleanup(func() {
		if len(unopened) > 1 {
			t.Errorf("causes inside the unwrap are told apart: %q", unopened)
		}
	})
}

func TestImportedKey_expiredToken_isRefused(t *testing.T) {
	t.Parallel()
	clock := clocktesting.NewFakePassiveClock(time.Now())
	o := startOperator(t, harness.WithClock(clock))
	o.store(t, onSoftware)
	key := o.pendingKey(t, "key")
	former := key.Status.ImportParameters.DeepCopy()
	material := o.material(32)

	clock.SetTime(former.TokenExpireTime.Time)
	o.give(t, key, inline(wrapUnder(t, former, material), former.ImportToken))
	o.Stalls(t, key, kms.ExpiredImportToken.Reason(), "ExpiredImportToken: ", "under the current public key")
	p := key.Status.ImportParameters
	if p == nil || p.ImportToken == former.ImportToken {
		t.Fatal("there are no new import parameters to go on with")
	}
	o.give(t, key, inline(wrapUnder(t, p, material), p.ImportToken))
	o.enabled(t, key)
}

func TestImportedKey_reimport_refusesOtherMaterial(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{onSoftware, onSoftHSM} {
		t.Run(kind, func(t *testing.T) {
			o := startOperator(t)
			o.store(t, kind)
			wrapping := under("RSA_2048", "RSAES_OAEP_SHA_1")
			material, another := o.material(32), o.material(32)
			key := o.enabledKey(t, "key", material, wrapping)
			first := key.Status.DeepCopy()

			fresh := o.renew(t, key, "1").DeepCopy()
			o.give(t, key, inline(wrapUnder(t, fresh, another), fresh.ImportToken))
			o.Stalls(t, key, kms.InvalidKeyMaterial.Reason(), "InvalidKeyMaterial: ")
			if s := key.Status; s.KeyState != "Enabled" || s.MaterialFingerprint != first.MaterialFingerprint || s.InputsDigest != first.InputsDigest {
				t.Errorf("a refused import changed something: %s", harness.JSON(s))
			}

			o.give(t, key, inline(wrapUnder(t, fresh, material), fresh.ImportToken))
			o.enabled(t, key)
			if s := key.Status; s.MaterialFingerprint != first.MaterialFingerprint || s.KeyVersionID != first.KeyVersionID || s.Custody != first.Custody {
				t.Errorf("the same material makes another key: %s", harness.JSON(s))
			}
		})
	}
}

// A key that is deleted and made again under its name is another key: what was wrapped for the first one
// is not for it.
func TestImportedKey_ofTheSameName_isAnotherKey(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftware)
	key := o.enabledKey(t, "key", nil)
	former := key.DeepCopy()
	o.Remove(t, key)
	o.Gone(t, key)
	again := importedKey("key")
	again.Spec.Material = former.Spec.Material
	again.ObjectMeta = metav1.ObjectMeta{Name: "key"}
	o.Make(t, again)
	o.Stalls(t, again, kms.InvalidImportToken.Reason())
	if again.Status.KeyVersionID == former.Status.KeyVersionID {
		t.Error("both have one key version")
	}
}
