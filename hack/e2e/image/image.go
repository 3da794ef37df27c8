// Package image makes container images from files of this machine, without a registry and without another tool.
package image

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
)

// Image is an image of one layer.
type Image struct {
	Name       string            // with a tag
	Files      map[string]string // from the path in the image to the file on this machine
	Entrypoint []string
	Env        []string
	User       string
}

// AddProgram adds a program, or a library, with the libraries that it is linked against and their loader, at the paths
// that they have on this machine.
func (i *Image) AddProgram(to, from string) error {
	i.Files[to] = from
	libraries, err := Libraries(from)
	for _, library := range libraries {
		i.Files[library] = library
	}
	return err
}

// library is a file in a line of ldd.
var library = regexp.MustCompile(`(/\S+) \(0x`)

// Libraries returns the libraries that a program or library is linked against, and their loader.
func Libraries(file string) ([]string, error) {
	out, err := exec.Command("ldd", file).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("ldd %s: %w: %s", file, err, out)
	}
	var found []string
	for _, match := range library.FindAllStringSubmatch(string(out), -1) {
		found = append(found, match[1])
	}
	return found, nil
}

// Import adds the image to the containerd of the node, for Kubernetes.
func (i Image) Import(ctx context.Context, ctr string) error {
	var archive bytes.Buffer
	if err := i.write(&archive); err != nil {
		return fmt.Errorf("making the image %s: %w", i.Name, err)
	}
	cmd := exec.CommandContext(ctx, ctr, "--namespace=k8s.io", "images", "import", "-")
	cmd.Stdin = &archive
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("importing the image %s: %w: %s", i.Name, err, out)
	}
	return nil
}

// config is the part of an image's configuration that is used here.
type config struct {
	Architecture string          `json:"architecture"`
	OS           string          `json:"os"`
	Config       containerConfig `json:"config"`
	RootFS       rootFS          `json:"rootfs"`
}

type containerConfig struct {
	Entrypoint []string `json:"Entrypoint,omitempty"`
	Env        []string `json:"Env,omitempty"`
	User       string   `json:"User,omitempty"`
}

type rootFS struct {
	Type    string   `json:"type"`
	DiffIDs []string `json:"diff_ids"`
}

// write writes the archive that docker save writes.
func (i Image) write(w io.Writer) error {
	layer, err := i.layer()
	if err != nil {
		return err
	}
	digest := sha256.Sum256(layer)
	configuration, err := json.Marshal(config{
		Architecture: runtime.GOARCH, OS: "linux",
		Config: containerConfig{Entrypoint: i.Entrypoint, Env: i.Env, User: i.User},
		RootFS: rootFS{Type: "layers", DiffIDs: []string{"sha256:" + hex.EncodeToString(digest[:])}},
	})
	if err != nil {
		return err
	}
	name := i.Name
	if !strings.Contains(name, "/") {
		name = "docker.io/library/" + name
	}
	manifest, err := json.Marshal([]map[string]any{{
		"Config": "config.json", "RepoTags": []string{name}, "Layers": []string{"layer.tar"},
	}})
	if err != nil {
		return err
	}
	archive := tar.NewWriter(w)
	for _, file := range []struct {
		name    string
		content []byte
	}{{"config.json", configuration}, {"layer.tar", layer}, {"manifest.json", manifest}} {
		if err := add(archive, file.name, 0o644, file.content); err != nil {
			return err
		}
	}
	return archive.Close()
}

// layer returns a tar archive of the files, with the directories above them. All can read them.
func (i Image) layer() ([]byte, error) {
	var out bytes.Buffer
	layer := tar.NewWriter(&out)
	made := map[string]bool{".": true}
	for _, to := range slices.Sorted(maps.Keys(i.Files)) {
		name := strings.TrimPrefix(to, "/")
		if err := addParents(layer, name, made); err != nil {
			return nil, err
		}
		content, err := os.ReadFile(i.Files[to])
		if err != nil {
			return nil, err
		}
		info, err := os.Stat(i.Files[to])
		if err != nil {
			return nil, err
		}
		if err := add(layer, name, 0o444|int64(info.Mode().Perm()&0o111), content); err != nil {
			return nil, err
		}
	}
	err := layer.Close()
	return out.Bytes(), err
}

func addParents(layer *tar.Writer, name string, made map[string]bool) error {
	dir := path.Dir(name)
	if made[dir] {
		return nil
	}
	if err := addParents(layer, dir, made); err != nil {
		return err
	}
	made[dir] = true
	return layer.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: filepath.ToSlash(dir) + "/", Mode: 0o755})
}

func add(archive *tar.Writer, name string, mode int64, content []byte) error {
	if err := archive.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: int64(len(content))}); err != nil {
		return err
	}
	_, err := archive.Write(content)
	return err
}
