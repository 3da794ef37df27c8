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

// completionPatience is how long a shell waits for a cluster when somebody presses tab.
const completionPatience = 3 * time.Second

// completeKey offers the names of the namespace's ImportedKeys, with what they are.
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

// completeNamespace offers the cluster's namespaces.
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

// completeContext offers the kubeconfig's contexts.
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

// list reads objects for a shell: soon or not at all, and without a word.
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

// fixed offers always the same words, for a flag that takes one of them.
func fixed(words []string) cobra.CompletionFunc {
	return cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)
}

// must is for what can only fail by a mistake in this package, which every start would show.
func must(err error) {
	if err != nil {
		panic(err)
	}
}
