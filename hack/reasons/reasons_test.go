package main

import (
	"os"
	"strings"
	"testing"
)

func TestReasonsPage_isAsGenerated(t *testing.T) {
	t.Parallel()
	want, err := generate("../..")
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("../../docs/reasons.md")
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Error("docs/reasons.md is not current; run: make generate")
	}
}

func TestRemedies_missingAndTooMany_areErrors(t *testing.T) {
	t.Parallel()
	err := addRemedies([]entry{{name: "NobodyThoughtOfThis", becomes: []string{"Stalled"}}})
	if err == nil || !strings.Contains(err.Error(), "NobodyThoughtOfThis has no remedy") {
		t.Errorf("a reason without a remedy: %v", err)
	}
	if err == nil || !strings.Contains(err.Error(), "PINRefused has a remedy") {
		t.Errorf("a remedy without a reason: %v", err)
	}
}
