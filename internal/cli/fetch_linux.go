package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/types"

	"github.com/keyconvoy/keyconvoy/internal/fetch"
	"github.com/keyconvoy/keyconvoy/internal/redact"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

const fetchLong = `Get a data key for the pod in which this command runs.

The command generates a key pair in memory, creates an ExportedDataKey for it with the pod's
ServiceAccount, decrypts the exported data key, and deletes the object. The private key exists
nowhere else. With a hardware module, a copy of etcd or of all Secrets therefore does not reveal
the data key. With the software store it does, because its root key is in a Secret.

With --output, the data key is written atomically to a file of mode 0400 in a memory volume (emptyDir
with medium: Memory): run the command as an init container. With --watch it continues to run, and
replaces the file when the DataKey is replaced: run it as a sidecar. A signal or command (--signal,
--then) that fails is tried again until it succeeds.

With --exec, it starts a program and passes the data key through a pipe, which can be read once. The
environment variable KEYCONVOY_KEY_FD contains the number of the file descriptor. Signals are
forwarded, except CHLD, PIPE and URG, and the exit code is that of the program.

The ServiceAccount needs the verb export on the DataKey, the verbs create, watch and delete on
exporteddatakeys in the pod's namespace, and for --watch the verb watch on the DataKey. Without
delete, the object remains until the pod is deleted.`

const fetchExample = `  # In an init container
  keyconvoy fetch --datakey ledger --output /keys/ledger

  # In a sidecar: replace the file, and have the server read it again
  keyconvoy fetch --datakey ledger --output /keys/ledger --watch --signal HUP --process nginx

  # Start the program of the container
  keyconvoy fetch --datakey ledger --exec -- /server --key-file /dev/fd/3`

type fetchOptions struct {
	dataKey    string
	namespace  string
	output     string
	allowDisk  bool
	encoding   string
	keySpec    string
	algorithm  string
	timeout    time.Duration
	kubeconfig string
	pod        fetch.Pod
	podUID     string

	watch   bool
	then    bool
	signal  string
	process string

	exec     bool
	handOver bool
	command  []string
}

// recipientSpecs are the types of key pairs that fetch can generate.
func recipientSpecs() []string {
	var names []string
	for _, spec := range wrapping.KeySpecs() {
		names = append(names, string(spec))
	}
	return names
}

func newFetchCommand() *cobra.Command {
	var o fetchOptions
	cmd := &cobra.Command{
		Use:     "fetch --datakey NAME (--output FILE | --exec -- PROGRAM [ARGUMENT…])",
		Short:   "Get a data key for a pod",
		Long:    fetchLong,
		Example: fetchExample,
		Args:    cobra.ArbitraryArgs,
		RunE:    o.run,

		DisableFlagsInUseLine: true,
	}
	flags := cmd.Flags()
	flags.StringVar(&o.dataKey, "datakey", "", "`NAME` of the DataKey")
	flags.StringVarP(&o.namespace, "namespace", "n", "", "`NAMESPACE` of the DataKey (default: that of the pod)")
	flags.StringVar(&o.output, "output", "", "`FILE` for the data key, in a memory volume")
	flags.BoolVar(&o.allowDisk, "allow-disk", false, "with --output, write to any file system")
	flags.StringVar(&o.encoding, "encoding", string(encodingRaw), "`ENCODING` of the data key: "+strings.Join(encodings(), ", "))
	flags.StringVar(&o.keySpec, "wrapping-key-spec", string(wrapping.RSA2048), "`TYPE` of the key pair: "+strings.Join(recipientSpecs(), ", "))
	flags.StringVar(&o.algorithm, "wrapping-algorithm", "", "`NAME` of the wrapping algorithm: "+strings.Join(exportAlgorithms(), ", ")+
		" (default: RSAES_OAEP_SHA_256, or SM2PKE with EC_SM2)")
	flags.DurationVar(&o.timeout, "timeout", 2*time.Minute, "how long to wait for the data key, and for the command of --then")
	flags.BoolVar(&o.watch, "watch", false, "continue to run, and replace the file when the DataKey is replaced")
	flags.BoolVar(&o.then, "then", false, "with --watch, run the command after -- when the file was replaced")
	flags.StringVar(&o.signal, "signal", "", "with --watch and --process, send the `SIGNAL` when the file was replaced, such as HUP")
	flags.StringVar(&o.process, "process", "", "`NAME` of the program that gets the signal (requires shareProcessNamespace)")
	flags.BoolVar(&o.exec, "exec", false, "start the program after --, and pass the data key through a pipe")
	flags.BoolVar(&o.handOver, handOverFlag, false, "")
	flags.StringVar(&o.pod.Name, "pod-name", os.Getenv("POD_NAME"), "`NAME` of the pod (default: $POD_NAME)")
	flags.StringVar(&o.podUID, "pod-uid", os.Getenv("POD_UID"), "`UID` of the pod (default: $POD_UID)")
	flags.StringVar(&o.pod.Namespace, "pod-namespace", os.Getenv("POD_NAMESPACE"), "`NAMESPACE` of the pod (default: $POD_NAMESPACE)")
	flags.StringVar(&o.kubeconfig, "kubeconfig", "", "kubeconfig `FILE` (default: the pod's ServiceAccount)")

	for _, name := range []string{"pod-name", "pod-uid", "pod-namespace"} {
		flags.Lookup(name).DefValue = "" // the help says where it comes from
	}
	must(flags.MarkHidden(handOverFlag))
	must(cmd.MarkFlagRequired("datakey"))
	cmd.MarkFlagsOneRequired("output", "exec")
	for _, other := range []string{"output", "watch", "allow-disk", "then", "signal"} {
		cmd.MarkFlagsMutuallyExclusive("exec", other)
	}
	cmd.MarkFlagsMutuallyExclusive("then", "signal")
	cmd.MarkFlagsRequiredTogether("signal", "process")
	must(cmd.RegisterFlagCompletionFunc("encoding", fixed(encodings())))
	must(cmd.RegisterFlagCompletionFunc("wrapping-key-spec", fixed(recipientSpecs())))
	must(cmd.RegisterFlagCompletionFunc("wrapping-algorithm", fixed(exportAlgorithms())))
	return cmd
}

func (o *fetchOptions) run(cmd *cobra.Command, args []string) error {
	o.command = args
	if err := o.check(); err != nil {
		return err
	}
	if o.exec && !o.handOver {
		return o.supervise(cmd)
	}
	pairs := startGenerating(cmd.Context(), wrapping.KeySpec(o.keySpec))
	cfg, err := restConfig(o.kubeconfig)
	if err != nil {
		return err
	}
	client, err := fetch.NewClient(cfg, pairs)
	if err != nil {
		return err
	}
	switch {
	case o.handOver:
		return o.becomeProgram(cmd.Context(), client)
	case o.watch:
		return o.keep(cmd, client)
	}
	return o.fetchTo(cmd.Context(), client, "", o.write)
}

// check finds errors that flag groups cannot express, and sets defaults.
func (o *fetchOptions) check() error {
	spec := wrapping.KeySpec(o.keySpec)
	if o.algorithm == "" {
		o.algorithm = string(fetch.DefaultAlgorithm(spec))
	}
	o.pod.UID = types.UID(o.podUID)
	if o.namespace == "" {
		o.namespace = o.pod.Namespace
	}
	switch {
	case !spec.Valid():
		return usagef("--wrapping-key-spec must be one of %s", strings.Join(recipientSpecs(), ", "))
	case !slices.Contains(exportAlgorithms(), o.algorithm):
		return usagef("--wrapping-algorithm must be one of %s", strings.Join(exportAlgorithms(), ", "))
	case wrapping.CheckFit(spec, wrapping.Algorithm(o.algorithm)) != nil:
		return usageError{wrapping.CheckFit(spec, wrapping.Algorithm(o.algorithm))}
	case !slices.Contains(encodings(), o.encoding):
		return usagef("--encoding must be one of %s", strings.Join(encodings(), ", "))
	case o.timeout <= 0:
		return usagef("--timeout must be positive")
	case o.pod.Name == "" || o.pod.UID == "" || o.pod.Namespace == "":
		return usagef("the pod is unknown\nhint: set the environment variables POD_NAME, POD_UID and POD_NAMESPACE " +
			"from the fields metadata.name, metadata.uid and metadata.namespace of the pod")
	case (o.then || o.signal != "") && !o.watch:
		return usagef("--then and --signal require --watch")
	case (o.then || o.exec) && len(o.command) == 0:
		return usagef("a command is required after --")
	case !o.then && !o.exec && len(o.command) > 0:
		return usagef("a command after -- requires --exec or --then")
	}
	if o.signal != "" {
		if _, err := signalNamed(o.signal); err != nil {
			return err
		}
	}
	if o.exec {
		return nil
	}
	return o.checkOutput()
}

// startGenerating generates the first key pair while the command prepares its requests.
func startGenerating(ctx context.Context, spec wrapping.KeySpec) fetch.KeyPairs {
	type result struct {
		key *wrapping.PrivateKey
		err error
	}
	first := make(chan result, 1)
	go func() {
		key, err := fetch.Generate(ctx, spec)
		first <- result{key, err}
		close(first)
	}()
	return func(ctx context.Context, spec wrapping.KeySpec) (*wrapping.PrivateKey, error) {
		if r, ok := <-first; ok {
			return r.key, r.err
		}
		return fetch.Generate(ctx, spec)
	}
}

// fetchTo gets the data key, of a digest if one is given, and calls deliver.
func (o *fetchOptions) fetchTo(ctx context.Context, client *fetch.Client, digest string, deliver func(context.Context, redact.Bytes) error) error {
	limited, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	dataKey, err := client.DataKey(limited, fetch.Request{
		DataKey: types.NamespacedName{Namespace: o.namespace, Name: o.dataKey}, Digest: digest, Pod: o.pod,
		KeySpec: wrapping.KeySpec(o.keySpec), Algorithm: wrapping.Algorithm(o.algorithm),
	})
	if err != nil {
		return withHint(err)
	}
	defer dataKey.Wipe()
	text := encoding(o.encoding).encode(dataKey)
	defer text.Wipe()
	return deliver(ctx, text)
}

// withHint puts the hint of an error on a line of its own.
func withHint(err error) error {
	var explained *fetch.Error
	if errors.As(err, &explained) && explained.Hint != "" {
		return fmt.Errorf("%w\nhint: %s", err, explained.Hint)
	}
	return err
}
