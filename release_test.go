//go:build cgo

package main

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/keyconvoy/keyconvoy/internal/testenv"
)

// The pages install from the files of the latest release. Here these files are made as hack/release/release.sh makes them,
// except that the archive of the command line contains a link to this test binary.

const (
	latestRelease = "https://github.com/keyconvoy/keyconvoy/releases/latest/download/"
	releaseImage  = "registry.example.com/keyconvoy:v1"
)

// startReleases makes the files of a release, and returns the address of the server that has them.
func startReleases(t testing.TB, env *testenv.Env) string {
	t.Helper()
	dir := t.TempDir()
	manifests := output(t, exec.CommandContext(t.Context(), env.Kubectl(), "kustomize", "config/default"))
	manifests = bytes.Replace(manifests, []byte("image: keyconvoy:latest\n"), []byte("image: "+releaseImage+"\n"), 1)
	if !bytes.Contains(manifests, []byte(releaseImage)) {
		t.Fatal("config/default has no image keyconvoy:latest")
	}
	if err := os.WriteFile(filepath.Join(dir, "install.yaml"), manifests, 0o600); err != nil {
		t.Fatal(err)
	}
	output(t, helm(t, "package", "config/chart", "--version", "0.1.0", "--destination", dir))
	if err := os.Rename(filepath.Join(dir, "keyconvoy-0.1.0.tgz"), filepath.Join(dir, "keyconvoy-chart.tgz")); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(dir, "keyconvoy")); err != nil {
		t.Fatal(err)
	}
	output(t, exec.CommandContext(t.Context(), "tar", "-czf", filepath.Join(dir, "keyconvoy-linux-amd64.tar.gz"), "-C", dir, "keyconvoy"))
	server := httptest.NewServer(http.FileServer(http.Dir(dir)))
	t.Cleanup(server.Close)
	return server.URL + "/"
}

// output runs a command and returns its output.
func output(t testing.TB, cmd *exec.Cmd) []byte {
	t.Helper()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%q: %v\n%s", cmd.Args, err, &stderr)
	}
	return out
}

// helm prepares the real helm, which make test builds.
func helm(t testing.TB, args ...string) *exec.Cmd {
	t.Helper()
	binary := os.Getenv("HELM")
	if binary == "" {
		t.Fatal("HELM is not set. Run make test, which builds helm and sets it.")
	}
	return exec.CommandContext(t.Context(), binary, args...)
}

// The commands for Helm, on an API server of their own: those of the README, and then those of docs/install.md.
func TestREADME_installsWithHelm(t *testing.T) {
	w := newWorkplace(t, testenv.Another(t))
	if err := os.Symlink(helm(t).Path, filepath.Join(w.bin, "helm")); err != nil {
		t.Fatal(err)
	}
	readme, page := w.newScript("README.md"), w.newScript("docs/install.md")
	for _, b := range page.blocks {
		if b.section == "With Helm" && b.language == "yaml" {
			w.save(b)
		}
	}
	readme.add(readme.find("helm install"))
	page.add(page.find("helm upgrade"))
	w.bash(readme.text.String() + "helm status keyconvoy -n keyconvoy-system\n" + page.text.String() + fmt.Sprintf(`
		kubectl get deployment keyconvoy-controller-manager -n keyconvoy-system -o yaml > deployment.yaml
		grep -q 'image: %s' deployment.yaml
		grep -q -- '- --pkcs11-module=softhsm=/opt/softhsm/lib/libsofthsm2.so' deployment.yaml
		kubectl get crds -o name | grep -q importedkeys.keyconvoy.io`, "registry.example.com/keyconvoy:"))
}
