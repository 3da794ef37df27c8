package gateway

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/gateway/wire"
	"github.com/keyconvoy/keyconvoy/internal/keyring"
	"github.com/keyconvoy/keyconvoy/internal/kms"
)

// The values of the documented API that are the same for every key.
const (
	keyUsage = "ENCRYPT/DECRYPT"
	// specPrefix begins the documented names of key types.
	specPrefix = "Aliyun_"
)

// timeText is a time as the documented API has it. An absent one is "".
func timeText(at time.Time) string {
	if at.IsZero() {
		return ""
	}
	return at.UTC().Format("2006-01-02T15:04:05Z")
}

func timeOf(at *metav1.Time) string {
	if at == nil {
		return ""
	}
	return timeText(at.Time)
}

// arn is the name of a key or an alias in the form of the documented API. The namespace takes the place of the account.
func arn(namespace, resource string) string { return "acs:kms:keyconvoy:" + namespace + ":" + resource }

// protectionLevel is where a key is, or will be.
func protectionLevel(custody string) string {
	if custody == "Software" {
		return "SOFTWARE"
	}
	return "HSM"
}

func describeKey(ctx context.Context, c *call) (wire.Object, error) {
	e, err := c.find(ctx, "KeyId", verbGet)
	if err != nil {
		return nil, err
	}
	metadata, err := c.metadata(ctx, e)
	if err != nil {
		return nil, err
	}
	metadata = append(metadata, wire.Member{Name: "DeletionProtection", Value: "Disabled"})
	return wire.Object{{Name: "KeyMetadata", Value: metadata}}, nil
}

// metadata is KeyMetadata.
func (c *call) metadata(ctx context.Context, e *entry) (wire.Object, error) {
	o, err := c.objectFromCache(ctx, e)
	if err != nil {
		return nil, err
	}
	key := keyring.Of(o)
	state, primary := kms.StatePendingImport, ""
	if parsed, err := key.KMS(); err == nil && key.Holds() && key.Bound() {
		state = parsed.StateAt(c.clock.Now())
		primary = parsed.Primary.ID.String()
	}
	c.line.KeyID, c.line.KeyVersionID = e.id, primary
	var deletion, expiry, lastRotation, origin string
	rotation := rotationOf{automatic: "Disabled"}
	switch o := o.(type) {
	case *v1alpha1.ImportedKey:
		origin, deletion, expiry = string(kms.OriginExternal), timeOf(o.Status.DeletionTime), timeOf(o.Status.MaterialExpireTime)
		lastRotation = timeText(o.CreationTimestamp.Time)
	case *v1alpha1.GeneratedKey:
		origin, deletion = string(kms.OriginModule), timeOf(o.Status.DeletionTime)
		rotation, lastRotation = rotationOfKey(o, state), timeText(o.CreationTimestamp.Time)
		for _, version := range o.Status.Versions {
			if version.State == v1alpha1.VersionPrimary {
				lastRotation = timeText(version.CreateTime.Time)
			}
		}
	}
	level, err := c.levelOf(ctx, e)
	if err != nil {
		return nil, err
	}
	out := wire.Object{
		{Name: "KeyId", Value: e.id}, {Name: "Arn", Value: arn(e.ref.Namespace, "key/"+e.id)}, {Name: "KeySpec", Value: specPrefix + e.spec},
		{Name: "KeyState", Value: string(state)}, {Name: "KeyUsage", Value: keyUsage}, {Name: "Origin", Value: origin},
		{Name: "CreationDate", Value: timeText(o.GetCreationTimestamp().Time)}, {Name: "DeleteDate", Value: deletion},
		{Name: "MaterialExpireTime", Value: expiry}, {Name: "Description", Value: o.GetAnnotations()[annotationDescription]},
		{Name: "Creator", Value: e.ref.Namespace}, {Name: "ProtectionLevel", Value: level}, {Name: "PrimaryKeyVersion", Value: primary},
		{Name: "AutomaticRotation", Value: rotation.automatic}, {Name: "LastRotationDate", Value: lastRotation},
	}
	if rotation.interval != "" {
		out = append(out, wire.Member{Name: "RotationInterval", Value: rotation.interval}, wire.Member{Name: "NextRotationDate", Value: rotation.next})
	}
	return out, nil
}

// levelOf is the ProtectionLevel of a key: where it is, or where its key store would put it.
func (c *call) levelOf(ctx context.Context, e *entry) (string, error) {
	if e.custody != "" && e.custody != string(v1alpha1.CustodyUnknown) {
		return protectionLevel(e.custody), nil
	}
	software, err := c.isSoftware(ctx, e.ref.Namespace, e.store)
	if software {
		return "SOFTWARE", err
	}
	return "HSM", err
}

// rotationOf is what KeyMetadata says of rotation.
type rotationOf struct{ automatic, interval, next string }

func rotationOfKey(o *v1alpha1.GeneratedKey, state kms.KeyState) rotationOf {
	interval := o.Spec.GetRotationInterval()
	switch {
	case interval == 0:
		return rotationOf{automatic: "Disabled"}
	case state != kms.StateEnabled:
		return rotationOf{"Suspended", fmt.Sprintf("%ds", int64(interval.Seconds())), ""}
	}
	return rotationOf{"Enabled", fmt.Sprintf("%ds", int64(interval.Seconds())), timeOf(o.Status.NextRotationTime)}
}

// page is which part of a list is wanted.
type page struct{ number, size int }

func (c *call) page() (page, error) {
	number, err := c.Int("PageNumber", 1, 1, 1<<31-1)
	if err != nil {
		return page{}, err
	}
	size, err := c.Int("PageSize", 10, 1, 100)
	return page{int(number), int(size)}, err
}

// cut returns the part of a list.
func cut[T any](p page, items []T) []T {
	if p.number-1 > len(items)/p.size {
		return nil
	}
	start := min((p.number-1)*p.size, len(items))
	return items[start:min(start+p.size, len(items))]
}

func (p page) members(total int) wire.Object {
	return wire.Object{{Name: "PageNumber", Value: p.number}, {Name: "PageSize", Value: p.size}, {Name: "TotalCount", Value: total}}
}

func listKeys(ctx context.Context, c *call) (wire.Object, error) {
	entries, err := c.listed(ctx)
	if err != nil {
		return nil, err
	}
	p, err := c.page()
	if err != nil {
		return nil, err
	}
	filters, err := c.filters()
	if err != nil {
		return nil, err
	}
	if len(filters) > 0 {
		var failure error
		entries = slices.DeleteFunc(entries, func(e *entry) bool {
			matches, err := c.matches(ctx, filters, e)
			failure = firstOf(failure, err)
			return !matches
		})
		if failure != nil {
			return nil, failure
		}
	}
	items := []wire.Object{}
	for _, e := range cut(p, entries) {
		items = append(items, wire.Object{{Name: "KeyId", Value: e.id}, {Name: "KeyArn", Value: arn(e.ref.Namespace, "key/"+e.id)}})
	}
	return append(wire.Object{{Name: "Keys", Value: wire.Object{{Name: "Key", Value: items}}}}, p.members(len(entries))...), nil
}

// listed returns the keys of the caller's namespace, of the kinds that the caller may list. Errors: Forbidden.NoPermission.
func (c *call) listed(ctx context.Context) ([]*entry, error) {
	kinds := map[string]bool{}
	for _, kind := range []string{keyring.KindImportedKey, keyring.KindGeneratedKey} {
		may, err := c.authorizer.may(ctx, access{account: c.who, verb: "list", resource: resourceOf(kind), namespace: c.who.namespace})
		if err != nil {
			return nil, err
		}
		kinds[kind] = may
	}
	if !kinds[keyring.KindImportedKey] && !kinds[keyring.KindGeneratedKey] {
		return nil, &kms.Error{Code: kms.ForbiddenNoPermission, Detail: fmt.Sprintf(
			"ServiceAccount %s in namespace %s does not have the verb list on importedkeys or generatedkeys.", c.who.name, c.who.namespace)}
	}
	return slices.DeleteFunc(c.directory.inNamespace(c.who.namespace), func(e *entry) bool { return !e.exists() || !kinds[e.ref.Kind] }), nil
}

// filter is one of the parameter Filters.
type filter struct {
	Key    string
	Values []string
}

// filterNames are the properties that can be filtered by.
var filterNames = []string{"KeyState", "KeySpec", "KeyUsage", "ProtectionLevel", "CreatorType", "DKMSInstanceId"}

// filters returns the wanted values of each property.
func (c *call) filters() (map[string][]string, error) {
	const most = 10
	var list []filter
	if err := c.JSON("Filters", &list); err != nil {
		return nil, err
	}
	if len(list) > most {
		return nil, invalid("Filters", "It has more than %d filters.", most)
	}
	wanted := map[string][]string{}
	for _, f := range list {
		if !slices.Contains(filterNames, f.Key) || len(f.Values) > most {
			return nil, invalid("Filters", "Each filter has a Key, which is one of %v, and at most %d Values.", filterNames, most)
		}
		wanted[f.Key] = append(wanted[f.Key], f.Values...)
	}
	return wanted, nil
}

func (c *call) matches(ctx context.Context, wanted map[string][]string, e *entry) (bool, error) {
	for name, values := range wanted {
		var is string
		switch name {
		case "KeyState":
			metadata, err := c.stateOf(ctx, e)
			if err != nil {
				return false, err
			}
			is = metadata
		case "KeySpec":
			is = specPrefix + e.spec
		case "KeyUsage":
			is = keyUsage
		case "CreatorType":
			is = "User"
		case "DKMSInstanceId":
			is = string(e.store.Name)
		case "ProtectionLevel":
			level, err := c.levelOf(ctx, e)
			if err != nil {
				return false, err
			}
			is = level
		}
		if len(values) > 0 && !slices.Contains(values, is) {
			return false, nil
		}
	}
	return true, nil
}

// stateOf returns the state of a key now: material expires by the clock.
func (c *call) stateOf(ctx context.Context, e *entry) (string, error) {
	o, err := c.objectFromCache(ctx, e)
	if client.IgnoreNotFound(err) != nil {
		return "", err
	}
	if err != nil {
		return string(kms.StateDeleted), nil
	}
	key := keyring.Of(o)
	parsed, err := key.KMS()
	if err != nil || !key.Holds() || !key.Bound() {
		return string(kms.StatePendingImport), nil //nolint:nilerr // its reconciler reports the error
	}
	return string(parsed.StateAt(c.clock.Now())), nil
}

func listKeyVersions(ctx context.Context, c *call) (wire.Object, error) {
	e, err := c.find(ctx, "KeyId", verbGet)
	if err != nil {
		return nil, err
	}
	p, err := c.page()
	if err != nil {
		return nil, err
	}
	o, err := c.objectFromCache(ctx, e)
	if err != nil {
		return nil, err
	}
	c.line.KeyID = e.id
	versions := versionsOf(o)
	items := []wire.Object{}
	for _, v := range cut(p, versions) {
		items = append(items, wire.Object{{Name: "KeyId", Value: e.id}, {Name: "KeyVersionId", Value: v.id}, {Name: "CreationDate", Value: v.created}})
	}
	return append(wire.Object{{Name: "KeyVersions", Value: wire.Object{{Name: "KeyVersion", Value: items}}}}, p.members(len(versions))...), nil
}

type version struct{ id, created string }

func versionsOf(o client.Object) (versions []version) {
	switch o := o.(type) {
	case *v1alpha1.ImportedKey:
		if o.Status.KeyVersionID != "" {
			versions = append(versions, version{o.Status.KeyVersionID, timeText(o.CreationTimestamp.Time)})
		}
	case *v1alpha1.GeneratedKey:
		for _, v := range o.Status.Versions {
			versions = append(versions, version{v.KeyVersionID, timeText(v.CreateTime.Time)})
		}
	}
	return versions
}

// tagsOf returns the tags of a key.
func tagsOf(o client.Object) map[string]string {
	tags := map[string]string{}
	if json.Unmarshal([]byte(o.GetAnnotations()[annotationTags]), &tags) != nil {
		return map[string]string{} // someone with the permission to write the object wrote something else there
	}
	return tags
}
