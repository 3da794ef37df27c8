package fetch_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/fetch"
	"github.com/keyconvoy/keyconvoy/internal/testenv"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
	"github.com/keyconvoy/keyconvoy/internal/testenv/pods"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

func TestMain(m *testing.M) {
	ctrl.SetLogger(logr.Discard())
	testenv.Main(m)
}

// patience is longer than any fetch that succeeds takes on a slow machine.
const patience = 2 * time.Minute

// get fetches with the permissions of a ServiceAccount.
func get(t testing.TB, cfg *rest.Config, r fetch.Request, patience time.Duration) ([]byte, error) {
	t.Helper()
	c, err := fetch.NewClient(cfg, fetch.Generate)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	return c.DataKey(ctx, r)
}

// fails checks the kind of an error and what it and its hint say.
func fails(t testing.TB, err error, kind fetch.Kind, words ...string) {
	t.Helper()
	var explained *fetch.Error
	if !errors.As(err, &explained) || explained.Kind != kind {
		t.Fatalf("the error is %v, want one of kind %d", err, kind)
	}
	harness.WantWords(t, explained.Problem+"\n"+explained.Hint, words)
}

// noneLeft checks that no ExportedDataKey is left.
func noneLeft(t testing.TB, c *pods.Cluster) {
	t.Helper()
	if all := c.Exports(); len(all) != 0 {
		t.Errorf("%d ExportedDataKeys are left", len(all))
	}
}

func TestDataKey_withTheDocumentedPermissions_returnsTheDataKey_andLeavesNothing(t *testing.T) {
	t.Parallel()
	c := pods.Start(t)
	want := c.Plaintext()
	account := c.Account(pods.MayExport, pods.MayRequest)
	pod := c.Pod("pod", account)
	for _, pair := range []struct {
		spec      wrapping.KeySpec
		algorithm wrapping.Algorithm
	}{{wrapping.RSA2048, wrapping.RSAESOAEPSHA256}, {wrapping.RSA2048, wrapping.RSAESOAEPSHA1}, {wrapping.RSA3072, wrapping.RSAESOAEPSHA256}, {wrapping.ECSM2, wrapping.SM2PKE}} {
		r := c.Request(pod)
		r.KeySpec, r.Algorithm = pair.spec, pair.algorithm
		got, err := get(t, c.Config(account), r, patience)
		if err != nil {
			t.Fatalf("%s with %s: %v", pair.spec, pair.algorithm, err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s with %s: the data key is another one", pair.spec, pair.algorithm)
		}
		noneLeft(t, c)
	}
}

func TestDataKey_withoutThePermissionTo(t *testing.T) {
	t.Parallel()
	c := pods.Start(t)
	for sentence, test := range map[string]struct {
		has  []pods.Permission
		says []string
	}{
		"export":                  {[]pods.Permission{pods.MayRequest}, []string{"requires the verb export on it", "export on the DataKey ledger in namespace " + c.Namespace}},
		"create":                  {[]pods.Permission{pods.MayExport, {Resource: "exporteddatakeys", Verbs: []string{"watch", "delete"}}}, []string{"cannot create resource", "create, watch and delete on exporteddatakeys"}},
		"watch":                   {[]pods.Permission{pods.MayExport, {Resource: "exporteddatakeys", Verbs: []string{"create", "delete"}}}, []string{"cannot watch resource", "the verb watch on exporteddatakeys in namespace " + c.Namespace}},
		"export of this data key": {[]pods.Permission{{Resource: "datakeys", Verbs: []string{"export"}, Names: []string{"another"}}, pods.MayRequest}, []string{"requires the verb export on it"}},
	} {
		t.Run(sentence, func(t *testing.T) {
			account := c.Account(test.has...)
			_, err := get(t, c.Config(account), c.Request(c.Pod(account, account)), patience)
			fails(t, err, fetch.Denied, test.says...)
			noneLeft(t, c)
		})
	}
}

func TestDataKey_withoutThePermissionToDelete_leavesAnObjectThatThePodOwns(t *testing.T) {
	t.Parallel()
	c := pods.Start(t)
	want := c.Plaintext()
	account := c.Account(pods.MayExport, pods.Permission{Resource: "exporteddatakeys", Verbs: []string{"create", "watch"}})
	pod := c.Pod("pod", account)
	got, err := get(t, c.Config(account), c.Request(pod), patience)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("the data key was not returned: %v", err)
	}
	all := c.Exports()
	if len(all) != 1 {
		t.Fatalf("%d ExportedDataKeys are left", len(all))
	}
	owner := metav1.OwnerReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID}
	if owners := all[0].OwnerReferences; len(owners) != 1 || owners[0] != owner {
		t.Errorf("the owners are %v", owners)
	}
	if all[0].Spec.Delivery != v1alpha1.DeliveryStatus || all[0].Status.SecretRef != nil {
		t.Errorf("the export is in a Secret: %+v", all[0].Status)
	}
}

func TestDataKey_ofANamespaceWhoseOwnerDoesNotConsent_saysSo(t *testing.T) {
	t.Parallel()
	c := pods.Start(t)
	account := c.Account(pods.MayExport, pods.MayRequest)
	key := &v1alpha1.GeneratedKey{ObjectMeta: metav1.ObjectMeta{Namespace: c.Namespace, Name: "key"}}
	c.Change(t, key, func() {
		key.Spec.ExportPolicy = &v1alpha1.ExportPolicy{WrappingAlgorithms: []v1alpha1.ExportAlgorithm{"RSAES_OAEP_SHA_256"}}
	})
	_, err := get(t, c.Config(account), c.Request(c.Pod("pod", account)), patience)
	fails(t, err, fetch.Refused, "ForbiddenNoPermission", "exportPolicy.wrappingAlgorithms")
	noneLeft(t, c)
}

func TestDataKey_thatDoesNotExist_isWaitedFor(t *testing.T) {
	t.Parallel()
	c := pods.Start(t)
	account := c.Account(pods.MayExport, pods.MayRequest)
	pod := c.Pod("pod", account)
	want := c.Plaintext()
	c.Remove(t, &v1alpha1.DataKey{ObjectMeta: metav1.ObjectMeta{Namespace: c.Namespace, Name: pods.DataKey}})
	_, err := get(t, c.Config(account), c.Request(pod), time.Second)
	fails(t, err, fetch.Late, "KeyNotReady", "does not exist")
	noneLeft(t, c)

	type result struct {
		dataKey []byte
		err     error
	}
	done := make(chan result)
	go func() {
		got, err := get(t, c.Config(account), c.Request(pod), patience)
		done <- result{got, err}
	}()
	harness.Eventually(t, func() string {
		if len(c.Exports()) == 0 {
			return "the object does not exist yet"
		}
		return ""
	})
	c.MakeDataKey() // its Secret still exists, so it is the same one
	if r := <-done; r.err != nil || !bytes.Equal(r.dataKey, want) {
		t.Errorf("the data key was not returned: %v", r.err)
	}
}

func TestDataKey_whileNoOperatorRuns_saysSo(t *testing.T) {
	t.Parallel()
	c := pods.Start(t)
	account := c.Account(pods.MayExport, pods.MayRequest)
	pod := c.Pod("pod", account)
	c.Stop(t)
	_, err := get(t, c.Config(account), c.Request(pod), time.Second)
	fails(t, err, fetch.Late, "the operator has not answered", "check that the operator runs")
	noneLeft(t, c)
}

func TestDataKey_whoseObjectIsChanged_isRejected(t *testing.T) {
	t.Parallel()
	c := pods.Start(t)
	account := c.Account(pods.MayExport, pods.MayRequest)
	pair, err := fetch.Generate(t.Context(), wrapping.ECSM2)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*v1alpha1.ExportedDataKeySpec){
		"recipient": func(s *v1alpha1.ExportedDataKeySpec) { s.PublicKey.Blob = pair.Public().Base64() },
		"data-key":  func(s *v1alpha1.ExportedDataKeySpec) { s.DataKeyRef.Name = "another" },
	} {
		pod := c.Pod(name, account)
		c.Stop(t)
		failed := make(chan error)
		go func() {
			_, err := get(t, c.Config(account), c.Request(pod), patience)
			failed <- err
		}()
		harness.Eventually(t, func() string {
			all := c.Exports()
			if len(all) == 0 {
				return "the object does not exist yet"
			}
			c.Change(t, &all[0], func() { change(&all[0].Spec) })
			return ""
		})
		c.Start(t)
		fails(t, <-failed, fetch.Refused, "was changed")
		noneLeft(t, c)
	}
}

// answering answers creations with what the API server could answer. It counts deletions.
func answering(t testing.TB, create func(r *http.Request) (*http.Response, error)) (cfg *rest.Config, deletions *atomic.Int32) {
	t.Helper()
	cfg, deletions = &rest.Config{Host: "http://127.0.0.1:1"}, &atomic.Int32{}
	cfg.Wrap(func(http.RoundTripper) http.RoundTripper {
		return roundTripper(func(r *http.Request) (*http.Response, error) {
			switch r.Method {
			case http.MethodPost:
				return create(r)
			case http.MethodDelete:
				deletions.Add(1)
			}
			return answer(http.StatusOK, `{"kind":"Status","apiVersion":"v1","status":"Success"}`), nil
		})
	})
	return cfg, deletions
}

func answer(code int, body string) *http.Response {
	return &http.Response{StatusCode: code, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(body))}
}

func TestDataKey_inAClusterWithoutDeliveryInTheStatus_saysSo(t *testing.T) {
	t.Parallel()
	cfg, deletions := answering(t, func(r *http.Request) (*http.Response, error) {
		body, err := io.ReadAll(r.Body)
		return answer(http.StatusCreated, strings.Replace(string(body), `,"delivery":"Status"`, "", 1)), err
	})
	_, err := get(t, cfg, sm2Request(), patience)
	fails(t, err, fetch.Absent, "no delivery Status", "older than this program", "upgrade Keyconvoy")
	if n := deletions.Load(); n != 1 {
		t.Errorf("%d deletions, want 1", n)
	}
}

func sm2Request() fetch.Request {
	return fetch.Request{Pod: fetch.Pod{Namespace: "team-a", Name: "pod"}, KeySpec: wrapping.ECSM2, Algorithm: wrapping.SM2PKE}
}

func TestDataKey_deletesItsObject_unlessItWasNotCreated(t *testing.T) {
	t.Parallel()
	const forbidden = `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Forbidden","code":403}`
	var calls atomic.Int32
	for sentence, test := range map[string]struct {
		create    func(*http.Request) (*http.Response, error)
		deletions int32
	}{
		"it was rejected": {func(*http.Request) (*http.Response, error) { return answer(http.StatusForbidden, forbidden), nil }, 0},
		"it was not sent": {func(*http.Request) (*http.Response, error) { return nil, &net.OpError{Op: "dial", Err: errNetwork} }, 0},
		"no answer":       {func(*http.Request) (*http.Response, error) { return nil, errNetwork }, 1},
		"no answer, rejected": {func(*http.Request) (*http.Response, error) {
			if calls.Add(1) == 1 {
				return nil, errNetwork
			}
			return answer(http.StatusForbidden, forbidden), nil
		}, 1},
	} {
		cfg, deletions := answering(t, test.create)
		if _, err := get(t, cfg, sm2Request(), time.Second); err == nil {
			t.Errorf("%s: there is a data key", sentence)
		}
		if n := deletions.Load(); n != test.deletions {
			t.Errorf("%s: %d deletions, want %d", sentence, n, test.deletions)
		}
	}
}

// roundTripper fails requests.
type roundTripper func(*http.Request) (*http.Response, error)

func (r roundTripper) RoundTrip(request *http.Request) (*http.Response, error) { return r(request) }

var errNetwork = errors.New("the network is down")

func TestDataKey_despiteErrorsThatPass(t *testing.T) {
	t.Parallel()
	c := pods.Start(t)
	want := c.Plaintext()
	account := c.Account(pods.MayExport, pods.MayRequest)
	for sentence, fault := range map[string]func(next http.RoundTripper, r *http.Request, n int) (*http.Response, error){
		"the API server cannot be reached": func(http.RoundTripper, *http.Request, int) (*http.Response, error) { return nil, errNetwork },
		"the answer is lost": func(next http.RoundTripper, r *http.Request, _ int) (*http.Response, error) {
			answer, err := next.RoundTrip(r)
			if err == nil {
				answer.Body.Close()
			}
			return nil, errNetwork
		},
		"the API server is overloaded": func(http.RoundTripper, *http.Request, int) (*http.Response, error) {
			return &http.Response{StatusCode: http.StatusServiceUnavailable, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(""))}, nil
		},
	} {
		t.Run(sentence, func(t *testing.T) {
			cfg := c.Config(account)
			var seen [2]atomic.Int32 // creations and watches: the first two of each fail
			cfg.Wrap(func(next http.RoundTripper) http.RoundTripper {
				return roundTripper(func(r *http.Request) (*http.Response, error) {
					which := map[string]int{http.MethodPost: 0, http.MethodGet: 1}
					i, faulty := which[r.Method]
					if !faulty {
						return next.RoundTrip(r)
					}
					if n := seen[i].Add(1); n <= 2 {
						return fault(next, r, int(n))
					}
					return next.RoundTrip(r)
				})
			})
			name := "pod-" + strings.ReplaceAll(strings.ToLower(sentence), " ", "-")
			got, err := get(t, cfg, c.Request(c.Pod(name, account)), patience)
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("the data key was not returned: %v", err)
			}
			if seen[0].Load() < 3 || seen[1].Load() < 3 {
				t.Errorf("%d creations and %d watches were tried", seen[0].Load(), seen[1].Load())
			}
			noneLeft(t, c)
		})
	}
}

func TestDataKey_whileTheAPIServerCannotBeReached_saysSo(t *testing.T) {
	t.Parallel()
	cfg := &rest.Config{Host: "http://127.0.0.1:1"}
	_, err := get(t, cfg, fetch.Request{Pod: fetch.Pod{Namespace: "team-a"}, KeySpec: wrapping.ECSM2, Algorithm: wrapping.SM2PKE}, time.Second)
	fails(t, err, fetch.Late, "the API server did not answer in time", "refused", "check that the pod can reach the API server")
}

func TestDataKey_interrupted_deletesTheObject(t *testing.T) {
	t.Parallel()
	c := pods.Start(t)
	account := c.Account(pods.MayExport, pods.MayRequest)
	pod := c.Pod("pod", account)
	c.Stop(t)
	client, err := fetch.NewClient(c.Config(account), fetch.Generate)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error)
	go func() {
		_, err := client.DataKey(ctx, c.Request(pod))
		failed <- err
	}()
	harness.Eventually(t, func() string {
		if len(c.Exports()) == 0 {
			return "the object does not exist yet"
		}
		return ""
	})
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("the error is %v", err)
	}
	noneLeft(t, c)
}

// A pod of the longest name.
func TestDataKey_namesTheObjectAfterThePod(t *testing.T) {
	t.Parallel()
	c := pods.Start(t)
	account := c.Account(pods.MayExport, pods.MayRequest)
	name := strings.Repeat("a", 199) + "." + strings.Repeat("b", 53)
	if _, err := get(t, c.Config(account), c.Request(c.Pod(name, account)), patience); err != nil {
		t.Fatal(err)
	}
}

func TestDataKey_wipesThePrivateKey(t *testing.T) {
	t.Parallel()
	c := pods.Start(t)
	account := c.Account(pods.MayExport, pods.MayRequest)
	pod := c.Pod("pod", account)
	pair, err := fetch.Generate(t.Context(), wrapping.ECSM2)
	if err != nil {
		t.Fatal(err)
	}
	before, err := pair.PKCS8()
	if err != nil {
		t.Fatal(err)
	}
	client, err := fetch.NewClient(c.Config(account), func(context.Context, wrapping.KeySpec) (*wrapping.PrivateKey, error) { return pair, nil })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.DataKey(t.Context(), c.Request(pod)); err != nil {
		t.Fatal(err)
	}
	if after, err := pair.PKCS8(); err == nil && bytes.Equal(before, after) {
		t.Error("the private key is still in memory")
	}
}

func TestNext_returnsTheDigestOfTheDataKey_andThatOfTheNextOne(t *testing.T) {
	t.Parallel()
	c := pods.Start(t)
	account := c.Account(pods.MayFollow, pods.MayExport, pods.MayRequest)
	pod := c.Pod("pod", account)
	follower, err := fetch.NewClient(c.Config(account), fetch.Generate)
	if err != nil {
		t.Fatal(err)
	}
	r := c.Request(pod)
	first, err := follower.Next(t.Context(), r.DataKey, "")
	if err != nil {
		t.Fatal(err)
	}
	r.Digest = first
	was, err := follower.DataKey(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	type result struct {
		digest string
		err    error
	}
	next := make(chan result)
	go func() {
		digest, err := follower.Next(t.Context(), r.DataKey, first)
		next <- result{digest, err}
	}()
	c.ReplaceDataKey()
	n := <-next
	if n.err != nil || n.digest == first {
		t.Fatalf("the next digest is %q, %v", n.digest, n.err)
	}
	_, err = get(t, c.Config(account), r, patience)
	fails(t, err, fetch.Refused, "InputReplaced")
	r.Digest = n.digest
	is, err := follower.DataKey(t.Context(), r)
	if err != nil || bytes.Equal(is, was) || !bytes.Equal(is, c.Plaintext()) {
		t.Errorf("the data key after the replacement is not the new one: %v", err)
	}
}

func TestNext_withoutPermission_saysSo(t *testing.T) {
	t.Parallel()
	c := pods.Start(t)
	account := c.Account(pods.MayExport, pods.MayRequest)
	follower, err := fetch.NewClient(c.Config(account), fetch.Generate)
	if err != nil {
		t.Fatal(err)
	}
	_, err = follower.Next(t.Context(), c.Request(fetch.Pod{}).DataKey, "")
	fails(t, err, fetch.Denied, "the verb watch on the DataKey ledger")
}
