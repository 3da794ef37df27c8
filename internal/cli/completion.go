package cli

import (
	"context"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	keyconvoy "github.com/keyconvoy/keyconvoy/api/v1alpha1"
)

// completionPatience is how long shell completion waits for the cluster.
const completionPatience = 3 * time.Second

// completeKey completes the names of ImportedKeys in the namespace, with their type and state.
func (f *clusterFlags) completeKey(cmd *cobra.Command, _ []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	var keys keyconvoy.ImportedKeyList
	if !f.list(cmd, &keys, true) {
		return nil, cobra.ShellCompDirectiveError
	}
	var names []cobra.Completion
	for _, key := range keys.Items {
		if strings.HasPrefix(key.Name, prefix) {
			about := strings.TrimSpace(string(key.Spec.KeySpec) + " " + string(key.Status.KeyState))
			names = append(names, cobra.CompletionWithDesc(key.Name, about))
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completeNamespace completes the namespaces of the cluster.
func (f *clusterFlags) completeNamespace(cmd *cobra.Command, _ []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	var namespaces metav1.PartialObjectMetadataList
	namespaces.APIVersion, namespaces.Kind = "v1", "NamespaceList"
	if !f.list(cmd, &namespaces, false) {
		return nil, cobra.ShellCompDirectiveError
	}
	var names []cobra.Completion
	for _, namespace := range namespaces.Items {
		if strings.HasPrefix(namespace.Name, prefix) {
			names = append(names, namespace.Name)
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completeContext completes the contexts of the kubeconfig.
func (f *clusterFlags) completeContext(_ *cobra.Command, _ []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	config, err := f.config().RawConfig()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var names []cobra.Completion
	for name := range config.Contexts {
		if strings.HasPrefix(name, prefix) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, cobra.ShellCompDirectiveNoFileComp
}

// list reads objects for shell completion: within a short time limit, and without output.
func (f *clusterFlags) list(cmd *cobra.Command, into client.ObjectList, inNamespace bool) bool {
	c, err := f.connect(io.Discard)
	if err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), completionPatience)
	defer cancel()
	var options []client.ListOption
	if inNamespace {
		options = append(options, client.InNamespace(c.namespace))
	}
	return c.client.List(ctx, into, options...) == nil
}

// fixed completes a flag that accepts one of the given words.
func fixed(words []string) cobra.CompletionFunc {
	return cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)
}

// must panics on errors that only a mistake in this package can cause, so that every start would show them.
func must(err error) {
	if err != nil {
		panic(err)
	}
}
