package cli_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"

	"github.com/keyconvoy/keyconvoy/internal/cli"
	"github.com/keyconvoy/keyconvoy/internal/testenv"
)

// beKeyconvoy makes this test binary the product's: the tests run it as people do, as a process with
// arguments, streams, signals and an exit code.
const beKeyconvoy = "KEYCONVOY_TEST_BE_KEYCONVOY"

// atEnd is run by a process that is keyconvoy before it exits.
var atEnd = func() {}

func TestMain(m *testing.M) {
	// The process of a library does not get the variable.
	if os.Getenv(beKeyconvoy) != "" || (len(os.Args) > 1 && slices.Contains([]string{"pkcs11-library", "read-secret"}, os.Args[1])) {
		code := cli.Main()
		atEnd()
		os.Exit(code)
	}
	testenv.Main(m)
}

// canary is the key material of all tests: distinctive, and 32 bytes long. No output may hold it.
var canary = []byte("\x00canary-\xffin-the-coal-mine-\n-0123")

// call is one run of the command line.
type call struct {
	name    string // what the binary is called; keyconvoy if empty
	args    []string
	dir     string
	stdin   io.Reader
	env     []string
	secrets [][]byte // which the output may not hold, besides canary
	public  bool     // the output may hold secrets: it was asked for
}

type outcome struct {
	code        int
	out, errOut string
}

// selfEnv is the environment of a child that is keyconvoy: without a kubeconfig of this machine.
func selfEnv(home string, extra ...string) []string {
	env := slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, "KUBECONFIG=") || strings.HasPrefix(v, "HOME=") || strings.HasPrefix(v, "KUBERNETES_")
	})
	return append(append(env, beKeyconvoy+"=1", "HOME="+home), extra...)
}

// command prepares a call that a test wants to drive itself, and that comes to an end.
func (c call) command(t testing.TB) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return c.commandContext(ctx, t)
}

// commandContext prepares a call that runs until the context ends it.
func (c call) commandContext(ctx context.Context, t testing.TB) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, self, c.args...)
	cmd.Args[0] = "keyconvoy"
	if c.name != "" {
		cmd.Args[0] = c.name
	}
	cmd.Dir, cmd.Stdin, cmd.Env = c.dir, c.stdin, selfEnv(t.TempDir(), c.env...)
	return cmd
}

// run runs the call to its end. Secrets in its output fail the test.
func (c call) run(t testing.TB) outcome {
	t.Helper()
	cmd := c.command(t)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	if !c.public {
		checkNoSecrets(t, out.String()+errOut.String(), append(c.secrets, canary)...)
	}
	return outcome{cmd.ProcessState.ExitCode(), out.String(), errOut.String()}
}

// waitFor polls until done.
func waitFor(t testing.TB, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(2 * time.Minute); !done(); {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited without success for %s", what)
		}
	}
}

// waitAllowed waits until a new role is in force: the API server takes a moment to see it.
func waitAllowed(t testing.TB, env *testenv.Env, spec authorizationv1.SubjectAccessReviewSpec) {
	t.Helper()
	waitFor(t, "a permission of "+spec.User, func() bool {
		review := &authorizationv1.SubjectAccessReview{Spec: spec}
		if err := env.Client.Create(t.Context(), review); err != nil {
			t.Fatal(err)
		}
		return review.Status.Allowed
	})
}

func keyconvoy(t testing.TB, args ...string) outcome {
	t.Helper()
	return call{args: args}.run(t)
}

// checkNoSecrets looks for secrets, whole or in good part, as bytes and in the usual encodings.
func checkNoSecrets(t testing.TB, output string, secrets ...[]byte) {
	t.Helper()
	for _, secret := range secrets {
		part := secret[len(secret)/4 : len(secret)*3/4]
		for _, form := range []string{
			string(part), hex.EncodeToString(part), strings.ToUpper(hex.EncodeToString(part)),
			base64.StdEncoding.EncodeToString(secret)[4:20], strings.TrimSpace(strings.Trim(string(part), "\n")),
		} {
			if strings.Contains(output, form) {
				t.Errorf("the output holds a secret:\n%s", output)
				return
			}
		}
	}
	if strings.Contains(output, "PRIVATE KEY-----") {
		t.Errorf("the output holds a private key:\n%s", output)
	}
}

func (o outcome) succeeds(t testing.TB) outcome {
	t.Helper()
	if o.code != 0 {
		t.Fatalf("exit code %d: %s", o.code, o.errOut)
	}
	return o
}

// fails checks the exit code, that nothing but standard error was written to, and what it says.
func (o outcome) fails(t testing.TB, code int, says ...string) {
	t.Helper()
	if o.code != code {
		t.Errorf("exit code %d, not %d: %s", o.code, code, o.errOut)
	}
	if o.out != "" {
		t.Errorf("standard output has %q", o.out)
	}
	if !strings.HasPrefix(o.errOut, "error: ") && !strings.Contains(o.errOut, "\nerror: ") {
		t.Errorf("standard error says %q, without an error", o.errOut)
	}
	for _, words := range says {
		if !strings.Contains(o.errOut, words) {
			t.Errorf("standard error says %q, without %q", o.errOut, words)
		}
	}
}

// openssl runs the real one. Every test here needs it, so they fail without it.
func openssl(t testing.TB, stdin []byte, args ...string) []byte {
	t.Helper()
	cmd := exec.Command("openssl", args...)
	var errOut bytes.Buffer
	cmd.Stdin, cmd.Stderr = bytes.NewReader(stdin), &errOut
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("openssl %s: %v\n%s", strings.Join(args, " "), err, errOut.String())
	}
	return out
}

// pair is a private key that openssl made, as PKCS#8 PEM.
type pair struct {
	pem  []byte
	name string // the wrapping key spec
}

var pairs sync.Map // name → func() pair

// newPair returns the test run's key of that name: openssl's arguments make it once.
func opensslPair(t testing.TB, name string, args ...string) pair {
	t.Helper()
	once, _ := pairs.LoadOrStore(name, sync.OnceValue(func() pair {
		return pair{openssl(t, nil, append([]string{"genpkey"}, args...)...), name}
	}))
	return once.(func() pair)()
}

func rsaPair(t testing.TB) pair { return rsaPairOf(t, "2048") }

func rsaPairOf(t testing.TB, bits string) pair {
	return opensslPair(t, "RSA_"+bits, "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:"+bits)
}

func otherRSAPair(t testing.TB) pair {
	return opensslPair(t, "other RSA", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048")
}

func sm2Pair(t testing.TB) pair { return opensslPair(t, "EC_SM2", "-algorithm", "SM2") }

// file writes a file of mode 0600 in a directory of its own.
func file(t testing.TB, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func (p pair) file(t testing.TB) string { return file(t, "key.pem", p.pem) }

// publicPEM and spki are its public half, as openssl writes it.
func (p pair) publicPEM(t testing.TB) []byte { return openssl(t, p.pem, "pkey", "-pubout") }
func (p pair) spki(t testing.TB) []byte {
	return openssl(t, p.pem, "pkey", "-pubout", "-outform", "DER")
}

// The options with which openssl does each algorithm.
var opensslOptions = map[string][]string{
	"RSAES_OAEP_SHA_256": {"-pkeyopt", "rsa_padding_mode:oaep", "-pkeyopt", "rsa_oaep_md:sha256", "-pkeyopt", "rsa_mgf1_md:sha256"},
	"RSAES_OAEP_SHA_1":   {"-pkeyopt", "rsa_padding_mode:oaep", "-pkeyopt", "rsa_oaep_md:sha1", "-pkeyopt", "rsa_mgf1_md:sha1"},
	"RSAES_PKCS1_V1_5":   {"-pkeyopt", "rsa_padding_mode:pkcs1"},
	"SM2PKE":             nil,
}

func (p pair) encrypt(t testing.TB, algorithm string, plaintext []byte) []byte {
	t.Helper()
	args := []string{"pkeyutl", "-encrypt", "-pubin", "-inkey", file(t, "public.pem", p.publicPEM(t))}
	return openssl(t, plaintext, append(args, opensslOptions[algorithm]...)...)
}

func (p pair) decrypt(t testing.TB, algorithm string, ciphertext []byte) []byte {
	t.Helper()
	args := []string{"pkeyutl", "-decrypt", "-inkey", p.file(t)}
	return openssl(t, ciphertext, append(args, opensslOptions[algorithm]...)...)
}
