package hsm

import (
	"crypto/aes"
	"crypto/cipher"

	"github.com/emmansun/gmsm/cbcmac"
	"github.com/emmansun/gmsm/sm4"
)

// NewCipher returns the block cipher of a master key on the host: AES or SM4 under its material. It fails as CheckMaterialLen
// does. The cipher has a copy of the material that cannot be wiped, so do not keep it.
func NewCipher(spec KeySpec, material []byte) (cipher.Block, error) {
	if err := CheckMaterialLen(spec, len(material)); err != nil {
		return nil, err
	}
	newCipher := aes.NewCipher
	if spec == SM4 {
		newCipher = sm4.NewCipher
	}
	block, err := newCipher(material)
	if err != nil {
		return nil, Wrap(Internal, err, "")
	}
	return block, nil
}

// CheckMaterialLen returns MaterialLength if a key of that type does not have n bytes, and NotSupported for an unknown type.
func CheckMaterialLen(spec KeySpec, n int) error {
	switch spec.Len() {
	case 0:
		return Errorf(NotSupported, "there is no key type %+.32q", spec)
	case n:
		return nil
	}
	return Errorf(MaterialLength, "the material must be %d bytes long for %s, and it has %d", spec.Len(), spec, n)
}

// FingerprintOf computes a fingerprint on the host. The software store uses it, and self-tests compare it with the result of a
// module. It fails as NewCipher does.
func FingerprintOf(spec KeySpec, material []byte) (Fingerprint, error) {
	block, err := NewCipher(spec, material)
	if err != nil {
		return Fingerprint{}, err
	}
	var f Fingerprint
	copy(f[:], cbcmac.NewCMAC(block, len(f)).MAC([]byte(FingerprintLabel)))
	return f, nil
}
