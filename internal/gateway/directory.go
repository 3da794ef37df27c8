package gateway

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/keyring"
	"github.com/keyconvoy/keyconvoy/internal/kms"
)

// Annotations in which the gateway keeps what the kinds have no field for.
const (
	annotationDescription = "keyconvoy.io/description"
	annotationTags        = "keyconvoy.io/tags"    // a JSON object
	annotationAliases     = "keyconvoy.io/aliases" // a JSON list
)

// entry is what the directory knows of a master key.
type entry struct {
	ref     keyring.Ref
	id      string
	created time.Time
	spec    string
	state   string
	store   v1alpha1.KeyStoreReference
	custody string
	aliases []string
}

// exists reports whether the documented API has the key. It does not have one that was destroyed.
func (e *entry) exists() bool { return e.state != string(kms.StateDeleted) }

// before orders keys by their creation, and those of one second by their identifiers.
func (e *entry) before(o *entry) int {
	if c := e.created.Compare(o.created); c != 0 {
		return c
	}
	return strings.Compare(e.id, o.id)
}

// directory lists all master keys by identifier and namespace. The cache has no such order.
type directory struct {
	mu          sync.RWMutex
	byID        map[string]*entry
	byNamespace map[string][]*entry // by creation
	waiting     map[string]map[chan struct{}]struct{}
}

func newDirectory() *directory {
	return &directory{byID: map[string]*entry{}, byNamespace: map[string][]*entry{}, waiting: map[string]map[chan struct{}]struct{}{}}
}

// follow fills the directory from a cache.
func (d *directory) follow(ctx context.Context, informers cache.Cache) error {
	for _, object := range keyring.Objects() {
		informer, err := informers.GetInformer(ctx, object, cache.BlockUntilSynced(false))
		if err != nil {
			return err
		}
		_, err = informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
			AddFunc:    func(o any) { d.put(o.(client.Object)) },
			UpdateFunc: func(_, o any) { d.put(o.(client.Object)) },
			DeleteFunc: func(o any) {
				if last, missed := o.(toolscache.DeletedFinalStateUnknown); missed {
					o = last.Obj
				}
				d.remove(o.(client.Object))
			},
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func entryOf(o client.Object) *entry {
	e := &entry{
		ref: keyring.Of(o).Ref(), id: string(o.GetUID()), created: o.GetCreationTimestamp().UTC(), store: keyring.Of(o).StoreRef(),
		aliases: aliasesOf(o),
	}
	switch o := o.(type) {
	case *v1alpha1.ImportedKey:
		e.spec, e.state, e.custody = string(o.Spec.KeySpec), string(o.Status.KeyState), string(o.Status.Custody)
	case *v1alpha1.GeneratedKey:
		e.spec, e.state = string(o.Spec.KeySpec), string(o.Status.KeyState)
		for _, version := range o.Status.Versions {
			if version.State == v1alpha1.VersionPrimary {
				e.custody = string(version.Custody)
			}
		}
	}
	return e
}

func (d *directory) put(o client.Object) {
	e := entryOf(o)
	d.mu.Lock()
	defer d.mu.Unlock()
	namespace := e.ref.Namespace
	if _, known := d.byID[e.id]; !known {
		at, _ := slices.BinarySearchFunc(d.byNamespace[namespace], e, (*entry).before)
		d.byNamespace[namespace] = slices.Insert(d.byNamespace[namespace], at, e)
	} else if at, ok := slices.BinarySearchFunc(d.byNamespace[namespace], e, (*entry).before); ok {
		d.byNamespace[namespace][at] = e
	}
	d.byID[e.id] = e
	d.wake(e.id)
}

func (d *directory) remove(o client.Object) {
	d.mu.Lock()
	defer d.mu.Unlock()
	e := d.byID[string(o.GetUID())]
	if e == nil {
		return
	}
	delete(d.byID, e.id)
	namespace := e.ref.Namespace
	if at, ok := slices.BinarySearchFunc(d.byNamespace[namespace], e, (*entry).before); ok {
		d.byNamespace[namespace] = slices.Delete(d.byNamespace[namespace], at, at+1)
	}
	if len(d.byNamespace[namespace]) == 0 {
		delete(d.byNamespace, namespace)
	}
	d.wake(e.id)
}

// wake tells those who wait for a key. The caller holds d.mu.
func (d *directory) wake(id string) {
	for c := range d.waiting[id] {
		select {
		case c <- struct{}{}:
		default: // it has been told already
		}
	}
}

// get returns a key, nil for none.
func (d *directory) get(id string) *entry {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.byID[id]
}

// inNamespace returns the keys of a namespace by their creation.
func (d *directory) inNamespace(namespace string) []*entry {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return slices.Clone(d.byNamespace[namespace])
}

// wait calls done after each change of a key, and now, until it returns true, or the context ends.
func (d *directory) wait(ctx context.Context, id string, done func() bool) bool {
	changed := make(chan struct{}, 1)
	d.mu.Lock()
	if d.waiting[id] == nil {
		d.waiting[id] = map[chan struct{}]struct{}{}
	}
	d.waiting[id][changed] = struct{}{}
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if delete(d.waiting[id], changed); len(d.waiting[id]) == 0 {
			delete(d.waiting, id)
		}
	}()
	for !done() {
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// alias returns the keys that have an alias in a namespace, by their creation. Several can have it: two requests to different replicas
// can give it to two keys, and so can a user who may write the objects.
func (d *directory) alias(namespace, alias string) (keys []*entry) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	for _, e := range d.byNamespace[namespace] {
		if e.exists() && slices.Contains(e.aliases, alias) {
			keys = append(keys, e)
		}
	}
	return keys
}

func aliasesOf(o client.Object) []string {
	var aliases []string
	if json.Unmarshal([]byte(o.GetAnnotations()[annotationAliases]), &aliases) != nil {
		return nil // someone with the permission to write the object wrote something else there
	}
	return aliases
}

// objectOf returns an empty object of the kind of a key.
func objectOf(ref keyring.Ref) client.Object {
	var o client.Object = &v1alpha1.ImportedKey{}
	if ref.Kind == keyring.KindGeneratedKey {
		o = &v1alpha1.GeneratedKey{}
	}
	return o
}

// resourceOf is the resource of a kind of keys, as roles name it.
func resourceOf(kind string) string {
	if kind == keyring.KindGeneratedKey {
		return "generatedkeys"
	}
	return "importedkeys"
}

// uid returns the UID of the key's object.
func (e *entry) uid() types.UID { return types.UID(e.id) }
