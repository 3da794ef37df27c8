package secrets_test

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/google/uuid"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/hsm/software"
	"github.com/keyconvoy/keyconvoy/internal/secrets"
)

var store = v1alpha1.KeyStoreReference{Kind: "KeyStore", Name: "soft"}

// storage is a store's storage, and the names of the root keys' Secrets that were announced.
func (f fixture) storage(ref v1alpha1.KeyStoreReference, storeNamespace string) (*secrets.Storage, *[]string) {
	announced := &[]string{}
	return f.secrets.Storage(ref, storeNamespace, func(name string) { *announced = append(*announced, name) }), announced
}

func (f fixture) rootKeySecret() *corev1.Secret {
	f.t.Helper()
	var list corev1.SecretList
	f.Expect(f.env.Client.List(f.t.Context(), &list, client.InNamespace(f.ns))).To(Succeed())
	for i := range list.Items {
		if list.Items[i].Type == "keyconvoy.io/root-key" {
			return &list.Items[i]
		}
	}
	f.t.Fatal("there is no root key")
	return nil
}

func TestStorage_makesNoOtherRootKeyBesideSealedKeys(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	s, announced := f.storage(store, "team-a")
	_, err := s.RootKey(t.Context())
	f.Expect(err).NotTo(HaveOccurred())
	f.Expect(s.Save(t.Context(), "record", []byte("sealed"))).To(Succeed())
	f.Expect(f.env.Client.Delete(t.Context(), f.rootKeySecret())).To(Succeed())

	_, err = s.RootKey(t.Context())
	f.Expect(hsm.KindOf(err)).To(Equal(hsm.Misconfigured))
	f.Expect(err).To(MatchError(ContainSubstring("Restore it from a backup")))
	f.Expect(*announced).To(HaveLen(1), "only the first one was made")

	f.Expect(s.Delete(t.Context(), "record")).To(Succeed())
	_, err = s.RootKey(t.Context())
	f.Expect(hsm.KindOf(err)).To(Equal(hsm.Misconfigured), "the store is open under the former one")
	again, announced := f.storage(store, "team-a")
	_, err = again.RootKey(t.Context())
	f.Expect(err).NotTo(HaveOccurred(), "nothing is sealed any more when the store is opened")
	f.Expect(*announced).To(HaveLen(1))
}

func TestStorage_refusesARootKeyThatIsDamaged(t *testing.T) {
	t.Parallel()
	for name, data := range map[string]map[string][]byte{
		"cut short": {"rootKey": make([]byte, 31)},
		"too long":  {"rootKey": make([]byte, 33)},
		"absent":    {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			s, _ := f.storage(store, "team-a")
			_, err := s.RootKey(t.Context())
			f.Expect(err).NotTo(HaveOccurred())
			secret := f.rootKeySecret()
			secret.Data = data
			f.Expect(f.env.Client.Update(t.Context(), secret)).To(Succeed())
			_, err = s.RootKey(t.Context())
			f.Expect(hsm.KindOf(err)).To(Equal(hsm.Misconfigured))
			f.Expect(f.rootKeySecret().Data).To(Equal(secret.Data), "it is left as it is")
		})
	}
}

func TestStorage_whoMayNotReadIsToldToTryAgain(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	guest := f.env.As(t, "guest")
	denied := secrets.New(guest, guest, nil, f.ns).Storage(store, "team-a", func(string) { t.Error("no root key is made") })
	_, rootErr := denied.RootKey(t.Context())
	_, loadErr := denied.Load(t.Context())
	_, createErr := denied.Create(t.Context(), "r", nil)
	for call, err := range map[string]error{
		"RootKey": rootErr, "Load": loadErr, "Create": createErr,
		"Save": denied.Save(t.Context(), "r", nil), "Delete": denied.Delete(t.Context(), "r"),
	} {
		f.Expect(hsm.KindOf(err)).To(Equal(hsm.Unavailable), call)
	}
}

// A generated key cannot be made again, so no operator may replace that of another.
func TestStorage_twoOperatorsAtOnceAgreeOnOneRecord(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	var wg sync.WaitGroup
	records := make([]string, 8)
	for i := range records {
		s, _ := f.storage(store, "team-a")
		wg.Go(func() {
			mine := fmt.Sprint("sealed by ", i)
			existing, err := s.Create(t.Context(), "record", []byte(mine))
			if err != nil {
				t.Error(err)
			}
			records[i] = string(existing)
			if existing == nil {
				records[i] = mine
			}
		})
	}
	wg.Wait()
	s, _ := f.storage(store, "team-a")
	kept, err := s.Load(t.Context())
	f.Expect(err).NotTo(HaveOccurred())
	for _, record := range records {
		f.Expect(record).To(Equal(string(kept["record"])))
	}
}

func TestStorage_twoOperatorsAtOnceAgreeOnOneRootKey(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	var wg sync.WaitGroup
	keys := make([]string, 8)
	announced := make([]*[]string, len(keys))
	for i := range keys {
		var s *secrets.Storage
		s, announced[i] = f.storage(store, "team-a")
		wg.Go(func() {
			key, err := s.RootKey(t.Context())
			if err != nil {
				t.Error(err)
			}
			keys[i] = string(key)
		})
	}
	wg.Wait()
	made := 0
	for i := range keys {
		f.Expect(keys[i] == keys[0]).To(BeTrue(), "all have the same root key")
		made += len(*announced[i])
	}
	f.Expect(keys[0]).To(HaveLen(32))
	f.Expect(made).To(Equal(1), "its maker announces it")
}

func TestStorage_findsWhatItSavedAndNothingOfOtherStores(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	s, _ := f.storage(store, "team-a")
	f.Expect(s.Save(t.Context(), "mac", []byte{0})).To(Succeed())
	f.Expect(s.Save(t.Context(), "key-1", []byte{1})).To(Succeed())
	f.Expect(s.Save(t.Context(), "key-1", []byte{2})).To(Succeed(), "a record may be written over")
	f.Expect(s.Delete(t.Context(), "mac")).To(Succeed())
	f.Expect(s.Delete(t.Context(), "mac")).To(Succeed(), "deleting twice is no error")
	for _, other := range []struct {
		ref       v1alpha1.KeyStoreReference
		namespace string
	}{
		{store, "team-b"},
		{v1alpha1.KeyStoreReference{Kind: "KeyStore", Name: "other"}, "team-a"},
		{v1alpha1.KeyStoreReference{Kind: "ClusterKeyStore", Name: "soft"}, ""},
	} {
		o, _ := f.storage(other.ref, other.namespace)
		f.Expect(o.Load(t.Context())).To(BeEmpty())
		f.Expect(o.Save(t.Context(), "key-1", []byte{9})).To(Succeed())
	}
	again, _ := f.storage(store, "team-a")
	f.Expect(again.Load(t.Context())).To(Equal(map[string][]byte{"key-1": {2}}))
}

// A backup tool brings records back under its own name; the store must still be able to write them.
func TestStorage_writesOverARecordThatABackupBroughtBack(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	s, _ := f.storage(store, "team-a")
	f.Expect(s.Save(t.Context(), "key-1", []byte{1})).To(Succeed())
	var list corev1.SecretList
	f.Expect(f.env.Client.List(t.Context(), &list, client.InNamespace(f.ns))).To(Succeed())
	f.Expect(list.Items).To(HaveLen(1))
	restored := list.Items[0]
	f.Expect(f.env.Client.Delete(t.Context(), &list.Items[0])).To(Succeed())
	restored.UID, restored.ResourceVersion, restored.ManagedFields = "", "", nil
	f.make(&restored)
	f.Expect(s.Load(t.Context())).To(Equal(map[string][]byte{"key-1": {1}}))
	f.Expect(s.Save(t.Context(), "key-1", []byte{2})).To(Succeed())
	f.Expect(s.Load(t.Context())).To(Equal(map[string][]byte{"key-1": {2}}))
}

func TestStorage_keepsASoftwareStoresKeysAcrossARestart(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	open := func() *software.Module {
		s, _ := f.storage(store, "team-a")
		m, err := software.Open(t.Context(), software.Config{Storage: s})
		f.Expect(err).NotTo(HaveOccurred())
		return m
	}
	owner := uuid.New()
	m := open()
	made, err := m.CreateWrappingKey(t.Context(), hsm.WrappingKeyRequest{ID: uuid.New(), Owner: owner, Spec: "EC_SM2"})
	f.Expect(err).NotTo(HaveOccurred())
	tag, err := m.Authenticate(t.Context(), []byte("message"))
	f.Expect(err).NotTo(HaveOccurred())
	f.Expect(m.Close(t.Context())).To(Succeed())

	m = open()
	defer func() { _ = m.Close(context.Background()) }()
	pairs, err := hsmtest.PairsOf(t.Context(), m, owner)
	f.Expect(err).NotTo(HaveOccurred())
	f.Expect(pairs).To(HaveLen(1))
	f.Expect(pairs[0].ID).To(Equal(made.ID))
	f.Expect(m.Authenticate(t.Context(), []byte("message"))).To(Equal(tag))
}
