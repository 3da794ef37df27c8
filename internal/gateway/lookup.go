package gateway

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/internal/gateway/wire"
	"github.com/keyconvoy/keyconvoy/internal/keyring"
	"github.com/keyconvoy/keyconvoy/internal/kms"
)

// settleTime is how long a request waits for a key that this replica does not know yet, or not completely: another replica may
// have created it a moment ago. The answer that a key does not exist takes as long if the key does exist and the caller may not see it.
const settleTime = 500 * time.Millisecond

// aliasPrefix begins every alias.
const aliasPrefix = "alias/"

// find returns the key that a parameter names by its identifier, ARN or alias, if the caller may see it and has all verbs on it.
// Errors: Forbidden.KeyNotFound, Forbidden.AliasNotFound, Forbidden.NoPermission.
func (c *call) find(ctx context.Context, parameter string, verbs ...string) (*entry, error) {
	text, err := c.Required(parameter)
	if err != nil {
		return nil, err
	}
	if resource, isARN := strings.CutPrefix(text, "acs:kms:"); isARN {
		text = strings.TrimPrefix(resource[strings.LastIndexByte(resource, ':')+1:], "key/")
	}
	if strings.HasPrefix(text, aliasPrefix) {
		return c.findAlias(ctx, text, verbs...)
	}
	if len(text) != 36 || uuid.Validate(text) != nil {
		return nil, keyNotFound() // identifiers are UIDs
	}
	e, settled := c.settled(ctx, text)
	found, err := c.allowed(ctx, e, text, keyNotFound(), verbs...)
	if settled && kms.CodeOf(err) == kms.ForbiddenKeyNotFound {
		pause, cancel := context.WithTimeout(ctx, settleTime)
		defer cancel()
		<-pause.Done()
	}
	return found, err
}

// findAlias returns the key that has an alias. An alias that several keys have is not resolved: otherwise a user who may write one
// key's object could redirect the alias of another.
func (c *call) findAlias(ctx context.Context, alias string, verbs ...string) (*entry, error) {
	notFound := &wire.Error{Code: wire.AliasNotFound}
	if len(alias) > maxAlias { // no key has it, and the authorizer keeps the names in its questions in memory
		return nil, notFound
	}
	keys := c.directory.alias(c.who.namespace, alias)
	if len(keys) < 2 {
		return c.allowed(ctx, firstEntry(keys), alias, notFound, verbs...)
	}
	for _, e := range keys {
		if _, err := c.allowed(ctx, e, alias, notFound, verbGet); err != nil {
			return nil, err
		}
	}
	return nil, &wire.Error{Code: wire.AliasNotFound, Detail: fmt.Sprintf(
		"%d keys have it, %s and %s among them. Call UpdateAlias with the key that is to have it.", len(keys), keys[0].id, keys[1].id)}
}

// firstEntry returns the first key, nil for none.
func firstEntry(keys []*entry) *entry {
	if len(keys) == 0 {
		return nil
	}
	return keys[0]
}

// settled returns a key, nil for none. It waits a moment for one that is not known, or whose controller has not begun. settled is
// false if the time has passed.
func (c *call) settled(ctx context.Context, id string) (found *entry, settled bool) {
	ctx, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	settled = c.directory.wait(ctx, id, func() bool {
		found = c.directory.get(id)
		return found != nil && found.state != ""
	})
	return found, settled
}

// allowed returns a key, which is named by name, on which the caller has all verbs. If the caller may not even see it, the answer is
// that of a key that does not exist, after the same questions to the API server: their number must not tell more than the answer. The
// questions about a key without consent are not about the key, because the roles in its namespace do not matter.
func (c *call) allowed(ctx context.Context, e *entry, name string, notFound error, verbs ...string) (*entry, error) {
	exists := e != nil && e.exists()
	var failure error
	if exists {
		var consents bool
		consents, failure = c.consents(ctx, e)
		exists = consents || failure != nil
	}
	asked := e
	if !exists {
		asked = &entry{ref: keyring.Ref{Kind: keyring.KindImportedKey}}
		asked.ref.Namespace, asked.ref.Name = c.who.namespace, name
	}
	verb, lacks, err := c.missingVerb(ctx, asked, verbs)
	if err != nil {
		return nil, err
	}
	if exists && !lacks && failure == nil {
		return e, nil
	}
	_, invisible, err := c.missingVerb(ctx, asked, []string{verbGet})
	if err != nil || !exists || invisible {
		return nil, firstOf(err, notFound)
	}
	if failure == nil {
		failure = noPermission(c.who, verb, e)
	}
	return nil, failure
}

// firstOf returns err, or otherwise if there is none.
func firstOf(err, otherwise error) error {
	if err != nil {
		return err
	}
	return otherwise
}

// missingVerb returns the first verb that the caller does not have on a key. It asks for all.
func (c *call) missingVerb(ctx context.Context, e *entry, verbs []string) (missing string, lacks bool, err error) {
	for _, verb := range verbs {
		may, err := c.authorizer.may(ctx, access{
			account: c.who, verb: verb, resource: resourceOf(e.ref.Kind), namespace: e.ref.Namespace, name: e.ref.Name,
		})
		if err != nil {
			return verb, true, err
		}
		if !may && !lacks {
			missing, lacks = verb, true
		}
	}
	return missing, lacks, nil
}

// consents reports whether the key is of the caller's namespace, or its owner consents to that namespace.
func (c *call) consents(ctx context.Context, e *entry) (bool, error) {
	if e.ref.Namespace == c.who.namespace {
		return true, nil
	}
	key, err := c.keys.Get(ctx, e.ref, client.UnsafeDisableDeepCopy)
	if err != nil || key == nil || key.ID() != e.id {
		return false, err
	}
	err = c.keys.ConsentTo(ctx, key, c.who.namespace)
	if kms.CodeOf(err) == kms.ForbiddenNoPermission {
		return false, nil
	}
	return err == nil, explained(err)
}

// masterKey is a key that an operation uses.
type masterKey struct {
	*keyring.Key

	kms kms.Key
}

// read reads the object of a key, for an operation that uses it. A key that only asks to adopt key versions has none. Errors:
// Forbidden.KeyNotFound, Rejected.PendingImport, InvalidParameter.
func (c *call) read(ctx context.Context, e *entry) (masterKey, error) {
	key, err := c.keys.Get(ctx, e.ref, client.UnsafeDisableDeepCopy)
	if err != nil {
		return masterKey{}, err
	}
	if key == nil || key.ID() != e.id {
		return masterKey{}, keyNotFound()
	}
	return c.usable(key)
}

func (c *call) usable(key *keyring.Key) (masterKey, error) {
	if len(key.Invalid()) > 0 {
		return masterKey{}, &kms.Error{Code: kms.RejectedUnavailable, Detail: "The key's object has a field that is invalid. See its conditions."}
	}
	if !key.Holds() || !key.Bound() {
		return masterKey{}, &kms.Error{Code: kms.RejectedPendingImport, Detail: "The key's object asks to adopt key versions and has not adopted them. See its conditions."}
	}
	parsed, err := key.KMS()
	if err != nil {
		return masterKey{}, err
	}
	c.line.KeyID, c.line.KeyVersionID = parsed.ID.String(), parsed.Primary.ID.String()
	return masterKey{key, parsed}, nil
}
