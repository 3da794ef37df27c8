package keyring_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	clocktesting "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/keyring"
	"github.com/keyconvoy/keyconvoy/internal/keystore"
	"github.com/keyconvoy/keyconvoy/internal/kms"
)

// cluster is a cache of ImportedKeys, ClusterKeyStores and namespaces, which knows the indexes.
type cluster struct {
	keys       []*v1alpha1.ImportedKey
	stores     []*v1alpha1.ClusterKeyStore
	namespaces map[string]map[string]string // labels by name
}

func (c *cluster) Get(_ context.Context, name client.ObjectKey, into client.Object, _ ...client.GetOption) error {
	switch into := into.(type) {
	case *v1alpha1.ImportedKey:
		for _, k := range c.keys {
			if client.ObjectKeyFromObject(k) == name {
				k.DeepCopyInto(into)
				return nil
			}
		}
	case *v1alpha1.ClusterKeyStore:
		for _, s := range c.stores {
			if s.Name == name.Name {
				s.DeepCopyInto(into)
				return nil
			}
		}
	case *metav1.PartialObjectMetadata:
		if labels, ok := c.namespaces[name.Name]; ok {
			into.Labels = labels
			return nil
		}
	}
	return apierrors.NewNotFound(corev1.Resource("objects"), name.Name)
}

func (c *cluster) List(_ context.Context, list client.ObjectList, options ...client.ListOption) error {
	if _, ok := list.(*v1alpha1.GeneratedKeyList); ok {
		return nil
	}
	keys, ok := list.(*v1alpha1.ImportedKeyList)
	if !ok {
		return errors.New("only master keys are listed")
	}
	o := (&client.ListOptions{}).ApplyOptions(options)
	for _, k := range c.keys {
		key := keyring.Of(k)
		if version, asked := o.FieldSelector.RequiresExactMatch(keyring.IndexVersion); asked && (len(key.Versions()) == 0 || key.Versions()[0] != version) {
			continue
		}
		keys.Items = append(keys.Items, *k)
	}
	return nil
}

// anID makes a UID that is the same for the same text.
func anID(text string) types.UID { return types.UID(uuid.NewSHA1(uuid.Nil, []byte(text)).String()) }

func key(namespace, name string, changes ...func(*v1alpha1.ImportedKey)) *v1alpha1.ImportedKey {
	k := &v1alpha1.ImportedKey{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: anID(namespace + "/" + name), Generation: 1},
		Spec: v1alpha1.ImportedKeySpec{
			KeyStoreRef: v1alpha1.KeyStoreReference{Kind: keystore.KindClusterKeyStore, Name: "hsm"}, KeySpec: "AES_256",
		},
	}
	for _, change := range changes {
		change(k)
	}
	return k
}

// adopts makes a key ask for the version of another one, which it holds only with a fingerprint.
func adopts(of *v1alpha1.ImportedKey) func(*v1alpha1.ImportedKey) {
	return func(k *v1alpha1.ImportedKey) {
		k.Spec.Adopt = &v1alpha1.AdoptSpec{KeyVersionID: keyring.Of(of).Versions()[0]}
	}
}

func holding(token string) func(*v1alpha1.ImportedKey) {
	return func(k *v1alpha1.ImportedKey) {
		k.Status.MaterialFingerprint = "00112233445566778899aabbccddeeff"
		k.Status.Token = token
	}
}

func createdAt(seconds int64) func(*v1alpha1.ImportedKey) {
	return func(k *v1alpha1.ImportedKey) { k.CreationTimestamp = metav1.Unix(seconds, 0) }
}

func ring(c *cluster) *keyring.Ring {
	none := hsmtest.Provider(func(context.Context, hsm.Config) (hsm.Module, error) {
		return nil, errors.New("no module is opened")
	})
	return keyring.New(c, c, keystore.New(c, none, clocktesting.NewFakePassiveClock(time.Unix(0, 0))))
}

func anyKey(*keyring.Key) bool { return true }

func TestHolder(t *testing.T) {
	t.Parallel()
	owner := key("team-a", "owner", holding("token-1"))
	for name, c := range map[string]struct {
		keys []*v1alpha1.ImportedKey
		want string // "" for none
		code kms.Code
	}{
		"nothing names the version":   {nil, "", ""},
		"the key whose version it is": {[]*v1alpha1.ImportedKey{owner}, "team-a/owner", ""},
		"one that only asks to adopt it has no say": {
			[]*v1alpha1.ImportedKey{key("team-a", "asks", adopts(owner)), owner}, "team-a/owner", ""},
		"one that adopted it after the loss of the owner": {
			[]*v1alpha1.ImportedKey{key("team-a", "heir", adopts(owner), holding("token-1"))}, "team-a/heir", ""},
		"an adoption in another namespace, of the same token": {
			[]*v1alpha1.ImportedKey{key("team-b", "thief", adopts(owner), holding("token-1"), createdAt(1)), owner}, "team-a/owner", ""},
		"of two that adopted it the older one": {
			[]*v1alpha1.ImportedKey{
				key("team-a", "younger", adopts(owner), holding("token-1"), createdAt(9)),
				key("team-a", "older", adopts(owner), holding("token-1"), createdAt(3)),
			}, "team-a/older", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := ring(&cluster{keys: c.keys}).Holder(t.Context(), keyring.Of(owner).Versions()[0], anyKey)
			if kms.CodeOf(err) != c.code {
				t.Fatalf("the error is %v", err)
			}
			if (got == nil) != (c.want == "") || got != nil && got.Ref().NamespacedName.String() != c.want {
				t.Errorf("the holder is %v, want %q", got, c.want)
			}
		})
	}
}

// The key that may be exported from is not the one that holds the version in its token: only that one's owner consents.
func TestHolder_whoseVersionAnotherOneHolds_isRefused(t *testing.T) {
	t.Parallel()
	owner := key("team-a", "owner", holding("token-1"))
	thief := key("team-b", "thief", adopts(owner), holding("token-1"))
	may := func(k *keyring.Key) bool { return k.Ref().Namespace == "team-b" }
	_, err := ring(&cluster{keys: []*v1alpha1.ImportedKey{owner, thief}}).Holder(t.Context(), keyring.Of(owner).Versions()[0], may)
	if kms.CodeOf(err) != kms.ForbiddenNoPermission {
		t.Errorf("the error is %v", err)
	}
}

func TestConsent(t *testing.T) {
	t.Parallel()
	labelled := &v1alpha1.LabelSelector{MatchLabels: map[string]v1alpha1.LabelValue{"team": "b"}}
	for name, c := range map[string]struct {
		allowed *v1alpha1.LabelSelector // of the key store
		policy  *v1alpha1.ExportPolicy
		use     keyring.Use
		code    kms.Code
	}{
		"the same namespace needs no policy":       {nil, nil, keyring.Use{Namespace: "team-a"}, ""},
		"another namespace does":                   {nil, nil, keyring.Use{Namespace: "team-b"}, kms.ForbiddenNoPermission},
		"one that the owner selects":               {nil, selecting(labelled), keyring.Use{Namespace: "team-b"}, ""},
		"one that the owner does not select":       {nil, selecting(labelled), keyring.Use{Namespace: "team-c"}, kms.ForbiddenNoPermission},
		"one that does not exist":                  {nil, selecting(labelled), keyring.Use{Namespace: "none"}, kms.ForbiddenNoPermission},
		"the key store does not allow the owner's": {labelled, nil, keyring.Use{Namespace: "team-a"}, kms.ForbiddenNoPermission},
		"a selector that is invalid": {nil, selecting(&v1alpha1.LabelSelector{MatchExpressions: []v1alpha1.LabelRequirement{{Key: "team", Operator: "Is"}}}),
			keyring.Use{Namespace: "team-b"}, kms.InvalidParameter},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			owner := key("team-a", "owner", holding("token-1"))
			owner.Spec.ExportPolicy = c.policy
			store := &v1alpha1.ClusterKeyStore{ObjectMeta: metav1.ObjectMeta{Name: "hsm"}}
			store.Spec.AllowedNamespaces = c.allowed
			world := &cluster{
				stores:     []*v1alpha1.ClusterKeyStore{store},
				namespaces: map[string]map[string]string{"team-a": nil, "team-b": {"team": "b"}, "team-c": nil},
			}
			if err := ring(world).Consent(t.Context(), keyring.Of(owner), c.use); kms.CodeOf(err) != c.code {
				t.Errorf("the error is %v, want %s", err, c.code)
			}
		})
	}
}

func selecting(selector *v1alpha1.LabelSelector) *v1alpha1.ExportPolicy {
	return &v1alpha1.ExportPolicy{Namespaces: &v1alpha1.ExportNamespaces{From: "Selector", Selector: selector}}
}

// An object that was deleted and created again with its name is another key.
func TestLive_ofAKeyThatWasCreatedAgain_isNone(t *testing.T) {
	t.Parallel()
	was := key("team-a", "owner")
	is := key("team-a", "owner", func(k *v1alpha1.ImportedKey) { k.UID = anID("another") })
	changed := key("team-a", "owner", func(k *v1alpha1.ImportedKey) { k.Generation++ })
	for name, c := range map[string]struct {
		now       []*v1alpha1.ImportedKey
		lives     bool
		unchanged bool
	}{
		"it is as it was":      {[]*v1alpha1.ImportedKey{was}, true, true},
		"its spec has changed": {[]*v1alpha1.ImportedKey{changed}, true, false},
		"it was created again": {[]*v1alpha1.ImportedKey{is}, false, false},
		"it no longer exists":  {nil, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := ring(&cluster{keys: c.now})
			live, err := r.Live(t.Context(), keyring.Of(was))
			if err != nil || (live != nil) != c.lives {
				t.Errorf("it is %v (%v)", live, err)
			}
			if same, err := r.UnchangedLive(t.Context(), keyring.Of(was)); err != nil || same != c.unchanged {
				t.Errorf("unchanged: %t (%v)", same, err)
			}
		})
	}
}

// byName makes a key adopt by name; version is "" before its first look into the module.
func byName(version string) func(*v1alpha1.ImportedKey) {
	return func(k *v1alpha1.ImportedKey) {
		k.Spec.Adopt = &v1alpha1.AdoptSpec{Type: v1alpha1.AdoptByName}
		k.Status.KeyVersionID = version
	}
}

func TestKey_adoptingByName(t *testing.T) {
	t.Parallel()
	former := keyring.Of(key("team-a", "former")).Versions()[0]
	own := keyring.Of(key("team-a", "key")).Versions()[0]
	for name, c := range map[string]struct {
		changes      []func(*v1alpha1.ImportedKey)
		bound, holds bool
		version      string
	}{
		"before its first look":          {[]func(*v1alpha1.ImportedKey){byName("")}, false, false, ""},
		"after it found nothing":         {[]func(*v1alpha1.ImportedKey){byName(own)}, true, true, own},
		"after it found a former key":    {[]func(*v1alpha1.ImportedKey){byName(former), holding("token-1")}, true, true, former},
		"with a version that is invalid": {[]func(*v1alpha1.ImportedKey){byName("none")}, true, true, ""},
		"by version, before its look":    {[]func(*v1alpha1.ImportedKey){adopts(key("team-a", "former"))}, true, false, former},
	} {
		k := keyring.Of(key("team-a", "key", c.changes...))
		versions := k.Versions()
		if k.Bound() != c.bound || k.Holds() != c.holds || (len(versions) == 0) != (c.version == "") || len(versions) > 0 && versions[0] != c.version {
			t.Errorf("%s: bound %t, holds %t, versions %v", name, k.Bound(), k.Holds(), versions)
		}
	}
}

// Who adopts by name has no claim that another object does not see.
func TestRival_ofAKeyThatAdoptsByName(t *testing.T) {
	t.Parallel()
	former := key("team-a", "key")
	version := keyring.Of(former).Versions()[0]
	again := key("team-a", "again", byName(""), createdAt(5))
	for name, c := range map[string]struct {
		other *v1alpha1.ImportedKey
		rival bool
	}{
		"an older one that asks for the version":     {key("team-a", "other", adopts(former), createdAt(3)), true},
		"a younger one that asks for the version":    {key("team-a", "other", adopts(former), createdAt(7)), false},
		"a younger one that holds it":                {key("team-a", "other", adopts(former), holding("token-1"), createdAt(7)), true},
		"one that holds it in another token, beside": {key("team-a", "other", adopts(former), holding("token-2"), createdAt(7)), true},
		"one that asks in another namespace":         {key("team-b", "other", adopts(former), createdAt(3)), false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := ring(&cluster{keys: []*v1alpha1.ImportedKey{c.other, again}})
			rival, err := r.Rival(t.Context(), keyring.Of(again), version, "")
			if err != nil || (rival != nil) != c.rival {
				t.Errorf("the rival is %v (%v)", rival, err)
			}
		})
	}
}

func TestClaimant(t *testing.T) {
	t.Parallel()
	former := key("team-a", "former")
	asks := key("team-a", "asks", adopts(former), createdAt(5))
	for name, c := range map[string]struct {
		named *v1alpha1.ImportedKey
		want  bool
	}{
		"no object has the name":                {key("team-a", "other", byName(""), createdAt(3)), false},
		"an older one that has not looked yet":  {key("team-a", "former", byName(""), createdAt(3)), true},
		"a younger one that has not looked yet": {key("team-a", "former", byName(""), createdAt(7)), false},
		"one that found nothing":                {key("team-a", "former", byName(string(former.UID)), createdAt(3)), false},
		"one of another type":                   {key("team-a", "former", byName(""), createdAt(3), func(k *v1alpha1.ImportedKey) { k.Spec.KeySpec = "SM4" }), false},
		"one that does not ask":                 {key("team-a", "former", createdAt(3)), false},
		"one in another namespace":              {key("team-b", "former", byName(""), createdAt(3)), false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := ring(&cluster{keys: []*v1alpha1.ImportedKey{c.named, asks}})
			claimant, err := r.Claimant(t.Context(), keyring.Of(asks), "former", "")
			if err != nil || (claimant != nil) != c.want {
				t.Errorf("the claimant is %v (%v)", claimant, err)
			}
		})
	}
}

// The versions that a generated key asks for may be another key's: until it holds them, nothing may be done with it.
func TestKey_generated_thatOnlyAsks_permitsNothing(t *testing.T) {
	t.Parallel()
	victim := keyring.Of(key("team-a", "victim")).Versions()[0]
	asks := &v1alpha1.GeneratedKey{
		ObjectMeta: metav1.ObjectMeta{Namespace: "team-a", Name: "thief", UID: anID("thief")},
		Spec: v1alpha1.GeneratedKeySpec{KeySpec: "AES_256", Adopt: &v1alpha1.AdoptVersionsSpec{
			Type: v1alpha1.AdoptByVersion, KeyVersionIDs: []v1alpha1.KeyVersionID{v1alpha1.KeyVersionID(victim)},
		}},
	}
	k, err := keyring.Of(asks).KMS()
	if err != nil || keyring.Of(asks).Holds() {
		t.Fatalf("it holds the version, or: %v", err)
	}
	for _, op := range []kms.Operation{kms.OpCreateKeyVersion, kms.OpGenerateDataKey, kms.OpExportDataKey, kms.OpReEncrypt} {
		if err := kms.Permit(op, k.Origin, k.State); kms.CodeOf(err) != kms.RejectedUnavailable {
			t.Errorf("%s: %v", op, err)
		}
	}
}

// The status has the digest of a long annotation, and an object from the API server has the annotation itself.
func TestKey_whoseMaterialWasDeletedForALongAnnotation_isInTheModuleAgain(t *testing.T) {
	t.Parallel()
	asked := strings.Repeat("because ", 20)
	key := &v1alpha1.ImportedKey{
		ObjectMeta: metav1.ObjectMeta{UID: types.UID(uuid.NewString()), Annotations: map[string]string{v1alpha1.AnnotationDeleteKeyMaterial: asked}},
		Spec:       v1alpha1.ImportedKeySpec{KeySpec: v1alpha1.KeySpec(hsm.AES256)},
		Status: v1alpha1.ImportedKeyStatus{
			KeyState: "Enabled", HasMaterial: true, MaterialFingerprint: "f", MaterialDeletedFor: keyring.AnnotationValue(asked),
		},
	}
	if !keyring.Of(key).InModule(time.Now()) {
		t.Error("the key, whose material was imported again, is not expected in the module")
	}
	key.Annotations[v1alpha1.AnnotationDeleteKeyMaterial] = asked + "once more"
	if keyring.Of(key).InModule(time.Now()) {
		t.Error("the key, whose material is to be deleted, is expected in the module")
	}
}
