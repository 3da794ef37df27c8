//go:build cgo

package token

import (
	"errors"
	"fmt"
	"testing"

	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
)

func TestDescribeCode(t *testing.T) {
	t.Parallel()
	for sentence, tc := range map[string]struct {
		err  error
		want string
	}{
		"no error":                  {nil, ""},
		"an error without a code":   {errors.New("secret"), ""},
		"a standard code":           {callError("C_WrapKey", p11.Error(p11.CKR_MECHANISM_INVALID)), "C_WrapKey: CKR_MECHANISM_INVALID"},
		"a code of few libraries":   {callError("C_CopyObject", p11.Error(p11.CKR_ACTION_PROHIBITED)), "C_CopyObject: CKR_ACTION_PROHIBITED"},
		"a code without a function": {p11.Error(p11.CKR_DEVICE_ERROR), "CKR_DEVICE_ERROR"},
		"a vendor's code":           {callError("C_Login", p11.Error(0x80000123)), "C_Login: 0x80000123"},
		"a code deep in the chain": {
			fmt.Errorf("secret: %w", hsm.Wrap(hsm.Internal, callError("C_Sign", p11.Error(p11.CKR_KEY_NEEDED)), "secret")), "C_Sign: CKR_KEY_NEEDED",
		},
	} {
		if got := DescribeCode(tc.err); got != tc.want {
			t.Errorf("%s: DescribeCode = %q, want %q", sentence, got, tc.want)
		}
	}
}
