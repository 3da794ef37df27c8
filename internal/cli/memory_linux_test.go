//go:build cgo

package cli_test

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
	"github.com/keyconvoy/keyconvoy/internal/testenv"
)

// What would be in a core dump of the operator, if it could leave one, after it has imported material and exported data keys: neither
// material, nor data keys, nor PINs. What would be in a core dump of a library's process is reported.
//
// The superuser may read the memory of a process that may leave no core dump.
func TestManager_memory_hasNoMaterialNoDataKeysAndNoPINs(t *testing.T) {
	t.Parallel()
	env, softhsm, nss := testenv.Another(t), tokens.SoftHSMLabelled(t, "remembered"), tokens.FreshNSS(t)
	// Not the canary, which every process of this program has.
	material := make([]byte, 32)
	_, _ = rand.Read(material) // it never fails (Go 1.24)
	j := &journey{t: t, env: env, namespace: env.Namespace(t), secrets: map[string][]byte{"PIN": []byte(softhsm.PIN), "material": material}}
	j.startManager(softhsm, "--pkcs11-module=nss="+nss.Path, "--pkcs11-parameters=nss="+nss.Parameters, "--pkcs11-allow-path=nss="+nss.Dir+":rw")
	j.create(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "pin"}, StringData: map[string]string{"pin": softhsm.PIN}})
	for module, token := range map[string]tokens.Token{"softhsm": softhsm, "nss": nss} {
		j.create(&v1alpha1.KeyStore{ObjectMeta: metav1.ObjectMeta{Name: module}, Spec: v1alpha1.KeyStoreSpec{Type: v1alpha1.KeyStorePKCS11, PKCS11: &v1alpha1.PKCS11Store{
			Module: module, Token: v1alpha1.TokenSelector{Label: token.Label}, PINSecretRef: &v1alpha1.EntryReference{Name: "pin", Key: "pin"},
		}}})
		j.carry(module)
	}
	manager := j.manager.Pid
	for secret, n := range j.findIn(manager) {
		t.Errorf("the operator's memory has the %s %d times", secret, n)
	}
	children, err := hsmtest.Children(manager)
	if err != nil {
		t.Fatal(err)
	}
	if len(children) != 2 {
		t.Fatalf("%d processes of libraries, want 2", len(children))
	}
	found := map[string]int{}
	for pid, name := range children {
		// Before it is read: that gives the process the pages that it has not used.
		if used := privateMiB(t, pid); used > 25 {
			t.Errorf("the process of %s uses %d MiB, want at most 25", name, used)
		} else {
			t.Logf("the process of %s uses %d MiB", name, used)
		}
		in := j.findIn(pid)
		t.Logf("the memory of the process of %s has %v", name, in)
		for secret, n := range in {
			found[secret] += n
		}
	}
	if found["PIN"] == 0 {
		t.Error("the test finds nothing where a PIN must be")
	}
}

// privateMiB returns the memory that a process shares with no other: what the node gains when the process ends. The pages of this
// program, which the process shares with the operator, do not count.
func privateMiB(t *testing.T, pid int) int {
	t.Helper()
	rollup, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Fatal(err)
	}
	private, lines := 0, 0
	for line := range strings.Lines(string(rollup)) {
		var kind string
		var kilobytes int
		if _, err := fmt.Sscanf(line, "Private_%s %d kB", &kind, &kilobytes); err == nil {
			private += kilobytes
			lines++
		}
	}
	if lines < 2 { // Private_Clean and Private_Dirty (proc_pid_smaps(5))
		t.Fatalf("smaps_rollup has %d lines about private memory", lines)
	}
	return private >> 10
}

// findIn counts the secrets in the memory of a process.
func (j *journey) findIn(pid int) map[string]int {
	j.t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		j.t.Fatal(err)
	}
	memory, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		j.t.Fatal(err)
	}
	defer memory.Close()
	found := map[string]int{}
	for line := range strings.Lines(string(maps)) {
		var from, to uint64
		var rights string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &rights); err != nil {
			j.t.Fatal(err)
		}
		if !strings.HasPrefix(rights, "rw") {
			continue
		}
		content, _ := io.ReadAll(io.NewSectionReader(memory, int64(from), int64(to-from))) // a region of a device cannot be read
		for name, secret := range j.secrets {
			if n := bytes.Count(content, secret); n > 0 {
				found[name] += n
			}
		}
	}
	return found
}
