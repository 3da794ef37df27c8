package cli

import (
	"context"
	"errors"
	"fmt"
	"io"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	_ "k8s.io/client-go/plugin/pkg/client/auth" // the authentication methods that a kubeconfig may name
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/spf13/cobra"

	keyconvoy "github.com/keyconvoy/keyconvoy/api/v1alpha1"
)

// fieldManager marks, in managedFields, what a user wrote with wrap, as opposed to what the operator wrote.
const fieldManager = "keyconvoy-wrap"

// clusterFlags select a cluster and a namespace in it, as those of kubectl do.
type clusterFlags struct {
	kubeconfig string
	context    string
	namespace  string
}

func (f *clusterFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.kubeconfig, "kubeconfig", "", "kubeconfig `FILE` (default: $KUBECONFIG, or ~/.kube/config)")
	flags.StringVar(&f.context, "context", "", "`NAME` of the kubeconfig context (default: the current context)")
	flags.StringVarP(&f.namespace, "namespace", "n", "", "`NAMESPACE` of the key (default: that of the context)")
	for flag, complete := range map[string]cobra.CompletionFunc{
		"context":   f.completeContext,
		"namespace": f.completeNamespace,
	} {
		must(cmd.RegisterFlagCompletionFunc(flag, complete))
	}
}

func (f *clusterFlags) config() clientcmd.ClientConfig {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = f.kubeconfig
	overrides := &clientcmd.ConfigOverrides{CurrentContext: f.context}
	overrides.Context.Namespace = f.namespace
	return clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, overrides)
}

// cluster gives access to the objects of one namespace.
type cluster struct {
	client    client.Client
	namespace string
}

// connect reads the kubeconfig. Warnings of the API server are written to warnings.
func (f *clusterFlags) connect(warnings io.Writer) (cluster, error) {
	config := f.config()
	restConfig, err := config.ClientConfig()
	switch {
	case clientcmd.IsEmptyConfig(err):
		return cluster{}, errors.New("no cluster is configured\nhint: set KUBECONFIG or --kubeconfig; " +
			"on a machine without a cluster use --parameters")
	case err != nil:
		return cluster{}, err
	}
	namespace, _, err := config.Namespace()
	if err != nil {
		return cluster{}, err
	}
	restConfig.WarningHandler = rest.NewWarningWriter(warnings, rest.WarningWriterOptions{Deduplicate: true})

	scheme := runtime.NewScheme()
	if err := keyconvoy.AddToScheme(scheme); err != nil {
		return cluster{}, err
	}
	c, err := client.New(restConfig, client.Options{Scheme: scheme, Mapper: resources()})
	return cluster{client: c, namespace: namespace}, err
}

// resources maps the kinds that the commands use. A fixed mapping avoids discovery, which would take more requests
// than the command itself and does not end with the context.
func resources() meta.RESTMapper {
	mapper := meta.NewDefaultRESTMapper(nil)
	ours := keyconvoy.GroupVersion
	mapper.AddSpecific(ours.WithKind("ImportedKey"), ours.WithResource("importedkeys"), ours.WithResource("importedkey"), meta.RESTScopeNamespace)
	mapper.Add(corev1.SchemeGroupVersion.WithKind("Namespace"), meta.RESTScopeRoot)
	return mapper
}

func (c cluster) importedKey(ctx context.Context, name string) (*keyconvoy.ImportedKey, error) {
	var key keyconvoy.ImportedKey
	if err := c.client.Get(ctx, types.NamespacedName{Namespace: c.namespace, Name: name}, &key); err != nil {
		return nil, c.explain(err, "reading", name)
	}
	return &key, nil
}

// patch puts a merge patch on an ImportedKey.
func (c cluster) patch(ctx context.Context, name string, patch []byte) error {
	var key keyconvoy.ImportedKey
	key.Namespace, key.Name = c.namespace, name
	err := c.client.Patch(ctx, &key, client.RawPatch(types.MergePatchType, patch), client.FieldOwner(fieldManager))
	if err != nil {
		return c.explain(err, "patching", name)
	}
	return nil
}

// explain adds to an error of the API server what to do about it.
func (c cluster) explain(err error, doing, name string) error {
	switch {
	case isUnknownResource(err):
		return errors.New("the cluster has no Keyconvoy\nhint: install it with kubectl apply -k config/default, " +
			"or choose another cluster with --context")
	case apierrors.IsNotFound(err):
		return fmt.Errorf("ImportedKey %s does not exist in namespace %s\nhint: list the keys with kubectl get importedkeys --all-namespaces",
			name, c.namespace)
	case apierrors.IsForbidden(err):
		return fmt.Errorf("permission denied: reading a key requires get, and --apply requires patch, on importedkeys.%s "+
			"in namespace %s: %w", keyconvoy.GroupVersion.Group, c.namespace, err)
	}
	return fmt.Errorf("%s ImportedKey %s/%s: %w", doing, c.namespace, name, err)
}

// isUnknownResource reports whether the API server does not have the resource, as opposed to an object that does not
// exist: only the latter error names the object.
func isUnknownResource(err error) bool {
	var status apierrors.APIStatus
	if !apierrors.IsNotFound(err) || !errors.As(err, &status) {
		return false
	}
	details := status.Status().Details
	return details == nil || details.Name == "" || len(details.Causes) > 0
}
