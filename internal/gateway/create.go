package gateway

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/gateway/wire"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/keyring"
	"github.com/keyconvoy/keyconvoy/internal/keystore"
	"github.com/keyconvoy/keyconvoy/internal/kms"
)

// newKey is what CreateKey is asked for.
type newKey struct {
	kind        string
	spec        v1alpha1.KeySpec
	store       v1alpha1.KeyStoreReference
	rotation    time.Duration
	annotations map[string]string
}

func createKey(ctx context.Context, c *call) (wire.Object, error) {
	kind := keyring.KindGeneratedKey
	origin, err := c.OneOf("Origin", string(kms.OriginModule), string(kms.OriginExternal))
	if err != nil {
		return nil, err
	}
	if origin == string(kms.OriginExternal) {
		kind = keyring.KindImportedKey
	}
	may, err := c.authorizer.may(ctx, access{account: c.who, verb: "create", resource: resourceOf(kind), namespace: c.who.namespace})
	if err != nil {
		return nil, err
	}
	if !may {
		return nil, &kms.Error{Code: kms.ForbiddenNoPermission, Detail: fmt.Sprintf(
			"ServiceAccount %s in namespace %s does not have the verb create on %s.", c.who.name, c.who.namespace, resourceOf(kind))}
	}
	want, err := c.newKey(ctx, kind)
	if err != nil {
		return nil, err
	}
	o := want.object(c.who.namespace)
	if err := c.writer.Create(ctx, o, client.FieldOwner(fieldManager)); err != nil {
		return nil, err
	}
	c.line.KeyID = string(o.GetUID())
	e := entryOf(o)
	if err := c.await(ctx, e, created, stalled(o.GetGeneration())); err != nil {
		c.withdraw(ctx, o)
		return nil, err
	}
	if e = c.directory.get(e.id); e == nil { // it was deleted again
		return nil, keyNotFound()
	}
	metadata, err := c.metadata(ctx, e)
	if err != nil {
		return nil, err
	}
	return wire.Object{{Name: "KeyMetadata", Value: metadata}}, nil
}

// created reports whether a new key can be used, or waits for its material.
func created(o client.Object) bool {
	switch o := o.(type) {
	case *v1alpha1.ImportedKey:
		// Its controller publishes import parameters, too, in case the key is used with kubectl. A client need not wait for them.
		return o.Status.KeyState != ""
	case *v1alpha1.GeneratedKey:
		return o.Status.PrimaryVersion != "" && o.Status.KeyState != ""
	}
	return false
}

// withdraw deletes the object of a key whose creation failed: the caller does not know its identifier.
func (c *call) withdraw(ctx context.Context, o client.Object) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	uid := o.GetUID()
	_ = c.writer.Delete(ctx, o, client.Preconditions{UID: &uid}) // the caller gets the first error
}

// newKey reads the parameters of CreateKey.
func (c *call) newKey(ctx context.Context, kind string) (newKey, error) {
	k := newKey{kind: kind, annotations: map[string]string{}}
	if c.object.Spec.KeyStoreRef == nil {
		return k, unsupported("The AccessKey names no key store for new keys. Set its spec.keyStoreRef.")
	}
	k.store = *c.object.Spec.KeyStoreRef
	spec, err := c.keySpec()
	if err != nil {
		return k, err
	}
	k.spec = v1alpha1.KeySpec(spec)
	if _, err := c.OneOf("KeyUsage", keyUsage); err != nil {
		return k, err
	}
	if id := c.Get("DKMSInstanceId"); id != "" && id != string(k.store.Name) {
		return k, invalid("DKMSInstanceId", "It must be the name of the key store in spec.keyStoreRef of the AccessKey, or absent.")
	}
	if c.Get("Policy") != "" {
		return k, unsupported("Permissions on a key are roles of its namespace and the exportPolicy of its object, and not a Policy.")
	}
	if err := c.checkLevel(ctx, k.store); err != nil {
		return k, err
	}
	if k.rotation, err = c.rotation(kind); err != nil {
		return k, err
	}
	if k.annotations[annotationDescription], err = c.description(); err != nil {
		return k, err
	}
	tags, err := c.tags(false)
	if err != nil {
		return k, err
	}
	if len(tags) > 0 {
		text, _ := json.Marshal(tags) // strings: it cannot fail
		k.annotations[annotationTags] = string(text)
	}
	if k.annotations[annotationDescription] == "" {
		delete(k.annotations, annotationDescription)
	}
	return k, nil
}

// keySpec returns the type of a new key. Errors: UnsupportedOperation for the asymmetric types of the documented API.
func (c *call) keySpec() (hsm.KeySpec, error) {
	text := c.Get("KeySpec")
	if text == "" {
		return hsm.AES256, nil
	}
	spec := hsm.KeySpec(strings.TrimPrefix(text, specPrefix))
	if strings.HasPrefix(text, specPrefix) && spec.Len() > 0 {
		return spec, nil
	}
	for _, asymmetric := range []string{"RSA_", "EC_", "HMAC_"} {
		if strings.HasPrefix(text, asymmetric) {
			return "", unsupported("Keys are symmetric: Aliyun_AES_256, Aliyun_AES_192, Aliyun_AES_128 or Aliyun_SM4.")
		}
	}
	return "", invalid("KeySpec", "It must be Aliyun_AES_256, Aliyun_AES_192, Aliyun_AES_128 or Aliyun_SM4.")
}

// checkLevel refuses a software store where a hardware module is asked for. A hardware module is good for every level.
func (c *call) checkLevel(ctx context.Context, store v1alpha1.KeyStoreReference) error {
	level, err := c.OneOf("ProtectionLevel", "SOFTWARE", "HSM")
	if err != nil {
		return err
	}
	software, err := c.isSoftware(ctx, c.who.namespace, store)
	if err == nil && software && level == "HSM" {
		err = unsupported("The key store %s is not a hardware module. Omit ProtectionLevel, or name another key store in the AccessKey.", store.Name)
	}
	return err
}

// isSoftware reports whether a key store is a software store. Errors: ServiceUnavailableTemporary for one that does not exist.
func (c *call) isSoftware(ctx context.Context, namespace string, ref v1alpha1.KeyStoreReference) (bool, error) {
	store, err := c.stores.Get(ctx, keystore.IDOf(namespace, ref))
	if err != nil {
		return false, explained(err)
	}
	return store.Spec.PKCS11 == nil, nil
}

// rotation returns the interval of automatic rotation, 0 for none.
func (c *call) rotation(kind string) (time.Duration, error) {
	automatic, err := c.Bool("EnableAutomaticRotation")
	if err != nil || !automatic {
		return 0, err
	}
	if kind == keyring.KindImportedKey {
		return 0, unsupported("A key with the origin EXTERNAL is not rotated automatically: its material is imported.")
	}
	return hours("RotationInterval", c.Get("RotationInterval"))
}

// object returns the object of a new key.
func (k newKey) object(namespace string) client.Object {
	m := metav1.ObjectMeta{Namespace: namespace, Annotations: k.annotations, GenerateName: "key-"}
	if k.kind == keyring.KindImportedKey {
		return &v1alpha1.ImportedKey{ObjectMeta: m, Spec: v1alpha1.ImportedKeySpec{KeyStoreRef: k.store, KeySpec: k.spec}}
	}
	generated := &v1alpha1.GeneratedKey{ObjectMeta: m, Spec: v1alpha1.GeneratedKeySpec{KeyStoreRef: k.store, KeySpec: k.spec}}
	if k.rotation > 0 {
		generated.Spec.Rotation = &v1alpha1.RotationSpec{Interval: fmt.Sprintf("%dh", int64(k.rotation.Hours()))}
	}
	return generated
}
