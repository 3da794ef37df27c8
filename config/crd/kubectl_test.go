package crd_test

import (
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	. "github.com/onsi/gomega"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/internal/testenv"
)

// What people see first.
func TestKubectlGet_showsTheUsefulColumns(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	env := testenv.Start(t)
	ns := env.Namespace(t)
	for _, o := range withStatus(ns) {
		status := o.DeepCopyObject().(client.Object)
		g.Expect(env.Client.Create(t.Context(), o)).To(Succeed())
		status.SetResourceVersion(o.GetResourceVersion())
		g.Expect(env.Client.Status().Update(t.Context(), status)).To(Succeed())
	}
	kubeconfig := env.Kubeconfig(t, nil, ns)
	get := func(args ...string) string {
		out, err := exec.CommandContext(t.Context(), env.Kubectl(), append([]string{"--kubeconfig", kubeconfig, "get"}, args...)...).CombinedOutput()
		g.Expect(err).NotTo(HaveOccurred(), string(out))
		return string(out)
	}

	for short, want := range map[string]struct{ narrow, wide, cells []string }{
		"ckst": {
			[]string{"NAME", "READY", "REASON", "MODULE", "AGE"},
			[]string{"NAME", "READY", "REASON", "MODULE", "MODEL", "PROTECTION", "SERIAL", "MESSAGE", "AGE"},
			[]string{"True", "Succeeded", "softhsm", "SoftHSM v2", "00ff"},
		},
		"kst": {
			[]string{"NAME", "READY", "REASON", "MODULE", "AGE"},
			[]string{"NAME", "READY", "REASON", "MODULE", "MODEL", "PROTECTION", "SERIAL", "MESSAGE", "AGE"},
			[]string{"True", "Succeeded", "softhsm", "SoftHSM v2", "00ff"},
		},
		"imk": {
			[]string{"NAME", "SPEC", "STATE", "CUSTODY", "READY", "REASON", "DELETION", "AGE"},
			[]string{"NAME", "SPEC", "STATE", "CUSTODY", "READY", "REASON", "DELETION", "EXPIRES", "KEYID", "STORE", "MESSAGE", "AGE"},
			[]string{"AES_256", "Enabled", "Module", "True", "Succeeded", "id", "store"},
		},
		"gk": {
			[]string{"NAME", "SPEC", "STATE", "CUSTODY", "VERSION", "READY", "REASON", "DELETION", "AGE"},
			[]string{"NAME", "SPEC", "STATE", "CUSTODY", "VERSION", "READY", "REASON", "DELETION", "ROTATION", "KEYID", "STORE", "MESSAGE", "AGE"},
			[]string{"AES_256", "Enabled", "Module", "2", "True", "Succeeded", "id", "store"},
		},
		"dk": {
			[]string{"NAME", "KEY", "CUSTODY", "SECRET", "READY", "REASON", "AGE"},
			[]string{"NAME", "KEY", "CUSTODY", "SECRET", "READY", "REASON", "MESSAGE", "AGE"},
			[]string{"payments", "Unknown", "secret", "True", "Succeeded"},
		},
		"edk": {
			[]string{"NAME", "DATAKEY", "ALGORITHM", "CUSTODY", "SECRET", "DRYRUN", "READY", "REASON", "AGE"},
			[]string{"NAME", "DATAKEY", "ALGORITHM", "CUSTODY", "SECRET", "DRYRUN", "READY", "REASON", "EXPORTED", "RECIPIENT", "MESSAGE", "AGE"},
			[]string{"ledger", "RSAES_OAEP_SHA_256", "Host", "secret", "True", "Succeeded", "SHA256:00"},
		},
		"cedk": {
			[]string{"NAME", "DATAKEY", "NAMESPACES", "EXPORTED", "FAILED", "READY", "REASON", "AGE"},
			[]string{"NAME", "DATAKEY", "NAMESPACES", "EXPORTED", "FAILED", "READY", "REASON", "MESSAGE", "AGE"},
			[]string{"ledger", "33", "22", "11", "True", "Succeeded"},
		},
	} {
		g.Expect(columns(get(short, ns))[0]).To(Equal(want.narrow), short)
		wide := columns(get(short, ns, "-o", "wide"))
		g.Expect(wide[0]).To(Equal(want.wide), short)
		for _, cell := range want.cells {
			g.Expect(wide[1]).To(ContainElement(cell), short)
		}
	}

	// The category shows all at once.
	all := get("keyconvoy", "-o", "name")
	for plural := range kinds {
		singular := strings.TrimSuffix(plural, "s")
		g.Expect(all).To(ContainSubstring(singular + ".keyconvoy.io/" + ns))
	}
}

var gap = regexp.MustCompile(` {2,}`)

// columns splits what kubectl prints; a single blank may be part of a value.
func columns(table string) [][]string {
	var rows [][]string
	for line := range strings.Lines(table) {
		rows = append(rows, gap.Split(strings.TrimSpace(line), -1))
	}
	return rows
}

func TestKubectlExplain_describesTheFields(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	env := testenv.Start(t)
	kubeconfig := env.Kubeconfig(t, nil, "default")
	// A server that has just started tells of the kinds a moment later.
	g.Eventually(func() (string, error) {
		out, err := exec.CommandContext(t.Context(), env.Kubectl(), "--kubeconfig", kubeconfig, "explain", "exporteddatakey.spec.publicKey").CombinedOutput()
		return string(out), err
	}, time.Minute).Should(ContainSubstring("importedKeyRef"))
}
