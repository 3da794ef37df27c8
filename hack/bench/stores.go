package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/faulty"
)

// store is a key store on one of the three modules: the flags and environment of the operator, and the objects to apply.
type store struct {
	name  string
	flags []string // of the operator
	env   []string // of the operator
	pin   string   // for the Secret; empty for the software store
	spec  v1alpha1.KeyStoreSpec
	// faults controls the module; nil for a module that does not fail.
	faults *faulty.Control
}

const (
	onSoftware = "software"
	onSoftHSM  = "softhsm"
	onNSS      = "nss"

	pin       = "12345678" // of tokens that exist during one measurement only
	pinSecret = "pin"
	nssLabel  = "NSS Certificate DB" // NSS uses it for every token
)

// newStore creates the store with that name, with a new token in dir if it needs one.
func newStore(ctx context.Context, name, dir string) (*store, error) {
	switch name {
	case onSoftware:
		return &store{name: name, spec: v1alpha1.KeyStoreSpec{Type: v1alpha1.KeyStoreSoftware}}, nil
	case onSoftHSM:
		return newSoftHSM(ctx, dir)
	case onNSS:
		return newNSS(ctx, dir)
	}
	return nil, fmt.Errorf("there is no store %q; there are %s, %s and %s", name, onSoftware, onSoftHSM, onNSS)
}

func newSoftHSM(ctx context.Context, dir string) (*store, error) {
	library, err := library("/usr/lib/softhsm/libsofthsm2.so", "/usr/lib/*/softhsm/libsofthsm2.so")
	if err != nil {
		return nil, err
	}
	tokens := filepath.Join(dir, "tokens")
	if err := os.Mkdir(tokens, 0o700); err != nil {
		return nil, err
	}
	conf := filepath.Join(dir, "softhsm2.conf")
	text := fmt.Sprintf("directories.tokendir = %s\nobjectstore.backend = file\nlog.level = ERROR\n", tokens)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return nil, err
	}
	env := []string{"SOFTHSM2_CONF=" + conf}
	if _, err := command(ctx, "env", env[0], "softhsm2-util", "--init-token", "--free",
		"--label", onSoftHSM, "--pin", pin, "--so-pin", pin); err != nil {
		return nil, err
	}
	return &store{
		name: onSoftHSM, env: env, pin: pin, spec: tokenSpec(onSoftHSM, onSoftHSM),
		flags: []string{"--pkcs11-module", onSoftHSM + "=" + library, "--pkcs11-allow-path", onSoftHSM + "=" + dir + ":rw"},
	}, nil
}

func newNSS(ctx context.Context, dir string) (*store, error) {
	library, err := library("/usr/lib/*/libsoftokn3.so", "/usr/lib/*/nss/libsoftokn3.so")
	if err != nil {
		return nil, err
	}
	database, pinFile := filepath.Join(dir, "nssdb"), filepath.Join(dir, "nss.pin")
	if err := os.Mkdir(database, 0o700); err != nil {
		return nil, err
	}
	if err := os.WriteFile(pinFile, []byte(pin), 0o600); err != nil {
		return nil, err
	}
	if _, err := command(ctx, "certutil", "-N", "-d", "sql:"+database, "-f", pinFile); err != nil {
		return nil, err
	}
	parameters := fmt.Sprintf("configdir='sql:%s' certPrefix='' keyPrefix='' secmod='secmod.db' flags= ", database)
	return &store{
		name: onNSS, pin: pin, spec: tokenSpec(onNSS, nssLabel),
		flags: []string{
			"--pkcs11-module", onNSS + "=" + library, "--pkcs11-parameters", onNSS + "=" + parameters,
			"--pkcs11-allow-path", onNSS + "=" + database + ":rw",
		},
	}, nil
}

func tokenSpec(module, label string) v1alpha1.KeyStoreSpec {
	return v1alpha1.KeyStoreSpec{Type: v1alpha1.KeyStorePKCS11, PKCS11: &v1alpha1.PKCS11Store{
		Module:       module,
		Token:        v1alpha1.TokenSelector{Label: label},
		PINSecretRef: &v1alpha1.EntryReference{Name: pinSecret, Key: pinSecret},
	}}
}

// library returns the first file that matches one of the patterns.
func library(patterns ...string) (string, error) {
	for _, pattern := range patterns {
		if found, _ := filepath.Glob(pattern); len(found) > 0 {
			return found[0], nil
		}
	}
	return "", fmt.Errorf("no file matches %q; make bench installs it", patterns)
}
