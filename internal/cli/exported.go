package cli

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keyconvoy/keyconvoy/internal/b64"
	"github.com/keyconvoy/keyconvoy/internal/ciphertext"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// maxExported is longer than any ciphertext, also in Base64.
const maxExported = 64 << 10

// The entries of the Secret that an ExportedDataKey writes.
const (
	entryExportedDataKey      = "exportedDataKey"
	entryWrappingAlgorithm    = "wrappingAlgorithm"
	entryWrappingKeySpec      = "wrappingKeySpec"
	entryRecipientFingerprint = "recipientFingerprint"
)

// exportedDataKey is a ciphertext and the algorithm that encrypted it.
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

// chooseAlgorithm sets the algorithm if only one is possible.
func chooseAlgorithm(name string, recipient *wrapping.PublicKey) (wrapping.Algorithm, error) {
	switch {
	case name != "":
		algorithm := wrapping.Algorithm(name)
		return algorithm, wrapping.CheckFit(recipient.Spec(), algorithm)
	case recipient.Spec() == wrapping.ECSM2:
		return wrapping.SM2PKE, nil
	}
	return "", usagef("--algorithm is required with an RSA key: %s or %s\nhint: the entry %s of the Secret contains it",
		wrapping.RSAESOAEPSHA256, wrapping.RSAESOAEPSHA1, entryWrappingAlgorithm)
}

// explainClosed returns why a ciphertext cannot be decrypted, as far as its length and form show. It does not use the
// result of decryption, so that a program that forwards the message is not a padding oracle.
func explainClosed(spec wrapping.KeySpec, exported exportedDataKey) string {
	data := exported.ciphertext
	text := strings.TrimSpace(string(data))
	_, notHex := hex.DecodeString(text)
	_, notBase64 := b64.Decode(text)
	switch want := wrapping.CiphertextLen(spec); {
	case text == "":
		return "the ciphertext is empty"
	case isBlob(text) || isBlob(base64.StdEncoding.EncodeToString(data)):
		return "this is the ciphertextBlob of a DataKey, which only its key store can decrypt\nhint: " +
			"create an ExportedDataKey for your public key and use the entry " + entryExportedDataKey + " of its Secret"
	case notHex == nil:
		return "the ciphertext is hexadecimal text\nhint: convert it to bytes with xxd -r -p"
	case notBase64 == nil:
		return "the ciphertext is Base64 text\nhint: add --base64, or decode it first"
	case want > 0 && len(data) != want:
		return fmt.Sprintf("the ciphertext has %d bytes, but a key of type %s decrypts %d bytes: it is for another key, or incomplete", len(data), spec, want)
	}
	return fmt.Sprintf("the ciphertext cannot be decrypted with %s: it is for another key, uses another algorithm or format, or is damaged", exported.algorithm)
}

func isBlob(text string) bool {
	_, err := ciphertext.Parse(text)
	return err == nil
}

// readSecretDir reads a mounted Secret and checks that it is for this recipient.
func readSecretDir(cmd *cobra.Command, dir string, recipient *wrapping.PublicKey) (exportedDataKey, error) {
	dir, err := snapshot(dir)
	if err != nil {
		return exportedDataKey{}, err
	}
	entries := map[string][]byte{}
	for _, name := range []string{entryExportedDataKey, entryWrappingAlgorithm, entryWrappingKeySpec, entryRecipientFingerprint} {
		data, err := readBounded(cmd.Context(), filepath.Join(dir, name), nil, maxExported)
		if isMissing(err) {
			return exportedDataKey{}, fmt.Errorf("%s has no entry %s\nhint: mount the whole Secret of an ExportedDataKey, "+
				"or use --in and --algorithm", dir, name)
		}
		if err != nil {
			return exportedDataKey{}, err
		}
		entries[name] = data
	}
	text := func(name string) string { return strings.TrimSpace(string(entries[name])) }

	if text(entryRecipientFingerprint) != recipient.Fingerprint() {
		return exportedDataKey{}, fmt.Errorf("the data key was exported for another recipient: the fingerprint of its public key is %q, "+
			"but that of --key-file is %s", text(entryRecipientFingerprint), recipient.Fingerprint())
	}
	algorithm := wrapping.Algorithm(text(entryWrappingAlgorithm))
	if err := wrapping.CheckFit(wrapping.KeySpec(text(entryWrappingKeySpec)), algorithm); err != nil {
		return exportedDataKey{}, fmt.Errorf("the entries %s and %s of %s: %w", entryWrappingKeySpec, entryWrappingAlgorithm, dir, err)
	}
	if string(recipient.Spec()) != text(entryWrappingKeySpec) {
		return exportedDataKey{}, fmt.Errorf("the entry %s of %s is not %s, the type of the recipient's key", entryWrappingKeySpec, dir, recipient.Spec())
	}
	return exportedDataKey{ciphertext: entries[entryExportedDataKey], algorithm: algorithm}, nil
}

// snapshot returns a directory that does not change while it is read. The kubelet updates a mounted Secret by
// pointing the link ..data at a new directory, so entries read through the link could be of two versions.
func snapshot(dir string) (string, error) {
	info, err := os.Stat(dir)
	if err != nil {
		return "", err
	}
	if !info.IsDir() {
		return "", errors.New(dir + " is not a directory\nhint: for a file use --in")
	}
	current, err := filepath.EvalSymlinks(filepath.Join(dir, "..data"))
	if err != nil {
		return dir, nil //nolint:nilerr // not a volume of the kubelet
	}
	return current, nil
}
