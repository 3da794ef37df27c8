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
	_ "k8s.io/client-go/plugin/pkg/client/auth" // the ways to log in that a kubeconfig may name
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/spf13/cobra"

	keyconvoy "github.com/keyconvoy/keyconvoy/api/v1alpha1"
)

// fieldManager marks in managedFields what wrap wrote: not the operator, but a person with it.
const fieldManager = "keyconvoy-wrap"

// clusterFlags say which cluster, and which namespace in it, as kubectl's do.
type clusterFlags struct {
	kubeconfig string
	context    string
	namespace  string
}

func (f *clusterFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.kubeconfig, "kubeconfig", "", "kubeconfig `FILE`; otherwise $KUBECONFIG, or ~/.kube/config")
	flags.StringVar(&f.context, "context", "", "`NAME` of the kubeconfig's context; otherwise its current one")
	flags.StringVarP(&f.namespace, "namespace", "n", "", "`NAMESPACE` of the key; otherwise that of the context")
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

// cluster is a way to the objects of one namespace.
type cluster struct {
	client    client.Client
	namespace string
}

// connect reads the kubeconfig. What the API server warns of goes to warnings.
func (f *clusterFlags) connect(warnings io.Writer) (cluster, error) {
	config := f.config()
	restConfig, err := config.ClientConfig()
	switch {
	case clientcmd.IsEmptyConfig(err):
		return cluster{}, errors.New("no cluster is configured: set KUBECONFIG or --kubeconfig; " +
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

// resources maps the kinds that we ask for. Known beforehand, they cost no discovery, which would be
// more requests than ours and does not end with a context.
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

// explain says what to do about an answer of the API server.
func (c cluster) explain(err error, doing, name string) error {
	switch {
	case isUnknownResource(err):
		return errors.New("the cluster does not know ImportedKeys: install Keyconvoy in it (kubectl apply -k config/default), " +
			"or choose another cluster with --context")
	case apierrors.IsNotFound(err):
		return fmt.Errorf("there is no ImportedKey %s in namespace %s; kubectl get importedkeys --all-namespaces lists them",
			name, c.namespace)
	case apierrors.IsForbidden(err):
		return fmt.Errorf("you may not do this; reading a key takes get, and --apply takes patch, on importedkeys.%s "+
			"in namespace %s: %w", keyconvoy.GroupVersion.Group, c.namespace, err)
	}
	return fmt.Errorf("%s ImportedKey %s/%s: %w", doing, c.namespace, name, err)
}

// isUnknownResource tells the API server's answer for a resource that it does not serve from that for
// an object that does not exist: only the latter names the object.
func isUnknownResource(err error) bool {
	var status apierrors.APIStatus
	if !apierrors.IsNotFound(err) || !errors.As(err, &status) {
		return false
	}
	details := status.Status().Details
	return details == nil || details.Name == "" || len(details.Causes) > 0
}
