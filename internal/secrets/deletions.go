package secrets

import (
	"context"
	"strings"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
)

// RecordsLabel is on the Secrets with sealed records of software stores.
const RecordsLabel = labelStore

// Deletions tells which records of software stores were deleted, by whatever process.
type Deletions struct {
	mu        sync.Mutex
	listeners map[*listener]struct{}
}

type listener struct {
	prefix  string // of the names of the store's Secrets
	deleted func(record string)
}

// FollowDeletions returns the deletions that a cache of the Secrets with RecordsLabel sees.
func FollowDeletions(ctx context.Context, informers cache.Cache) (*Deletions, error) {
	d := &Deletions{listeners: map[*listener]struct{}{}}
	informer, err := informers.GetInformer(ctx, Secret.Metadata(), cache.BlockUntilSynced(false))
	if err != nil {
		return nil, err
	}
	_, err = informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{DeleteFunc: func(o any) {
		if last, missed := o.(toolscache.DeletedFinalStateUnknown); missed {
			o = last.Obj
		}
		if m, ok := o.(metav1.Object); ok {
			d.tell(m.GetName())
		}
	}})
	return d, err
}

func (d *Deletions) tell(secret string) {
	d.mu.Lock()
	var told []func()
	for l := range d.listeners {
		if record, ok := strings.CutPrefix(secret, l.prefix); ok {
			told = append(told, func() { l.deleted(record) })
		}
	}
	d.mu.Unlock() // a listener may end while it is told
	for _, tell := range told {
		tell()
	}
}

// sharedStorage is a Storage that other processes use, too.
type sharedStorage struct {
	*Storage

	deletions *Deletions
}

// OnDelete implements hsm.Notifier.
func (s sharedStorage) OnDelete(deleted func(record string)) (ignore func()) {
	l := &listener{prefix: s.ref("").Name(), deleted: deleted}
	d := s.deletions
	d.mu.Lock()
	defer d.mu.Unlock()
	d.listeners[l] = struct{}{}
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.listeners, l)
	}
}

// Shared returns a storage whose root key exists: it creates none. It reports which records other processes delete.
func (s *Storage) Shared(deletions *Deletions) hsm.Storage {
	s.opened.Store(true)
	return sharedStorage{s, deletions}
}
