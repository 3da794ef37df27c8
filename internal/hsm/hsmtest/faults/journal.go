//go:build cgo

package faults

import (
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
)

// journal has what a store returned: which objects its token must have, and what was wrong.
type journal struct {
	mu        sync.Mutex
	keys      map[uuid.UUID]master  // imported and not destroyed
	generated map[uuid.UUID]hsm.Key // in the module, and not destroyed
	pairs     map[uuid.UUID]hsm.WrappingKey
	// dataKeys are the data keys that were generated, because none may be generated twice.
	dataKeys map[string]bool
	wrong    map[string]int // how often a result was wrong, by what was wrong
	// unchecked are wrong results since the last check that found results right. suspect: a check found a wrong result since.
	unchecked []string
	suspect   bool
}

func newJournal() *journal {
	return &journal{
		keys: map[uuid.UUID]master{}, generated: map[uuid.UUID]hsm.Key{}, pairs: map[uuid.UUID]hsm.WrappingKey{},
		dataKeys: map[string]bool{}, wrong: map[string]int{},
	}
}

// wrongf records a result that was returned without an error and is wrong.
func (j *journal) wrongf(format string, args ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.wrong[fmt.Sprintf(format, args...)]++
}

// suspectf records a wrong result that users repeat or verify if the next check of the module finds a wrong result.
func (j *journal) suspectf(format string, args ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.unchecked = append(j.unchecked, fmt.Sprintf(format, args...))
}

// beginCheck returns what endCheck needs to know.
func (j *journal) beginCheck() (before int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.unchecked)
}

// endCheck decides about the wrong results before a check that found results right: nothing has found them, unless a check found a
// wrong result meanwhile.
func (j *journal) endCheck(before int, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case hsm.KindOf(err) == hsm.WrongResult:
		j.suspect = true
	case err == nil:
		if !j.suspect {
			for _, wrong := range j.unchecked[:before] {
				j.wrong[wrong]++
			}
		}
		j.unchecked, j.suspect = j.unchecked[before:], false
	}
}

func (j *journal) imported(key master) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.keys[key.id] = key
}

func (j *journal) destroyed(id uuid.UUID) {
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.keys, id)
	delete(j.generated, id)
}

func (j *journal) generatedKey(key hsm.Key) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.generated[key.KeyVersionID] = key
}

func (j *journal) generatedKeys() []hsm.Key {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Collect(maps.Values(j.generated))
}

func (j *journal) created(pair hsm.WrappingKey) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.pairs[pair.ID] = pair
}

func (j *journal) pairDestroyed(id uuid.UUID) {
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.pairs, id)
}

// isNew records a data key, and returns whether it is the first with that value.
func (j *journal) isNew(dataKey []byte) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	known := j.dataKeys[string(dataKey)]
	j.dataKeys[string(dataKey)] = true
	return !known
}

func (j *journal) masters() []master {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Collect(maps.Values(j.keys))
}

// masterIDs returns the identifiers of all keys, imported and generated.
func (j *journal) masterIDs() []uuid.UUID {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.AppendSeq(slices.Collect(maps.Keys(j.keys)), maps.Keys(j.generated))
}

// objects returns what tokens.Objects must return for the token.
func (j *journal) objects() (all []string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	all = append(all, "secret keyconvoy:import-token")
	for _, key := range j.keys {
		all = append(all, fmt.Sprintf("secret keyconvoy:key:%s:%s:%s", key.id, hsm.AES256, key.owner()))
	}
	for id, key := range j.generated {
		all = append(all, fmt.Sprintf("secret keyconvoy:key:%s:%s:%s", id, key.Spec, key.Owner))
	}
	for _, pair := range j.pairs {
		label := fmt.Sprintf("keyconvoy:wrapping:%s:%s:%d:%s", pair.Owner, pair.Spec, pair.NotAfter.Unix(), namespace)
		all = append(all, "private "+label, "public "+label)
	}
	slices.Sort(all)
	return all
}

func (j *journal) allPairs() []hsm.WrappingKey {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Collect(maps.Values(j.pairs))
}
