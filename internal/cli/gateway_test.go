package cli_test

import "testing"

func TestGateway_usedWronglyExitsWith2AndSaysWhatToDo(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		args []string
		says string
	}{
		"no certificate":               {nil, "--tls-dir or --tls-self-signed"},
		"two certificates":             {[]string{"--tls-dir", "/tls", "--tls-self-signed"}, "--tls-dir or --tls-self-signed"},
		"no namespace of its operator": {[]string{"--tls-self-signed"}, "POD_NAMESPACE"},
		"a library without a name":     {[]string{"--tls-self-signed", "--pkcs11-module", "/usr/lib/softhsm.so"}, "NAME=PATH"},
		"an argument":                  {[]string{"now"}, "now"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			keyconvoy(t, append([]string{"gateway"}, test.args...)...).fails(t, 2, test.says)
		})
	}
}
