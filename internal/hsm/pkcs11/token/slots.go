//go:build cgo

package token

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
)

// identity is what a token reports about itself, without padding.
type identity struct{ label, serial, model string }

func identityOf(info p11.TokenInfo) identity {
	return identity{label: trim(info.Label), serial: trim(info.SerialNumber), model: trim(info.Model)}
}

// selector is an hsm.TokenSelector without padding.
type selector hsm.TokenSelector

func newSelector(s hsm.TokenSelector) selector {
	return selector{Label: trim(s.Label), Serial: trim(s.Serial), Model: trim(s.Model)}
}

func trim(s string) string { return strings.Trim(s, " \x00") }

func (s selector) matches(id identity) bool {
	return s.Label == id.label && (s.Serial == "" || s.Serial == id.serial) && (s.Model == "" || s.Model == id.model)
}

// String returns the selector as a message shows it.
func (s selector) String() string {
	text := fmt.Sprintf("label %q", printableName(s.Label))
	if s.Serial != "" {
		text += fmt.Sprintf(", serial %q", printableName(s.Serial))
	}
	if s.Model != "" {
		text += fmt.Sprintf(", model %q", printableName(s.Model))
	}
	return text
}

// slot is a slot with the token in it.
type slot struct {
	slotID uint
	identity
	info p11.TokenInfo
}

// findSlot finds the slot of the one token that matches the selector. Two matching tokens are an error, because only one of
// them has the keys.
func findSlot(c Cryptoki, want selector) (slot, error) {
	all, err := allSlots(c)
	if err != nil {
		return slot{}, err
	}
	matching := slices.DeleteFunc(slices.Clone(all), func(s slot) bool { return !want.matches(s.identity) })
	switch len(matching) {
	case 1:
		return matching[0], nil
	case 0:
		return slot{}, &missingError{decision: noMatch(want, all)}
	}
	return slot{}, hsm.Errorf(hsm.Misconfigured,
		"%d tokens match %s: narrow the selection by serial or model; they are %s", len(matching), want, describeSlots(matching))
}

// allSlots returns the slots with a token.
func allSlots(c Cryptoki) ([]slot, error) {
	ids, err := c.GetSlotList(true)
	if err != nil {
		return nil, callError("C_GetSlotList", err)
	}
	var all []slot
	for _, id := range ids {
		info, err := c.GetTokenInfo(id)
		if HasCode(err, p11.CKR_TOKEN_NOT_PRESENT, p11.CKR_TOKEN_NOT_RECOGNIZED, p11.CKR_DEVICE_REMOVED) {
			continue // a failure of one slot does not matter to the others
		}
		if err != nil {
			return nil, callError("C_GetTokenInfo", err)
		}
		all = append(all, slot{slotID: id, identity: identityOf(info), info: info})
	}
	return all, nil
}

// noMatch returns the error for a selector that matches no token. If the library shows no token at all, its device is down or
// not connected (a library that forwards calls shows none without its server). That may pass, and no change of the
// configuration repairs it.
func noMatch(want selector, all []slot) *hsm.Error {
	if len(all) == 0 {
		return hsm.Errorf(hsm.Unavailable,
			"the library shows no token at all: check that the device is connected, or that the service which the library connects to runs")
	}
	return hsm.Errorf(hsm.Misconfigured, "there is no token with %s; %s", want, describeLabels(all))
}

// addDetail adds a sentence to the text of a missing token that is Misconfigured. Other errors stay as they are.
func addDetail(err error, sentence string) error {
	var e *missingError
	if !errors.As(err, &e) || e.decision.Kind != hsm.Misconfigured {
		return err
	}
	return &missingError{decision: hsm.Errorf(e.decision.Kind, "%s; %s", e.decision.Detail, sentence)}
}

// maxNamed bounds how many tokens a message names.
const maxNamed = 8

func describeLabels(slots []slot) string {
	var labels []string
	for _, s := range slots {
		if s.label != "" { // a token without a label is not initialized
			labels = append(labels, fmt.Sprintf("%q", printableName(s.label)))
		}
	}
	slices.Sort(labels)
	labels = slices.Compact(labels)
	if len(labels) == 0 {
		return "the library shows only tokens that are not initialized"
	}
	return "the library shows " + list(labels)
}

func describeSlots(slots []slot) string {
	names := make([]string, len(slots))
	for i, s := range slots {
		names[i] = fmt.Sprintf("serial %q model %q in slot %d", printableName(s.serial), printableName(s.model), s.slotID)
	}
	slices.Sort(names)
	return list(names)
}

func list(names []string) string {
	if more := len(names) - maxNamed; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:maxNamed], ", "), more)
	}
	return strings.Join(names, ", ")
}

// printableName makes a name from a configuration or a token safe for a message: ASCII, and no longer than a label
// (PKCS #11 v2.40 base, section 3.2, CK_TOKEN_INFO).
func printableName(s string) string { return printable(s, 32) }

// printable returns at most maxLen bytes of s, with ? for each byte that is not printable ASCII.
func printable(s string, maxLen int) string {
	out := []byte(s)
	for i, b := range out {
		if b < ' ' || b > '~' {
			out[i] = '?'
		}
	}
	return string(out[:min(len(out), maxLen)])
}
