package kms_test

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"hash"
	"maps"
	"slices"
	"testing"

	"github.com/emmansun/gmsm/cbcmac"
	gmsm "github.com/emmansun/gmsm/sm2" // sm2 is taken here
	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

var errBare = errors.New("the bare loop met something wrong")

// bareSoftware has everything in memory and ready.
type bareSoftware struct {
	version uuid.UUID
	master  []byte
	mac     []byte
	rsa     *rsa.PrivateKey
	sm2     *gmsm.PrivateKey
	sealer  cipher.AEAD
	storage *hsmtest.Storage
	keys    map[uuid.UUID][]byte
}

func newBareSoftware(t testing.TB, version uuid.UUID, master []byte) *bareSoftware {
	t.Helper()
	s := &bareSoftware{version: version, master: master, mac: random(32), storage: &hsmtest.Storage{}, keys: map[uuid.UUID][]byte{}}
	var errs [4]error
	s.rsa, errs[0] = rsa.GenerateKey(rand.Reader, 2048)
	s.sm2, errs[1] = gmsm.GenerateKey(rand.Reader)
	block, err := aes.NewCipher(random(32))
	errs[2] = err
	s.sealer, errs[3] = cipher.NewGCM(block)
	if err := errors.Join(errs[:]...); err != nil {
		t.Fatal(err)
	}
	return s
}

// wrap wraps material under the keys and signs the token with the key that are here.
func (s *bareSoftware) wrap(t testing.TB, in wrappedMaterial) wrappedMaterial {
	t.Helper()
	public, err := wrapping.FromRSA(&s.rsa.PublicKey)
	if in.algorithm == wrapping.SM2PKE {
		public, err = wrapping.FromSM2(&s.sm2.PublicKey)
	}
	if err != nil {
		t.Fatal(err)
	}
	message := in.token[:len(in.token)-sha256.Size]
	in.token = append(message[:len(message):len(message)], s.tag(message)...)
	in.wrapped = wrap(t, public, in.algorithm, in.material)
	return in
}

func (s *bareSoftware) tag(message []byte) []byte {
	mac := hmac.New(sha256.New, s.mac)
	mac.Write(message)
	return mac.Sum(nil)
}

// bareBinding and the two below are the documented form of a blob.
func bareBinding(version uuid.UUID, encryptionContext map[string]string) [32]byte {
	var buf []byte
	part := func(s string) { buf = append(binary.BigEndian.AppendUint32(buf, uint32(len(s))), s...) }
	part("keyconvoy.io/binding/1")
	part(string(version[:]))
	for _, key := range slices.Sorted(maps.Keys(encryptionContext)) {
		part(key)
		part(encryptionContext[key])
	}
	return sha256.Sum256(buf)
}

func bareBlob(version uuid.UUID, scheme byte, payload []byte) string {
	return base64.StdEncoding.EncodeToString(append(append([]byte(version.String()), scheme), payload...))
}

func barePayload(version uuid.UUID, blob string) ([]byte, error) {
	raw, err := base64.StdEncoding.DecodeString(blob)
	if err != nil || len(raw) < 37 || string(raw[:36]) != version.String() || raw[36] != 1 {
		return nil, errBare
	}
	return raw[37:], nil
}

// derived is CKM_AES_ECB_ENCRYPT_DATA.
func (s *bareSoftware) derived(data [32]byte) (cipher.Block, error) {
	block, err := aes.NewCipher(s.master)
	if err != nil {
		return nil, err
	}
	defer clear(data[:])
	block.Encrypt(data[:], data[:])
	block.Encrypt(data[16:], data[16:])
	return aes.NewCipher(data[:])
}

func (s *bareSoftware) generate(encryptionContext map[string]string, length int) (string, error) {
	dataKey := make([]byte, length)
	defer clear(dataKey)
	_, _ = rand.Read(dataKey)
	binding := bareBinding(s.version, encryptionContext)
	if length%8 == 0 {
		kek, err := s.derived(binding)
		if err != nil {
			return "", err
		}
		return bareBlob(s.version, 1, bareKeyWrap(kek, dataKey)), nil
	}
	key, err := s.derived(sha256.Sum256(append([]byte("keyconvoy.io/derived-gcm/1"), binding[:]...)))
	if err != nil {
		return "", err
	}
	payload, err := bareSeal(key, binding, dataKey)
	return bareBlob(s.version, 2, payload), err
}

func bareSeal(block cipher.Block, binding [32]byte, dataKey []byte) ([]byte, error) {
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	iv := make([]byte, 12, 12+len(dataKey)+16)
	_, _ = rand.Read(iv)
	return aead.Seal(iv, iv, dataKey, binding[:]), nil
}

func (s *bareSoftware) export(blob string, encryptionContext map[string]string, algorithm wrapping.Algorithm, to *wrapping.PublicKey) ([]byte, error) {
	payload, err := barePayload(s.version, blob)
	if err != nil {
		return nil, err
	}
	kek, err := s.derived(bareBinding(s.version, encryptionContext))
	if err != nil {
		return nil, err
	}
	dataKey, err := bareKeyUnwrap(kek, payload)
	defer clear(dataKey)
	if err != nil {
		return nil, err
	}
	return bareEncrypt(algorithm, to, dataKey)
}

func bareEncrypt(algorithm wrapping.Algorithm, to *wrapping.PublicKey, dataKey []byte) ([]byte, error) {
	if algorithm == wrapping.SM2PKE {
		return gmsm.Encrypt(rand.Reader, to.SM2(), dataKey, nil)
	}
	return rsa.EncryptOAEP(bareHash(algorithm), rand.Reader, to.RSA(), dataKey, nil)
}

func bareHash(algorithm wrapping.Algorithm) hash.Hash {
	if algorithm == wrapping.RSAESOAEPSHA1 {
		return sha1.New()
	}
	return sha256.New()
}

func (s *bareSoftware) importKey(in wrappedMaterial) (fingerprint hsm.Fingerprint, undo func() error, err error) {
	message, tag := in.token[:len(in.token)-sha256.Size], in.token[len(in.token)-sha256.Size:]
	if !hmac.Equal(s.tag(message), tag) {
		return fingerprint, nil, errBare
	}
	var material []byte
	if in.algorithm == wrapping.SM2PKE {
		material, err = gmsm.Decrypt(s.sm2, in.wrapped)
	} else {
		material, err = rsa.DecryptOAEP(bareHash(in.algorithm), nil, s.rsa, in.wrapped, nil)
	}
	if err != nil {
		return fingerprint, nil, err
	}
	if fingerprint, err = bareFingerprint(material); err != nil {
		return fingerprint, nil, err
	}
	id := in.key.Primary.ID
	iv := make([]byte, 12, 12+len(material)+16)
	_, _ = rand.Read(iv)
	sealed := s.sealer.Seal(iv, iv, material, id[:])
	if err := s.storage.Save(context.Background(), id.String(), sealed); err != nil {
		return fingerprint, nil, err
	}
	s.keys[id] = material
	return fingerprint, func() error {
		clear(material)
		delete(s.keys, id)
		return s.storage.Delete(context.Background(), id.String())
	}, nil
}

func bareFingerprint(material []byte) (fingerprint hsm.Fingerprint, err error) {
	if len(material) != 32 {
		return fingerprint, errBare
	}
	block, err := aes.NewCipher(material)
	if err == nil {
		copy(fingerprint[:], cbcmac.NewCMAC(block, 16).MAC([]byte(hsm.FingerprintLabel)))
	}
	return fingerprint, err
}

// bareKeyWrap is RFC 3394, section 2.2.1, in its index form.
func bareKeyWrap(kek cipher.Block, key []byte) []byte {
	out := append([]byte{0xA6, 0xA6, 0xA6, 0xA6, 0xA6, 0xA6, 0xA6, 0xA6}, key...)
	var b [16]byte
	copy(b[:], out[:8])
	for t := range 6 * (len(key) / 8) {
		r := out[8+8*(t%(len(key)/8)):][:8]
		copy(b[8:], r)
		kek.Encrypt(b[:], b[:])
		binary.BigEndian.PutUint64(b[:], binary.BigEndian.Uint64(b[:])^uint64(t+1))
		copy(r, b[8:])
	}
	copy(out, b[:8])
	return out
}

// bareKeyUnwrap is RFC 3394, section 2.2.2.
func bareKeyUnwrap(kek cipher.Block, wrapped []byte) ([]byte, error) {
	key := slices.Clone(wrapped[8:])
	var b [16]byte
	copy(b[:], wrapped[:8])
	for t := 6*(len(key)/8) - 1; t >= 0; t-- {
		r := key[8*(t%(len(key)/8)):][:8]
		binary.BigEndian.PutUint64(b[:], binary.BigEndian.Uint64(b[:])^uint64(t+1))
		copy(b[8:], r)
		kek.Decrypt(b[:], b[:])
		copy(r, b[8:])
	}
	if !hmac.Equal(b[:8], []byte{0xA6, 0xA6, 0xA6, 0xA6, 0xA6, 0xA6, 0xA6, 0xA6}) {
		clear(key)
		return nil, errBare
	}
	return key, nil
}
