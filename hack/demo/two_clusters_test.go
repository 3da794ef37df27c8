package demo_test

import (
	"os"
	"path/filepath"
	"testing"
)

func newTwoClusters(t *testing.T, env ...string) *demo {
	t.Helper()
	d := newDemo(t, env...)
	d.cmd.Path, d.cmd.Args = "./two-clusters.sh", []string{"./two-clusters.sh"}
	return d
}

func TestTwoClusters_missingFile_isNamed(t *testing.T) {
	t.Parallel()
	for variable, says := range map[string]string{
		"KEYCONVOY":   "no/such/file is missing; make demo-two-clusters builds it.",
		"NSS_LIBRARY": "A PKCS#11 library is missing: install softhsm2 and libnss3.",
	} {
		d := newTwoClusters(t, variable+"=no/such/file")
		_ = d.cmd.Run()
		d.ends(t, 2, says)
	}
}

func TestTwoClusters_fingerprintsDiffer_fails(t *testing.T) {
	t.Parallel()
	// A kubectl that returns a wrong fingerprint for cluster B.
	assets, forged := os.Getenv("KUBEBUILDER_ASSETS"), t.TempDir()
	for _, name := range []string{"kube-apiserver", "etcd"} {
		if err := os.Symlink(filepath.Join(assets, name), filepath.Join(forged, name)); err != nil {
			t.Fatal(err)
		}
	}
	script := "#!/bin/bash\ncase \"$*\" in *b.kubeconfig*materialFingerprint*) echo 00112233445566778899aabbccddeeff ;; *) exec \"$ASSETS/kubectl\" \"$@\" ;; esac\n"
	if err := os.WriteFile(filepath.Join(forged, "kubectl"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	d := newTwoClusters(t, "KUBEBUILDER_ASSETS="+forged, "ASSETS="+assets)
	_ = d.cmd.Run()
	d.ends(t, 1, "This command failed: cmp fingerprint-a fingerprint-b", "The demo failed")
}

func TestTwoClusters_movesAKeyFromModuleToModule(t *testing.T) {
	t.Parallel()
	d := newTwoClusters(t)
	_ = d.cmd.Run()
	d.ends(t, 0, "$ cmp fingerprint-a fingerprint-b", "ImportedKey   arriving   Module", "ExportedDataKey   to-b        Module", "Cleaning up")
}
