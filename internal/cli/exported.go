package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keyconvoy/keyconvoy/internal/b64"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// maxExported is more than any ciphertext has, also in Base64.
const maxExported = 64 << 10

// The entries of the Secret that an ExportedDataKey writes.
const (
	entryExportedDataKey      = "exportedDataKey"
	entryWrappingAlgorithm    = "wrappingAlgorithm"
	entryWrappingKeySpec      = "wrappingKeySpec"
	entryRecipientFingerprint = "recipientFingerprint"
)

// exportedDataKey is a ciphertext and how it was made.
type exportedDataKey struct {
	ciphertext []byte
	algorithm  wrapping.Algorithm
}

func (o *unwrapOptions) exported(cmd *cobra.Command, recipient *wrapping.PublicKey) (exportedDataKey, error) {
	if o.secretDir != "" {
		return readSecretDir(cmd, o.secretDir, recipient)
	}
	algorithm, err := chooseAlgorithm(o.algorithm, recipient)
	if err != nil {
		return exportedDataKey{}, err
	}
	data, err := readBounded(cmd.Context(), o.in, cmd.InOrStdin(), maxExported)
	if err != nil {
		return exportedDataKey{}, err
	}
	if !o.base64 {
		return exportedDataKey{ciphertext: data, algorithm: algorithm}, nil
	}
	ciphertext, err := b64.Decode(string(data))
	if err != nil {
		return exportedDataKey{}, fmt.Errorf("the ciphertext in %s is %w", describeInput(o.in), err)
	}
	return exportedDataKey{ciphertext: ciphertext, algorithm: algorithm}, nil
}

// chooseAlgorithm fills in the algorithm where only one is possible.
func chooseAlgorithm(name string, recipient *wrapping.PublicKey) (wrapping.Algorithm, error) {
	switch {
	case name != "":
		algorithm := wrapping.Algorithm(name)
		return algorithm, wrapping.CheckFit(recipient.Spec(), algorithm)
	case recipient.Spec() == wrapping.ECSM2:
		return wrapping.SM2PKE, nil
	}
	return "", usagef("--algorithm is needed with an RSA key: %s or %s; the Secret's entry %s says which",
		wrapping.RSAESOAEPSHA256, wrapping.RSAESOAEPSHA1, entryWrappingAlgorithm)
}

// readSecretDir reads a mounted Secret and checks that it is for us.
func readSecretDir(cmd *cobra.Command, dir string, recipient *wrapping.PublicKey) (exportedDataKey, error) {
	dir, err := snapshot(dir)
	if err != nil {
		return exportedDataKey{}, err
	}
	entries := map[string][]byte{}
	for _, name := range []string{entryExportedDataKey, entryWrappingAlgorithm, entryWrappingKeySpec, entryRecipientFingerprint} {
		data, err := readBounded(cmd.Context(), filepath.Join(dir, name), nil, maxExported)
		if isMissing(err) {
			return exportedDataKey{}, fmt.Errorf("%s has no entry %s: mount the whole Secret of an ExportedDataKey, "+
				"or name the ciphertext with --in and --algorithm", dir, name)
		}
		if err != nil {
			return exportedDataKey{}, err
		}
		entries[name] = data
	}
	text := func(name string) string { return strings.TrimSpace(string(entries[name])) }

	if text(entryRecipientFingerprint) != recipient.Fingerprint() {
		return exportedDataKey{}, fmt.Errorf("the data key was exported for another recipient: its public key has fingerprint %q, "+
			"and that of --key-file has %s", text(entryRecipientFingerprint), recipient.Fingerprint())
	}
	algorithm := wrapping.Algorithm(text(entryWrappingAlgorithm))
	if err := wrapping.CheckFit(wrapping.KeySpec(text(entryWrappingKeySpec)), algorithm); err != nil {
		return exportedDataKey{}, fmt.Errorf("the entries %s and %s of %s: %w", entryWrappingKeySpec, entryWrappingAlgorithm, dir, err)
	}
	if string(recipient.Spec()) != text(entryWrappingKeySpec) {
		return exportedDataKey{}, fmt.Errorf("the entry %s of %s does not say %s, which the recipient's key is", entryWrappingKeySpec, dir, recipient.Spec())
	}
	return exportedDataKey{ciphertext: entries[entryExportedDataKey], algorithm: algorithm}, nil
}

// snapshot returns a directory that does not change while it is read. The kubelet renews a mounted
// Secret by turning the link ..data to a new directory; read through one by one, its entries could be
// of two versions.
func snapshot(dir string) (string, error) {
	info, err := os.Stat(dir)
	if err != nil {
		return "", err
	}
	if !info.IsDir() {
		return "", errors.New(dir + " is no directory; name a file with --in")
	}
	current, err := filepath.EvalSymlinks(filepath.Join(dir, "..data"))
	if err != nil {
		return dir, nil //nolint:nilerr // no volume of a kubelet
	}
	return current, nil
}
