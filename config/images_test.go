package config_test

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var byDigest = regexp.MustCompile(`^[a-z]+:[a-z0-9.-]+@sha256:[0-9a-f]{64}$`)

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
	stages := []string{"scratch"}
	for _, from := range regexp.MustCompile(`(?m)^FROM (\S+) AS (\S+)$`).FindAllStringSubmatch(string(dockerfile), -1) {
		if !slices.Contains(stages, from[1]) {
			images++
			if !byDigest.MatchString(from[1]) {
				t.Errorf("not by digest: %s", from[1])
			}
		}
		stages = append(stages, from[2])
	}
	version := regexp.MustCompile(`(?m)^go (.+)$`).FindSubmatch(module)
	if images != 2 || !strings.Contains(string(dockerfile), "golang:"+string(version[1])+"-") {
		t.Errorf("%d images; go.mod asks for Go %s", images, version[1])
	}
	if last := stages[len(stages)-1]; last != "manager" {
		t.Errorf("the default target is %s, and not the operator's image", last)
	}
	if all := strings.Count(string(dockerfile), "\nFROM "); all != len(stages)-1 {
		t.Errorf("%d of %d stages have a name", len(stages)-1, all)
	}
}
