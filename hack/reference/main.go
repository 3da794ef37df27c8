// Command reference writes a page for each kind, with all fields, and an index of the pages. Usage, in the root of the
// repository: reference DIRECTORY. make generate runs it.
//
// It reads the CRDs in config/crd/bases, because their schemas are what the API server enforces: types, limits, enums
// and rules. An example is a sample of the kind in config/samples.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"sigs.k8s.io/yaml"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: reference DIRECTORY")
		os.Exit(2)
	}
	pages, err := generate(".")
	if err == nil {
		err = write(os.Args[1], pages)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// write replaces the pages in a directory: a page of a kind that no longer exists is removed.
func write(dir string, pages map[string]string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // public pages
		return err
	}
	old, err := filepath.Glob(filepath.Join(dir, "*.md"))
	if err != nil {
		return err
	}
	for _, file := range old {
		if _, ok := pages[filepath.Base(file)]; !ok {
			err = errors.Join(err, os.Remove(file))
		}
	}
	for name, page := range pages {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, name), []byte(page), 0o644)) //nolint:gosec // public pages
	}
	return err
}

// generate returns the pages by file name, from the CRDs and samples below root.
func generate(root string) (map[string]string, error) {
	crds, err := readCRDs(filepath.Join(root, "config/crd/bases"))
	if err != nil {
		return nil, err
	}
	pages := map[string]string{}
	for _, crd := range crds {
		samples, err := samplesOf(crd.Spec.Names.Kind, filepath.Join(root, "config/samples"))
		if err != nil {
			return nil, err
		}
		if pages[fileName(crd)], err = kindPage(crd, samples); err != nil {
			return nil, fmt.Errorf("%s: %w", crd.Spec.Names.Kind, err)
		}
	}
	pages["README.md"] = indexPage(crds)
	return pages, nil
}

func fileName(crd *apiextensionsv1.CustomResourceDefinition) string {
	return crd.Spec.Names.Singular + ".md"
}

// readCRDs returns the CRDs in a directory, in the order of config/crd/kustomization.yaml.
func readCRDs(dir string) (crds []*apiextensionsv1.CustomResourceDefinition, err error) {
	var order struct{ Resources []string }
	if err := readYAML(filepath.Join(dir, "../kustomization.yaml"), &order); err != nil {
		return nil, err
	}
	for _, file := range order.Resources {
		crd := &apiextensionsv1.CustomResourceDefinition{}
		if err := readYAML(filepath.Join(dir, "..", file), crd); err != nil {
			return nil, err
		}
		crds = append(crds, crd)
	}
	return crds, nil
}

func readYAML(file string, into any) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if err := yaml.Unmarshal(text, into); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return nil
}

// sample is an example of a kind.
type sample struct{ name, text string }

// samplesOf returns the samples of a kind, by name.
func samplesOf(kind, dir string) (samples []sample, err error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil {
		return nil, err
	}
	slices.Sort(files)
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		if bytes.Contains(text, []byte("\nkind: "+kind+"\n")) {
			samples = append(samples, sample{filepath.Base(file), strings.TrimSpace(string(text))})
		}
	}
	return samples, nil
}
