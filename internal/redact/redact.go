// Package redact holds key bytes and PINs in types that do not print: whatever formats, logs or
// marshals them sees "[redacted]".
package redact

import (
	"fmt"
	"io"
	"log/slog"
)

const redacted = "[redacted]"

// Bytes is secret material: a plaintext key or a PIN. It never prints; Wipe it when done.
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
