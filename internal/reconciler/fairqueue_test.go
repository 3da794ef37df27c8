package reconciler_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/controller/priorityqueue"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/keyconvoy/keyconvoy/internal/reconciler"
)

type fairQueue = priorityqueue.PriorityQueue[reconcile.Request]

// newFairQueue is a queue that retries after one second, then two, and so on up to a minute.
func newFairQueue(t *testing.T, workers int, name string) fairQueue {
	t.Helper()
	limiter := workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](time.Second, time.Minute)
	q := reconciler.NewFairQueue(workers)(name, limiter).(fairQueue)
	t.Cleanup(q.ShutDown)
	return q
}

func request(namespace, name string) reconcile.Request {
	return reconcile.Request{NamespacedName: types.NamespacedName{Namespace: namespace, Name: name}}
}

// addMany adds n objects of a namespace, named 1 to n.
func addMany(q fairQueue, namespace string, n int) {
	for i := range n {
		q.Add(request(namespace, fmt.Sprint(i+1)))
	}
}

// drain serves what is queued, one after the other.
func drain(q fairQueue) (served []string) {
	for q.Len() > 0 {
		item, _ := q.Get()
		served = append(served, item.String())
		q.Done(item)
	}
	return served
}

// hanging are workers that keep what they get until they are told to end it.
type hanging struct {
	q      fairQueue
	mu     sync.Mutex
	served map[reconcile.Request]chan struct{}
}

func hang(q fairQueue, workers int) *hanging {
	h := &hanging{q: q, served: map[reconcile.Request]chan struct{}{}}
	for range workers {
		go func() {
			for {
				item, shutdown := q.Get()
				if shutdown {
					return
				}
				<-h.begin(item)
				q.Done(item)
			}
		}()
	}
	return h
}

func (h *hanging) begin(item reconcile.Request) chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	end := make(chan struct{})
	h.served[item] = end
	return end
}

// end ends what is held of a namespace, at most n objects.
func (h *hanging) end(namespace string, n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for item, end := range h.served {
		if item.Namespace == namespace && n > 0 {
			close(end)
			delete(h.served, item)
			n--
		}
	}
}

// held is how many objects of each namespace are held once everything has come to rest.
func (h *hanging) held() map[string]int {
	synctest.Wait()
	h.mu.Lock()
	defer h.mu.Unlock()
	held := map[string]int{}
	for item := range h.served {
		held[item.Namespace]++
	}
	return held
}

func (h *hanging) stop() {
	h.q.ShutDown()
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, end := range h.served {
		close(end)
	}
	clear(h.served)
}

func wantHeld(t *testing.T, h *hanging, want map[string]int) {
	t.Helper()
	if held := h.held(); !maps.Equal(held, want) {
		t.Errorf("the workers hold %v, want %v", held, want)
	}
}

func TestFairQueue_servesNamespacesInTurn(t *testing.T) {
	t.Parallel()
	q := newFairQueue(t, 4, "")
	addMany(q, "a", 4)
	addMany(q, "b", 2)
	addMany(q, "c", 1)

	want := []string{"a/1", "b/1", "c/1", "a/2", "b/2", "a/3", "a/4"}
	if served := drain(q); !slices.Equal(served, want) {
		t.Errorf("it serves %v, want %v", served, want)
	}
}

func TestFairQueue_clusterScopedObjects_areServedInTurnWithNamespaces(t *testing.T) {
	t.Parallel()
	q := newFairQueue(t, 4, "")
	addMany(q, "a", 3)
	q.Add(request("", "a"))
	q.Add(request("", "b"))

	want := []string{"a/1", "/a", "/b", "a/2", "a/3"}
	if served := drain(q); !slices.Equal(served, want) {
		t.Errorf("it serves %v, want %v", served, want)
	}
}

// Whatever is queued, and whatever is added meanwhile: the first object of a namespace waits for one object of each
// other namespace.
func TestFairQueue_aNamespaceWaitsForOneObjectOfEachOther(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	const namespaces = 9
	q := newFairQueue(t, 4, "")
	queued := map[string]int{} // by namespace
	waits := map[string]int{}  // how many objects of others were served since its turn, or since it came
	for step := range 5000 {
		if step < 4000 {
			namespace := fmt.Sprint(random.IntN(random.IntN(namespaces) + 1)) // the first have the most
			q.AddWithOpts(priorityqueue.AddOpts{Priority: ptr.To(-random.IntN(3))}, request(namespace, fmt.Sprint(step)))
			queued[namespace]++
		}
		if q.Len() == 0 || random.IntN(3) == 0 {
			continue
		}
		item, _ := q.Get()
		q.Done(item)
		queued[item.Namespace]--
		waits[item.Namespace] = 0
		for namespace, n := range queued {
			if n == 0 {
				delete(waits, namespace)
			} else if namespace != item.Namespace {
				waits[namespace]++
			}
			if waits[namespace] >= namespaces {
				t.Fatalf("the namespace %s has waited for %d objects", namespace, waits[namespace])
			}
		}
	}
}

func TestFairQueue_aNamespaceAlone_leavesWorkersFree(t *testing.T) {
	t.Parallel()
	for workers, share := range map[int]int{1: 1, 2: 1, 4: 3, 8: 6, 16: 12, 64: 48} {
		t.Run(fmt.Sprint(workers), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				q := newFairQueue(t, workers, "")
				h := hang(q, workers)
				defer h.stop()
				addMany(q, "tenant", 200)
				wantHeld(t, h, map[string]int{"tenant": share})
				if workers == 1 {
					return
				}

				q.Add(request("newcomer", "1"))
				wantHeld(t, h, map[string]int{"tenant": share, "newcomer": 1})

				// What ends makes room for as much, and not for more.
				h.end("newcomer", 1)
				h.end("tenant", share)
				wantHeld(t, h, map[string]int{"tenant": share})
			})
		})
	}
}

func TestFairQueue_manyBusyNamespaces_leaveAWorkerFree(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const workers = 16
		q := newFairQueue(t, workers, "")
		for i := range 5 { // before there is a worker: they are served in turn from the first one on
			addMany(q, fmt.Sprint("tenant-", i), 100)
		}
		h := hang(q, workers)
		defer h.stop()
		before := h.held()
		q.Add(request("newcomer", "1"))
		if held := h.held(); held["newcomer"] != 1 {
			t.Errorf("the newcomer finds no worker: they held %v, and now %v", before, held)
		}
	})
}

// Workers that wait while a namespace may have no more of them serve it when it may.
func TestFairQueue_whatANamespaceMayHaveAgain_isServed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := newFairQueue(t, 8, "")
		h := hang(q, 8)
		defer h.stop()
		addMany(q, "a", 4)
		wantHeld(t, h, map[string]int{"a": 4})
		addMany(q, "b", 100)
		wantHeld(t, h, map[string]int{"a": 4, "b": 3})
		h.end("a", 1)
		wantHeld(t, h, map[string]int{"a": 3, "b": 3})
		h.end("a", 3)
		wantHeld(t, h, map[string]int{"b": 6})
	})
}

func TestFairQueue_withinANamespace_servesTheHighestPriorityFirst(t *testing.T) {
	t.Parallel()
	q := newFairQueue(t, 4, "")
	low := priorityqueue.AddOpts{Priority: ptr.To(-100)}
	q.AddWithOpts(low, request("a", "old-1"), request("a", "old-2"), request("a", "old-3"), request("b", "old"))
	q.Add(request("a", "new"))
	q.Add(request("a", "old-3")) // which has changed, too
	q.AddWithOpts(low, request("a", "new"))

	want := []string{"a/new", "b/old", "a/old-3", "a/old-1", "a/old-2"}
	if served := drain(q); !slices.Equal(served, want) {
		t.Errorf("it serves %v, want %v", served, want)
	}
}

func TestFairQueue_saysThePriorityOfWhatItServes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := newFairQueue(t, 4, "")
		item := request("a", "1")
		want := func(priority int) {
			t.Helper()
			got, is, _ := q.GetWithPriority()
			if got != item || is != priority {
				t.Errorf("it serves %v with priority %d, want %v with %d", got, is, item, priority)
			}
			q.Done(item)
		}
		q.AddWithOpts(priorityqueue.AddOpts{Priority: ptr.To(-100)}, item)
		want(-100)
		q.AddWithOpts(priorityqueue.AddOpts{Priority: ptr.To(-100), After: time.Minute}, item)
		want(-100)
		q.AddWithOpts(priorityqueue.AddOpts{Priority: ptr.To(-100), RateLimited: true}, item)
		want(-100)
		q.Add(item)
		want(0)
	})
}

func TestFairQueue_anObjectThatIsReconciled_waitsUntilThatIsOver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := newFairQueue(t, 4, "")
		h := hang(q, 4)
		defer h.stop()
		item := request("a", "1")
		q.Add(item)
		wantHeld(t, h, map[string]int{"a": 1})
		q.Add(item)
		q.Add(item)
		if n := q.Len(); n != 0 {
			t.Errorf("%d objects are queued", n)
		}
		h.end("a", 1)
		wantHeld(t, h, map[string]int{"a": 1}) // once more
		h.end("a", 1)
		wantHeld(t, h, map[string]int{})
	})
}

func TestFairQueue_delaysAndLimitsRates(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := newFairQueue(t, 4, "")
		item := request("a", "1")
		// servedAfter says when the object comes.
		servedAfter := func() time.Duration {
			start := time.Now()
			got, _ := q.Get()
			if got != item {
				t.Errorf("it serves %v", got)
			}
			q.Done(got)
			return time.Since(start)
		}
		want := func(what string, after time.Duration) {
			t.Helper()
			if is := servedAfter(); is != after {
				t.Errorf("%s: the object comes after %v, want %v", what, is, after)
			}
		}
		q.AddAfter(item, time.Hour)
		want("a delay", time.Hour)
		for _, after := range []time.Duration{time.Second, 2 * time.Second, 4 * time.Second} {
			q.AddRateLimited(item)
			want("a failure", after)
		}
		if n := q.NumRequeues(item); n != 3 {
			t.Errorf("it counts %d failures, want 3", n)
		}
		q.Forget(item)
		q.AddWithOpts(priorityqueue.AddOpts{RateLimited: true}, item)
		want("the first failure after a success", time.Second)
	})
}

func TestFairQueue_afterShutDown_servesNothing(t *testing.T) {
	t.Parallel()
	for name, shutDown := range map[string]func(fairQueue){
		"ShutDown":          fairQueue.ShutDown,
		"ShutDownWithDrain": fairQueue.ShutDownWithDrain,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				q := newFairQueue(t, 4, "")
				h := hang(q, 4)
				addMany(q, "a", 100)
				wantHeld(t, h, map[string]int{"a": 3})
				shutDown(q)
				h.end("a", 3)
				wantHeld(t, h, map[string]int{})
				if _, shutdown := q.Get(); !shutdown || !q.ShuttingDown() {
					t.Error("it goes on")
				}
			})
		})
	}
}

func TestFairQueue_measuresUnderItsName(t *testing.T) {
	t.Parallel()
	q := newFairQueue(t, 4, "fair")
	addMany(q, "a", 3)
	item, _ := q.Get()
	q.Done(item)

	families, err := metrics.Registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]float64{}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			for _, label := range m.GetLabel() {
				if label.GetName() == "controller" && label.GetValue() == "fair" {
					found[family.GetName()] = m.GetGauge().GetValue() + m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
				}
			}
		}
	}
	for name, want := range map[string]float64{
		"workqueue_depth": 2, "workqueue_adds_total": 3, "workqueue_queue_duration_seconds": 1, "workqueue_work_duration_seconds": 1,
	} {
		if found[name] != want {
			t.Errorf("%s is %v, want %v: %v", name, found[name], want, found)
		}
	}
}

// Whatever happens: nothing is lost, nothing runs twice at once, no namespace has more than its share.
func TestFairQueue_underAnyLoad(t *testing.T) {
	t.Parallel()
	for seed := range uint64(20) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { load(t, rand.New(rand.NewPCG(seed, 0)), int(2+seed%7)) })
		})
	}
}

// observer checks what workers do.
type observer struct {
	mu      sync.Mutex
	added   map[reconcile.Request]int // how often an object was added
	seen    map[reconcile.Request]int // how often it had been added when it was last reconciled
	running map[reconcile.Request]bool
	busy    map[string]int
}

func (o *observer) add(item reconcile.Request) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.added[item]++
}

func (o *observer) begin(t *testing.T, item reconcile.Request, workers int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.running[item] {
		t.Errorf("%v is reconciled twice at once", item)
	}
	o.running[item] = true
	o.seen[item] = o.added[item]
	o.busy[item.Namespace]++
	if n := o.busy[item.Namespace]; n > 1 && n > workers*3/4 {
		t.Errorf("the namespace %q has %d of %d workers", item.Namespace, n, workers)
	}
}

func (o *observer) end(item reconcile.Request) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.running, item)
	o.busy[item.Namespace]--
}

func load(t *testing.T, random *rand.Rand, workers int) {
	q := newFairQueue(t, workers, "")
	o := &observer{added: map[reconcile.Request]int{}, seen: map[reconcile.Request]int{}, running: map[reconcile.Request]bool{}, busy: map[string]int{}}
	var done sync.WaitGroup
	for w := range workers {
		own := rand.New(rand.NewPCG(random.Uint64(), uint64(w)))
		done.Go(func() {
			for {
				item, shutdown := q.Get()
				if shutdown {
					return
				}
				o.begin(t, item, workers)
				time.Sleep(time.Duration(own.IntN(1000)) * time.Millisecond) //nolint:forbidigo // in synctest no time passes
				o.end(item)
				if own.IntN(4) == 0 {
					o.add(item)
					q.AddRateLimited(item)
				} else {
					q.Forget(item)
				}
				q.Done(item)
			}
		})
	}
	for range 400 {
		item := request(fmt.Sprint("ns-", random.IntN(random.IntN(6)+1)), fmt.Sprint(random.IntN(30)))
		opts := priorityqueue.AddOpts{Priority: ptr.To(-random.IntN(2) * 100)}
		if random.IntN(3) == 0 {
			opts.After = time.Duration(random.IntN(5000)) * time.Millisecond
		}
		o.add(item)
		q.AddWithOpts(opts, item)
		time.Sleep(time.Duration(random.IntN(100)) * time.Millisecond) //nolint:forbidigo // in synctest no time passes
	}
	time.Sleep(time.Hour) //nolint:forbidigo // in synctest no time passes: until everything has been reconciled
	q.ShutDown()
	done.Wait()
	for item, added := range o.added {
		if o.seen[item] != added {
			t.Errorf("%v was added %d times and reconciled when it had been added %d times", item, added, o.seen[item])
		}
	}
}
