package e2e

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// A key is exported with no operator for a while: how long, and is each Secret written once?

func TestRollingUpgrade_underLoad(t *testing.T) {
	install(t, installation{tag: "v1"})
	underLoad(t, "a rolling upgrade", func() {
		kubectl(t, "apply", "-k", installation{tag: "v2"}.write(t))
		kubectl(t, "rollout", "status", "deployment", operatorDeployment, "-n", operatorNamespace, "--timeout=3m")
	})
}

func TestLeader_killed_underLoad(t *testing.T) {
	for _, replicas := range []int{1, 2} {
		install(t, installation{replicas: replicas})
		underLoad(t, fmt.Sprintf("SIGKILL of the leader, %d replicas", replicas), func() {
			pod := leader(t)
			kill(t, pod)
			eventually(t, "the container has restarted and is ready", func() error {
				now := get(t, &corev1.Pod{}, pod.Namespace, pod.Name).Status.ContainerStatuses[0]
				if now.RestartCount == pod.Status.ContainerStatuses[0].RestartCount || !now.Ready {
					return fmt.Errorf("restarts: %d, ready: %t", now.RestartCount, now.Ready)
				}
				return nil
			})
		})
	}
}

func TestLeader_evicted_underLoad(t *testing.T) {
	for _, replicas := range []int{1, 2} {
		install(t, installation{replicas: replicas})
		underLoad(t, fmt.Sprintf("eviction of the leader, %d replicas", replicas), func() {
			pod := leader(t)
			evict(t, pod)
			waitGone(t, &pod)
			kubectl(t, "rollout", "status", "deployment", operatorDeployment, "-n", operatorNamespace, "--timeout=3m")
			leader(t)
		})
	}
}

// writes counts the events of each Secret of a namespace.
type writes struct {
	mu       sync.Mutex
	added    map[string]int
	changed  map[string]int
	appeared map[string]time.Time
}

// watchSecrets counts until the test ends.
func watchSecrets(t testing.TB, namespace string) *writes {
	t.Helper()
	w := &writes{added: map[string]int{}, changed: map[string]int{}, appeared: map[string]time.Time{}}
	ctx, cancel := context.WithCancel(context.Background())
	secrets, err := api.Watch(ctx, &corev1.SecretList{}, client.InNamespace(namespace))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for event := range secrets.ResultChan() {
			w.count(event)
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return w
}

func (w *writes) count(event watch.Event) {
	secret, ok := event.Object.(*corev1.Secret)
	if !ok {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	switch event.Type {
	case watch.Added:
		w.added[secret.Name]++
		w.appeared[secret.Name] = time.Now()
	case watch.Modified, watch.Deleted:
		w.changed[secret.Name]++
	}
}

// loadSize is the number of exports during an event, at least: a slow machine needs more time for the event.
const loadSize = 200

// underLoad creates exports at a steady rate while an event happens, and checks that each has one Secret with the same
// data key, which is written once, and that no Secret from before is written. It records the longest time of an export.
func underLoad(t *testing.T, what string, event func()) {
	t.Helper()
	namespace := newNamespace(t)
	newDataKey(t, namespace, "ClusterKeyStore", "main")
	r := newRecipient(t)
	key, _ := r.exportNow(t, namespace, "existing")
	w := watchSecrets(t, namespace)

	l := &load{started: make(chan struct{}), enough: make(chan struct{}), ended: make(chan struct{})}
	go l.run(t, r, namespace)
	<-l.started
	event()
	close(l.enough)
	<-l.ended

	eventually(t, "all exports have a Secret", func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		for name := range l.created {
			if w.added[name] == 0 {
				return fmt.Errorf("%s has no Secret", name)
			}
		}
		return nil
	})
	longest := w.check(t, r, namespace, key, l.created)
	record(fmt.Sprintf("longest time of one of %d exports during %s", len(l.created), what), rounded(longest))
}

// load is exports that are created at a steady rate.
type load struct {
	created map[string]time.Time // complete when it has ended
	started chan struct{}        // closed when a quarter is created
	enough  chan struct{}        // closed by the test when the event is over
	ended   chan struct{}
}

// run creates exports until there are loadSize and the event is over.
func (l *load) run(t *testing.T, r recipient, namespace string) {
	defer close(l.ended)
	l.created = map[string]time.Time{}
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for i := 0; ; i++ {
		if i == loadSize/4 {
			close(l.started)
		}
		select {
		case <-l.enough:
			if i >= loadSize {
				return
			}
		case <-t.Context().Done():
			return
		default:
		}
		name := fmt.Sprintf("export-%04d", i)
		l.created[name] = time.Now()
		if err := api.Create(t.Context(), r.export(t, namespace, name)); err != nil {
			t.Errorf("creating an export: %v", err)
		}
		<-ticker.C
	}
}

// check holds the events of a load against what a user may expect, and returns the longest time of an export.
func (w *writes) check(t *testing.T, r recipient, namespace string, key []byte, created map[string]time.Time) (longest time.Duration) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, at := range created {
		if w.added[name] != 1 {
			t.Errorf("the Secret %s was created %d times", name, w.added[name])
		}
		longest = max(longest, w.appeared[name].Sub(at))
		equal(t, name, r.openByName(t, namespace, name), key)
	}
	for name, n := range w.changed {
		t.Errorf("the Secret %s was changed or deleted %d times", name, n)
	}
	return longest
}
