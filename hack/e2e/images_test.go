package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/keyconvoy/keyconvoy/hack/e2e/image"
)

// The images of the documents' examples.
const (
	operatorImage = "registry.example.com/keyconvoy"
	softhsmImage  = "registry.example.com/softhsm:v1"
	ledgerImage   = "registry.example.com/ledger-app:v1"
	debianImage   = "debian:bookworm-slim"
)

// root is the directory of the repository.
const root = "../.."

// importImages gives the node the images that the tests use, because it cannot pull any.
func importImages(ctx context.Context) error {
	// The images of make image, with their names. The operator's gets two tags, so that the tests can upgrade from one to the other.
	for _, file := range []string{"manager.tar", "client.tar"} {
		if err := ctr(ctx, "images", "import", filepath.Join(root, "bin/node", file)); err != nil {
			return err
		}
	}
	if err := ctr(ctx, "images", "tag", operatorImage+":v1", operatorImage+":v2"); err != nil {
		return err
	}
	softhsm, err := softhsmFiles()
	if err != nil {
		return err
	}
	ledger, err := ledgerProgram(ctx)
	if err != nil {
		return err
	}
	defer os.RemoveAll(filepath.Dir(ledger))
	debian := image.Image{Name: debianImage, Files: map[string]string{}, Env: path}
	if err := debian.AddProgram("/usr/bin/sleep", "/usr/bin/sleep"); err != nil {
		return err
	}
	for _, i := range []image.Image{
		softhsm, debian,
		{Name: ledgerImage, Files: map[string]string{"/ledger": ledger}, Entrypoint: []string{"/ledger", "/run/keys/ledger.key"}},
	} {
		if err := i.Import(ctx, "ctr"); err != nil {
			return err
		}
	}
	return nil
}

// ctr runs the client of containerd on the images of Kubernetes.
func ctr(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "ctr", append([]string{"--namespace=k8s.io"}, args...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", cmd, err, out)
	}
	return nil
}

var path = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}

// softhsmLibrary is the file of Debian's package.
const softhsmLibrary = "/usr/lib/softhsm/libsofthsm2.so"

// softhsmFiles is an image as an administrator makes it for a vendor's library: the library and those that it is linked
// against in /lib. cp lets an init container copy them.
func softhsmFiles() (image.Image, error) {
	i := image.Image{Name: softhsmImage, Files: map[string]string{"/lib/libsofthsm2.so": softhsmLibrary}, Env: path}
	needed, err := image.Libraries(softhsmLibrary)
	if err != nil {
		return i, err
	}
	for _, library := range needed {
		if !isGlibc(library) {
			i.Files["/lib/"+filepath.Base(library)] = library
		}
	}
	err = i.AddProgram("/usr/bin/cp", "/usr/bin/cp")
	return i, err
}

// isGlibc returns whether a library is part of glibc, which the operator's image contains.
func isGlibc(library string) bool {
	name := filepath.Base(library)
	for _, prefix := range []string{"libc.so", "libm.so", "libdl.so", "libpthread.so", "ld-linux"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// ledgerProgram builds the program in docs/export-to-a-pod.md.
func ledgerProgram(ctx context.Context) (string, error) {
	source, err := readBlock(filepath.Join(root, "docs/export-to-a-pod.md"), "// ledger.go")
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "ledger")
	if err != nil {
		return "", err
	}
	program := filepath.Join(dir, "ledger")
	if err := os.WriteFile(program+".go", []byte(source), 0o600); err != nil {
		return "", err
	}
	build := exec.CommandContext(ctx, "go", "build", "-o", program, program+".go")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the program of docs/export-to-a-pod.md: %w: %s", err, out)
	}
	return program, nil
}

// readBlock returns the fenced block of a document that begins with a line.
func readBlock(document, firstLine string) (string, error) {
	page, err := os.ReadFile(document)
	if err != nil {
		return "", err
	}
	_, rest, found := strings.Cut(string(page), "\n"+firstLine+"\n")
	if !found {
		return "", fmt.Errorf("%s has no block that begins with %q", document, firstLine)
	}
	text, _, _ := strings.Cut(rest, "\n```")
	return text + "\n", nil
}
