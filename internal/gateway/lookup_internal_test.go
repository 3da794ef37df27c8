package gateway

import (
	"context"
	"strings"
	"testing"

	"github.com/google/uuid"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/gateway/wire"
	"github.com/keyconvoy/keyconvoy/internal/keyring"
	"github.com/keyconvoy/keyconvoy/internal/keystore"
	"github.com/keyconvoy/keyconvoy/internal/kms"
)

// lookups is a call of an account, which counts the questions about it.
type lookups struct {
	call
	questions int
}

// newLookups returns a call of an account of the namespace caller, which has verbs there and none elsewhere.
func newLookups(t *testing.T, verbs map[string]bool, keys ...*v1alpha1.GeneratedKey) *lookups {
	t.Helper()
	scheme, err := Scheme()
	if err != nil {
		t.Fatal(err)
	}
	l := &lookups{}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "caller", Name: "app", UID: "uid"}}
	builder := fake.NewClientBuilder().WithScheme(scheme).WithObjects(account, &v1alpha1.ClusterKeyStore{ObjectMeta: metav1.ObjectMeta{Name: "main"}}).WithInterceptorFuncs(interceptor.Funcs{
		Create: func(_ context.Context, _ ctrlclient.WithWatch, o ctrlclient.Object, _ ...ctrlclient.CreateOption) error {
			l.questions++
			review := o.(*authorizationv1.SubjectAccessReview)
			asked := review.Spec.ResourceAttributes
			review.Status.Allowed = asked.Namespace == "caller" && verbs[asked.Verb]
			return nil
		},
	})
	l.call = call{operations: &operations{directory: newDirectory()}, who: accountOf(account)}
	for _, key := range keys {
		builder = builder.WithObjects(key)
		l.directory.put(key)
	}
	api := builder.Build()
	l.keys, l.authorizer = keyring.New(api, api, keystore.New(api, nil, clock.RealClock{})), newAuthorizer(api, clock.RealClock{})
	return l
}

func accountOf(o *corev1.ServiceAccount) account { return account{o.Namespace, o.Name, string(o.UID)} }

func generatedKey(namespace string, policy *v1alpha1.ExportPolicy) *v1alpha1.GeneratedKey {
	return &v1alpha1.GeneratedKey{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "key", UID: types.UID(uuid.NewString())},
		Spec:       v1alpha1.GeneratedKeySpec{KeyStoreRef: v1alpha1.KeyStoreReference{Kind: keystore.KindClusterKeyStore, Name: "main"}, ExportPolicy: policy},
		Status:     v1alpha1.GeneratedKeyStatus{KeyState: "Enabled"},
	}
}

// What takes longer tells as much as another answer.
func TestFind_keyThatTheCallerMayNotSee_costsWhatOneThatDoesNotExistCosts(t *testing.T) {
	t.Parallel()
	hiddenHere, elsewhere := generatedKey("caller", nil), generatedKey("other", nil)
	consented := generatedKey("consenting", &v1alpha1.ExportPolicy{
		Namespaces: &v1alpha1.ExportNamespaces{From: "All"}, WrappingAlgorithms: []v1alpha1.ExportAlgorithm{"RSAES_OAEP_SHA_256"},
	})
	deleted := generatedKey("caller", nil)
	deleted.Name, deleted.Status.KeyState = "deleted", "Deleted"
	for name, c := range map[string]struct {
		has    map[string]bool
		wants  []string
		hidden []*v1alpha1.GeneratedKey
	}{
		"a caller without verbs":                    {nil, []string{verbUse}, []*v1alpha1.GeneratedKey{hiddenHere, elsewhere, consented, deleted}},
		"a caller that asks to see it":              {nil, []string{verbGet}, []*v1alpha1.GeneratedKey{hiddenHere, elsewhere, consented, deleted}},
		"several verbs":                             {nil, []string{verbUse, verbExport}, []*v1alpha1.GeneratedKey{hiddenHere, elsewhere, consented, deleted}},
		"a caller with the verb in its namespace":   {map[string]bool{verbUse: true}, []string{verbUse}, []*v1alpha1.GeneratedKey{elsewhere, consented, deleted}},
		"a caller with one of several verbs":        {map[string]bool{verbUse: true}, []string{verbUse, verbExport}, []*v1alpha1.GeneratedKey{hiddenHere, elsewhere, consented, deleted}},
		"a caller that may do all in its namespace": {map[string]bool{verbUse: true, verbGet: true}, []string{verbUse}, []*v1alpha1.GeneratedKey{elsewhere, consented, deleted}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLookups(t, c.has, hiddenHere, elsewhere, consented, deleted)
			cost := func(id string) int {
				l.questions = 0
				l.Parameters = wire.NewParameters(map[string]string{"KeyId": id})
				if e, err := l.find(t.Context(), "KeyId", c.wants...); kms.CodeOf(err) != kms.ForbiddenKeyNotFound || e != nil {
					t.Errorf("The answer is %v, %v", e, err)
				}
				return l.questions
			}
			want := cost(uuid.NewString())
			if again := cost(uuid.NewString()); again != want || want == 0 {
				t.Errorf("A key that does not exist costs %d questions, and another one %d", want, again)
			}
			for _, key := range c.hidden {
				if is := cost(string(key.UID)); is != want {
					t.Errorf("The key in namespace %s costs %d questions, one that does not exist %d", key.Namespace, is, want)
				}
			}
		})
	}
}

func TestFind_keyThatTheCallerMaySee(t *testing.T) {
	t.Parallel()
	key := generatedKey("caller", nil)
	l := newLookups(t, map[string]bool{verbGet: true}, key)
	l.Parameters = wire.NewParameters(map[string]string{"KeyId": string(key.UID)})
	if e, err := l.find(t.Context(), "KeyId", verbGet); err != nil || e == nil || l.questions != 1 {
		t.Errorf("The answer is %v, %v, after %d questions", e, err, l.questions)
	}
	if e, err := l.find(t.Context(), "KeyId", verbUse); kms.CodeOf(err) != kms.ForbiddenNoPermission || e != nil {
		t.Errorf("The answer is %v, %v", e, err)
	}
}

// The authorizer keeps the names in its questions in memory, so they must be short.
func TestFind_aliasThatIsTooLong_isNotAskedFor(t *testing.T) {
	t.Parallel()
	l := newLookups(t, map[string]bool{verbGet: true})
	for length, questions := range map[int]int{maxAlias: 1, maxAlias + 1: 0} {
		l.questions = 0
		l.Parameters = wire.NewParameters(map[string]string{"KeyId": aliasPrefix + strings.Repeat("a", length-len(aliasPrefix))})
		if e, err := l.find(t.Context(), "KeyId", verbGet); wire.CodeOf(err) != string(wire.AliasNotFound) || e != nil || l.questions != questions {
			t.Errorf("An alias of %d characters is answered with %v, %v, after %d questions", length, e, err, l.questions)
		}
	}
}
