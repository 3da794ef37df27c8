//go:build cgo

package pkcs11

import (
	"fmt"
	"slices"
	"strings"

	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
)

// tokenID is what a token says of itself, trimmed.
type tokenID struct{ label, serial, model string }

func tokenIDOf(info p11.TokenInfo) tokenID {
	return tokenID{label: trim(info.Label), serial: trim(info.SerialNumber), model: trim(info.Model)}
}

func trim(s string) string { return strings.Trim(s, " \x00") }

func (t TokenSelector) matches(id tokenID) bool {
	serial, model := trim(t.Serial), trim(t.Model)
	return trim(t.Label) == id.label && (serial == "" || serial == id.serial) && (model == "" || model == id.model)
}

// String says what is looked for.
func (t TokenSelector) String() string {
	s := fmt.Sprintf("label %q", printable(trim(t.Label)))
	if serial := trim(t.Serial); serial != "" {
		s += fmt.Sprintf(", serial %q", printable(serial))
	}
	if model := trim(t.Model); model != "" {
		s += fmt.Sprintf(", model %q", printable(model))
	}
	return s
}

// found is a token in a slot.
type found struct {
	slot uint
	id   tokenID
	info p11.TokenInfo
}

// selectToken finds the one token that the selector means. Two that match are an error: which of them
// holds the keys is not for chance to say.
func selectToken(c cryptoki, want TokenSelector) (found, error) {
	slots, err := c.GetSlotList(true)
	if err != nil {
		return found{}, called("C_GetSlotList", err)
	}
	var matching, all []found
	for _, slot := range slots {
		info, err := c.GetTokenInfo(slot)
		if isCode(err, p11.CKR_TOKEN_NOT_PRESENT, p11.CKR_TOKEN_NOT_RECOGNIZED, p11.CKR_DEVICE_REMOVED) {
			continue // another slot's trouble is not ours
		}
		if err != nil {
			return found{}, called("C_GetTokenInfo", err)
		}
		f := found{slot: slot, id: tokenIDOf(info), info: info}
		all = append(all, f)
		if want.matches(f.id) {
			matching = append(matching, f)
		}
	}
	switch len(matching) {
	case 1:
		return matching[0], nil
	case 0:
		return found{}, &noTokenError{decision: hsm.Errorf(hsm.Misconfigured, "there is no token with %s; %s", want, describeLabels(all))}
	}
	return found{}, hsm.Errorf(hsm.Misconfigured,
		"%d tokens match %s: narrow the selection by serial or model; they are %s", len(matching), want, describeTokens(matching))
}

// noTokenError tells the one failure of selectToken that another look may cure.
type noTokenError struct{ decision *hsm.Error }

func (e *noTokenError) Error() string { return e.decision.Error() }
func (e *noTokenError) Unwrap() error { return e.decision }

// maxNamed bounds how many tokens a message names.
const maxNamed = 8

func describeLabels(tokens []found) string {
	var labels []string
	for _, t := range tokens {
		if t.id.label != "" { // a slot with a token that is not initialised
			labels = append(labels, fmt.Sprintf("%q", printable(t.id.label)))
		}
	}
	slices.Sort(labels)
	labels = slices.Compact(labels)
	if len(labels) == 0 {
		return "the library shows no token that is initialised"
	}
	return "the library shows " + listed(labels)
}

func describeTokens(tokens []found) string {
	names := make([]string, len(tokens))
	for i, t := range tokens {
		names[i] = fmt.Sprintf("serial %q model %q in slot %d", printable(t.id.serial), printable(t.id.model), t.slot)
	}
	slices.Sort(names)
	return listed(names)
}

func listed(names []string) string {
	if more := len(names) - maxNamed; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:maxNamed], ", "), more)
	}
	return strings.Join(names, ", ")
}

// printable makes text from a configuration or a token fit for a message: ASCII, and no longer than a
// label (PKCS #11 v2.40 base, section 3.2, CK_TOKEN_INFO).
func printable(s string) string {
	const longest = 32
	out := []byte(s)
	for i, b := range out {
		if b < ' ' || b > '~' {
			out[i] = '?'
		}
	}
	return string(out[:min(len(out), longest)])
}
