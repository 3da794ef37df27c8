package cli

import (
	"context"
	"os"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/keyconvoy/keyconvoy/internal/coredump"
	"github.com/keyconvoy/keyconvoy/internal/hsm/process"
	"github.com/keyconvoy/keyconvoy/internal/secrets"
)

// readSecretCommand is the command of a process that reads a Secret for the operator.
const readSecretCommand = "read-secret"

// newReadSecretCommand is hidden, because only pinReader calls it.
func newReadSecretCommand() *cobra.Command {
	var kubeconfig string
	cmd := &cobra.Command{
		Use:    readSecretCommand + " NAMESPACE NAME ENTRY",
		Short:  "Read an entry of a Secret for the process that started this one",
		Hidden: true,
		Args:   cobra.ExactArgs(3),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := coredump.Disable(); err != nil {
				return err
			}
			cfg, err := restConfig(kubeconfig)
			if err != nil {
				return err
			}
			cfg.ContentType = "application/vnd.kubernetes.protobuf"
			client, err := typedcorev1.NewForConfig(cfg)
			if err != nil {
				return err
			}
			read := func(ctx context.Context) (*corev1.Secret, error) {
				return client.Secrets(args[0]).Get(ctx, args[1], metav1.GetOptions{})
			}
			return secrets.PrintEntry(cmd.Context(), read, args[2], cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&kubeconfig, "kubeconfig", "", "kubeconfig of the cluster")
	return cmd
}

// pinReader returns what reads the PINs of key stores: a process of its own, so that this one's memory never has them in buffers that
// cannot be wiped.
func pinReader(kubeconfig string) secrets.EntryReader {
	return secrets.BySubprocess(os.Stderr, process.SelfCommand, readSecretCommand, "--kubeconfig="+kubeconfig)
}
