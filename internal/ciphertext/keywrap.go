package ciphertext

import (
	"crypto/aes"
	"crypto/subtle"
	"encoding/binary"
	"errors"
)

// AES Key Wrap with the default initial value (RFC 3394, section 2.2). Other implementations, such as that of
// go-jose, leave copies of keys in memory.

const keyWrapIV = 0xA6A6A6A6A6A6A6A6

// wrapKey wraps a key of whole 64-bit blocks, two at the least.
func wrapKey(kek, key []byte) ([]byte, error) {
	if len(key) < 16 || len(key)%8 != 0 {
		return nil, errors.New("RFC 3394 wraps 16 bytes or more, in whole blocks of 8")
	}
	block, err := aes.NewCipher(kek)
	if err != nil {
		return nil, err
	}
	out := make([]byte, 8+len(key))
	copy(out[8:], key)
	var buf [16]byte // A ‖ R[i]
	defer clear(buf[:])
	binary.BigEndian.PutUint64(buf[:8], keyWrapIV)
	n := len(key) / 8
	for j := range 6 {
		for i := 1; i <= n; i++ {
			copy(buf[8:], out[8*i:])
			block.Encrypt(buf[:], buf[:])
			xorCounter(&buf, n*j+i)
			copy(out[8*i:], buf[8:])
		}
	}
	copy(out, buf[:8])
	return out, nil
}

// unwrapKey is the inverse of wrapKey; it fails with ErrOpen only.
func unwrapKey(kek, wrapped []byte) ([]byte, error) {
	if len(wrapped) < 24 || len(wrapped)%8 != 0 {
		return nil, ErrOpen
	}
	block, err := aes.NewCipher(kek)
	if err != nil {
		return nil, err
	}
	key := append([]byte(nil), wrapped[8:]...)
	var buf [16]byte
	defer clear(buf[:])
	copy(buf[:8], wrapped)
	n := len(key) / 8
	for j := 5; j >= 0; j-- {
		for i := n; i >= 1; i-- {
			xorCounter(&buf, n*j+i)
			copy(buf[8:], key[8*(i-1):])
			block.Decrypt(buf[:], buf[:])
			copy(key[8*(i-1):], buf[8:])
		}
	}
	var want [8]byte
	binary.BigEndian.PutUint64(want[:], keyWrapIV)
	if subtle.ConstantTimeCompare(buf[:8], want[:]) != 1 {
		clear(key)
		return nil, ErrOpen
	}
	return key, nil
}

func xorCounter(buf *[16]byte, t int) {
	binary.BigEndian.PutUint64(buf[:8], binary.BigEndian.Uint64(buf[:8])^uint64(t)) //nolint:gosec // t is positive
}
