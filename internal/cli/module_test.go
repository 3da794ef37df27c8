//go:build cgo

package cli_test

import (
	"encoding/json"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
)

// checkModule is a call of module check for a token.
func checkModule(t testing.TB, name string, token tokens.Token, pin string, args ...string) call {
	t.Helper()
	all := []string{"module", "check", "--pkcs11-module", name + "=" + token.Path, "--token", token.Label, "--pin-file", file(t, "pin", []byte(pin+"\n"))}
	if token.Parameters != "" {
		all = append(all, "--pkcs11-parameters", name+"="+token.Parameters)
	}
	return call{args: append(all, args...), env: token.Env}
}

// mustLack is for PINs: the check of every call for secrets is for longer ones.
func mustLack(t testing.TB, got outcome, secret string) {
	t.Helper()
	if strings.Contains(got.out+got.errOut, secret) {
		t.Errorf("the output has the PIN:\n%s%s", got.out, got.errOut)
	}
}

func mustSay(t testing.TB, got outcome, all ...string) {
	t.Helper()
	for _, words := range all {
		if !strings.Contains(got.out, words) {
			t.Errorf("the output lacks %q:\n%s", words, got.out)
		}
	}
}

func TestModuleCheck_usableTokens(t *testing.T) {
	t.Parallel()
	for kind, test := range map[string]struct {
		token tokens.Token
		says  []string
	}{
		"softhsm": {tokens.SoftHSM(t), []string{
			"Cryptoki       2.40", "SoftHSM v2", "Import             RSAES_OAEP_SHA_256  Host", "Import             RSAES_OAEP_SHA_1    Module",
			"Key protection: Enforced", "import with RSAES_OAEP_SHA_256, custody Module  C_UnwrapKey: CKR_ARGUMENTS_BAD",
			"This token can be a key store", "--pkcs11-module=softhsm=/", "module: softhsm",
		}},
		"nss": {tokens.FreshNSS(t), []string{
			"NSS 3", "Import             RSAES_OAEP_SHA_256  Module", "Key protection: NotEnforced", "C_WrapKey with CKM_AES_KEY_WRAP\n",
			"wrap and unwrap a data key of 264 bytes", "CKR_TEMPLATE_INCONSISTENT", "This token can be a key store",
			"--pkcs11-parameters=nss=STRING", `label: "NSS Certificate DB"`,
		}},
	} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			got := checkModule(t, kind, test.token, test.token.PIN).run(t).succeeds(t)
			mustSay(t, got, test.says...)
			mustLack(t, got, test.token.PIN)
			if got.errOut != "" {
				t.Errorf("standard error says %q", got.errOut)
			}
			if test.token.Parameters != "" {
				mustLack(t, got, "configdir") // parameters can contain secrets
			}
		})
	}
}

func TestModuleCheck_asJSON_isComplete(t *testing.T) {
	t.Parallel()
	token := tokens.SoftHSM(t)
	got := checkModule(t, "softhsm", token, token.PIN, "-o", "json").run(t).succeeds(t)
	var report struct {
		Keyconvoy, Platform, Verdict string
		Library                      struct{ Name, Path, ResolvedPath, CryptokiVersion, Description string }
		Token                        struct{ Label, Model, Serial, Firmware string }
		Tokens                       []struct{ Label string }
		Usable                       bool
		SelfTestSeconds              float64
		Capabilities                 []struct{ Operation, Algorithm, Custody string }
		KeyProtection                struct{ State string }
		Probes                       []struct {
			Name, Failure     string
			Attack, Succeeded bool
		}
	}
	decoder := json.NewDecoder(strings.NewReader(got.out))
	if err := decoder.Decode(&report); err != nil || decoder.More() {
		t.Fatalf("%v: %s", err, got.out)
	}
	mustLack(t, got, token.PIN)
	if report.Keyconvoy == "" || report.Platform == "" || report.Library.ResolvedPath == "" || report.Library.CryptokiVersion == "" || report.Library.Description == "" ||
		report.Token.Label != token.Label || report.Token.Serial == "" || len(report.Tokens) == 0 || !report.Usable || report.Verdict == "" ||
		len(report.Capabilities) != 15 || report.KeyProtection.State != "Enforced" || report.SelfTestSeconds <= 0 {
		t.Errorf("the report is %+v", report)
	}
	attacks := 0
	for _, p := range report.Probes {
		if p.Name == "" || p.Succeeded != (p.Failure == "") {
			t.Errorf("a probe is %+v", p)
		}
		if p.Attack {
			attacks++
		}
	}
	if attacks < 20 || len(report.Probes) < attacks+15 {
		t.Errorf("%d probes with %d attacks", len(report.Probes), attacks)
	}
}

func TestModuleCheck_withoutAToken_listsTokens(t *testing.T) {
	t.Parallel()
	token := tokens.SoftHSM(t)
	args := []string{"module", "check", "--pkcs11-module", token.Path}
	got := call{args: args, env: token.Env}.run(t).succeeds(t)
	mustSay(t, got, "LABEL", token.Label, "login required", "not initialized", "add --token LABEL")

	got = call{args: append(args, "-o", "json"), env: token.Env}.run(t).succeeds(t)
	if !json.Valid([]byte(got.out)) || !strings.Contains(got.out, `"label": "`+token.Label+`"`) {
		t.Errorf("the list is %s", got.out)
	}
}

func TestModuleCheck_unusable_exitsWith1AndSaysWhatToDo(t *testing.T) {
	t.Parallel()
	softhsm := tokens.SoftHSM(t)
	missing, missingLibrary, noLibrary := softhsm, softhsm, softhsm
	missing.Label = "another"
	missingLibrary.Path = "/does/not/exist.so"
	noLibrary.Path = file(t, "library.so", []byte("no library"))
	nss := tokens.FreshNSS(t)
	nss.Parameters = ""
	for name, test := range map[string]struct {
		call   call
		says   []string
		prints []string
	}{
		"a missing token": {
			checkModule(t, "m", missing, softhsm.PIN), []string{`there is no token with label "another"`, softhsm.Label, "hint: select one"}, []string{"LABEL", softhsm.Label},
		},
		"a wrong PIN": {
			checkModule(t, "m", softhsm, "87654321"), []string{"rejected the PIN, which was tried once", "CKR_PIN_INCORRECT", "hint: check the PIN"}, []string{"PIN count low"},
		},
		"an empty PIN":         {checkModule(t, "m", softhsm, ""), []string{"is empty, so it was not tried"}, nil},
		"a PIN of two lines":   {checkModule(t, "m", softhsm, "1234\n5678"), []string{"several lines"}, nil},
		"no library":           {checkModule(t, "m", missingLibrary, softhsm.PIN), []string{"the library does not load", "hint: see the troubleshooting"}, []string{"/does/not/exist.so"}},
		"a file of other type": {checkModule(t, "m", noLibrary, softhsm.PIN), []string{"the library does not load", "hint:"}, nil},
		"NSS without its string": {
			checkModule(t, "m", nss, nss.PIN), []string{"rejects its parameters", "cause: C_Initialize: 0x7: CKR_ARGUMENTS_BAD", "hint:"}, nil,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := test.call.run(t)
			outcome{code: got.code, errOut: got.errOut}.fails(t, 1, test.says...)
			mustSay(t, got, append(test.prints, "Keyconvoy  ")...)
			mustLack(t, got, "87654321")
		})
	}
}

func TestModuleCheck_usedWronglyExitsWith2(t *testing.T) {
	t.Parallel()
	softhsm := tokens.SoftHSM(t)
	for name, test := range map[string]struct {
		args []string
		says string
	}{
		"no library":              {nil, "pkcs11-module"},
		"two libraries":           {[]string{"--pkcs11-module", "a=/b", "--pkcs11-module", "c=/d"}, "once"},
		"an invalid name":         {[]string{"--pkcs11-module", "A=/b"}, "NAME=PATH"},
		"parameters of another":   {[]string{"--pkcs11-module", "a=/b", "--pkcs11-parameters", "c=d"}, "NAME=STRING"},
		"a variable with a value": {[]string{"--pkcs11-module", "a=/b", "--pkcs11-env", "a=NAME=value"}, "name of an environment variable"},
		"too short a timeout":     {[]string{"--pkcs11-module", "a=/b", "--pkcs11-timeout", "a=1ns"}, "at least a second"},
		"two timeouts":            {[]string{"--pkcs11-module", "a=/b", "--pkcs11-timeout", "a=2s", "--pkcs11-timeout", "a=3s"}, "twice"},
		"a relative path":         {[]string{"--pkcs11-module", "a=/b", "--pkcs11-allow-path", "a=c:rw"}, "absolute path"},
		"paths in this process":   {[]string{"--pkcs11-module", "a=/b", "--pkcs11-allow-path", "a=/c", "--pkcs11-in-process"}, "omit"},
		"another unrestricted":    {[]string{"--pkcs11-module", "a=/b", "--pkcs11-unrestricted", "c"}, "a name from --pkcs11-module"},
		"a PIN without a token":   {[]string{"--pkcs11-module", "a=/b", "--pin-file", "pin"}, "require --token"},
		"an unknown format":       {[]string{"--pkcs11-module", "a=/b", "-o", "yaml"}, "text or json"},
		"a PIN from nowhere":      {[]string{"--pkcs11-module", softhsm.Path, "--token", softhsm.Label}, "--pin-file"},
		"a PIN as an argument":    {[]string{"--pkcs11-module", "a=/b", "--pin", "x"}, "unknown flag"},
		"an unknown subcommand":   {nil, "unknown command"},
		"an argument besides all": {[]string{"--pkcs11-module", "a=/b", "c"}, "c"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			args := append([]string{"module", "check"}, test.args...)
			if name == "an unknown subcommand" {
				args = []string{"module", "chekc"}
			}
			got := call{args: args, env: softhsm.Env}.run(t)
			outcome{code: got.code, errOut: got.errOut}.fails(t, 2, test.says)
		})
	}
}

// filesOf returns the content of each file below a directory.
func filesOf(t testing.TB, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		all[path] = string(content)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// Each object of a SoftHSM token is a file. C_Login alone rewrites the file with the flags of the token.
//
// It does not run in parallel, because tokens.Objects uses the library in this process.
func TestModuleCheck_leavesASoftHSMTokenAsItIs(t *testing.T) {
	token := tokens.SoftHSM(t)
	key := file(t, "key.pem", rsaPair(t).pem)
	if out, err := exec.Command("softhsm2-util", "--import", key, "--token", token.Label, "--label", "earlier", "--id", "a1", "--pin", token.PIN).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	_, conf, _ := strings.Cut(token.Env[0], "=")
	dir := filepath.Join(filepath.Dir(conf), "tokens")
	objects, files := tokens.Objects(t, token), filesOf(t, dir)
	if len(objects) != 2 {
		t.Fatalf("the token has %q", objects)
	}

	checkModule(t, "softhsm", token, token.PIN).run(t).succeeds(t)

	after := filesOf(t, dir)
	if before, after := slices.Sorted(maps.Keys(files)), slices.Sorted(maps.Keys(after)); !slices.Equal(before, after) {
		t.Errorf("the files were\n%q and are\n%q", before, after)
	}
	for name, content := range files {
		if changed := after[name] != content; changed && filepath.Base(name) != "token.object" && filepath.Base(name) != "generation" {
			t.Errorf("%s has changed", name)
		}
	}
	if now := tokens.Objects(t, token); !slices.Equal(now, objects) {
		t.Errorf("the token had %q and has %q", objects, now)
	}
}

// NSS keeps all objects in two databases, which do not change by a byte.
func TestModuleCheck_leavesAnNSSTokenAsItIs(t *testing.T) {
	t.Parallel()
	token := tokens.FreshNSS(t)
	_, dir, _ := strings.Cut(token.Parameters, "sql:")
	dir, _, _ = strings.Cut(dir, "'")
	certutil := func(args ...string) string {
		out, err := exec.Command("certutil", append(args, "-d", "sql:"+dir, "-f", file(t, "pin", []byte(token.PIN)))...).CombinedOutput()
		if err != nil {
			t.Fatalf("certutil %q: %v: %s", args, err, out)
		}
		return string(out)
	}
	certutil("-S", "-s", "CN=earlier", "-n", "earlier", "-x", "-t", ",,", "-z", file(t, "noise", []byte(strings.Repeat("noise", 100))))
	keys, files := certutil("-K"), filesOf(t, dir)

	checkModule(t, "nss", token, token.PIN).run(t).succeeds(t)

	if after := filesOf(t, dir); !maps.Equal(after, files) {
		t.Errorf("the files have changed: %q, %q", slices.Sorted(maps.Keys(files)), slices.Sorted(maps.Keys(after)))
	}
	if now := certutil("-K"); now != keys {
		t.Errorf("the keys were\n%s and are\n%s", keys, now)
	}
}
