package wire

import (
	"testing"
)

func TestNonces_areForgottenAndBounded(t *testing.T) {
	t.Parallel()
	n := newNonces()
	if err := n.use("a", "x", now, now.Add(MaxSkew)); err != nil {
		t.Fatal(err)
	}
	if err := n.use("b", "x", now, now.Add(MaxSkew)); err != nil {
		t.Errorf("The nonce of another key: %v", err)
	}
	if err := n.use("a", "x", now.Add(MaxSkew), now.Add(2*MaxSkew)); CodeOf(err) != "SignatureNonceUsed" {
		t.Errorf("At the end of its time it is %v", err)
	}
	later := now.Add(MaxSkew + 3*noncePeriod)
	if err := n.use("a", "x", later, later.Add(MaxSkew)); err != nil {
		t.Errorf("After its time: %v", err)
	}
	if _, kept := n.byID["b"]; !kept {
		t.Fatal("The other key was forgotten too early")
	}
	if err := n.use("c", "x", later, later.Add(MaxSkew)); err != nil {
		t.Fatal(err)
	}
	if _, kept := n.byID["b"]; kept {
		t.Error("A key without nonces is remembered")
	}
	n.byID["a"].count = maxNonces
	if err := n.use("a", "y", later, later.Add(MaxSkew)); CodeOf(err) != "Rejected.Throttling" {
		t.Errorf("Beyond the bound it is %v", err)
	}
}
