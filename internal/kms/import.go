package kms

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// ImportParametersRequest is a request for GetParametersForImport.
type ImportParametersRequest struct {
	Key               Key
	WrappingKeySpec   wrapping.KeySpec
	WrappingAlgorithm wrapping.Algorithm
	// ClientToken makes the call idempotent: the same token returns the same pair. A different token creates a new
	// pair, and earlier pairs remain valid.
	ClientToken string
}

// ImportParameters is the result of GetParametersForImport.
type ImportParameters struct {
	PublicKey       *wrapping.PublicKey
	ImportToken     []byte
	TokenExpireTime time.Time
	// OthersExpireTime is the earliest expiry of the key's other pairs, each of which remains valid until it expires;
	// zero if the key has no other.
	OthersExpireTime time.Time
}

// GetParametersForImport creates a key pair under which material for the key can be wrapped, and its token. Both
// expire after TokenLifetime.
func (o Operations) GetParametersForImport(ctx context.Context, req ImportParametersRequest) (ImportParameters, error) {
	if err := req.Key.permit(OpGetParametersForImport, o.now()); err != nil {
		return ImportParameters{}, err
	}
	if err := wrapping.CheckFit(req.WrappingKeySpec, req.WrappingAlgorithm); err != nil {
		return ImportParameters{}, invalid("WrappingAlgorithm", "%s", err)
	}
	if err := o.supported(ctx, hsm.OperationMasterKey, string(req.Key.Spec)); err != nil {
		return ImportParameters{}, err
	}
	if err := o.supported(ctx, hsm.OperationImport, string(req.WrappingAlgorithm)); err != nil {
		return ImportParameters{}, err
	}
	pair, others, err := o.wrappingKey(ctx, req)
	if err != nil {
		return ImportParameters{}, err
	}
	public, err := wrapping.ParseSPKI(pair.PublicKey)
	if err != nil {
		return ImportParameters{}, &Error{Code: InternalFailure, Err: err}
	}
	token := importToken{keyID: req.Key.ID, pairID: pair.ID, expires: pair.NotAfter, algorithm: req.WrappingAlgorithm}
	sealed, err := token.seal(ctx, o.Module)
	if err != nil {
		return ImportParameters{}, err
	}
	return ImportParameters{PublicKey: public, ImportToken: sealed, TokenExpireTime: pair.NotAfter, OthersExpireTime: others}, nil
}

// wrappingKey finds or creates the pair of a request, and returns the earliest expiry of the others. If the pair has
// expired, it was never returned (the caller was interrupted for a day), so a new one replaces it.
func (o Operations) wrappingKey(ctx context.Context, req ImportParametersRequest) (pair hsm.WrappingKey, others time.Time, err error) {
	now := o.now()
	want := hsm.WrappingKeyRequest{
		ID:        uuid.NewSHA1(req.Key.ID, []byte("keyconvoy.io/wrapping-key/1/"+string(req.WrappingKeySpec)+"/"+string(req.WrappingAlgorithm)+"/"+req.ClientToken)),
		Owner:     req.Key.ID,
		Namespace: req.Key.Namespace,
		Spec:      req.WrappingKeySpec,
		NotAfter:  now.Add(TokenLifetime).UTC().Truncate(time.Second),
	}
	if others, err = o.makeRoom(ctx, want); err != nil {
		return hsm.WrappingKey{}, others, err
	}
	pair, err = o.Module.CreateWrappingKey(ctx, want)
	if err == nil && !now.Before(pair.NotAfter) {
		if err = o.Module.DestroyWrappingKey(ctx, pair.ID); err == nil {
			pair, err = o.Module.CreateWrappingKey(ctx, want)
		}
	}
	return pair, others, FromModule(err)
}

// The maximum numbers of valid key pairs, so that a user who may request import parameters cannot fill a token.
const (
	MaxWrappingKeys          = 8   // for one key
	MaxNamespaceWrappingKeys = 256 // for one namespace, including keys that no longer exist
)

// makeRoom destroys the key's pairs that have expired. It rejects another pair, with Rejected.Throttling, while the
// key or its namespace has the maximum number. It returns the earliest expiry of the key's other pairs, zero for
// none.
func (o Operations) makeRoom(ctx context.Context, want hsm.WrappingKeyRequest) (next time.Time, err error) {
	pairs, err := o.Module.ListWrappingKeys(ctx)
	if err != nil {
		return next, FromModule(err)
	}
	now, ofKey, ofNamespace := o.now(), 0, 0
	for _, pair := range pairs {
		own, valid := pair.Owner == want.Owner, now.Before(pair.NotAfter)
		switch {
		case pair.ID == want.ID: // it exists already and was not published
		case valid && own:
			ofKey++
			next = earlier(next, pair.NotAfter)
		case own:
			if err := o.Module.DestroyWrappingKey(ctx, pair.ID); err != nil {
				return next, FromModule(err)
			}
		}
		if valid && pair.ID != want.ID && pair.Namespace == want.Namespace {
			ofNamespace++
		}
	}
	switch {
	case ofKey >= MaxWrappingKeys:
		return next, &Error{Code: RejectedThrottling, Detail: fmt.Sprintf(
			"The key already has %d pairs of import parameters, the maximum. Use one of them, or wait: each expires after 24 hours.", MaxWrappingKeys)}
	case want.Namespace != "" && ofNamespace >= MaxNamespaceWrappingKeys:
		return next, &Error{Code: RejectedThrottling, Detail: fmt.Sprintf(
			"Namespace %s already has %d import key pairs in this module, the maximum. Each is destroyed when its import token expires, "+
				"after 24 hours at most, or when its ImportedKey is deleted. Delete ImportedKeys that you do not need, or wait.",
			want.Namespace, MaxNamespaceWrappingKeys)}
	}
	return next, nil
}

// DestroyImportParameters destroys the key's wrapping pairs: those that have expired, or all. It returns the earliest
// expiry of the remaining pairs, zero for none.
func (o Operations) DestroyImportParameters(ctx context.Context, keyID uuid.UUID, all bool) (next time.Time, err error) {
	pairs, err := o.Module.ListWrappingKeys(ctx)
	if err != nil {
		return next, FromModule(err)
	}
	now := o.now()
	for _, pair := range pairs {
		if pair.Owner != keyID {
			continue
		}
		if !all && now.Before(pair.NotAfter) {
			next = earlier(next, pair.NotAfter)
			continue
		}
		if err := o.Module.DestroyWrappingKey(ctx, pair.ID); err != nil {
			return next, FromModule(err)
		}
	}
	return next, nil
}

// earlier returns the earlier of two times; a zero first time counts as not set.
func earlier(first, at time.Time) time.Time {
	if first.IsZero() || at.Before(first) {
		return at
	}
	return first
}

// ImportKeyMaterialRequest is a request for ImportKeyMaterial.
type ImportKeyMaterialRequest struct {
	Key                  Key
	EncryptedKeyMaterial []byte
	ImportToken          []byte
	// KeyMaterialExpireUnix is the time at which the material expires, in Unix seconds; nil means never. (In the
	// documented operation, 0 means never. In an object, 1970-01-01T00:00:00Z is a time in the past.)
	KeyMaterialExpireUnix *int64
}

// maxExpireTime is the last second in UTC that RFC 3339 can represent: an object cannot store a later time.
var maxExpireTime = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)

// CheckExpireTime rejects an expiry that is invalid for key material that is imported now.
func CheckExpireTime(at, now time.Time) error {
	switch {
	case at.Unix() <= now.Unix():
		return invalid("KeyMaterialExpireUnix", "The time is in the past. Use a time in the future, or none for material that never expires.")
	case at.Unix() > maxExpireTime.Unix():
		return invalid("KeyMaterialExpireUnix", "The time is after %s in UTC. Use an earlier time, or none for material that never expires.", maxExpireTime.Format(time.RFC3339))
	}
	return nil
}

func (r ImportKeyMaterialRequest) check(now time.Time) error {
	if err := r.Key.permit(OpImportKeyMaterial, now); err != nil {
		return err
	}
	if len(r.EncryptedKeyMaterial) == 0 {
		return missing("EncryptedKeyMaterial")
	}
	if len(r.ImportToken) == 0 {
		return missing("ImportToken")
	}
	if at := r.KeyMaterialExpireUnix; at != nil {
		return CheckExpireTime(time.Unix(*at, 0), now)
	}
	return nil
}

// ImportKeyMaterial unwraps material into the key. It rejects material other than the key's first; the same material
// again changes nothing. An import that fails changes nothing.
func (o Operations) ImportKeyMaterial(ctx context.Context, req ImportKeyMaterialRequest) (Version, error) {
	if err := req.check(o.now()); err != nil {
		return Version{}, err
	}
	token, err := o.openToken(ctx, req.Key, req.ImportToken)
	if err != nil {
		return Version{}, err
	}
	key, err := o.Module.ImportKey(ctx, hsm.ImportRequest{
		KeyVersionID:      req.Key.Primary.ID,
		Spec:              req.Key.Spec,
		WrappingKey:       token.pairID,
		Algorithm:         token.algorithm,
		EncryptedMaterial: req.EncryptedKeyMaterial,
		Owner:             req.Key.owner(hsm.OriginImported, 1),
		Fingerprint:       req.Key.Primary.Fingerprint,
	})
	if hsm.KindOf(err) == hsm.NotFound {
		// The token is valid, so its pair was destroyed, or the module lost its content.
		return Version{}, &Error{Code: InvalidImportToken, Err: err,
			Detail: "Its key pair is no longer in the module. Request new import parameters and wrap the material again."}
	}
	if hsm.KindOf(err) == hsm.InvalidMaterial {
		return Version{}, o.notUnwrapped(ctx, req, token, err)
	}
	if err != nil {
		return Version{}, FromModule(err)
	}
	if owner := key.Owner; owner != (hsm.Owner{}) && owner.Namespace != req.Key.Namespace {
		// The request has the material of that key, so the answer reveals nothing to its author.
		return Version{}, &Error{Code: ForbiddenNoPermission, Detail: fmt.Sprintf(
			"The module has key version %s already. It was imported from a namespace with another name, and only there it can be adopted.", req.Key.Primary.ID)}
	}
	return Version{ID: key.KeyVersionID, Fingerprint: &key.Fingerprint, Custody: key.Custody}, nil
}

// notUnwrapped explains, from the request alone, why material cannot be unwrapped. The module's error is only logged,
// so that two requests of the same length and form have the same answer.
func (o Operations) notUnwrapped(ctx context.Context, req ImportKeyMaterialRequest, token importToken, cause error) error {
	pairs, err := o.Module.ListWrappingKeys(ctx)
	if err != nil {
		return FromModule(err)
	}
	for _, pair := range pairs {
		if pair.ID == token.pairID {
			return &Error{Code: InvalidKeyMaterial, Err: cause, Detail: "It cannot be unwrapped. " +
				wrapping.ExplainImport(pair.Spec, token.algorithm, req.Key.Spec.Len(), req.EncryptedKeyMaterial)}
		}
	}
	return FromModule(cause)
}

// AdoptKey finds a key that is already in the module and checks that this key may take it over: it must have the same
// type and namespace and, if known, the material to which the key was bound. It is not an operation of the documented
// API: it restores a key from a backup.
//
// If the module does not have the key, the code is Rejected.PendingImport if its fingerprint is known: the same material
// can be imported again, under the same version. Otherwise it is Forbidden.KeyVersionNotFound.
func (o Operations) AdoptKey(ctx context.Context, key Key) (hsm.Key, error) {
	found, err := o.Module.FindKey(ctx, key.Primary.ID)
	if hsm.KindOf(err) == hsm.NotFound || (err == nil && !adoptable(found.Owner, key)) {
		// One answer for both, so that it reveals nothing about the keys of others.
		return hsm.Key{}, notInModule(key, err)
	}
	if err != nil {
		return hsm.Key{}, FromModule(err)
	}
	if found.Spec != key.Spec {
		return hsm.Key{}, invalid("KeySpec", "The key in the module is %s, not %s.", found.Spec, key.Spec)
	}
	if want := key.Primary.Fingerprint; want != nil && *want != found.Fingerprint {
		return hsm.Key{}, &Error{Code: InvalidKeyMaterial, Detail: fmt.Sprintf(
			"The fingerprint of the key in the module is %s, not %s.", found.Fingerprint, *want)}
	}
	return found, nil
}

// adoptable reports whether a key of that owner may be adopted: it is of the same namespace, and of the same origin. Otherwise the
// verb export on keys of one kind would give those of the other. The origin of keys of early versions is not stored.
func adoptable(owner hsm.Owner, key Key) bool {
	return owner.Namespace == key.Namespace && (owner.Origin == hsm.OriginGenerated) == (key.Origin == OriginModule)
}

// moduleOrigin is the key's origin as modules store it.
func (k Key) moduleOrigin() hsm.Origin {
	if k.Origin == OriginModule {
		return hsm.OriginGenerated
	}
	return hsm.OriginImported
}

func notInModule(key Key, cause error) error {
	if key.Origin == OriginModule {
		return &Error{Code: ForbiddenKeyVersionNotFound, Err: cause, Detail: fmt.Sprintf(
			"The module has no key %s that was generated for a namespace with the name %s. Restore it in the module.", key.Primary.ID, key.Namespace)}
	}
	detail := fmt.Sprintf("The module has no key %s that was imported from a namespace with the name %s.", key.Primary.ID, key.Namespace)
	if key.Primary.Fingerprint != nil {
		return &Error{Code: RejectedPendingImport, Err: cause, Detail: detail}
	}
	return &Error{Code: ForbiddenKeyVersionNotFound, Err: cause, Detail: detail + " If it was lost and you have its material, " +
		"create the object again with adopt.materialFingerprint, too, and import the material: it gets this version again."}
}

// KeysByName lists the master keys in the module that were made for an object with the namespace and name of a key, and
// have its type and origin, in the order of their identifiers, with all versions of each: objects with other names may have adopted
// the key, and rotated it. Keys of early versions, whose object is not known, are not among them.
func (o Operations) KeysByName(ctx context.Context, key Key) ([]hsm.Key, error) {
	keys, err := o.Module.ListKeys(ctx)
	if err != nil {
		return nil, FromModule(err)
	}
	keys = slices.DeleteFunc(keys, func(k hsm.Key) bool {
		owner := k.Owner
		return owner.Namespace != key.Namespace || owner.Name == "" || owner.Origin != key.moduleOrigin() || k.Spec != key.Spec
	})
	ofName := map[uuid.UUID]bool{}
	for _, k := range keys {
		if k.Owner.Name == key.Name {
			ofName[k.Owner.KeyID] = true
		}
	}
	keys = slices.DeleteFunc(keys, func(k hsm.Key) bool { return !ofName[k.Owner.KeyID] })
	slices.SortFunc(keys, func(a, b hsm.Key) int { return bytes.Compare(a.KeyVersionID[:], b.KeyVersionID[:]) })
	return keys, nil
}

// DeleteKeyMaterial destroys the key's material in the module. It is not an error if the material does not exist.
func (o Operations) DeleteKeyMaterial(ctx context.Context, key Key) error {
	if key.Origin != OriginExternal {
		return &Error{Code: UnsupportedOrigin}
	}
	return o.DestroyKeyVersion(ctx, key.Primary.ID)
}
