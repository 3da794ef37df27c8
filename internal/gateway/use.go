package gateway

import (
	"context"
	"encoding/base64"

	"github.com/google/uuid"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/internal/gateway/wire"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/keyring"
	"github.com/keyconvoy/keyconvoy/internal/keystore"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// The operations that use keys go directly to the module, and leave no object behind.

// The verbs on a master key, as other front doors check them.
const (
	verbGet    = "get"
	verbUpdate = "update"
	verbUse    = "use"    // make data keys under the key
	verbExport = "export" // read data keys under the key, by an export to any recipient
)

func getParametersForImport(ctx context.Context, c *call) (wire.Object, error) {
	e, err := c.find(ctx, "KeyId", verbUpdate)
	if err != nil {
		return nil, err
	}
	spec, err := c.Required("WrappingKeySpec")
	if err != nil {
		return nil, err
	}
	algorithm, err := c.Required("WrappingAlgorithm")
	if err != nil {
		return nil, err
	}
	key, err := c.read(ctx, e)
	if err != nil {
		return nil, err
	}
	req := kms.ImportParametersRequest{
		Key: key.kms, WrappingKeySpec: wrapping.KeySpec(spec), WrappingAlgorithm: wrapping.Algorithm(algorithm), ClientToken: uuid.NewString(),
	}
	if !req.WrappingAlgorithm.Valid() {
		return nil, invalid("WrappingAlgorithm", "It must be RSAES_OAEP_SHA_256, RSAES_OAEP_SHA_1, RSAES_PKCS1_V1_5 or SM2PKE.")
	}
	c.line.Algorithm = req.WrappingAlgorithm
	var made kms.ImportParameters
	err = c.use(ctx, key, func(ops keystore.Session) (err error) {
		made, err = ops.GetParametersForImport(ctx, req)
		return err
	})
	if err != nil {
		return nil, err
	}
	c.line.RecipientFingerprint = made.PublicKey.Fingerprint()
	return wire.Object{
		{Name: "KeyId", Value: e.id},
		{Name: "PublicKey", Value: made.PublicKey.Base64()},
		{Name: "ImportToken", Value: base64.StdEncoding.EncodeToString(made.ImportToken)},
		{Name: "TokenExpireTime", Value: timeText(made.TokenExpireTime)},
	}, nil
}

// use calls f with the service of the key's store, for the namespace of the key.
func (c *call) use(ctx context.Context, key masterKey, f func(keystore.Session) error) error {
	return c.stores.Use(ctx, key.Ref().Namespace, key.StoreRef(), f)
}

func generateDataKey(ctx context.Context, c *call) (wire.Object, error) {
	e, err := c.find(ctx, "KeyId", verbUse)
	if err != nil {
		return nil, err
	}
	key, err := c.read(ctx, e)
	if err != nil {
		return nil, err
	}
	made, err := c.generate(ctx, key)
	if err != nil {
		return nil, err
	}
	return wire.Object{
		{Name: "CiphertextBlob", Value: made.CiphertextBlob.String()},
		{Name: "KeyId", Value: made.KeyID.String()},
		{Name: "KeyVersionId", Value: made.KeyVersionID.String()},
	}, nil
}

// generate makes a data key as the parameters ask for.
func (c *call) generate(ctx context.Context, key masterKey) (kms.DataKey, error) {
	req := kms.GenerateDataKeyRequest{Key: key.kms, KeySpec: hsm.KeySpec(c.Get("KeySpec"))}
	length, err := c.Int("NumberOfBytes", 0, 1, hsm.MaxDataKeyLen)
	if err != nil {
		return kms.DataKey{}, err
	}
	req.NumberOfBytes = int(length)
	if req.EncryptionContext, err = c.context("EncryptionContext"); err != nil {
		return kms.DataKey{}, err
	}
	var made kms.DataKey
	err = c.use(ctx, key, func(ops keystore.Session) (err error) {
		made, err = ops.GenerateDataKeyWithoutPlaintext(ctx, req)
		return err
	})
	c.line.Custody = made.Custody
	return made, err
}

// context returns an EncryptionContext.
func (c *call) context(parameter string) (kms.EncryptionContext, error) { return c.Map(parameter) }

func exportDataKey(ctx context.Context, c *call) (wire.Object, error) {
	blob, err := c.blob()
	if err != nil {
		return nil, err
	}
	key, err := c.holder(ctx, blob, verbExport)
	if err != nil {
		return nil, err
	}
	exported, err := c.export(ctx, key, blob)
	if err != nil {
		return nil, err
	}
	return exported.object(), nil
}

// blob returns the parameter CiphertextBlob.
func (c *call) blob() (kms.Blob, error) {
	text, err := c.Required("CiphertextBlob")
	if err != nil {
		return kms.Blob{}, err
	}
	return kms.ParseBlob(text)
}

// holder returns the key under which a blob was made, if the caller may see it and has all verbs on it. Errors:
// Forbidden.KeyNotFound, Forbidden.NoPermission, and those of usable.
func (c *call) holder(ctx context.Context, blob kms.Blob, verbs ...string) (masterKey, error) {
	var failure error
	seen, asked := false, false
	key, err := c.keys.Holder(ctx, blob.KeyVersionID().String(), func(key *keyring.Key) bool {
		asked = true
		_, err := c.allowed(ctx, entryOfKey(key), key.ID(), keyNotFound(), verbs...)
		switch kms.CodeOf(err) {
		case "", kms.ForbiddenKeyNotFound:
		case kms.ForbiddenNoPermission:
			seen, failure = true, err
		default:
			failure = err
		}
		return err == nil
	})
	switch {
	case failure != nil && (key == nil || !seen):
		return masterKey{}, failure
	case err != nil:
		return masterKey{}, err
	case key == nil && asked:
		return masterKey{}, keyNotFound()
	case key == nil:
		_, err := c.allowed(ctx, nil, blob.KeyVersionID().String(), keyNotFound(), verbs...)
		return masterKey{}, err
	}
	return c.usable(key)
}

// entryOfKey is what lookups need of a key from the cache.
func entryOfKey(key *keyring.Key) *entry { return &entry{ref: key.Ref(), id: key.ID()} }

// exported is an export as the answers have it.
type exported struct{ kms.ExportedDataKey }

func (e exported) object() wire.Object {
	return wire.Object{
		{Name: "KeyVersionId", Value: e.KeyVersionID.String()},
		{Name: "KeyId", Value: e.KeyID.String()},
		{Name: "ExportedDataKey", Value: base64.StdEncoding.EncodeToString(e.ExportedDataKey.ExportedDataKey)},
	}
}

// export exports the data key in a blob to the recipient in the parameters, if the owner consents.
func (c *call) export(ctx context.Context, key masterKey, blob kms.Blob) (exported, error) {
	recipient, fingerprint, err := c.recipient()
	if err != nil {
		return exported{}, err
	}
	c.line.KeyVersionID, c.line.RecipientFingerprint = blob.KeyVersionID().String(), fingerprint
	req := kms.ExportDataKeyRequest{Key: key.kms, CiphertextBlob: blob, Recipient: recipient}
	if req.EncryptionContext, err = c.context("EncryptionContext"); err != nil {
		return exported{}, err
	}
	err = c.keys.Consent(ctx, key.Key, keyring.Use{
		Namespace: c.who.namespace, RecipientFingerprint: fingerprint, WrappingAlgorithm: string(c.line.Algorithm),
	})
	if err != nil {
		return exported{}, err
	}
	var out exported
	err = c.use(ctx, key, func(ops keystore.Session) (err error) {
		out.ExportedDataKey, err = ops.ExportDataKey(ctx, req)
		return err
	})
	c.line.Custody = out.Custody
	return out, err
}

// recipient returns the public key in the parameters, with the algorithm for it, and its fingerprint.
func (c *call) recipient() (kms.Recipient, string, error) {
	raw, err := c.Required("PublicKeyBlob")
	if err != nil {
		return kms.Recipient{}, "", err
	}
	spec, err := c.Required("WrappingKeySpec")
	if err != nil {
		return kms.Recipient{}, "", err
	}
	algorithm, err := c.Required("WrappingAlgorithm")
	if err != nil {
		return kms.Recipient{}, "", err
	}
	if !wrapping.Algorithm(algorithm).Valid() {
		return kms.Recipient{}, "", invalid("WrappingAlgorithm", "It must be RSAES_OAEP_SHA_256, RSAES_OAEP_SHA_1 or SM2PKE.")
	}
	c.line.Algorithm = wrapping.Algorithm(algorithm)
	public, err := wrapping.ParsePublicKey([]byte(raw))
	if err != nil {
		return kms.Recipient{}, "", invalid("PublicKeyBlob", "%s", err)
	}
	recipient, err := kms.NewRecipient(public, wrapping.KeySpec(spec), wrapping.Algorithm(algorithm))
	return recipient, public.Fingerprint(), err
}

func generateAndExportDataKey(ctx context.Context, c *call) (wire.Object, error) {
	e, err := c.find(ctx, "KeyId", verbUse, verbExport)
	if err != nil {
		return nil, err
	}
	if _, _, err := c.recipient(); err != nil { // before anything is generated
		return nil, err
	}
	key, err := c.read(ctx, e)
	if err != nil {
		return nil, err
	}
	made, err := c.generate(ctx, key)
	if err != nil {
		return nil, err
	}
	out, err := c.export(ctx, key, made.CiphertextBlob)
	if err != nil {
		return nil, err
	}
	return append(out.object(), wire.Member{Name: "CiphertextBlob", Value: made.CiphertextBlob.String()}), nil
}

// reEncrypt moves a data key to another key of the same namespace and key store. It leaves the former key's exportPolicy, so it takes
// the verbs that changing keyRef of a DataKey takes, and the policy of the new key must be one of the same owner.
func reEncrypt(ctx context.Context, c *call) (wire.Object, error) {
	for _, asymmetric := range []string{"SourceKeyId", "SourceKeyVersionId", "SourceEncryptionAlgorithm"} {
		if c.Get(asymmetric) != "" {
			return nil, unsupported("%s is for ciphertexts under asymmetric keys.", asymmetric)
		}
	}
	blob, err := c.blob()
	if err != nil {
		return nil, err
	}
	source, err := c.holder(ctx, blob, verbUse, verbExport)
	if err != nil {
		return nil, err
	}
	e, err := c.find(ctx, "DestinationKeyId", verbUse)
	if err != nil {
		return nil, err
	}
	if e.ref.Namespace != source.Ref().Namespace {
		return nil, &kms.Error{Code: kms.ForbiddenNoPermission, Detail: "Both keys must be in one namespace: the exportPolicy of the former key would no longer apply."}
	}
	destination, err := c.read(ctx, e)
	if err != nil {
		return nil, err
	}
	if source.Store() != destination.Store() {
		return nil, unsupported("Both keys must be in one key store. To move a data key to another module, use ExportDataKey.")
	}
	req := kms.ReEncryptRequest{Key: source.kms, CiphertextBlob: blob, Destination: destination.kms}
	if req.EncryptionContext, err = c.context("SourceEncryptionContext"); err != nil {
		return nil, err
	}
	if req.DestinationEncryptionContext, err = c.context("DestinationEncryptionContext"); err != nil {
		return nil, err
	}
	var moved kms.DataKey
	err = c.use(ctx, source, func(ops keystore.Session) (err error) {
		moved, err = ops.ReEncrypt(ctx, req)
		return err
	})
	c.line.FormerKeyVersionID, c.line.Custody = blob.KeyVersionID().String(), moved.Custody
	if err != nil {
		return nil, err
	}
	return wire.Object{
		{Name: "CiphertextBlob", Value: moved.CiphertextBlob.String()},
		{Name: "KeyId", Value: moved.KeyID.String()},
		{Name: "KeyVersionId", Value: moved.KeyVersionID.String()},
	}, nil
}

// objectFromCache reads the object of a key from the cache. It must not be changed.
func (c *call) objectFromCache(ctx context.Context, e *entry) (client.Object, error) {
	o := objectOf(e.ref)
	if err := c.cached.Get(ctx, e.ref.NamespacedName, o, client.UnsafeDisableDeepCopy); err != nil {
		return nil, err
	}
	if string(o.GetUID()) != e.id {
		return nil, keyNotFound()
	}
	return o, nil
}
