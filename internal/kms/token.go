package kms

import (
	"context"
	"crypto/subtle"
	"encoding/binary"
	"math"
	"time"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// TokenLifetime is the validity of a key pair and its token.
const TokenLifetime = 24 * time.Hour

// importToken binds material to a key and to a pair. Its binary form is
//
//	version (1) ‖ key ID (16) ‖ pair ID (16) ‖ expiry in Unix seconds (8) ‖ length (1) ‖ algorithm ‖ tag (32)
//
// where the tag is the module's tag over all preceding bytes.
type importToken struct {
	keyID     uuid.UUID
	pairID    uuid.UUID
	expires   time.Time
	algorithm wrapping.Algorithm
}

const (
	tokenVersion = 1
	tokenTagLen  = 32
	tokenMinLen  = 1 + 16 + 16 + 8 + 1 + tokenTagLen
)

func (t importToken) message() []byte {
	b := append([]byte{tokenVersion}, t.keyID[:]...)
	b = append(b, t.pairID[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(t.expires.Unix())) //nolint:gosec // no date before 1970 is issued
	b = append(b, byte(len(t.algorithm)))                          //nolint:gosec // algorithm names are short
	return append(b, t.algorithm...)
}

func (t importToken) seal(ctx context.Context, module hsm.Authenticator) ([]byte, error) {
	message := t.message()
	tag, err := module.Authenticate(ctx, message)
	if err != nil {
		return nil, FromModule(err)
	}
	return append(message, tag...), nil
}

// parseToken splits a token without verifying it.
func parseToken(raw []byte) (token importToken, tag []byte, ok bool) {
	if len(raw) < tokenMinLen || raw[0] != tokenVersion {
		return importToken{}, nil, false
	}
	body, tag := raw[1:len(raw)-tokenTagLen], raw[len(raw)-tokenTagLen:]
	copy(token.keyID[:], body)
	copy(token.pairID[:], body[16:])
	seconds := binary.BigEndian.Uint64(body[32:])
	algorithm := body[41:]
	if seconds > math.MaxInt32*1000 || int(body[40]) != len(algorithm) {
		return importToken{}, nil, false
	}
	token.expires = time.Unix(int64(seconds), 0)
	token.algorithm = wrapping.Algorithm(algorithm)
	return token, tag, true
}

// openToken returns the content of a token after verifying its tag and that it belongs to the key.
func (o Operations) openToken(ctx context.Context, key Key, raw []byte) (importToken, error) {
	badToken := &Error{
		Code:   InvalidImportToken,
		Detail: "It is damaged, or belongs to another key or key store. Use the token that was published together with the public key.",
	}
	token, tag, ok := parseToken(raw)
	if !ok {
		return importToken{}, badToken
	}
	want, err := o.Module.Authenticate(ctx, raw[:len(raw)-tokenTagLen])
	if err != nil {
		return importToken{}, FromModule(err)
	}
	if subtle.ConstantTimeCompare(want, tag) != 1 || token.keyID != key.ID {
		return importToken{}, badToken
	}
	if !o.now().Before(token.expires) {
		return importToken{}, &Error{
			Code:   ExpiredImportToken,
			Detail: "Wrap the material again under the current public key, and use the token that was published with that key.",
		}
	}
	return token, nil
}

func (o Operations) now() time.Time {
	if o.Now == nil {
		return time.Now() //nolint:forbidigo // the only use of the wall clock
	}
	return o.Now()
}
