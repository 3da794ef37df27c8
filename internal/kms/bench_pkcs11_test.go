//go:build cgo

package kms_test

import (
	"context"
	"crypto/aes"
	"crypto/hmac"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"math/big"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"github.com/google/uuid"
	p11 "github.com/miekg/pkcs11" //nolint:depguard // it is what our layers are compared with

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
	"github.com/keyconvoy/keyconvoy/internal/hsm/pkcs11"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/redact"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

func init() {
	benchModules["SoftHSM"] = func(t testing.TB) *bench { return newTokenBench(t, tokens.SoftHSM(t)) }
	benchModules["NSS"] = func(t testing.TB) *bench { return newTokenBench(t, tokens.NSS(t)) }
}

func newTokenBench(t testing.TB, token tokens.Token) *bench {
	t.Helper()
	m, err := pkcs11.Open(t.Context(), pkcs11.Config{
		Config: hsm.Config{
			Library: "bench", Token: hsm.TokenSelector{Label: token.Label}, PIN: redact.WireBytes(token.PIN), Custody: hsm.CustodyHost,
		},
		Path: token.Path, Parameters: token.Parameters,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close(context.Background()) })
	n := &bench{o: kms.Operations{Module: m}}
	n.key = n.enable(t, hsm.AES256, random(32))
	n.bare = newBareToken(t, token, n)
	return n
}

// bareToken is one session, in which every key is found already. The library is initialised and the token
// logged in to by the module that it is compared with: both are once per process.
type bareToken struct {
	c       *p11.Ctx
	session p11.SessionHandle
	version uuid.UUID
	master  p11.ObjectHandle
	mac     p11.ObjectHandle
	inside  map[hsm.Operation]map[string]bool
	private map[uuid.UUID]p11.ObjectHandle
}

func newBareToken(t testing.TB, token tokens.Token, n *bench) *bareToken {
	t.Helper()
	k := &bareToken{
		c: p11.New(token.Path), version: n.key.Primary.ID, private: map[uuid.UUID]p11.ObjectHandle{},
		inside: map[hsm.Operation]map[string]bool{hsm.OperationImport: {}, hsm.OperationExport: {}, hsm.OperationGenerate: {}, hsm.OperationMasterKey: {}},
	}
	for _, c := range n.capabilities(t) {
		k.inside[c.Operation][c.Algorithm] = c.Custody == hsm.CustodyModule
	}
	slots, err := k.c.GetSlotList(true)
	if err != nil {
		t.Fatal(err)
	}
	for _, slot := range slots {
		info, err := k.c.GetTokenInfo(slot)
		if err != nil || strings.Trim(info.Label, " \x00") != token.Label {
			continue
		}
		if k.session, err = k.c.OpenSession(slot, p11.CKF_SERIAL_SESSION|p11.CKF_RW_SESSION); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { _ = k.c.CloseSession(k.session) })
	k.master, err = k.find(p11.NewAttribute(p11.CKA_CLASS, p11.CKO_SECRET_KEY), p11.NewAttribute(p11.CKA_ID, k.version[:]))
	if err == nil {
		k.mac, err = k.find(p11.NewAttribute(p11.CKA_CLASS, p11.CKO_SECRET_KEY), p11.NewAttribute(p11.CKA_LABEL, "keyconvoy:import-token"))
	}
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func (k *bareToken) find(template ...*p11.Attribute) (p11.ObjectHandle, error) {
	if err := k.c.FindObjectsInit(k.session, template); err != nil {
		return 0, err
	}
	handles, _, err := k.c.FindObjects(k.session, 1)
	if finalErr := k.c.FindObjectsFinal(k.session); err == nil {
		err = finalErr
	}
	if err == nil && len(handles) == 0 {
		err = errBare
	}
	return append(handles, 0)[0], err
}

func (k *bareToken) destroy(objects ...p11.ObjectHandle) error {
	for _, h := range objects {
		if err := k.c.DestroyObject(k.session, h); err != nil {
			return err
		}
	}
	return nil
}

func mechanism(number uint) []*p11.Mechanism { return []*p11.Mechanism{p11.NewMechanism(number, nil)} }

func bareOAEP(algorithm wrapping.Algorithm) []*p11.Mechanism {
	hash, mgf := uint(p11.CKM_SHA256), uint(p11.CKG_MGF1_SHA256)
	if algorithm == wrapping.RSAESOAEPSHA1 {
		hash, mgf = p11.CKM_SHA_1, p11.CKG_MGF1_SHA1
	}
	return []*p11.Mechanism{p11.NewMechanism(p11.CKM_RSA_PKCS_OAEP, p11.NewOAEPParams(hash, mgf, p11.CKZ_DATA_SPECIFIED, nil))}
}

// derive is CKM_AES_ECB_ENCRYPT_DATA, whose parameter is CK_KEY_DERIVATION_STRING_DATA of a 64-bit machine.
func (k *bareToken) derive(base p11.ObjectHandle, data []byte, template []*p11.Attribute) (p11.ObjectHandle, error) {
	var pinner runtime.Pinner
	defer pinner.Unpin()
	pinner.Pin(&data[0])
	parameter := make([]byte, 16)
	binary.NativeEndian.PutUint64(parameter, uint64(uintptr(unsafe.Pointer(&data[0]))))
	binary.NativeEndian.PutUint64(parameter[8:], uint64(len(data)))
	return k.c.DeriveKey(k.session, []*p11.Mechanism{p11.NewMechanism(p11.CKM_AES_ECB_ENCRYPT_DATA, parameter)}, base, template)
}

// kek derives a key that wraps or unwraps, and does nothing else.
func (k *bareToken) kek(binding [32]byte, usage uint) (p11.ObjectHandle, error) {
	template := []*p11.Attribute{
		p11.NewAttribute(p11.CKA_CLASS, p11.CKO_SECRET_KEY),
		p11.NewAttribute(p11.CKA_KEY_TYPE, p11.CKK_AES),
		p11.NewAttribute(p11.CKA_TOKEN, false),
		p11.NewAttribute(p11.CKA_PRIVATE, true),
		p11.NewAttribute(p11.CKA_SENSITIVE, true),
		p11.NewAttribute(p11.CKA_EXTRACTABLE, false),
		p11.NewAttribute(p11.CKA_VALUE_LEN, 32),
	}
	for _, flag := range []uint{p11.CKA_WRAP, p11.CKA_UNWRAP, p11.CKA_ENCRYPT, p11.CKA_DECRYPT, p11.CKA_SIGN, p11.CKA_VERIFY} {
		template = append(template, p11.NewAttribute(flag, flag == usage))
	}
	return k.derive(k.master, binding[:], template)
}

// secretKey is a session object; readable or sensitive.
func secretKey(keyType uint, readable bool, more ...*p11.Attribute) []*p11.Attribute {
	return append([]*p11.Attribute{
		p11.NewAttribute(p11.CKA_CLASS, p11.CKO_SECRET_KEY),
		p11.NewAttribute(p11.CKA_KEY_TYPE, keyType),
		p11.NewAttribute(p11.CKA_TOKEN, false),
		p11.NewAttribute(p11.CKA_SENSITIVE, !readable),
		p11.NewAttribute(p11.CKA_EXTRACTABLE, true),
	}, more...)
}

// derived derives and reads the value.
func (k *bareToken) derived(base p11.ObjectHandle, data []byte) ([]byte, error) {
	h, err := k.derive(base, data, secretKey(p11.CKK_GENERIC_SECRET, true, p11.NewAttribute(p11.CKA_VALUE_LEN, len(data))))
	if err != nil {
		return nil, err
	}
	return k.read(h, len(data))
}

// read reads a key's value and destroys the object.
func (k *bareToken) read(h p11.ObjectHandle, length int) ([]byte, error) {
	got, err := k.c.GetAttributeValue(k.session, h, []*p11.Attribute{p11.NewAttribute(p11.CKA_VALUE, nil)})
	if err != nil {
		return nil, err
	}
	if len(got[0].Value) != length {
		return nil, errBare
	}
	return got[0].Value, k.destroy(h)
}

func (k *bareToken) generate(encryptionContext map[string]string, length int) (string, error) {
	binding := bareBinding(k.version, encryptionContext)
	if length%8 != 0 {
		return k.generateOnHost(binding, length)
	}
	kek, err := k.kek(binding, p11.CKA_WRAP)
	if err != nil {
		return "", err
	}
	dataKey, err := k.c.GenerateKey(k.session, mechanism(p11.CKM_GENERIC_SECRET_KEY_GEN),
		secretKey(p11.CKK_GENERIC_SECRET, false, p11.NewAttribute(p11.CKA_PRIVATE, true), p11.NewAttribute(p11.CKA_VALUE_LEN, length)))
	if err != nil {
		return "", err
	}
	payload, err := k.c.WrapKey(k.session, mechanism(p11.CKM_AES_KEY_WRAP), kek, dataKey)
	if err != nil || len(payload) != length+8 {
		return "", errBare
	}
	return bareBlob(k.version, 1, payload), k.destroy(kek, dataKey)
}

func (k *bareToken) generateOnHost(binding [32]byte, length int) (string, error) {
	dataKey, err := k.c.GenerateRandom(k.session, length)
	if err != nil {
		return "", err
	}
	defer clear(dataKey)
	data := sha256.Sum256(append([]byte("keyconvoy.io/derived-gcm/1"), binding[:]...))
	key, err := k.derived(k.master, data[:])
	if err != nil {
		return "", err
	}
	defer clear(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		return "", err
	}
	payload, err := bareSeal(block, binding, dataKey)
	return bareBlob(k.version, 2, payload), err
}

func (k *bareToken) export(blob string, encryptionContext map[string]string, algorithm wrapping.Algorithm, to *wrapping.PublicKey) ([]byte, error) {
	payload, err := barePayload(k.version, blob)
	if err != nil {
		return nil, err
	}
	kek, err := k.kek(bareBinding(k.version, encryptionContext), p11.CKA_UNWRAP)
	if err != nil {
		return nil, err
	}
	inside := k.inside[hsm.OperationExport][string(algorithm)]
	dataKey, err := k.c.UnwrapKey(k.session, mechanism(p11.CKM_AES_KEY_WRAP), kek, payload, secretKey(p11.CKK_GENERIC_SECRET, !inside))
	if err != nil {
		return nil, err
	}
	if !inside {
		plain, err := k.read(dataKey, len(payload)-8)
		defer clear(plain)
		if err != nil {
			return nil, err
		}
		if err := k.destroy(kek); err != nil {
			return nil, err
		}
		return bareEncrypt(algorithm, to, plain)
	}
	recipient, err := k.c.CreateObject(k.session, bareRecipient(to.RSA()))
	if err != nil {
		return nil, err
	}
	exported, err := k.c.WrapKey(k.session, bareOAEP(algorithm), recipient, dataKey)
	if err != nil {
		return nil, err
	}
	return exported, k.destroy(kek, dataKey, recipient)
}

func bareRecipient(key *rsa.PublicKey) []*p11.Attribute {
	return []*p11.Attribute{
		p11.NewAttribute(p11.CKA_CLASS, p11.CKO_PUBLIC_KEY),
		p11.NewAttribute(p11.CKA_KEY_TYPE, p11.CKK_RSA),
		p11.NewAttribute(p11.CKA_TOKEN, false),
		p11.NewAttribute(p11.CKA_MODULUS, key.N.Bytes()),
		p11.NewAttribute(p11.CKA_PUBLIC_EXPONENT, big.NewInt(int64(key.E)).Bytes()),
		p11.NewAttribute(p11.CKA_WRAP, true),
		p11.NewAttribute(p11.CKA_ENCRYPT, true),
	}
}

// importKey unwraps a copy on which the material is measured and fingerprinted, since a key that cannot
// leave the token cannot be measured, and SoftHSM takes any length; then the key itself.
func (k *bareToken) importKey(in wrappedMaterial) (fingerprint hsm.Fingerprint, undo func() error, err error) {
	message, tag := in.token[:len(in.token)-sha256.Size], in.token[len(in.token)-sha256.Size:]
	if err := k.c.SignInit(k.session, mechanism(p11.CKM_SHA256_HMAC), k.mac); err != nil {
		return fingerprint, nil, err
	}
	if want, err := k.c.Sign(k.session, message); err != nil || !hmac.Equal(want, tag) {
		return fingerprint, nil, errBare
	}
	private, ok := k.private[in.pairID]
	if !ok {
		private, err = k.find(p11.NewAttribute(p11.CKA_CLASS, p11.CKO_PRIVATE_KEY), p11.NewAttribute(p11.CKA_ID, in.pairID[:]))
		if err != nil {
			return fingerprint, nil, err
		}
		k.private[in.pairID] = private
	}
	if !k.inside[hsm.OperationImport][string(in.algorithm)] {
		return k.importOnHost(in, private)
	}
	material, err := k.c.UnwrapKey(k.session, bareOAEP(in.algorithm), private, in.wrapped,
		secretKey(p11.CKK_AES, false, p11.NewAttribute(p11.CKA_PRIVATE, true), p11.NewAttribute(p11.CKA_DERIVE, true)))
	if err != nil {
		return fingerprint, nil, err
	}
	if fingerprint, err = k.fingerprint(material); err != nil {
		return fingerprint, nil, err
	}
	if err := k.measure(material); err != nil {
		return fingerprint, nil, err
	}
	id := in.key.Primary.ID
	made, err := k.c.UnwrapKey(k.session, bareOAEP(in.algorithm), private, in.wrapped, bareMaster(id))
	if err != nil {
		return fingerprint, nil, err
	}
	return fingerprint, func() error { return k.destroy(made) }, k.destroy(material)
}

// importOnHost removes the padding on the host. No library in reach does that alone, so it is ours in both.
func (k *bareToken) importOnHost(in wrappedMaterial, private p11.ObjectHandle) (fingerprint hsm.Fingerprint, undo func() error, err error) {
	if err := k.c.DecryptInit(k.session, mechanism(p11.CKM_RSA_X_509), private); err != nil {
		return fingerprint, nil, err
	}
	encoded, err := k.c.Decrypt(k.session, in.wrapped)
	if err != nil {
		return fingerprint, nil, err
	}
	defer clear(encoded)
	material, err := wrapping.RemoveOAEP(in.algorithm, encoded)
	defer clear(material)
	if err != nil {
		return fingerprint, nil, err
	}
	if fingerprint, err = bareFingerprint(material); err != nil {
		return fingerprint, nil, err
	}
	made, err := k.c.CreateObject(k.session, append(bareMaster(in.key.Primary.ID), p11.NewAttribute(p11.CKA_VALUE, material)))
	return fingerprint, func() error { return k.destroy(made) }, err
}

// bareMaster is a token object that derives and does nothing else.
func bareMaster(id uuid.UUID) []*p11.Attribute {
	template := []*p11.Attribute{
		p11.NewAttribute(p11.CKA_CLASS, p11.CKO_SECRET_KEY),
		p11.NewAttribute(p11.CKA_KEY_TYPE, p11.CKK_AES),
		p11.NewAttribute(p11.CKA_TOKEN, true),
		p11.NewAttribute(p11.CKA_PRIVATE, true),
		p11.NewAttribute(p11.CKA_SENSITIVE, true),
		p11.NewAttribute(p11.CKA_EXTRACTABLE, false),
		p11.NewAttribute(p11.CKA_DERIVE, true),
		p11.NewAttribute(p11.CKA_ID, id[:]),
		p11.NewAttribute(p11.CKA_LABEL, "keyconvoy:key:"+id.String()+":AES_256:"),
	}
	for _, flag := range []uint{p11.CKA_ENCRYPT, p11.CKA_DECRYPT, p11.CKA_WRAP, p11.CKA_UNWRAP, p11.CKA_SIGN, p11.CKA_VERIFY} {
		template = append(template, p11.NewAttribute(flag, false))
	}
	return template
}

// fingerprint is the CMAC of one block (NIST SP 800-38B) by two derivations.
func (k *bareToken) fingerprint(h p11.ObjectHandle) (fingerprint hsm.Fingerprint, err error) {
	l, err := k.derived(h, make([]byte, 16))
	if err != nil {
		return fingerprint, err
	}
	n := new(big.Int).SetBytes(l)
	carry := n.Bit(127)
	n.Lsh(n, 1).SetBit(n, 128, 0)
	if carry == 1 {
		n.Xor(n, big.NewInt(0x87))
	}
	block := n.FillBytes(make([]byte, 16))
	for i := range block {
		block[i] ^= hsm.FingerprintLabel[i]
	}
	tag, err := k.derived(h, block)
	copy(fingerprint[:], tag)
	return fingerprint, err
}

// measure wraps a key: RFC 3394 adds 8 bytes.
func (k *bareToken) measure(h p11.ObjectHandle) error {
	with, err := k.c.GenerateKey(k.session, mechanism(p11.CKM_AES_KEY_GEN),
		secretKey(p11.CKK_AES, false, p11.NewAttribute(p11.CKA_VALUE_LEN, 32), p11.NewAttribute(p11.CKA_WRAP, true)))
	if err != nil {
		return err
	}
	wrapped, err := k.c.WrapKey(k.session, mechanism(p11.CKM_AES_KEY_WRAP), with, h)
	if err == nil && len(wrapped) != 32+8 {
		err = errBare
	}
	if destroyErr := k.destroy(with); err == nil {
		err = destroyErr
	}
	return err
}
