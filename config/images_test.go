package config_test

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

var byDigest = regexp.MustCompile(`^FROM [a-z]+:[a-z0-9.-]+@sha256:[0-9a-f]{64}( AS [a-z]+)?\n$`)

// A tag may mean another image tomorrow. The image's Go is the one that go.mod asks for, so it downloads no other.
func TestDockerfile_namesItsImagesByDigest(t *testing.T) {
	t.Parallel()
	dockerfile, err := os.ReadFile("../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	module, err := os.ReadFile("../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	images := 0
	for line := range strings.Lines(string(dockerfile)) {
		if !strings.HasPrefix(line, "FROM ") {
			continue
		}
		images++
		if !byDigest.MatchString(line) {
			t.Errorf("not by digest: %s", line)
		}
	}
	version := regexp.MustCompile(`(?m)^go (.+)$`).FindSubmatch(module)
	if images != 2 || !strings.Contains(string(dockerfile), "golang:"+string(version[1])+"-") {
		t.Errorf("%d images; go.mod asks for Go %s", images, version[1])
	}
}
