package ciphertext

import (
	"crypto/cipher"
	"encoding/binary"
)

// The key of KDFKeyWrap and KDFGCM, by the KDF in counter mode of NIST SP 800-108r1 (section 4.1) with AES-CMAC, a counter of 32
// bits, and a length of 32 bits at the end:
//
//	K(i) = CMAC(master key, [i] ‖ label ‖ 0x00 ‖ binding ‖ [256]) for i = 1, 2

const (
	kdfKeyWrapLabel = "keyconvoy.io/kdf-key-wrap/1"
	kdfGCMLabel     = "keyconvoy.io/kdf-gcm/1"
	kdfKeyBits      = 256
	kdfBlocks       = kdfKeyBits / 8 / 16
)

// KDFInput returns the fixed input data of the KDF of a scheme: what follows the counter.
func (b Binding) KDFInput(scheme Scheme) []byte {
	label := kdfGCMLabel
	if scheme == KDFKeyWrap {
		label = kdfKeyWrapLabel
	}
	input := make([]byte, 0, len(label)+1+len(b)+4)
	input = append(input, label...)
	input = append(input, 0)
	input = append(input, b[:]...)
	return binary.BigEndian.AppendUint32(input, kdfKeyBits)
}

// KDFMessages returns the messages of which a scheme's key is the CMACs, one after the other, for a module that computes CMACs.
func (b Binding) KDFMessages(scheme Scheme) [][]byte {
	messages := make([][]byte, kdfBlocks)
	for i := range messages {
		messages[i] = binary.BigEndian.AppendUint32(nil, uint32(i+1))
		messages[i] = append(messages[i], b.KDFInput(scheme)...)
	}
	return messages
}

func deriveByKDF(master cipher.Block, scheme Scheme, binding Binding) []byte {
	key := make([]byte, 0, kdfKeyBits/8)
	for _, message := range binding.KDFMessages(scheme) {
		tag := cmac(master, message)
		key = append(key, tag[:]...)
		clear(tag[:])
	}
	return key
}

// cmac computes a CMAC (NIST SP 800-38B, section 6.2) with a cipher of 128-bit blocks. Other implementations leave the result,
// which is a key here, in memory.
func cmac(block cipher.Block, message []byte) (tag [16]byte) {
	var subkey [16]byte
	defer clear(subkey[:])
	block.Encrypt(subkey[:], subkey[:])
	double(&subkey)
	for ; len(message) > len(tag); message = message[len(tag):] {
		xor(&tag, message[:len(tag)])
		block.Encrypt(tag[:], tag[:])
	}
	xor(&tag, message)
	if len(message) < len(tag) {
		tag[len(message)] ^= 0x80
		double(&subkey)
	}
	xor(&tag, subkey[:])
	block.Encrypt(tag[:], tag[:])
	return tag
}

// double multiplies by x in GF(2^128) (NIST SP 800-38B, section 6.1).
func double(b *[16]byte) {
	carry := b[0] >> 7
	for i := range len(b) - 1 {
		b[i] = b[i]<<1 | b[i+1]>>7
	}
	b[15] = b[15]<<1 ^ carry*0x87
}

func xor(b *[16]byte, with []byte) {
	for i := range with {
		b[i] ^= with[i]
	}
}
