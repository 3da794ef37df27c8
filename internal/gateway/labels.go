package gateway

import (
	"context"
	"encoding/json"
	"maps"
	"regexp"
	"slices"
	"strings"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/internal/gateway/wire"
)

// Tags and aliases are annotations of the key's object: JSON that only the gateway reads.

// The limits of tags and aliases.
const (
	maxTags     = 20
	maxTagKey   = 128
	maxTagValue = 256
	maxAliases  = 20
	maxAlias    = len(aliasPrefix) + 249
)

// tag is an element of the parameter Tags.
type tag struct{ TagKey, TagValue string }

// tags returns the parameter Tags.
func (c *call) tags(required bool) (map[string]string, error) {
	if required {
		if _, err := c.Required("Tags"); err != nil {
			return nil, err
		}
	}
	var list []tag
	if err := c.JSON("Tags", &list); err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, t := range list {
		_, twice := out[t.TagKey]
		if t.TagKey == "" || twice || len([]rune(t.TagKey)) > maxTagKey || len([]rune(t.TagValue)) > maxTagValue {
			return nil, invalid("Tags", "A TagKey occurs once, and has 1 to %d characters. A TagValue has at most %d.", maxTagKey, maxTagValue)
		}
		out[t.TagKey] = t.TagValue
	}
	if len(out) > maxTags {
		return nil, &wire.Error{Code: wire.LimitExceeded, Detail: "A key has at most 20 tags."}
	}
	return out, nil
}

func tagResource(ctx context.Context, c *call) (wire.Object, error) {
	e, err := c.find(ctx, "KeyId", verbUpdate)
	if err != nil {
		return nil, err
	}
	added, err := c.tags(true)
	if err != nil {
		return nil, err
	}
	return nil, c.annotateKey(ctx, e, annotationTags, func(o client.Object) (string, error) {
		all := tagsOf(o)
		maps.Copy(all, added)
		if len(all) > maxTags {
			return "", &wire.Error{Code: wire.LimitExceeded, Detail: "A key has at most 20 tags."}
		}
		return jsonOf(all, len(all)), nil
	})
}

func untagResource(ctx context.Context, c *call) (wire.Object, error) {
	e, err := c.find(ctx, "KeyId", verbUpdate)
	if err != nil {
		return nil, err
	}
	if _, err := c.Required("TagKeys"); err != nil {
		return nil, err
	}
	var removed []string
	if err := c.JSON("TagKeys", &removed); err != nil {
		return nil, err
	}
	return nil, c.annotateKey(ctx, e, annotationTags, func(o client.Object) (string, error) {
		all := tagsOf(o)
		for _, name := range removed {
			delete(all, name)
		}
		return jsonOf(all, len(all)), nil
	})
}

// jsonOf returns the text of an annotation: "", which removes it, if there is nothing in it.
func jsonOf(value any, length int) string {
	if length == 0 {
		return ""
	}
	text, _ := json.Marshal(value) // strings: it cannot fail
	return string(text)
}

func listResourceTags(ctx context.Context, c *call) (wire.Object, error) {
	e, err := c.find(ctx, "KeyId", verbGet)
	if err != nil {
		return nil, err
	}
	o, err := c.objectFromCache(ctx, e)
	if err != nil {
		return nil, err
	}
	c.line.KeyID = e.id
	all := tagsOf(o)
	items := []wire.Object{}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		items = append(items, wire.Object{{Name: "KeyId", Value: e.id}, {Name: "TagKey", Value: name}, {Name: "TagValue", Value: all[name]}})
	}
	return wire.Object{{Name: "Tags", Value: wire.Object{{Name: "Tag", Value: items}}}}, nil
}

var aliasForm = regexp.MustCompile(`^alias/[A-Za-z0-9_/-]{1,249}$`)

// aliasName returns the parameter AliasName.
func (c *call) aliasName() (string, error) {
	alias, err := c.Required("AliasName")
	if err != nil {
		return "", err
	}
	if !aliasForm.MatchString(alias) || strings.HasPrefix(alias, "alias/acs") {
		return "", invalid("AliasName", "It must be alias/ and 1 to 249 letters, digits, _, - and /, and must not begin with alias/acs.")
	}
	return alias, nil
}

func createAlias(ctx context.Context, c *call) (wire.Object, error) {
	e, alias, err := c.keyAndAlias(ctx)
	if err != nil {
		return nil, err
	}
	if len(c.directory.alias(e.ref.Namespace, alias)) > 0 {
		return nil, &wire.Error{Code: wire.AliasAlreadyExists}
	}
	return nil, c.addAlias(ctx, e, alias)
}

// keyAndAlias returns the key and the alias that it is to get. The key must be of the caller's namespace, in which aliases are unique.
func (c *call) keyAndAlias(ctx context.Context) (*entry, string, error) {
	e, err := c.find(ctx, "KeyId", verbUpdate)
	if err != nil {
		return nil, "", err
	}
	alias, err := c.aliasName()
	if err != nil {
		return nil, "", err
	}
	if e.ref.Namespace != c.who.namespace {
		return nil, "", unsupported("Aliases belong to a namespace, and only its own keys have them.")
	}
	return e, alias, nil
}

func (c *call) addAlias(ctx context.Context, e *entry, alias string) error {
	return c.annotateKey(ctx, e, annotationAliases, func(o client.Object) (string, error) {
		aliases := aliasesOf(o)
		if !slices.Contains(aliases, alias) {
			aliases = append(aliases, alias)
		}
		if len(aliases) > maxAliases {
			return "", &wire.Error{Code: wire.LimitExceeded, Detail: "A key has at most 20 aliases."}
		}
		slices.Sort(aliases)
		return jsonOf(aliases, len(aliases)), nil
	})
}

func (c *call) removeAlias(ctx context.Context, e *entry, alias string) error {
	return c.annotateKey(ctx, e, annotationAliases, func(o client.Object) (string, error) {
		aliases := slices.DeleteFunc(aliasesOf(o), func(a string) bool { return a == alias })
		return jsonOf(aliases, len(aliases)), nil
	})
}

func deleteAlias(ctx context.Context, c *call) (wire.Object, error) {
	alias, err := c.aliasName()
	if err != nil {
		return nil, err
	}
	e, err := c.findAlias(ctx, alias, verbUpdate)
	if err != nil {
		return nil, err
	}
	return nil, c.removeAlias(ctx, e, alias)
}

// updateAlias gives an alias to a key and removes it from all others. Between both, the alias is not resolved.
func updateAlias(ctx context.Context, c *call) (wire.Object, error) {
	e, alias, err := c.keyAndAlias(ctx)
	if err != nil {
		return nil, err
	}
	holders := c.directory.alias(e.ref.Namespace, alias)
	if len(holders) == 0 {
		_, err := c.findAlias(ctx, alias, verbUpdate)
		return nil, err
	}
	for _, holder := range holders {
		if _, err := c.allowed(ctx, holder, alias, &wire.Error{Code: wire.AliasNotFound}, verbUpdate); err != nil {
			return nil, err
		}
	}
	if err := c.addAlias(ctx, e, alias); err != nil {
		return nil, err
	}
	for _, holder := range holders {
		if holder.id == e.id {
			continue
		}
		if err := c.removeAlias(ctx, holder, alias); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// aliasOf is an alias and its key.
type aliasOf struct {
	name string
	key  *entry
}

func listAliases(ctx context.Context, c *call) (wire.Object, error) {
	entries, err := c.listed(ctx)
	if err != nil {
		return nil, err
	}
	return c.aliases(entries)
}

func listAliasesByKeyID(ctx context.Context, c *call) (wire.Object, error) {
	e, err := c.find(ctx, "KeyId", verbGet)
	if err != nil {
		return nil, err
	}
	return c.aliases([]*entry{e})
}

func (c *call) aliases(entries []*entry) (wire.Object, error) {
	p, err := c.page()
	if err != nil {
		return nil, err
	}
	var found []aliasOf
	for _, e := range entries {
		for _, name := range e.aliases {
			found = append(found, aliasOf{name, e})
		}
	}
	slices.SortFunc(found, func(a, b aliasOf) int { return strings.Compare(a.name, b.name) })
	items := []wire.Object{}
	for _, a := range cut(p, found) {
		items = append(items, wire.Object{
			{Name: "KeyId", Value: a.key.id}, {Name: "AliasName", Value: a.name}, {Name: "AliasArn", Value: arn(a.key.ref.Namespace, a.name)},
		})
	}
	return append(wire.Object{{Name: "Aliases", Value: wire.Object{{Name: "Alias", Value: items}}}}, p.members(len(found))...), nil
}
