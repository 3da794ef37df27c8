package csi

import "sync"

// locks lets one operation at a time work on a volume: the kubelet may repeat one that has not ended.
type locks struct {
	mu   sync.Mutex
	held map[string]*lock
}

type lock struct {
	sync.Mutex
	users int // that hold it or wait for it
}

// lock waits for the volume, and returns what ends the operation.
func (l *locks) lock(target string) (unlock func()) {
	l.mu.Lock()
	if l.held == nil {
		l.held = map[string]*lock{}
	}
	one := l.held[target]
	if one == nil {
		one = &lock{}
		l.held[target] = one
	}
	one.users++
	l.mu.Unlock()
	one.Lock()
	return func() {
		one.Unlock()
		l.mu.Lock()
		defer l.mu.Unlock()
		if one.users--; one.users == 0 {
			delete(l.held, target)
		}
	}
}
