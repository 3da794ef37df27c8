package reconciler_test

import (
	"errors"
	"strings"
	"testing"
	"unicode/utf8"

	kstatus "github.com/fluxcd/cli-utils/pkg/kstatus/status"
	. "github.com/onsi/gomega"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/reconciler"
	"github.com/keyconvoy/keyconvoy/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// ends are the ways in which a reconcile can end, and how others read the object then.
var ends = map[string]struct {
	err    error
	ready  metav1.ConditionStatus
	reads  string // as Flux, Argo CD and kubectl wait do
	reason string
}{
	"well":      {nil, metav1.ConditionTrue, "Current", v1alpha1.ReasonSucceeded},
	"stalled":   {reconciler.Stall("TargetNotOwned", "m"), metav1.ConditionFalse, "Failed", "TargetNotOwned"},
	"waiting":   {reconciler.Wait("SourceNotFound", "m"), metav1.ConditionFalse, "InProgress", "SourceNotFound"},
	"transient": {errors.New("x"), metav1.ConditionFalse, "InProgress", "InternalFailure"},
	"refused":   {&kms.Error{Code: kms.InvalidImportToken}, metav1.ConditionFalse, "Failed", "InvalidImportToken"},
	"pending":   {&kms.Error{Code: kms.RejectedPendingImport}, metav1.ConditionFalse, "InProgress", "RejectedPendingImport"},
}

// checkConditions are the rules that hold after each reconcile.
func checkConditions(g Gomega, conditions []metav1.Condition, generation int64) {
	g.ExpectWithOffset(1, meta.FindStatusCondition(conditions, v1alpha1.ConditionReady)).NotTo(BeNil(), "Ready is always there")
	stalled := meta.FindStatusCondition(conditions, v1alpha1.ConditionStalled)
	reconciling := meta.FindStatusCondition(conditions, v1alpha1.ConditionReconciling)
	g.ExpectWithOffset(1, stalled != nil && reconciling != nil).To(BeFalse(), "Stalled and Reconciling exclude each other")
	for _, c := range conditions {
		g.ExpectWithOffset(1, c.ObservedGeneration).To(Equal(generation), c.Type)
		g.ExpectWithOffset(1, c.Reason).NotTo(BeEmpty(), c.Type)
		if c.Type != v1alpha1.ConditionReady {
			g.ExpectWithOffset(1, c.Status).To(Equal(metav1.ConditionTrue), "%s is there only while True", c.Type)
		}
	}
}

// reads is what kstatus makes of conditions.
func reads(g Gomega, conditions []metav1.Condition) string {
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&v1alpha1.DataKey{Status: v1alpha1.DataKeyStatus{Conditions: conditions}})
	g.Expect(err).NotTo(HaveOccurred())
	result, err := kstatus.Compute(&unstructured.Unstructured{Object: content})
	g.Expect(err).NotTo(HaveOccurred())
	return string(result.Status)
}

// From every end to every other one: nothing of the former stays.
func TestSummarize_fromEveryEndToEveryOther(t *testing.T) {
	t.Parallel()
	for was, from := range ends {
		for is, to := range ends {
			t.Run(was+" then "+is, func(t *testing.T) {
				t.Parallel()
				g := NewWithT(t)
				var conditions []metav1.Condition
				conditions = reconciler.Summarize(conditions, 1, from.err, "Done.")
				checkConditions(g, conditions, 1)
				g.Expect(reads(g, conditions)).To(Equal(from.reads))

				conditions = reconciler.Summarize(conditions, 2, to.err, "Done.")
				checkConditions(g, conditions, 2)
				g.Expect(reads(g, conditions)).To(Equal(to.reads))
				ready := meta.FindStatusCondition(conditions, v1alpha1.ConditionReady)
				g.Expect(ready.Status).To(Equal(to.ready))
				g.Expect(ready.Reason).To(Equal(to.reason))
				if to.err == nil {
					g.Expect(ready.Message).To(Equal("Done."))
					g.Expect(conditions).To(HaveLen(1))
				} else {
					g.Expect(conditions).To(HaveLen(2))
					g.Expect(conditions[0].Message).To(Equal(conditions[1].Message))
				}
			})
		}
	}
}

// The same end twice is no change, or every reconcile would be a write.
func TestSummarize_isStable(t *testing.T) {
	t.Parallel()
	for name, end := range ends {
		g := NewWithT(t)
		var conditions []metav1.Condition
		conditions = reconciler.Summarize(conditions, 1, end.err, "Done.")
		for i := range conditions { // as if a while ago
			conditions[i].LastTransitionTime = metav1.Unix(1, 0)
		}
		before := append([]metav1.Condition(nil), conditions...)
		conditions = reconciler.Summarize(conditions, 1, end.err, "Done.")
		g.Expect(conditions).To(Equal(before), name)
	}
}

func TestSummarize_leavesConditionsOfOthersAlone(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	theirs := metav1.Condition{Type: "Audited", Status: metav1.ConditionTrue, Reason: "R", LastTransitionTime: metav1.Unix(1, 0)}
	conditions := []metav1.Condition{theirs}
	conditions = reconciler.Summarize(conditions, 1, errors.New("x"), "")
	conditions = reconciler.Summarize(conditions, 2, nil, "Done.")
	g.Expect(conditions).To(ContainElement(theirs))
}

func TestSummarize_boundsMessages(t *testing.T) {
	t.Parallel()
	for sentence, tc := range map[string]struct {
		message string
		length  int // in characters
	}{
		"short":                         {"m", 1},
		"as long as may be":             {strings.Repeat("m", 1024), 1024},
		"longer":                        {strings.Repeat("m", 1025), 1024},
		"longer, of characters":         {strings.Repeat("密", 5000), 1024},
		"longer, not cut in the middle": {strings.Repeat("m", 1022) + "密密密", 1024},
	} {
		t.Run(sentence, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			for _, err := range []error{nil, reconciler.Stall("R", tc.message), reconciler.Wait("R", tc.message)} {
				var conditions []metav1.Condition
				conditions = reconciler.Summarize(conditions, 1, err, tc.message)
				for _, c := range conditions {
					g.Expect(utf8.RuneCountInString(c.Message)).To(Equal(tc.length))
					g.Expect(utf8.ValidString(c.Message)).To(BeTrue())
					if tc.message != c.Message {
						g.Expect(c.Message).To(HaveSuffix("…"))
					}
				}
			}
		})
	}
}

// Every end is one that the API server takes, and costs one write, and the same again none.
func TestPatchStatus_writesOnceAndOnlyWhatChanged(t *testing.T) {
	t.Parallel()
	env := testenv.Start(t)
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			ns := env.Namespace(t)
			cfg, counter := env.Counting()
			c, err := client.New(cfg, client.Options{Scheme: env.Scheme})
			g.Expect(err).NotTo(HaveOccurred())
			object := &v1alpha1.KeyStore{
				ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "k"},
				Spec:       v1alpha1.KeyStoreSpec{Type: v1alpha1.KeyStoreSoftware},
			}
			g.Expect(env.Client.Create(t.Context(), object)).To(Succeed())

			reconcile := func() {
				before := object.DeepCopy()
				object.Status.ObservedGeneration = object.Generation
				object.Status.Conditions = reconciler.Summarize(object.Status.Conditions, object.Generation, end.err, "Done.")
				g.Expect(reconciler.PatchStatus(t.Context(), c, before, object)).To(Succeed())
			}
			reconcile()
			once := testenv.Counts{
				Writes: map[string]int{"patch keystores/status": 1},
				Reads:  map[string]int{}, Lists: map[string]int{}, Watches: map[string]int{},
			}
			g.Expect(counter.All()).To(Equal(once))
			reconcile()
			g.Expect(counter.All()).To(Equal(once), "nothing had changed")

			var stored v1alpha1.KeyStore
			g.Expect(env.Client.Get(t.Context(), types.NamespacedName{Namespace: ns, Name: "k"}, &stored)).To(Succeed())
			checkConditions(g, stored.Status.Conditions, stored.Generation)
			g.Expect(stored.Status.ObservedGeneration).To(Equal(stored.Generation))
			g.Expect(reads(g, stored.Status.Conditions)).To(Equal(end.reads))
		})
	}
}

func TestPatchStatus_saysThatItFailed(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	env := testenv.Start(t)
	object := &v1alpha1.KeyStore{ObjectMeta: metav1.ObjectMeta{Namespace: env.Namespace(t), Name: "gone"}}
	before := object.DeepCopy()
	object.Status.ObservedGeneration = 1
	err := reconciler.PatchStatus(t.Context(), env.Client, before, object)
	g.Expect(reconciler.From(err)).To(HaveField("Reason", v1alpha1.ReasonAPIServer))
}

// Two operators: one is suspended after it has read an object, and the other one adds to the object's status meanwhile.
func TestFinish_onlyIfUnchanged_failsForAnObjectThatAnotherOperatorChanged(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	env := testenv.Start(t)
	ns := env.Namespace(t)
	key := &v1alpha1.GeneratedKey{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "key"},
		Spec:       v1alpha1.GeneratedKeySpec{KeyStoreRef: v1alpha1.KeyStoreReference{Kind: "KeyStore", Name: "s"}, KeySpec: "AES_256"},
	}
	g.Expect(env.Client.Create(t.Context(), key)).To(Succeed())
	frame := reconciler.Frame{Client: env.Client, Recorder: events.NewFakeRecorder(9)}
	finish := func(read *v1alpha1.GeneratedKey, versions ...string) error {
		is := read.DeepCopy()
		for i, id := range versions {
			is.Status.Versions = append(is.Status.Versions, v1alpha1.KeyVersion{
				KeyVersionID: id, Number: int32(i + 1), CreateTime: metav1.Now(), Custody: "Module", Fingerprint: strings.Repeat("0", 32), State: "Active",
			})
		}
		_, err := frame.Finish(t.Context(), read, is, reconciler.Outcome{OnlyIfUnchanged: true})
		return err
	}
	const first, second = "0b9b9e1c-5d3c-5c51-8a53-3c3a4f0b7c11", "0b9b9e1c-5d3c-5c51-8a53-3c3a4f0b7c12"
	for _, waits := range []bool{false, true} { // with and without a status
		if waits {
			is := key.DeepCopy()
			_, _ = frame.Finish(t.Context(), key, is, reconciler.Outcome{Err: reconciler.Wait("KeyStoreNotReady", "m")})
			g.Expect(is.Status.Conditions).NotTo(BeEmpty())
			key = is
		}
		suspended := key.DeepCopy()
		g.Expect(env.Client.Get(t.Context(), client.ObjectKeyFromObject(key), key)).To(Succeed())
		key.Status.Versions = nil
		g.Expect(finish(key, first, second)).To(Succeed())
		g.Expect(finish(suspended, first)).To(MatchError(apierrors.IsInvalid, "a test of the patch that fails"))
		g.Expect(env.Client.Get(t.Context(), client.ObjectKeyFromObject(key), key)).To(Succeed())
		g.Expect(key.Status.Versions).To(HaveLen(2))
	}
}

// An object that was deleted and made again has nothing of the former one's status.
func TestPatchStatus_leavesAnotherObjectOfTheNameAlone(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	env := testenv.Start(t)
	former := &v1alpha1.KeyStore{
		ObjectMeta: metav1.ObjectMeta{Namespace: env.Namespace(t), Name: "k"},
		Spec:       v1alpha1.KeyStoreSpec{Type: v1alpha1.KeyStoreSoftware},
	}
	again := former.DeepCopy()
	g.Expect(env.Client.Create(t.Context(), former)).To(Succeed())
	g.Expect(env.Client.Delete(t.Context(), former.DeepCopy())).To(Succeed())
	g.Expect(env.Client.Create(t.Context(), again)).To(Succeed())

	before := former.DeepCopy()
	former.Status.ObservedGeneration = 1
	err := reconciler.PatchStatus(t.Context(), env.Client, before, former)
	g.Expect(apierrors.IsInvalid(err)).To(BeTrue(), "%v", err)
	g.Expect(env.Client.Get(t.Context(), client.ObjectKeyFromObject(again), again)).To(Succeed())
	g.Expect(again.Status.ObservedGeneration).To(BeZero())
}
