//go:build cgo

package tokens

import (
	"fmt"
	"slices"
	"testing"

	"github.com/miekg/pkcs11" //nolint:depguard // it reads a token without the product
)

// Objects returns the class and the label of each object in a token, sorted. It initializes and finalizes the library, so the
// process must not use the library otherwise.
func Objects(t testing.TB, token Token) []string {
	t.Helper()
	lib := pkcs11.New(token.Path)
	if lib == nil {
		t.Fatalf("%s does not load", token.Path)
	}
	check := func(call string, err error) {
		if err != nil {
			t.Fatalf("%s: %v", call, err)
		}
	}
	check("C_Initialize", lib.Initialize())
	defer func() { _ = lib.Finalize() }()
	session, err := lib.OpenSession(slotOf(t, lib, token.Label), pkcs11.CKF_SERIAL_SESSION)
	check("C_OpenSession", err)
	check("C_Login", lib.Login(session, pkcs11.CKU_USER, token.PIN))
	check("C_FindObjectsInit", lib.FindObjectsInit(session, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true)}))
	handles, _, err := lib.FindObjects(session, 10_000)
	check("C_FindObjects", err)
	check("C_FindObjectsFinal", lib.FindObjectsFinal(session))
	var all []string
	for _, h := range handles {
		values, err := lib.GetAttributeValue(session, h, []*pkcs11.Attribute{
			pkcs11.NewAttribute(pkcs11.CKA_CLASS, nil), pkcs11.NewAttribute(pkcs11.CKA_LABEL, nil),
		})
		check("C_GetAttributeValue", err)
		all = append(all, fmt.Sprintf("%s %s", classes[values[0].Value[0]], values[1].Value))
	}
	slices.Sort(all)
	return all
}

var classes = map[byte]string{pkcs11.CKO_PUBLIC_KEY: "public", pkcs11.CKO_PRIVATE_KEY: "private", pkcs11.CKO_SECRET_KEY: "secret"}

func slotOf(t testing.TB, lib *pkcs11.Ctx, label string) uint {
	t.Helper()
	slots, err := lib.GetSlotList(true)
	if err != nil {
		t.Fatalf("C_GetSlotList: %v", err)
	}
	for _, slot := range slots {
		if info, err := lib.GetTokenInfo(slot); err == nil && info.Label == label {
			return slot
		}
	}
	t.Fatalf("there is no token %s", label)
	return 0
}
