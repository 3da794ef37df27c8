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

const wrapLong = `Encrypt key material of yours for an ImportedKey.

The public key and the token come from the object's status, the material from a file or from standard
input. The result is a patch of the object: ciphertext, fit for Git. It suits kubectl patch --type merge,
kubectl apply --server-side, and the patches of a kustomization.

A key takes the material of its first import again, and no other: to renew material that expires, wrap
the same with a new --expire-time.

Somebody may have changed the object's file on its way: for material that matters, let a second person read
the public key's SHA-256 fingerprint in the cluster (status.importParameters.publicKeyFingerprint) and tell
you, and name it with --fingerprint. It does not help against whoever may write that status.

Material is read as raw bytes unless --hex or --base64 says otherwise. Its length must be right for the
key (AES_256: 32 bytes, AES_192: 24, AES_128 and SM4: 16); nothing is sent before that is certain.`

const wrapExample = `  # Make material, wrap it, and put it into the cluster
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
	flags.StringVar(&o.parameters, "parameters", "", "`FILE` with the ImportedKey as kubectl get -o yaml printed it; - is standard input")
	flags.StringVar(&o.fingerprint, "fingerprint", "", "`SHA256` of the public key to wrap under; any other key is refused")
	flags.StringVar(&o.in, "in", standardStream, "`FILE` with the material; - is standard input")
	flags.BoolVar(&o.hex, "hex", false, "the material is hexadecimal text")
	flags.BoolVar(&o.base64, "base64", false, "the material is Base64 text")
	flags.StringVar(&o.expireTime, "expire-time", "", "`TIME` until which the material lasts (RFC 3339), or never; otherwise as the key says")
	flags.BoolVar(&o.apply, "apply", false, "patch the object in the cluster")
	flags.StringVar(&o.out, "out", "", "`FILE` for the patch; otherwise standard output")
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
	// First what can be known without the material: whoever types it in does so once.
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

// check finds what flag groups cannot say.
func (o *wrapOptions) check(cmd *cobra.Command) error {
	switch {
	case o.key == "" && o.parameters == "":
		return usagef("which key? Name it with --key, or give its object in a file with --parameters")
	case cmd.Flags().Changed("fingerprint") && !fingerprintText.MatchString(o.fingerprint):
		return usagef("--fingerprint is 64 hexadecimal digits, or SHA256: and these, as in status.importParameters.publicKeyFingerprint")
	case o.format != "yaml" && o.format != "json":
		return usagef("--format is yaml or json")
	case o.parameters == standardStream && o.in == standardStream:
		return usagef("material and parameters cannot both come from standard input: name a file with --in or --parameters")
	case o.in == standardStream && isTerminal(cmd.InOrStdin()):
		return usagef("standard input is a terminal, and would show the material: name a file with --in, or use a pipe")
	}
	return nil
}

func (o *wrapOptions) importedKey(cmd *cobra.Command, c cluster) (*keyconvoy.ImportedKey, error) {
	if o.parameters != "" {
		return readImportedKey(cmd.Context(), o.parameters, cmd.InOrStdin())
	}
	return c.importedKey(cmd.Context(), o.key)
}

// checkFingerprint refuses a public key that is not the one that the user heard of.
func (o *wrapOptions) checkFingerprint(key *wrapping.PublicKey) error {
	got := key.Fingerprint()
	want := "SHA256:" + strings.ToLower(strings.TrimPrefix(o.fingerprint, "SHA256:"))
	if o.fingerprint == "" || want == got {
		return nil
	}
	return fmt.Errorf("the public key has fingerprint %s and not %s: find out whose it is before you wrap anything under it", got, want)
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

// encrypt reads the material, and leaves none of it behind.
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
	if as == encodingRaw && looksLikeText(material) {
		fmt.Fprintln(cmd.ErrOrStderr(), "warning: the material consists of hexadecimal digits alone and was taken as raw bytes; "+
			"if it is text, this is the wrong key: use --hex and material of the full length")
	}
	return wrapping.Wrap(rand.Reader, target.publicKey, target.algorithm, "", material)
}

// patch returns a merge patch of the key. It names the object, so that it also is a patch for
// kustomize and is refused on another object.
func (o *wrapOptions) patch(cmd *cobra.Command, key *keyconvoy.ImportedKey, encrypted []byte, token string, expires expiry) ([]byte, error) {
	material := map[string]any{
		"encryptedKeyMaterial": base64.StdEncoding.EncodeToString(encrypted),
		"importToken":          token,
	}
	if old := key.Spec.Material; old != nil && (old.EncryptedKeyMaterialFrom != nil || old.ImportTokenFrom != nil) {
		// Beside their references the values would be refused: exactly one of each is allowed.
		fmt.Fprintln(cmd.ErrOrStderr(), "note: the key refers to a Secret or ConfigMap for its material; the patch puts the material itself in its place")
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

// deliver applies, writes or prints the patch, and says what happened.
func (o *wrapOptions) deliver(cmd *cobra.Command, c cluster, key *keyconvoy.ImportedKey, patch []byte) error {
	ctx, out := cmd.Context(), cmd.OutOrStdout()
	switch {
	case o.apply:
		if err := c.patch(ctx, key.Name, patch); err != nil {
			return err
		}
		fmt.Fprintf(out, "importedkey.%s/%s patched with wrapped material; wait for the import: "+
			"kubectl wait --for=condition=Ready importedkey/%s -n %s\n",
			keyconvoy.GroupVersion.Group, key.Name, key.Name, key.Namespace)
		return nil
	case o.out != "" && o.out != standardStream:
		if err := writePrivate(ctx, o.out, patch); err != nil {
			return err
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "Wrote %s; put it in with: kubectl patch importedkey %s -n %s --type merge --patch-file %s\n",
			o.out, key.Name, key.Namespace, o.out)
		return nil
	}
	return writeAll(ctx, out, patch)
}
