package kms

import (
	"context"
	"fmt"
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
	// ClientToken makes the call idempotent: with the same one the same pair comes back. Another one
	// makes a new pair, and does not end an older one.
	ClientToken string
}

// ImportParameters is the answer of GetParametersForImport.
type ImportParameters struct {
	PublicKey       *wrapping.PublicKey
	ImportToken     []byte
	TokenExpireTime time.Time
	// OthersExpireTime is when the first of the key's other pairs ends, each of which stays usable until
	// then; zero when the key has no other.
	OthersExpireTime time.Time
}

// GetParametersForImport makes a key pair under which material for the key can be wrapped, and the
// token that goes with it. Both end after TokenLifetime.
func (o Operations) GetParametersForImport(ctx context.Context, req ImportParametersRequest) (ImportParameters, error) {
	if err := external(req.Key); err != nil {
		return ImportParameters{}, err
	}
	if err := Permit(OpGetParametersForImport, req.Key.StateAt(o.now())); err != nil {
		return ImportParameters{}, err
	}
	if err := wrapping.CheckFit(req.WrappingKeySpec, req.WrappingAlgorithm); err != nil {
		return ImportParameters{}, invalid("WrappingAlgorithm", "%s", err)
	}
	if err := o.supported(hsm.OperationMasterKey, string(req.Key.Spec)); err != nil {
		return ImportParameters{}, err
	}
	if err := o.supported(hsm.OperationImport, string(req.WrappingAlgorithm)); err != nil {
		return ImportParameters{}, err
	}
	pair, others, err := o.wrappingKey(ctx, req)
	if err != nil {
		return ImportParameters{}, err
	}
	token := importToken{keyID: req.Key.ID, pairID: pair.ID, expires: pair.NotAfter, algorithm: req.WrappingAlgorithm}
	sealed, err := token.seal(ctx, o.Module)
	if err != nil {
		return ImportParameters{}, err
	}
	return ImportParameters{PublicKey: pair.PublicKey, ImportToken: sealed, TokenExpireTime: pair.NotAfter, OthersExpireTime: others}, nil
}

// wrappingKey finds or makes the pair of a request, and says when the first of the others ends. A pair that has ended by now was never answered
// with (the caller was away for a day between making and telling), so another takes its place.
func (o Operations) wrappingKey(ctx context.Context, req ImportParametersRequest) (pair hsm.WrappingKey, others time.Time, err error) {
	now := o.now()
	want := hsm.WrappingKeyRequest{
		ID:       uuid.NewSHA1(req.Key.ID, []byte("keyconvoy.io/wrapping-key/1/"+string(req.WrappingKeySpec)+"/"+string(req.WrappingAlgorithm)+"/"+req.ClientToken)),
		Owner:    req.Key.ID,
		Spec:     req.WrappingKeySpec,
		NotAfter: now.Add(TokenLifetime).UTC().Truncate(time.Second),
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

// MaxWrappingKeys is how many key pairs one key may have at once. Whoever may ask for parameters must not be
// able to fill a token with them.
const MaxWrappingKeys = 8

// makeRoom destroys the key's pairs that have ended, and refuses another one, with Rejected.Throttling, while
// the key has as many as it may. It says when the first of those ends that stay, zero for none.
func (o Operations) makeRoom(ctx context.Context, want hsm.WrappingKeyRequest) (next time.Time, err error) {
	pairs, err := o.Module.ListWrappingKeys(ctx, want.Owner)
	if err != nil {
		return next, FromModule(err)
	}
	now, others := o.now(), 0
	for _, pair := range pairs {
		switch {
		case pair.ID == want.ID: // made already, and not told of
		case now.Before(pair.NotAfter):
			others++
			next = earlier(next, pair.NotAfter)
		default:
			if err := o.Module.DestroyWrappingKey(ctx, pair.ID); err != nil {
				return next, FromModule(err)
			}
		}
	}
	if others >= MaxWrappingKeys {
		return next, &Error{Code: RejectedThrottling, Detail: fmt.Sprintf(
			"The key has %d pairs of import parameters, and each lasts 24 hours: use one of those, or wait.", MaxWrappingKeys)}
	}
	return next, nil
}

// DestroyImportParameters destroys the key's wrapping pairs: those that have ended, or all. It says when the
// first of those ends that stay, zero for none.
func (o Operations) DestroyImportParameters(ctx context.Context, keyID uuid.UUID, all bool) (next time.Time, err error) {
	pairs, err := o.Module.ListWrappingKeys(ctx, keyID)
	if err != nil {
		return next, FromModule(err)
	}
	now := o.now()
	for _, pair := range pairs {
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

// earlier is the first of two times, of which the first may be zero for none yet.
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
	// KeyMaterialExpireUnix is when the material ends, in Unix seconds; 0 means never.
	KeyMaterialExpireUnix int64
}

// maxExpireUnix is the largest integer that JSON carries exactly (RFC 8259, section 6).
const maxExpireUnix = 1<<53 - 1

func (r ImportKeyMaterialRequest) check(now time.Time) error {
	if err := external(r.Key); err != nil {
		return err
	}
	if err := Permit(OpImportKeyMaterial, r.Key.StateAt(now)); err != nil {
		return err
	}
	if len(r.EncryptedKeyMaterial) == 0 {
		return missing("EncryptedKeyMaterial")
	}
	if len(r.ImportToken) == 0 {
		return missing("ImportToken")
	}
	if at := r.KeyMaterialExpireUnix; at < 0 || at > maxExpireUnix || (at > 0 && at <= now.Unix()) {
		return invalid("KeyMaterialExpireUnix", "The material would end in the past, or later than %d: give a time to come, or none.", int64(maxExpireUnix))
	}
	return nil
}

// KeyMaterial is the material of a key in its module, as far as it may be seen.
type KeyMaterial struct {
	Fingerprint hsm.Fingerprint
	Custody     hsm.Custody // empty where the module was asked for a key that it has
}

// ImportKeyMaterial unwraps material into the key. Material other than the key's first is refused; the
// same again is no change. An import that fails changes nothing.
func (o Operations) ImportKeyMaterial(ctx context.Context, req ImportKeyMaterialRequest) (KeyMaterial, error) {
	if err := req.check(o.now()); err != nil {
		return KeyMaterial{}, err
	}
	token, err := o.openToken(ctx, req.Key, req.ImportToken)
	if err != nil {
		return KeyMaterial{}, err
	}
	key, err := o.Module.ImportKey(ctx, hsm.ImportRequest{
		KeyVersionID:      req.Key.VersionID(),
		Spec:              req.Key.Spec,
		WrappingKey:       token.pairID,
		Algorithm:         token.algorithm,
		EncryptedMaterial: req.EncryptedKeyMaterial,
		Owner:             req.Key.Owner,
		Fingerprint:       req.Key.Fingerprint,
	})
	if hsm.KindOf(err) == hsm.NotFound {
		// The token is genuine and in time, so its pair was destroyed, or the token was lost with
		// the module's content.
		return KeyMaterial{}, &Error{Code: InvalidImportToken, Err: err,
			Detail: "Its key pair is no longer in the module. Ask for new import parameters and wrap the material again."}
	}
	if err != nil {
		return KeyMaterial{}, FromModule(err)
	}
	return KeyMaterial{Fingerprint: key.Fingerprint, Custody: key.Custody}, nil
}

// AdoptKey looks for a key that is in the module already, and says whether this key may take it over: it
// must have the same type and owner, and the material that the key was bound to, where that is known.
// It is not an operation of the seeds: it is how a key comes back from a backup.
func (o Operations) AdoptKey(ctx context.Context, key Key) (KeyMaterial, error) {
	found, err := o.Module.FindKey(ctx, key.VersionID())
	if hsm.KindOf(err) == hsm.NotFound || (err == nil && found.Owner != key.Owner) {
		// One answer for both, so that nobody learns of other people's keys.
		return KeyMaterial{}, &Error{Code: ForbiddenKeyVersionNotFound, Err: err, Detail: fmt.Sprintf(
			"The module has no key %s that was imported from a namespace called %s.", key.VersionID(), key.Owner)}
	}
	if err != nil {
		return KeyMaterial{}, FromModule(err)
	}
	if found.Spec != key.Spec {
		return KeyMaterial{}, invalid("KeySpec", "The key in the module is %s, not %s.", found.Spec, key.Spec)
	}
	if key.Fingerprint != nil && *key.Fingerprint != found.Fingerprint {
		return KeyMaterial{}, &Error{Code: InvalidKeyMaterial, Detail: fmt.Sprintf(
			"The key in the module has the fingerprint %s, not %s.", found.Fingerprint, *key.Fingerprint)}
	}
	return KeyMaterial{Fingerprint: found.Fingerprint}, nil
}

// DeleteKeyMaterial destroys the key's material in the module. Material that is not there is no error.
func (o Operations) DeleteKeyMaterial(ctx context.Context, key Key) error {
	return FromModule(o.Module.DestroyKey(ctx, key.VersionID()))
}

func external(key Key) error {
	if key.Origin != OriginExternal {
		return &Error{Code: UnsupportedOrigin}
	}
	return nil
}

// supported asks the module's self-test, so that what cannot work is refused before anything is made.
func (o Operations) supported(op hsm.Operation, algorithm string) error {
	var can []string
	for _, c := range o.Module.Capabilities() {
		if c.Operation != op {
			continue
		}
		if c.Algorithm == algorithm {
			return nil
		}
		can = append(can, c.Algorithm)
	}
	return &Error{Code: UnsupportedOperation, Detail: notOffered(op, algorithm, can)}
}
