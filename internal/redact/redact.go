// Package redact contains types for key bytes and PINs that do not print: formatting, logging and marshaling give
// "[redacted]".
package redact

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
)

const redacted = "[redacted]"

// Bytes is secret material: a plaintext key or a PIN. It never prints. Wipe it after use.
type Bytes []byte

// Wipe overwrites the bytes with zeros. It is safe on a nil or empty value.
func (b Bytes) Wipe() { clear(b) }

// String implements fmt.Stringer.
func (Bytes) String() string { return redacted }

// Format implements fmt.Formatter, so that no verb (%x, %v, %q, %#v, …) reaches the bytes.
func (Bytes) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// MarshalText implements encoding.TextMarshaler, which encoding/json and YAML use too.
func (Bytes) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// MarshalJSON implements json.Marshaler.
func (Bytes) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }

// MarshalLog implements logr.Marshaler.
func (Bytes) MarshalLog() any { return redacted }

// LogValue implements slog.LogValuer.
func (Bytes) LogValue() slog.Value { return slog.StringValue(redacted) }

var (
	errStays  = errors.New("a secret that stays in this process cannot be encoded")
	errNoText = errors.New("a secret is sent in a binary encoding only")
)

// MarshalBinary implements encoding.BinaryMarshaler, which encoding/gob uses. It fails.
func (Bytes) MarshalBinary() ([]byte, error) { return nil, errStays }

// WireBytes is secret material in a request to another process of ours. It prints as little as Bytes does. A binary
// encoding (CBOR, encoding/gob) carries it. An encoding in text, which is what logs and files hold, fails, so that
// "[redacted]" is never sent for a PIN. Wipe it after use.
type WireBytes []byte

// Wipe overwrites the bytes with zeros. It is safe on a nil or empty value.
func (b WireBytes) Wipe() { clear(b) }

// String implements fmt.Stringer.
func (WireBytes) String() string { return redacted }

// Format implements fmt.Formatter, as for Bytes.
func (WireBytes) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// MarshalBinary implements encoding.BinaryMarshaler. It returns the bytes themselves: a copy would not be wiped.
func (b WireBytes) MarshalBinary() ([]byte, error) { return b, nil }

// UnmarshalBinary implements encoding.BinaryUnmarshaler.
func (b *WireBytes) UnmarshalBinary(data []byte) error {
	*b = bytes.Clone(data)
	return nil
}

// MarshalText implements encoding.TextMarshaler, which encoding/json and YAML use too. It fails.
func (WireBytes) MarshalText() ([]byte, error) { return nil, errNoText }

// MarshalLog implements logr.Marshaler.
func (WireBytes) MarshalLog() any { return redacted }

// LogValue implements slog.LogValuer.
func (WireBytes) LogValue() slog.Value { return slog.StringValue(redacted) }
