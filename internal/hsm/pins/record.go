package pins

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"
)

const (
	burst  = 5                // guesses of a namespace
	period = 10 * time.Minute // until it gets another guess

	// triesWhenLow is how many wrong PINs of a namespace are tried at a token that reports a low count.
	triesWhenLow = 2

	// maxNamespaces bounds the namespaces per token, and maxDigests the digests per namespace, so that the record fits into a
	// Secret.
	maxNamespaces = 1024
	maxDigests    = 8
)

// record is the state of a guard.
type record struct {
	Key    []byte // of the digests
	tokens map[Token]*token
}

// token is the record of one token.
type token struct {
	Right      digest // the PIN that it accepted last
	namespaces map[string]*namespace
}

// namespace is the record of what one namespace presented to one token.
type namespace struct {
	// Trusted: the namespace has presented the right PIN.
	Trusted bool `json:"trusted,omitempty"`
	// FullAt is when the namespace has all its guesses again. Each guess postpones it by one period.
	FullAt time.Time `json:"fullAt,omitzero"`
	// Refused are the PINs that the token rejected, each with its Secret.
	Refused []digest `json:"refused,omitempty"`
	// Trying are the PINs that C_Login is checking, each with its Secret.
	Trying []digest `json:"trying,omitempty"`
	// Compared are PINs that differ from that of a login. Presenting one again uses up no guess.
	Compared []digest `json:"compared,omitempty"`
}

func newRecord() record { return record{Key: newKey(), tokens: map[Token]*token{}} }

func (r *record) token(id Token) *token {
	t := r.tokens[id]
	if t == nil {
		t = &token{namespaces: map[string]*namespace{}}
		r.tokens[id] = t
	}
	return t
}

func (t *token) isRight(d digest) bool { return t.Right != nil && equal(t.Right, d) }

// forgetRight is for a token whose PIN changes: a namespace that was trusted with the former PIN must present the new one, and
// PINs that were compared with the former one must be compared with the new one.
func (t *token) forgetRight() {
	t.Right = nil
	for _, n := range t.namespaces {
		n.Trusted, n.Compared = false, nil
	}
}

// namespace returns the record of a namespace, and makes room for a new one.
func (t *token) namespace(name string, now time.Time) *namespace {
	n := t.namespaces[name]
	if n == nil {
		t.prune(now)
		n = &namespace{}
		t.namespaces[name] = n
	}
	return n
}

// prune removes namespaces whose record has no effect any more, if there are too many.
func (t *token) prune(now time.Time) {
	for name, n := range t.namespaces {
		if len(t.namespaces) < maxNamespaces {
			return
		}
		if !n.Trusted && !n.FullAt.After(now) {
			delete(t.namespaces, name)
		}
	}
}

// mayGuess returns whether a namespace has a guess left. If too many namespaces guess at one token, others have none.
func (t *token) mayGuess(name string, now time.Time) bool {
	n := t.namespaces[name]
	if n == nil {
		t.prune(now)
		return len(t.namespaces) < maxNamespaces
	}
	return n.fullAt(now).Sub(now) <= (burst-1)*period
}

// fullAt returns FullAt, or now if FullAt has no effect. Guesses postpone it by at most burst periods. If it is much later, the
// clock was set back.
func (n *namespace) fullAt(now time.Time) time.Time {
	if n.FullAt.Before(now) || n.FullAt.After(now.Add(2*burst*period)) {
		return now
	}
	return n.FullAt
}

func (n *namespace) guess(now time.Time) { n.FullAt = n.fullAt(now).Add(period) }

func (n *namespace) returnGuess(charged bool) {
	if charged {
		n.FullAt = n.FullAt.Add(-period)
	}
}

// refused, trying and compared return nil for a namespace without a record.
func (n *namespace) refused() []digest {
	if n == nil {
		return nil
	}
	return n.Refused
}

func (n *namespace) trying() []digest {
	if n == nil {
		return nil
	}
	return n.Trying
}

func (n *namespace) forgetTrying(refusal digest) {
	n.Trying = slices.DeleteFunc(n.Trying, func(d digest) bool { return equal(d, refusal) })
}

func (n *namespace) compared() []digest {
	if n == nil {
		return nil
	}
	return n.Compared
}

func (*namespace) has(known []digest, d digest) bool {
	for _, k := range known {
		if equal(k, d) {
			return true
		}
	}
	return false
}

// remember adds a digest and removes the oldest ones if there are too many.
func remember(known []digest, d digest) []digest {
	known = append(known, d)
	return known[max(0, len(known)-maxDigests):]
}

// storedRecord is the record in JSON.
type storedRecord struct {
	Key    []byte        `json:"key"`
	Tokens []storedToken `json:"tokens"`
}

type storedToken struct {
	Token
	Right      digest                `json:"right,omitempty"`
	Namespaces map[string]*namespace `json:"namespaces,omitempty"`
}

// marshal omits what has no effect.
func (r *record) marshal(now time.Time) ([]byte, error) {
	out := storedRecord{Key: r.Key}
	for id, t := range r.tokens {
		k := storedToken{Token: id, Right: t.Right, Namespaces: map[string]*namespace{}}
		for name, n := range t.namespaces {
			if n.Trusted || n.FullAt.After(now) || len(n.Refused)+len(n.Trying)+len(n.Compared) > 0 {
				k.Namespaces[name] = n
			}
		}
		if k.Right != nil || len(k.Namespaces) > 0 {
			out.Tokens = append(out.Tokens, k)
		}
	}
	return json.Marshal(out)
}

// parse is the inverse of marshal. Empty content is an empty record.
func parse(content []byte) (record, error) {
	r := newRecord()
	if len(content) == 0 {
		return r, nil
	}
	var in storedRecord
	if err := json.Unmarshal(content, &in); err != nil {
		return record{}, fmt.Errorf("the record is damaged: %w", err)
	}
	if len(in.Key) != len(r.Key) {
		return record{}, errors.New("the record is damaged: its key is missing")
	}
	r.Key = in.Key
	for _, k := range in.Tokens {
		t := r.token(k.Token)
		t.Right = k.Right
		for name, n := range k.Namespaces {
			if n != nil {
				t.namespaces[name] = n
			}
		}
	}
	return r, nil
}
