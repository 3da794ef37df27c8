//go:build cgo

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// unclearWords are words and phrases that made readers read a sentence twice.
var unclearWords = regexp.MustCompile(`(?i)\b(whoever|nobody|somebody|anybody|in vain|(that|test|it|which|selector|namespace) is none|it is asked|was seen to|(is|are) gone|` +
	`lost for ever|for ever|does not serve|do not serve|serves again|(says?|tells?|said) of itself|for as long as|takes the verb|the seeds)\b`)

func TestWords_areClear(t *testing.T) {
	t.Parallel()
	out, err := exec.CommandContext(t.Context(), "git", "ls-files", "--cached", "--others", "--exclude-standard").Output()
	if err != nil {
		t.Fatalf("The files are those of a git checkout: %v", err)
	}
	for name := range strings.Lines(string(out)) {
		name = strings.TrimSpace(name)
		read := slices.Contains([]string{".go", ".md", ".yaml", ".yml"}, filepath.Ext(name)) || name == "Makefile" || name == "Dockerfile"
		if !read || name == "words_test.go" { // which has the list
			continue
		}
		text, err := os.ReadFile(name)
		if err != nil {
			continue // deleted, but not committed yet
		}
		for _, found := range findUnclear(string(text)) {
			t.Errorf("%s:%s", name, found)
		}
	}
}

func TestWords_findsAPlantedWord(t *testing.T) {
	t.Parallel()
	found := findUnclear("The key store is ready.\n// Whoever waits must know.\n")
	if want := []string{`2: "Whoever"`}; !slices.Equal(found, want) {
		t.Errorf("found %q, want %q", found, want)
	}
}

// findUnclear returns the line and text of each unclear word.
func findUnclear(text string) (found []string) {
	for i, line := range strings.Split(text, "\n") {
		if word := unclearWords.FindString(line); word != "" {
			found = append(found, fmt.Sprintf("%d: %q", i+1, word))
		}
	}
	return found
}
