//go:build cgo

package faults

import (
	"fmt"
	"slices"
	"strings"

	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/faulty"
)

// Case is a fault and what to expect.
type Case struct {
	Name  string
	Fault faulty.Fault
	// Provoked is another fault, without which the functions of the first one are not called.
	Provoked faulty.Fault
}

// The return codes that cases use.
const (
	ckrHostMemory   = 0x02
	ckrDeviceError  = 0x30
	ckrPINIncorrect = 0xa0
)

// openingFunctions are called only while a module is opened or closed, or while it reconnects.
var openingFunctions = []string{
	"C_Initialize", "C_Finalize", "C_GetSlotList", "C_GetTokenInfo", "C_OpenSession", "C_CloseSession", "C_Login",
	"C_Logout", "C_CopyObject", "C_SetAttributeValue", "C_FindObjectsInit", "C_FindObjects", "C_FindObjectsFinal",
}

// reopens returns whether the module must be opened again for the fault to happen.
func (c Case) reopens() bool {
	return slices.ContainsFunc(c.Fault.Functions, func(f string) bool { return slices.Contains(openingFunctions, f) }) ||
		c.Fault.Kind == faulty.Leak || c.Fault.Kind == faulty.Limit
}

// pairFunctions are those whose failure can leave half a key pair or two.
var pairFunctions = []string{
	"C_GenerateKeyPair", "C_FindObjectsInit", "C_FindObjects", "C_FindObjectsFinal", "C_GetAttributeValue", "C_DestroyObject",
}

// pairs returns whether the load must create key pairs, which takes long.
func (c Case) pairs() bool {
	return len(c.Fault.Functions) == 0 || slices.ContainsFunc(c.Fault.Functions, func(f string) bool { return slices.Contains(pairFunctions, f) })
}

// kind is a row of the matrix.
type kind struct {
	name     string
	fault    faulty.Fault
	survived bool // by a process that uses the library itself
}

// kinds are the faults that can happen in each function. Those that happen once are not ended by the test.
var kinds = []kind{
	{name: "SIGSEGV once", fault: faulty.Fault{Kind: faulty.Segv, Times: 1}},
	{name: "SIGKILL", fault: faulty.Fault{Kind: faulty.Kill}},
	{name: "exit once", fault: faulty.Fault{Kind: faulty.Exit, Times: 1}},
	{name: "an endless hang", fault: faulty.Fault{Kind: faulty.Hang, Times: 1}},
	{name: "a hang for a while", fault: faulty.Fault{Kind: faulty.Hang}},
	{name: "CKR_DEVICE_ERROR for one call in ten", fault: faulty.Fault{Kind: faulty.Code, Parameter: ckrDeviceError, Every: 10}, survived: true},
	{name: "CKR_DEVICE_ERROR", fault: faulty.Fault{Kind: faulty.Code, Parameter: ckrDeviceError}, survived: true},
	{name: "CKR_HOST_MEMORY", fault: faulty.Fault{Kind: faulty.Code, Parameter: ckrHostMemory}, survived: true},
	{name: "garbage", fault: faulty.Fault{Kind: faulty.Garbage}, survived: true},
}

// results are the functions that return more than a code, which can be garbage when the call has taken effect.
var results = []string{
	"C_GetSlotList", "C_GetTokenInfo", "C_OpenSession", "C_GetSessionInfo", "C_CreateObject", "C_CopyObject", "C_GetAttributeValue",
	"C_FindObjects", "C_Decrypt", "C_Sign", "C_GenerateKey", "C_GenerateKeyPair", "C_WrapKey", "C_UnwrapKey", "C_DeriveKey", "C_GenerateRandom",
}

// secretKeys are the functions that make secret keys.
var secretKeys = []string{"C_CreateObject", "C_GenerateKey", "C_UnwrapKey", "C_DeriveKey"}

// Matrix returns each fault before and inside each function. crashes includes those that end a process or hang in it.
func Matrix(crashes bool) (cases []Case) {
	for _, k := range kinds {
		if !k.survived && !crashes {
			continue
		}
		for _, function := range faulty.Functions() {
			for _, inside := range []bool{false, true} {
				if k.fault.Kind == faulty.Garbage && inside && !slices.Contains(results, function) {
					continue
				}
				fault := k.fault
				fault.Functions, fault.Inside = []string{function}, inside
				where := "before"
				if inside {
					where = "inside"
				}
				c := Case{Name: fmt.Sprintf("%s %s %s", k.name, where, function), Fault: fault}
				if function == "C_GetSessionInfo" { // is called while a module reconnects
					c.Provoked = faulty.Fault{Kind: faulty.Code, Parameter: ckrDeviceError, Functions: []string{"C_DeriveKey"}, Times: 1}
				}
				cases = append(cases, c)
			}
		}
	}
	for _, function := range secretKeys {
		cases = append(cases, Case{Name: "another key from " + function, Fault: faulty.Fault{Kind: faulty.OtherKey, Functions: []string{function}}})
	}
	return append(cases,
		Case{Name: "no more than 4 sessions", Fault: faulty.Fault{Kind: faulty.Limit, Parameter: 4}},
		Case{Name: "a leak of sessions", Fault: faulty.Fault{Kind: faulty.Leak, Functions: []string{"C_CloseSession"}, Parameter: 16}},
	)
}

// hangsEndlessly returns whether a call hangs that the test does not end.
func (c Case) hangsEndlessly() bool { return c.Fault.Kind == faulty.Hang && c.Fault.Times > 0 }

// endsProcess returns whether the fault ends the process of the library. A case without a fault kills it.
func (c Case) endsProcess() bool {
	switch c.Fault.Kind {
	case 0, faulty.Segv, faulty.Kill, faulty.Exit, faulty.Hang:
		return true
	}
	return false
}

func (c Case) isGarbage() bool {
	return c.Fault.Kind == faulty.Garbage || c.Fault.Kind == faulty.OtherKey
}

// undetected has, for each function that returns garbage, how the wrong results begin that remain although calls and checks verify
// results. Imports are not among them, because their fingerprints are checked. An object that a call did not destroy remains, although
// a check detects that.
var undetected = map[string][]string{
	"C_DestroyObject": {"the token has"},
}

// mayBe returns whether the fault may lead to a wrong result.
func (c Case) mayBe(wrong string) bool {
	return c.isGarbage() && slices.ContainsFunc(undetected[c.Fault.Functions[0]], func(beginning string) bool { return strings.HasPrefix(wrong, beginning) })
}

// subset are the names of cases in which something special can go wrong.
var subset = []string{
	"SIGSEGV once inside C_UnwrapKey",
	"SIGKILL before C_Initialize",
	"SIGKILL inside C_Login",
	"exit once inside C_GenerateKeyPair",
	"an endless hang before C_WrapKey",
	"a hang for a while inside C_DeriveKey",
	"CKR_DEVICE_ERROR for one call in ten inside C_CreateObject",
	"CKR_DEVICE_ERROR before C_OpenSession",
	"CKR_HOST_MEMORY before C_GenerateKey",
	"garbage inside C_Decrypt",
	"garbage before C_DeriveKey",
	"garbage inside C_WrapKey",
	"another key from C_UnwrapKey",
	"no more than 4 sessions",
	"a leak of sessions",
}

// Subset returns a few cases of Matrix.
func Subset(crashes bool) []Case {
	return slices.DeleteFunc(Matrix(crashes), func(c Case) bool { return !slices.Contains(subset, c.Name) })
}
