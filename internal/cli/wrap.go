package cli

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	keyconvoy "github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

const wrapLong = `Encrypt your key material for an ImportedKey.

The public key and the token come from the object's status, the material from a file or from standard
input. The result is a patch of the object. It is ciphertext and can be kept in Git. Use it with
kubectl patch --type merge, kubectl apply --server-side, or as a patch in a kustomization.

A key accepts only the material of its first import. To renew material that expires, wrap the same
material with a new --expire-time.

The file with the object could be changed in transit. For important material, let a second person read
the public key's SHA-256 fingerprint in the cluster (status.importParameters.publicKeyFingerprint) and tell
you, and pass it with --fingerprint. This does not protect you from anyone who can write that status.

Material is read as raw bytes, unless you set --hex or --base64. Its length must match the key
(AES_256: 32 bytes, AES_192: 24, AES_128 and SM4: 16); wrap checks the length before it sends anything.`

const wrapExample = `  # Generate material, wrap it, and patch the ImportedKey
  openssl rand -out material.bin 32
  keyconvoy wrap --key payments -n team-a --in material.bin --apply

  # Keep the result in Git
  keyconvoy wrap --key payments -n team-a --in material.bin --out payments-material.yaml

  # On a machine without a network
  kubectl get importedkey payments -n team-a -o yaml > payments.yaml
  keyconvoy wrap --parameters payments.yaml --in material.bin --out patch.yaml
  kubectl patch importedkey payments -n team-a --type merge --patch-file patch.yaml`

var fingerprintText = regexp.MustCompile(`^(SHA256:)?[0-9a-fA-F]{64}$`)

type wrapOptions struct {
	cluster     clusterFlags
	key         string
	parameters  string
	fingerprint string
	in          string
	hex         bool
	base64      bool
	expireTime  string
	apply       bool
	out         string
	format      string
}

func newWrapCommand() *cobra.Command {
	var o wrapOptions
	cmd := &cobra.Command{
		Use:     "wrap (--key NAME | --parameters FILE) [--in FILE] [--apply | --out FILE]",
		Short:   "Encrypt key material for an ImportedKey",
		Long:    wrapLong,
		Example: wrapExample,
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },

		DisableFlagsInUseLine: true,
	}
	flags := cmd.Flags()
	flags.StringVar(&o.key, "key", "", "`NAME` of the ImportedKey in the cluster")
	o.cluster.add(cmd)
	flags.StringVar(&o.parameters, "parameters", "", "`FILE` with the ImportedKey, as printed by kubectl get -o yaml; - is standard input")
	flags.StringVar(&o.fingerprint, "fingerprint", "", "`SHA256` fingerprint that the public key must have")
	flags.StringVar(&o.in, "in", standardStream, "`FILE` with the material; - is standard input")
	flags.BoolVar(&o.hex, "hex", false, "the material is hexadecimal text")
	flags.BoolVar(&o.base64, "base64", false, "the material is Base64 text")
	flags.StringVar(&o.expireTime, "expire-time", "", "`TIME` at which the material expires (RFC 3339), or never (default: that of the key)")
	flags.BoolVar(&o.apply, "apply", false, "patch the ImportedKey in the cluster")
	flags.StringVar(&o.out, "out", "", "`FILE` for the patch (default: standard output)")
	flags.StringVar(&o.format, "format", "yaml", "`FORMAT` of the patch: yaml or json")

	cmd.MarkFlagsMutuallyExclusive("hex", "base64")
	cmd.MarkFlagsMutuallyExclusive("apply", "out")
	cmd.MarkFlagsMutuallyExclusive("apply", "format")
	for _, needsCluster := range []string{"key", "apply", "namespace", "context", "kubeconfig"} {
		cmd.MarkFlagsMutuallyExclusive("parameters", needsCluster)
	}
	must(cmd.RegisterFlagCompletionFunc("key", o.cluster.completeKey))
	must(cmd.RegisterFlagCompletionFunc("format", fixed([]string{"yaml", "json"})))
	return cmd
}

func (o *wrapOptions) run(cmd *cobra.Command) error {
	if err := o.check(cmd); err != nil {
		return err
	}
	now := time.Now()
	expires, err := parseExpiry(o.expireTime, now)
	if err != nil {
		return err
	}
	var c cluster
	if o.key != "" {
		if c, err = o.cluster.connect(cmd.ErrOrStderr()); err != nil {
			return err
		}
	}
	key, err := o.importedKey(cmd, c)
	if err != nil {
		return err
	}
	// First check everything that does not need the material, because a user may type it in.
	target, err := targetOf(key, now)
	if err != nil {
		return err
	}
	if err := o.checkFingerprint(target.publicKey); err != nil {
		return err
	}
	if err := checkExpiry(key, expires, now); err != nil {
		return err
	}
	encrypted, err := o.encrypt(cmd, key, target)
	if err != nil {
		return err
	}
	patch, err := o.patch(cmd, key, encrypted, target.token, expires)
	if err != nil {
		return err
	}
	return o.deliver(cmd, c, key, patch)
}

// check finds errors that flag groups cannot express.
func (o *wrapOptions) check(cmd *cobra.Command) error {
	switch {
	case o.key == "" && o.parameters == "":
		return usagef("either --key or --parameters is required")
	case cmd.Flags().Changed("fingerprint") && !fingerprintText.MatchString(o.fingerprint):
		return usagef("--fingerprint must be 64 hexadecimal digits, with or without SHA256: in front, as in status.importParameters.publicKeyFingerprint")
	case o.format != "yaml" && o.format != "json":
		return usagef("--format must be yaml or json")
	case o.parameters == standardStream && o.in == standardStream:
		return usagef("material and parameters cannot both come from standard input\nhint: use a file for --in or --parameters")
	case o.in == standardStream && isTerminal(cmd.InOrStdin()):
		return usagef("standard input is a terminal, which would show the material\nhint: use a file with --in, or a pipe")
	}
	return nil
}

func (o *wrapOptions) importedKey(cmd *cobra.Command, c cluster) (*keyconvoy.ImportedKey, error) {
	if o.parameters != "" {
		return readImportedKey(cmd.Context(), o.parameters, cmd.InOrStdin())
	}
	return c.importedKey(cmd.Context(), o.key)
}

// checkFingerprint rejects a public key whose fingerprint is not the expected one.
func (o *wrapOptions) checkFingerprint(key *wrapping.PublicKey) error {
	got := key.Fingerprint()
	want := "SHA256:" + strings.ToLower(strings.TrimPrefix(o.fingerprint, "SHA256:"))
	if o.fingerprint == "" || want == got {
		return nil
	}
	return fmt.Errorf("the fingerprint of the public key is %s, but --fingerprint is %s\nhint: find out who owns this key before you wrap material under it", got, want)
}

func (o *wrapOptions) encoding() encoding {
	switch {
	case o.hex:
		return encodingHex
	case o.base64:
		return encodingBase64
	}
	return encodingRaw
}

// encrypt reads the material, encrypts it, and wipes it.
func (o *wrapOptions) encrypt(cmd *cobra.Command, key *keyconvoy.ImportedKey, target wrappingTarget) ([]byte, error) {
	spec, as := hsm.KeySpec(key.Spec.KeySpec), o.encoding()
	if o.in != standardStream {
		warnIfShared(cmd.ErrOrStderr(), o.in)
	}
	material, err := readMaterial(cmd.Context(), o.in, cmd.InOrStdin(), as)
	if err != nil {
		return nil, err
	}
	defer material.Wipe()
	if err := checkMaterial(spec, material, as); err != nil {
		return nil, err
	}
	if err := checkSameMaterial(spec, material, key.Status.MaterialFingerprint); err != nil {
		return nil, err
	}
	if why := suspicion(material, as); why != "" {
		fmt.Fprintf(cmd.ErrOrStderr(), "warning: the material %s\n", why)
	}
	return wrapping.Wrap(rand.Reader, target.publicKey, target.algorithm, "", material)
}

// patch returns a merge patch of the key. It names the object, so that kustomize can use it and the API server
// rejects it for other objects.
func (o *wrapOptions) patch(cmd *cobra.Command, key *keyconvoy.ImportedKey, encrypted []byte, token string, expires expiry) ([]byte, error) {
	material := map[string]any{
		"encryptedKeyMaterial": base64.StdEncoding.EncodeToString(encrypted),
		"importToken":          token,
	}
	if old := key.Spec.Material; old != nil && (old.EncryptedKeyMaterialFrom != nil || old.ImportTokenFrom != nil) {
		// Remove the references, because exactly one of value and reference is allowed.
		fmt.Fprintln(cmd.ErrOrStderr(), "note: the patch replaces the key's reference to a Secret or ConfigMap with the material itself")
		material["encryptedKeyMaterialFrom"] = nil
		material["importTokenFrom"] = nil
	}
	switch {
	case expires.never:
		material["expireTime"] = nil
	case !expires.at.IsZero():
		material["expireTime"] = expires.at.Format(time.RFC3339)
	}
	patch := map[string]any{
		"apiVersion": keyconvoy.GroupVersion.String(),
		"kind":       "ImportedKey",
		"metadata":   map[string]any{"name": key.Name, "namespace": key.Namespace},
		"spec":       map[string]any{"material": material},
	}
	if o.format == "json" || o.apply {
		text, err := json.MarshalIndent(patch, "", "  ")
		return append(text, '\n'), err
	}
	return yaml.Marshal(patch)
}

// deliver applies, writes or prints the patch, and reports what it did.
func (o *wrapOptions) deliver(cmd *cobra.Command, c cluster, key *keyconvoy.ImportedKey, patch []byte) error {
	ctx, out := cmd.Context(), cmd.OutOrStdout()
	switch {
	case o.apply:
		if err := c.patch(ctx, key.Name, patch); err != nil {
			return err
		}
		fmt.Fprintf(out, "importedkey.%s/%s patched with wrapped material\nhint: wait for the import: "+
			"kubectl wait --for=condition=Ready importedkey/%s -n %s\n",
			keyconvoy.GroupVersion.Group, key.Name, key.Name, key.Namespace)
		return nil
	case o.out != "" && o.out != standardStream:
		if err := writePrivate(ctx, o.out, patch); err != nil {
			return err
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "Wrote %s\nhint: apply it: kubectl patch importedkey %s -n %s --type merge --patch-file %s\n",
			o.out, key.Name, key.Namespace, o.out)
		return nil
	}
	return writeAll(ctx, out, patch)
}
