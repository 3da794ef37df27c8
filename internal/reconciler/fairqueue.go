package reconciler

import (
	"container/list"
	"sync"
	"time"

	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/ptr"
	"k8s.io/utils/third_party/forked/golang/btree"
	"sigs.k8s.io/controller-runtime/pkg/controller/priorityqueue"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

// NewFairQueue returns a constructor for controller.Options.NewQueue of a controller with that many workers.
//
// The queue takes objects from the namespaces in turn, so that an object waits for one object of each other namespace
// and not for all of them. It releases objects of one namespace only while enough workers are free, so that slow or
// hanging reconciles of one namespace never occupy every worker (see turns.mayServe). Within a namespace, the order
// is by priority and then first in, first out. A cluster-scoped object counts as its own namespace.
//
// Each worker must call Get again after Done, as the workers of a controller do: nothing else wakes a worker when
// objects of a namespace may be released again.
func NewFairQueue(workers int) func(string, workqueue.TypedRateLimiter[reconcile.Request]) workqueue.TypedRateLimitingInterface[reconcile.Request] {
	return func(name string, limiter workqueue.TypedRateLimiter[reconcile.Request]) workqueue.TypedRateLimitingInterface[reconcile.Request] {
		turns := newTurns(workers)
		queue := workqueue.NewTypedWithConfig(workqueue.TypedQueueConfig[reconcile.Request]{Name: name, Queue: turns})
		delaying := workqueue.NewTypedDelayingQueueWithConfig(workqueue.TypedDelayingQueueConfig[reconcile.Request]{Name: name, Queue: queue})
		return &fairQueue{
			TypedRateLimitingInterface: workqueue.NewTypedRateLimitingQueueWithConfig(limiter,
				workqueue.TypedRateLimitingQueueConfig[reconcile.Request]{Name: name, DelayingQueue: delaying}),
			turns: turns,
		}
	}
}

// fairQueue is the queue of client-go (deduplication, delays, rate limits, metrics) with another order: turns.
type fairQueue struct {
	workqueue.TypedRateLimitingInterface[reconcile.Request]
	turns *turns
}

var _ priorityqueue.PriorityQueue[reconcile.Request] = (*fairQueue)(nil)

// AddWithOpts implements priorityqueue.PriorityQueue.
func (q *fairQueue) AddWithOpts(o priorityqueue.AddOpts, items ...reconcile.Request) {
	for _, item := range items {
		q.turns.want(item, ptr.Deref(o.Priority, 0))
		switch {
		case o.RateLimited:
			q.TypedRateLimitingInterface.AddRateLimited(item)
		case o.After > 0:
			q.TypedRateLimitingInterface.AddAfter(item, o.After)
		default:
			q.TypedRateLimitingInterface.Add(item)
		}
	}
}

// Add implements workqueue.TypedInterface.
func (q *fairQueue) Add(item reconcile.Request) { q.AddWithOpts(priorityqueue.AddOpts{}, item) }

// AddAfter implements workqueue.TypedDelayingInterface.
func (q *fairQueue) AddAfter(item reconcile.Request, after time.Duration) {
	q.AddWithOpts(priorityqueue.AddOpts{After: after}, item)
}

// AddRateLimited implements workqueue.TypedRateLimitingInterface.
func (q *fairQueue) AddRateLimited(item reconcile.Request) {
	q.AddWithOpts(priorityqueue.AddOpts{RateLimited: true}, item)
}

// GetWithPriority implements priorityqueue.PriorityQueue.
func (q *fairQueue) GetWithPriority() (item reconcile.Request, priority int, shutdown bool) {
	item, shutdown = q.Get()
	return item, q.turns.priorityOf(item), shutdown
}

// Done implements workqueue.TypedInterface.
func (q *fairQueue) Done(item reconcile.Request) {
	q.turns.end(item)
	q.TypedRateLimitingInterface.Done(item)
}

// ShutDown implements workqueue.TypedInterface. Queued objects are not processed: the next leader lists all objects.
func (q *fairQueue) ShutDown() {
	q.turns.close()
	q.TypedRateLimitingInterface.ShutDown()
}

// ShutDownWithDrain is the same as ShutDown: controllers do not use it.
func (q *fairQueue) ShutDownWithDrain() { q.ShutDown() }

// turns is the order of a fairQueue. Its methods Touch, Push, Len and Pop are called with the queue's lock held, the
// others without.
type turns struct {
	workers int

	mu      sync.Mutex
	closed  bool
	tenants map[string]*tenant
	waiting *list.List // the tenants with queued objects, the next one first
	busy    int        // number of objects that are being reconciled
	queued  map[reconcile.Request]*queuedItem
	running map[reconcile.Request]int // the priorities of the objects that are being reconciled
	wanted  map[reconcile.Request]int // the priorities of the objects that will be queued
	count   uint64                    // number of objects that were queued
}

// tenant is a namespace, or a cluster-scoped object.
type tenant struct {
	queued *btree.BTree[*queuedItem]
	busy   int
	place  *list.Element // in turns.waiting, nil while nothing is queued
}

type queuedItem struct {
	request  reconcile.Request
	priority int
	number   uint64
}

func before(a, b *queuedItem) bool {
	if a.priority != b.priority {
		return a.priority > b.priority
	}
	return a.number < b.number
}

func newTurns(workers int) *turns {
	return &turns{
		workers: workers,
		tenants: map[string]*tenant{},
		waiting: list.New(),
		queued:  map[reconcile.Request]*queuedItem{},
		running: map[reconcile.Request]int{},
		wanted:  map[reconcile.Request]int{},
	}
}

func tenantOf(item reconcile.Request) string {
	if item.Namespace == "" {
		return "/" + item.Name // cannot be the name of a namespace
	}
	return item.Namespace
}

// share is the number of workers that a namespace may occupy for each worker that remains free.
const share = 3

// mayServe reports whether a tenant may get another worker. It always gets its first one, and a further one only
// while at least one worker for each share of its own remains free. So one tenant gets up to three quarters of the
// workers, and n tenants leave at least one in 3n+1 free. Tenants that come later use the free workers for their
// first object. If no worker is free, they are next in turn.
func (t *turns) mayServe(x *tenant) bool {
	return x.busy == 0 || x.busy+1 <= share*(t.workers-t.busy-1)
}

// next returns the tenant whose turn it is. The tenants that it skips have workers, so they are few.
func (t *turns) next() *tenant {
	for e := t.waiting.Front(); e != nil; e = e.Next() {
		if x := e.Value.(*tenant); t.mayServe(x) {
			return x
		}
	}
	return nil
}

// want records the priority of an added object. The highest priority counts.
func (t *turns) want(item reconcile.Request, priority int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if queued, ok := t.queued[item]; ok {
		if priority > queued.priority {
			x := t.tenants[tenantOf(item)]
			x.queued.Delete(queued)
			t.insert(x, item, priority)
		}
		return
	}
	if wanted, ok := t.wanted[item]; !ok || priority > wanted {
		t.wanted[item] = priority
	}
}

// Touch implements workqueue.Queue. It does nothing, because want has recorded the priority.
func (t *turns) Touch(reconcile.Request) {}

// Push implements workqueue.Queue.
func (t *turns) Push(item reconcile.Request) {
	t.mu.Lock()
	defer t.mu.Unlock()
	x := t.tenants[tenantOf(item)]
	if x == nil {
		x = &tenant{queued: btree.New(8, before)}
		t.tenants[tenantOf(item)] = x
	}
	t.insert(x, item, t.wanted[item])
	delete(t.wanted, item)
	if x.place == nil {
		x.place = t.waiting.PushBack(x)
	}
}

func (t *turns) insert(x *tenant, item reconcile.Request, priority int) {
	t.count++
	queued := &queuedItem{item, priority, t.count}
	t.queued[item] = queued
	x.queued.ReplaceOrInsert(queued)
}

// Len implements workqueue.Queue: the number of queued objects, or 0 while none of them may be released.
func (t *turns) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || t.next() == nil {
		return 0
	}
	return len(t.queued)
}

// Pop implements workqueue.Queue. It is called only while Len is not 0.
func (t *turns) Pop() reconcile.Request {
	t.mu.Lock()
	defer t.mu.Unlock()
	x := t.next()
	first, _ := x.queued.DeleteMin()
	if x.queued.Len() > 0 {
		t.waiting.MoveToBack(x.place)
	} else {
		t.waiting.Remove(x.place)
		x.place = nil
	}
	x.busy++
	t.busy++
	delete(t.queued, first.request)
	t.running[first.request] = first.priority
	return first.request
}

func (t *turns) priorityOf(item reconcile.Request) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.running[item]
}

// end releases the worker of an object.
func (t *turns) end(item reconcile.Request) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.running[item]; !ok {
		return
	}
	delete(t.running, item)
	name := tenantOf(item)
	x := t.tenants[name]
	x.busy--
	t.busy--
	if x.busy == 0 && x.place == nil {
		delete(t.tenants, name)
	}
}

func (t *turns) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
}
