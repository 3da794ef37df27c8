package hsm

import "github.com/keyconvoy/keyconvoy/internal/wrapping"

// The Validate methods reject, with NotSupported, requests that no module supports. Every method of a module first calls the one
// of its request, so that all modules return the same texts. The module itself rejects what only other modules support. An
// OpenRequest has no Validate: an invalid blob is InvalidBlob, after its master key was found.

// Validate rejects a pair that no module can generate.
func (r WrappingKeyRequest) Validate() error {
	if !r.Spec.Valid() {
		return Errorf(NotSupported, "there is no wrapping key type %+.32q", r.Spec)
	}
	return checkNamespace(r.Namespace)
}

// Validate rejects a key that no module can import. It does not check the algorithm, which must fit the pair in the module.
func (r ImportRequest) Validate() error { return checkMasterKey(r.Spec, r.Owner) }

// Validate rejects a key that no module can generate.
func (r GenerateKeyRequest) Validate() error {
	if r.Owner.Origin != OriginGenerated {
		return Errorf(NotSupported, "a generated key has the origin %s", OriginGenerated)
	}
	return checkMasterKey(r.Spec, r.Owner)
}

// Validate rejects a data key that no module can generate.
func (r GenerateRequest) Validate() error {
	if r.Length < 1 || r.Length > MaxDataKeyLen {
		return Errorf(NotSupported, "a data key has 1 to %d bytes", MaxDataKeyLen)
	}
	return nil
}

// Validate rejects a recipient or an algorithm with which no module can export. It returns the parsed public key of the
// recipient.
func (r ExportRequest) Validate() (*wrapping.PublicKey, error) {
	switch {
	case len(r.Recipient) == 0:
		return nil, Errorf(NotSupported, "there is no recipient's public key")
	case r.Algorithm == wrapping.RSAESPKCS1V15:
		return nil, Errorf(NotSupported, "%s is for import only: use %s", wrapping.RSAESPKCS1V15, wrapping.RSAESOAEPSHA256)
	case r.Algorithm == wrapping.SM2PKE && r.SM2Format != "" && !r.SM2Format.Valid():
		return nil, Errorf(NotSupported, "there is no SM2 ciphertext format %+.32q", r.SM2Format)
	}
	recipient, err := wrapping.ParseSPKI(r.Recipient)
	if err == nil {
		err = wrapping.CheckFit(recipient.Spec(), r.Algorithm)
	}
	if err != nil {
		return nil, Errorf(NotSupported, "%v", err)
	}
	return recipient, nil
}

func checkMasterKey(spec KeySpec, owner Owner) error {
	if err := owner.Validate(); err != nil {
		return err
	}
	if spec.Len() == 0 {
		return CheckMaterialLen(spec, 0)
	}
	return nil
}
