package software

import (
	"context"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/redact"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// ImportKey implements hsm.Module. Nothing is visible before it is saved, and nothing is saved before
// the material has proved to be what it must be.
func (m *Module) ImportKey(ctx context.Context, req hsm.ImportRequest) (hsm.Key, error) {
	if err := m.begin(ctx); err != nil {
		return hsm.Key{}, err
	}
	pair, err := m.pairFor(req)
	if err != nil {
		return hsm.Key{}, err
	}
	name := keyName(req.KeyVersionID)
	unlock, err := m.changing.lock(ctx, name)
	if err != nil {
		return hsm.Key{}, err
	}
	defer unlock()
	existing, err := m.key(req.KeyVersionID)
	if err != nil && hsm.KindOf(err) != hsm.NotFound {
		return hsm.Key{}, err
	}
	material, fingerprint, err := pair.unwrap(req)
	if err != nil {
		return hsm.Key{}, err
	}
	imported := hsm.Key{KeyVersionID: req.KeyVersionID, Spec: req.Spec, Fingerprint: fingerprint, Owner: req.Owner, Custody: hsm.CustodySoftware}
	if err := checkSame(fingerprint, req, existing); err != nil || existing != nil {
		material.Wipe()
		if err != nil {
			return hsm.Key{}, err
		}
		return imported, nil
	}
	if err := m.saveKey(ctx, name, req, material); err != nil {
		return hsm.Key{}, err
	}
	return imported, nil
}

// pairFor finds the pair that the request names and refuses what no unwrapping could serve.
func (m *Module) pairFor(req hsm.ImportRequest) (*wrappingPair, error) {
	if err := hsm.CheckOwner(req.Owner); err != nil {
		return nil, err
	}
	if req.Spec.Len() == 0 {
		return nil, hsm.CheckMaterialLen(req.Spec, 0)
	}
	if req.Algorithm == wrapping.RSAESPKCS1V15 && !m.allowPKCS15 {
		return nil, hsm.Errorf(hsm.NotSupported,
			"%s is off because it invites padding-oracle attacks: use %s, or let the administrator of the key store allow it",
			wrapping.RSAESPKCS1V15, wrapping.RSAESOAEPSHA256)
	}
	pair, err := m.pair(req.WrappingKey)
	if err != nil {
		return nil, err
	}
	if err := wrapping.CheckFit(pair.public.Spec(), req.Algorithm); err != nil {
		return nil, hsm.Errorf(hsm.NotSupported, "%v", err)
	}
	return pair, nil
}

// unwrap returns the material and its fingerprint. The caller wipes or keeps the material.
func (p *wrappingPair) unwrap(req hsm.ImportRequest) (redact.Bytes, hsm.Fingerprint, error) {
	var material redact.Bytes
	err := p.withPrivate(func(private *wrapping.PrivateKey) (err error) {
		material, err = private.Unwrap(req.Algorithm, "", req.EncryptedMaterial)
		return err
	})
	if err != nil {
		return nil, hsm.Fingerprint{}, err
	}
	fingerprint, err := hsm.FingerprintOf(req.Spec, material)
	if err != nil {
		material.Wipe()
		if req.Algorithm == wrapping.RSAESPKCS1V15 {
			// That the padding was in order would be told by any other answer.
			err = errInvalidMaterial
		}
		return nil, hsm.Fingerprint{}, err
	}
	return material, fingerprint, nil
}

// checkSame refuses material other than that which the key is bound to: by an earlier import, as the
// caller remembers it, or by being there.
func checkSame(fingerprint hsm.Fingerprint, req hsm.ImportRequest, existing *masterKey) error {
	bound := req.Fingerprint == nil || *req.Fingerprint == fingerprint
	if existing != nil && bound {
		there, err := existing.fingerprint()
		if err != nil {
			return err
		}
		bound = there == fingerprint
	}
	if !bound {
		return hsm.Errorf(hsm.OtherMaterial, "this is not the material that the key was first imported with")
	}
	return nil
}

// saveKey keeps the material, or wipes it when it fails.
func (m *Module) saveKey(ctx context.Context, name string, req hsm.ImportRequest, material redact.Bytes) error {
	key := &masterKey{spec: req.Spec, owner: req.Owner, material: newSecret(material)}
	plain := key.marshal(material)
	defer plain.Wipe()
	err := m.save(ctx, masterKeyRecord, name, plain, func() { m.keys[req.KeyVersionID] = key })
	if err != nil {
		key.material.wipe()
	}
	return err
}
