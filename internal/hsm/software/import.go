package software

import (
	"context"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/redact"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// ImportKey implements hsm.Module. It saves the key after all checks, and makes it visible after it was saved. If another process has
// saved a key with that identifier meanwhile, that is the key, and the material must be the same.
func (m *Module) ImportKey(ctx context.Context, req hsm.ImportRequest) (hsm.Key, error) {
	if err := m.begin(ctx); err != nil {
		return hsm.Key{}, err
	}
	if err := req.Validate(); err != nil {
		return hsm.Key{}, err
	}
	pair, err := m.pairFor(ctx, req)
	if err != nil {
		return hsm.Key{}, err
	}
	unlock, err := m.lockName(ctx, keyName(req.KeyVersionID))
	if err != nil {
		return hsm.Key{}, err
	}
	defer unlock()
	existing, err := m.key(ctx, req.KeyVersionID)
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
		imported.Owner = existing.owner
		return imported, nil
	}
	saved, err := m.createKey(ctx, req.KeyVersionID, &masterKey{spec: req.Spec, owner: req.Owner, material: newSecret(material)}, material)
	if err != nil {
		return hsm.Key{}, err
	}
	imported.Owner = saved.owner
	return imported, checkSame(fingerprint, req, saved) // it is another one if another process has imported the key meanwhile
}

// pairFor returns the pair of a request. It rejects an algorithm that does not fit the pair.
func (m *Module) pairFor(ctx context.Context, req hsm.ImportRequest) (*wrappingPair, error) {
	if req.Algorithm == wrapping.RSAESPKCS1V15 && !m.allowPKCS15 {
		return nil, hsm.ErrPKCS1v15Off
	}
	pair, err := m.pair(ctx, req.WrappingKey)
	if err != nil {
		return nil, err
	}
	if err := wrapping.CheckFit(pair.public.Spec(), req.Algorithm); err != nil {
		return nil, hsm.Errorf(hsm.NotSupported, "%v", err)
	}
	return pair, nil
}

// unwrap returns the material, which the caller owns, and its fingerprint.
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
			// Any other error would reveal that the padding is valid.
			err = hsm.ErrInvalidMaterial
		}
		return nil, hsm.Fingerprint{}, err
	}
	return material, fingerprint, nil
}

// checkSame rejects material that differs from that of an earlier import, according to the request or to the existing key.
func checkSame(fingerprint hsm.Fingerprint, req hsm.ImportRequest, existing *masterKey) error {
	same := req.Fingerprint == nil || *req.Fingerprint == fingerprint
	if existing != nil && same {
		have, err := existing.fingerprint()
		if err != nil {
			return err
		}
		same = have == fingerprint
	}
	if !same {
		return hsm.ErrOtherMaterial
	}
	return nil
}
