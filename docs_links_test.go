//go:build cgo

package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
)

var (
	link = regexp.MustCompile(`\]\(([^):]+)\)`)
	// Patterns of fields look like links.
	codeSpan = regexp.MustCompile("`[^`\n]*`")
)

func TestDocs_linksLeadSomewhere(t *testing.T) {
	var files []string
	for _, pattern := range []string{"*.md", "docs/*.md", "docs/reference/*.md"} {
		found, err := filepath.Glob(pattern)
		if err != nil || len(found) == 0 {
			t.Fatalf("%s: %d files, %v", pattern, len(found), err)
		}
		files = append(files, found...)
	}
	for _, file := range files {
		page, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(codeSpan.ReplaceAllString(string(page), ""), -1) {
			target, anchor, _ := strings.Cut(m[1], "#")
			if target == "" {
				target = filepath.Base(file)
			}
			text, err := os.ReadFile(filepath.Join(filepath.Dir(file), target))
			if info, statErr := os.Stat(filepath.Join(filepath.Dir(file), target)); statErr == nil && info.IsDir() {
				continue
			}
			if err != nil {
				t.Errorf("%s: %v", file, err)
			} else if anchor != "" && !slices.Contains(anchors(string(text)), anchor) {
				t.Errorf("%s: %s has no heading #%s", file, target, anchor)
			}
		}
	}
}

var makeTarget = regexp.MustCompile("`make ([a-z0-9-]+)")

// A page that names a target of the Makefile names one that exists.
func TestDocs_makeTargetsExist(t *testing.T) {
	t.Parallel()
	makefile, err := os.ReadFile("Makefile")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/install.md", "hack/bench/README.md"} {
		page, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range makeTarget.FindAllStringSubmatch(string(page), -1) {
			if !strings.Contains(string(makefile), "\n"+m[1]+":") {
				t.Errorf("%s names make %s, which the Makefile does not have", file, m[1])
			}
		}
	}
}

// anchors are the names of a page's headings, as GitHub makes them.
func anchors(page string) (names []string) {
	for line := range strings.Lines(page) {
		if heading := strings.TrimLeft(line, "#"); heading != line {
			kept := strings.Map(func(r rune) rune {
				if unicode.IsLetter(r) || unicode.IsDigit(r) || r == '-' || r == ' ' {
					return unicode.ToLower(r)
				}
				return -1
			}, strings.TrimSpace(heading))
			names = append(names, strings.ReplaceAll(kept, " ", "-"))
		}
	}
	return names
}
