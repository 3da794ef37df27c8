package cli

import (
	"errors"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keyconvoy/keyconvoy/internal/redact"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

const unwrapLong = `Decrypt a data key that was encrypted under your public key.

The ciphertext is that of an ExportedDataKey: its Secret, mounted as a directory (--secret-dir, which
also checks algorithm and recipient), or the ciphertext alone in a file or on standard input (--in).
The private key is RSA or SM2, as PKCS#8, PKCS#1 or SEC 1, in PEM or DER.

The data key is written atomically to a file of mode 0600 or, with --out -, to standard output, which
must not be a terminal. If the data key must not reach a disk, use a memory volume (emptyDir with
medium: Memory).`

const unwrapExample = `  # In a pod, with the Secret and the private key mounted
  keyconvoy unwrap --secret-dir /run/export --key-file /run/recipient/tls.key --out /run/keys/ledger

  # From a file
  keyconvoy unwrap --key-file recipient.pem --algorithm RSAES_OAEP_SHA_256 --in wrapped.bin --out ledger.key

  # From the cluster into a program
  kubectl get secret ledger-sm2 -n team-a -o jsonpath='{.data.exportedDataKey}' |
    keyconvoy unwrap --key-file sm2.pem --base64 --out - | sha256sum`

type unwrapOptions struct {
	keyFile    string
	in         string
	base64     bool
	secretDir  string
	algorithm  string
	sm2Format  string
	out        string
	encoding   string
	toTerminal bool
}

// exportAlgorithms are the wrapping algorithms of exports.
func exportAlgorithms() []string {
	return []string{string(wrapping.RSAESOAEPSHA256), string(wrapping.RSAESOAEPSHA1), string(wrapping.SM2PKE)}
}

func sm2Formats() []string {
	var names []string
	for _, format := range wrapping.SM2Formats() {
		names = append(names, string(format))
	}
	return names
}

func newUnwrapCommand() *cobra.Command {
	var o unwrapOptions
	cmd := &cobra.Command{
		Use:     "unwrap --key-file FILE (--secret-dir DIR | --in FILE --algorithm NAME) --out FILE",
		Short:   "Decrypt a data key that was exported for you",
		Long:    unwrapLong,
		Example: unwrapExample,
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },

		DisableFlagsInUseLine: true,
	}
	flags := cmd.Flags()
	flags.StringVar(&o.keyFile, "key-file", "", "`FILE` with the private key, RSA or SM2")
	flags.StringVar(&o.secretDir, "secret-dir", "", "`DIR` at which the Secret of an ExportedDataKey is mounted")
	flags.StringVar(&o.in, "in", standardStream, "`FILE` with the ciphertext; - is standard input")
	flags.BoolVar(&o.base64, "base64", false, "the ciphertext is Base64 text")
	flags.StringVar(&o.algorithm, "algorithm", "", "`NAME` of the wrapping algorithm: "+strings.Join(exportAlgorithms(), ", ")+
		"; not needed with --secret-dir or an SM2 key")
	flags.StringVar(&o.sm2Format, "sm2-format", "", "`FORMAT` of an SM2 ciphertext: "+strings.Join(sm2Formats(), ", ")+
		" (default: C1C3C2 or ASN1, detected)")
	flags.StringVar(&o.out, "out", "", "`FILE` for the data key; - is standard output")
	flags.StringVar(&o.encoding, "encoding", string(encodingRaw), "`ENCODING` of the data key: "+strings.Join(encodings(), ", "))
	flags.BoolVar(&o.toTerminal, "to-terminal", false, "with --out -, write to a terminal too")

	must(cmd.MarkFlagRequired("key-file"))
	must(cmd.MarkFlagRequired("out"))
	for _, plainFile := range []string{"in", "base64", "algorithm"} {
		cmd.MarkFlagsMutuallyExclusive("secret-dir", plainFile)
	}
	must(cmd.MarkFlagDirname("secret-dir"))
	must(cmd.RegisterFlagCompletionFunc("algorithm", fixed(exportAlgorithms())))
	must(cmd.RegisterFlagCompletionFunc("sm2-format", fixed(sm2Formats())))
	must(cmd.RegisterFlagCompletionFunc("encoding", fixed(encodings())))
	return cmd
}

func (o *unwrapOptions) run(cmd *cobra.Command) error {
	if err := o.check(cmd); err != nil {
		return err
	}
	key, err := o.privateKey(cmd)
	if err != nil {
		return err
	}
	exported, err := o.exported(cmd, key.Public())
	if err != nil {
		return err
	}
	dataKey, err := key.Unwrap(exported.algorithm, wrapping.SM2Format(o.sm2Format), exported.ciphertext)
	if err == nil && len(dataKey) == 0 {
		err = wrapping.ErrUnwrap // an exported data key is never empty
	}
	if errors.Is(err, wrapping.ErrUnwrap) {
		return errors.New(explainClosed(key.Public().Spec(), exported))
	}
	if err != nil {
		return err
	}
	defer dataKey.Wipe()
	return o.deliver(cmd, dataKey)
}

// check finds errors that flag groups cannot express.
func (o *unwrapOptions) check(cmd *cobra.Command) error {
	toStandardOutput := o.out == standardStream
	switch {
	case o.algorithm != "" && !slices.Contains(exportAlgorithms(), o.algorithm):
		return usagef("--algorithm must be one of %s", strings.Join(exportAlgorithms(), ", "))
	case o.sm2Format != "" && !wrapping.SM2Format(o.sm2Format).Valid():
		return usagef("--sm2-format must be one of %s", strings.Join(sm2Formats(), ", "))
	case !slices.Contains(encodings(), o.encoding):
		return usagef("--encoding must be one of %s", strings.Join(encodings(), ", "))
	case o.out == "" || o.keyFile == "":
		return usagef("--key-file and --out require a file name")
	case o.keyFile == standardStream && o.in == standardStream && o.secretDir == "":
		return usagef("private key and ciphertext cannot both come from standard input\nhint: use a file for --in or --key-file")
	case toStandardOutput && isTerminal(cmd.OutOrStdout()) && !o.toTerminal:
		return usagef("standard output is a terminal, which would show the data key\nhint: use a file with --out, a pipe, " +
			"or --to-terminal (with --encoding hex or base64)")
	case o.secretDir == "" && o.in == standardStream && isTerminal(cmd.InOrStdin()):
		return usagef("a ciphertext is required\nhint: use --secret-dir for a mounted Secret, or --in for a file")
	}
	return o.checkOverwrite()
}

// checkOverwrite rejects an output file that is also an input.
func (o *unwrapOptions) checkOverwrite() error {
	out, err := os.Stat(o.out)
	if err != nil {
		return nil //nolint:nilerr // the file does not exist; writing reports any other error
	}
	for flag, name := range map[string]string{"--key-file": o.keyFile, "--in": o.in} {
		if info, err := os.Stat(name); err == nil && os.SameFile(info, out) {
			return usagef("--out is the same file as %s, which would be overwritten", flag)
		}
	}
	return nil
}

// maxPrivateKey is the maximum length of a private key file.
const maxPrivateKey = 64 << 10

func (o *unwrapOptions) privateKey(cmd *cobra.Command) (*wrapping.PrivateKey, error) {
	data, err := readBounded(cmd.Context(), o.keyFile, cmd.InOrStdin(), maxPrivateKey)
	if err != nil {
		return nil, err
	}
	defer data.Wipe()
	warnIfShared(cmd.ErrOrStderr(), o.keyFile)
	key, err := wrapping.ParsePrivateKey(data)
	if err != nil {
		return nil, errors.New(describeInput(o.keyFile) + ": " + err.Error())
	}
	return key, nil
}

func (o *unwrapOptions) deliver(cmd *cobra.Command, dataKey redact.Bytes) error {
	text := encoding(o.encoding).encode(dataKey)
	defer text.Wipe()
	if o.out == standardStream {
		return writeAll(cmd.Context(), cmd.OutOrStdout(), text)
	}
	return writePrivate(cmd.Context(), o.out, text)
}
