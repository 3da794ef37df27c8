//go:build cgo

package main

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
	"github.com/keyconvoy/keyconvoy/internal/testenv"
)

// The README is run as a person would: its sh blocks in bash, in order, in one shell, in a directory
// with the repository's files, against a real API server and a running operator. Its yaml blocks that
// begin with "# NAME.yaml" are saved under that name first, in the directory my.
//
// What is not as for a person:
//
//   - There is no node, so the operator runs as a process, beside the Deployment that is applied, and
//     so does the pod's init container (checkPod).
//   - make is run with --dry-run: it says whether the targets exist. make demo has a test of its own
//     (hack/demo), and make test would run this one.
//   - The files of the latest release are made here, and a server on this machine has them (startReleases).
//   - helm has an API server of its own (TestREADME_installsWithHelm).
//   - The blocks "by hand" are run once for each algorithm that they are for (byHand).

// beKeyconvoy makes this test binary the product's.
const beKeyconvoy = "KEYCONVOY_TEST_BE_KEYCONVOY"

func TestMain(m *testing.M) {
	// The process of a library does not get the variable.
	if os.Getenv(beKeyconvoy) != "" || (len(os.Args) > 1 && slices.Contains([]string{"pkcs11-library", "read-secret"}, os.Args[1])) {
		main()
		return
	}
	testenv.Main(m)
}

// block is a fenced block of a page.
type block struct {
	language string
	section  string // the heading above it
	text     string
	line     int
	used     bool
}

func readBlocks(t testing.TB, file string) []*block {
	t.Helper()
	page, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var blocks []*block
	var open *block
	section := ""
	for i, line := range strings.Split(string(page), "\n") {
		switch {
		case open != nil && line == "```":
			blocks, open = append(blocks, open), nil
		case open != nil:
			open.text += line + "\n"
		case strings.HasPrefix(line, "```"):
			open = &block{language: strings.TrimPrefix(line, "```"), section: section, line: i + 2}
		case strings.HasPrefix(line, "## "):
			section = strings.TrimPrefix(line, "## ")
		}
	}
	if open != nil {
		t.Fatalf("%s: the block of line %d does not end", file, open.line)
	}
	return blocks
}

// workplace is where the README's commands run.
type workplace struct {
	t   testing.TB
	env *testenv.Env
	dir string // with what commands make; the repository's files are in the directory above
	bin string // in front of the PATH

	releases string // the address of the latest release's files
}

func newWorkplace(t testing.TB, env *testenv.Env) workplace {
	t.Helper()
	above := t.TempDir()
	w := workplace{t, env, filepath.Join(above, "my"), t.TempDir(), startReleases(t, env)}
	if err := os.Mkdir(w.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	root, err := testenv.Root()
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for link, target := range map[string]string{
		filepath.Join(above, "config"):    filepath.Join(root, "config"),
		filepath.Join(w.bin, "keyconvoy"): self,
		filepath.Join(w.bin, "kubectl"):   w.env.Kubectl(),
	} {
		if err := os.Symlink(target, link); err != nil {
			t.Fatal(err)
		}
	}
	realMake, err := exec.LookPath("make")
	if err != nil {
		t.Fatal(err)
	}
	for name, script := range map[string]string{
		"make": fmt.Sprintf("unset MAKEFLAGS MAKELEVEL MFLAGS; exec %q --dry-run -C %q \"$@\" >/dev/null", realMake, root),
	} {
		if err := os.WriteFile(filepath.Join(w.bin, name), []byte("#!/bin/bash\n"+script+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// command prepares a command in the workplace.
func (w workplace) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = w.dir
	cmd.Env = append(os.Environ(), beKeyconvoy+"=1", "PATH="+w.bin+":"+os.Getenv("PATH"),
		"KUBECONFIG="+w.env.Kubeconfig(w.t, nil, "default"), "POD_NAMESPACE="+operatorNamespace)
	return cmd
}

const operatorNamespace = "keyconvoy-system"

// startOperator runs the operator, with two modules allowed, until the test ends.
func (w workplace) startOperator(softhsm, nss tokens.Token) { w.startOperatorUntil(softhsm, nss) }

// startOperatorUntil is startOperator, and returns what ends the operator before.
func (w workplace) startOperatorUntil(softhsm, nss tokens.Token) (stop func()) {
	w.t.Helper()
	var log bytes.Buffer
	cmd := w.command(context.Background(), filepath.Join(w.bin, "keyconvoy"), "manager",
		"--metrics-bind-address=0", "--health-probe-bind-address=0",
		"--pkcs11-module=softhsm="+softhsm.Path, "--pkcs11-allow-path=softhsm="+softhsm.Dir+":rw", "--pkcs11-allow-path=nss="+nss.Dir+":rw",
		"--pkcs11-module=nss="+nss.Path, "--pkcs11-parameters=nss="+nss.Parameters)
	cmd.Env = append(append(cmd.Env, softhsm.Env...), nss.Env...)
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	stop = sync.OnceFunc(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			w.t.Errorf("the operator ended with %v", err)
		}
	})
	w.t.Cleanup(func() {
		stop()
		if w.t.Failed() {
			w.t.Logf("The operator's log:\n%s", log.String())
		}
	})
	return stop
}

// bash runs a script, and shows what it said when it fails.
func (w workplace) bash(script string) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 5*time.Minute)
	defer cancel()
	cmd := w.command(ctx, "bash", "-euo", "pipefail", "-x", "-c", script)
	if out, err := cmd.CombinedOutput(); err != nil {
		w.t.Fatalf("%v after:\n%s", err, out)
	}
}

var fileName = regexp.MustCompile(`^(?:#|//) ([-a-z0-9]+\.(?:yaml|go))\n`)

// save saves a block that begins with the name of a file.
func (w workplace) save(b *block) {
	w.t.Helper()
	name := fileName.FindStringSubmatch(b.text)
	if name == nil {
		return
	}
	if err := os.WriteFile(filepath.Join(w.dir, name[1]), []byte(b.text), 0o600); err != nil {
		w.t.Fatal(err)
	}
	b.used = true
}

// handSetup makes what the blocks "by hand" are tried on: keys that wait for material under each
// algorithm, and exports under each. They are the README's own objects with other names and algorithms.
const handSetup = `
hand() {
  sed -e "s/name: payments,/name: $1,/" -e "s/wrappingKeySpec: RSA_2048, wrappingAlgorithm: RSAES_OAEP_SHA_256/wrappingKeySpec: $2, wrappingAlgorithm: $3/" payments.yaml |
    kubectl apply -f -
  kubectl wait importedkey/$1 -n team-a --for=jsonpath='{.status.importParameters.publicKey}' --timeout=60s
}
hand by-sha256 RSA_2048 RSAES_OAEP_SHA_256
hand by-sha1 RSA_2048 RSAES_OAEP_SHA_1
hand by-sm2 EC_SM2 SM2PKE

openssl genpkey -algorithm SM2 -out sm2.key
openssl pkey -in sm2.key -pubout -out sm2.pem
kubectl create configmap recipients -n team-a --from-file=rsa.pem --from-file=sm2.pem --dry-run=client -o yaml | kubectl apply -f -
kubectl apply -f ../config/samples/exporteddatakey_sm2.yaml
sed -e 's/ledger-rsa/ledger-sha1/; s/RSAES_OAEP_SHA_256/RSAES_OAEP_SHA_1/' ../config/samples/exporteddatakey_rsa.yaml | kubectl apply -f -
kubectl wait exporteddatakey --all -n team-a --for=condition=Ready --timeout=60s
mv ledger.key ledger-by-keyconvoy.key
`

// readmeScript puts the blocks together.
type readmeScript struct {
	t        testing.TB
	file     string
	blocks   []*block
	releases string
	text     strings.Builder
}

// newScript begins a script with the blocks of a page.
func (w workplace) newScript(file string) *readmeScript {
	w.t.Helper()
	return &readmeScript{t: w.t, file: file, blocks: readBlocks(w.t, file), releases: w.releases}
}

// add appends a block, with from replaced by to where that is given.
func (s *readmeScript) add(b *block, replace ...string) {
	b.used = true
	text := strings.NewReplacer(append(replace, latestRelease, s.releases)...).Replace(b.text)
	fmt.Fprintf(&s.text, ": %s, line %d\n%s\n", s.file, b.line, text)
}

// find returns the only sh block that has all these words and none of those after "!".
func (s *readmeScript) find(words ...string) *block {
	s.t.Helper()
	var found []*block
	for _, b := range s.blocks {
		matches := b.language == "sh"
		for _, word := range words {
			word, unwanted := strings.CutPrefix(word, "!")
			matches = matches && strings.Contains(b.text, word) != unwanted
		}
		if matches {
			found = append(found, b)
		}
	}
	if len(found) != 1 {
		s.t.Fatalf("%d blocks have %q; this test looks for one", len(found), words)
	}
	return found[0]
}

// byHand runs the section of that name: its wrapping for each algorithm into a key that is waiting,
// and its unwrapping for each, with the same result as keyconvoy's.
func (s *readmeScript) byHand() {
	get, put := s.find("KEY=payments\n"), s.find("kubectl patch importedkey $KEY")
	for _, pass := range []struct {
		key     string
		encrypt *block
	}{
		{"payments", s.find("-encrypt", "rsa_oaep_md:sha256")},
		{"by-sha256", s.find("-encrypt", "rsa_oaep_md:sha256")},
		{"by-sha1", s.find("-encrypt", "rsa_oaep_md:sha1")},
		{"by-sm2", s.find("-encrypt", "!oaep")},
	} {
		s.add(get, "KEY=payments\n", "KEY="+pass.key+"\n")
		s.add(pass.encrypt)
		s.add(put)
		fmt.Fprintf(&s.text, "kubectl wait importedkey/%s -n team-a --for=condition=Ready --timeout=60s\n", pass.key)
	}
	fetch := s.find("SECRET=ledger-rsa\n")
	for _, pass := range []struct {
		secret  string
		decrypt *block
	}{
		{"ledger-rsa", s.find("-decrypt", "rsa_oaep_md:sha256")},
		{"ledger-sha1", s.find("-decrypt", "rsa_oaep_md:sha1")},
		{"ledger-sm2", s.find("-decrypt", "!oaep")},
	} {
		s.add(fetch, "SECRET=ledger-rsa\n", "SECRET="+pass.secret+"\n")
		s.add(pass.decrypt)
		s.text.WriteString("cmp ledger.key ledger-by-keyconvoy.key\nrm ledger.key\n")
	}
}

func TestREADME_commandsWork(t *testing.T) {
	w := newWorkplace(t, testenv.Start(t))
	softhsm, nss := tokens.SoftHSM(t), tokens.FreshNSS(t)
	w.startOperator(softhsm, nss)
	s := w.newScript("README.md")
	s.text.WriteString("cd ..\n")
	s.find("helm install").used = true
	firstByHand := s.find("KEY=payments\n")
	for _, b := range s.blocks {
		switch b.language {
		case "yaml":
			w.save(b)
		case "sh":
			if b.line < firstByHand.line && !b.used {
				s.add(b)
			}
		case "mermaid":
			b.used = true
		}
	}
	s.text.WriteString(handSetup)
	s.byHand()
	for _, b := range s.blocks {
		if !b.used {
			t.Errorf("the block of line %d (%s) is not run", b.line, b.language)
		}
	}
	w.bash(s.text.String())

	t.Run("the pod opens the data key", w.checkPod)
	t.Run("the table says what the modules do", func(t *testing.T) { w.checkTable(t, softhsm, nss) })
}

// checkPod runs the init container of the README's pod.
func (w workplace) checkPod(t *testing.T) {
	root := w.runInitContainer(t, client.ObjectKey{Namespace: "team-a", Name: "reader"})
	got, err := os.ReadFile(filepath.Join(root, "run/keys/ledger"))
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(filepath.Join(w.dir, "ledger-by-keyconvoy.key"))
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("the pod has another data key: %v", err)
	}
}

// checkTable holds the table of algorithms against what the operator's self-test finds in each module.
func (w workplace) checkTable(t *testing.T, softhsm, nss tokens.Token) {
	for column, token := range map[string]*tokens.Token{"software": nil, "softhsm": &softhsm, "nss": &nss} {
		want := readTable(t, column)
		if got := w.capabilities(t, column, token); !maps.Equal(got, want) {
			t.Errorf("%s: the README says\n%v\nand the module does\n%v", column, want, got)
		}
	}
}

// readTable returns the custody of each "operation algorithm" in one column of the table.
func readTable(t testing.TB, column string) map[string]string {
	t.Helper()
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	at := -1
	table := map[string]string{}
	for _, line := range strings.Split(string(readme), "\n") {
		cells := strings.Split(line, "|")
		for i := range cells {
			cells[i] = strings.Trim(cells[i], " ¹²")
		}
		switch {
		case len(cells) != 7:
		case cells[1] == "Operation":
			at = slices.IndexFunc(cells, func(cell string) bool { return strings.HasPrefix(strings.ToLower(cell), column) })
		case at > 0 && cells[at] != "–" && !strings.HasPrefix(cells[1], "-"):
			table[cells[1]+" "+cells[2]] = cells[at]
		}
	}
	if len(table) == 0 {
		t.Fatalf("no column %s in the table", column)
	}
	return table
}

// capabilities makes a key store that allows all it can, and returns what the operator finds out.
func (w workplace) capabilities(t testing.TB, name string, token *tokens.Token) map[string]string {
	t.Helper()
	store := &v1alpha1.ClusterKeyStore{ObjectMeta: metav1.ObjectMeta{Name: "table-" + name}}
	store.Spec.AllowPKCS1V15Import = true
	store.Spec.Type = v1alpha1.KeyStoreSoftware
	if token != nil {
		pin := &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Name: name + "-pin", Namespace: operatorNamespace},
			StringData: map[string]string{"pin": token.PIN},
		}
		if err := w.env.Client.Create(t.Context(), pin); err != nil {
			t.Fatal(err)
		}
		store.Spec.Type = v1alpha1.KeyStorePKCS11
		store.Spec.PKCS11 = &v1alpha1.PKCS11Store{
			Module:       name,
			Token:        v1alpha1.TokenSelector{Label: token.Label},
			PINSecretRef: &v1alpha1.EntryReference{Name: v1alpha1.ObjectName(pin.Name), Key: "pin"},
		}
	}
	if err := w.env.Client.Create(t.Context(), store); err != nil {
		t.Fatal(err)
	}
	err := wait.PollUntilContextTimeout(t.Context(), 100*time.Millisecond, time.Minute, true, func(ctx context.Context) (bool, error) {
		err := w.env.Client.Get(ctx, client.ObjectKeyFromObject(store), store)
		return len(store.Status.Capabilities) > 0, err
	})
	if err != nil {
		t.Fatalf("%s: %v; its conditions are %v", name, err, store.Status.Conditions)
	}
	found := map[string]string{}
	for _, c := range store.Status.Capabilities {
		found[c.Operation+" "+c.Algorithm] = string(c.Custody)
	}
	return found
}
