package cli_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// importedKey is an AES_256 key that waits for its material, as a cluster has it: its public key is
// that of rsaPair.
func importedKey(t testing.TB, change func(*v1alpha1.ImportedKey)) *v1alpha1.ImportedKey {
	t.Helper()
	key := &v1alpha1.ImportedKey{
		TypeMeta:   metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: "ImportedKey"},
		ObjectMeta: metav1.ObjectMeta{Name: "payments", Namespace: "team-a"},
		Spec: v1alpha1.ImportedKeySpec{
			KeyStoreRef:      v1alpha1.KeyStoreReference{Kind: "ClusterKeyStore", Name: "main"},
			KeySpec:          "AES_256",
			ImportParameters: &v1alpha1.ImportParametersSpec{WrappingKeySpec: "RSA_2048", WrappingAlgorithm: "RSAES_OAEP_SHA_256"},
		},
	}
	setParameters(t, key, rsaPair(t), "RSAES_OAEP_SHA_256")
	if change != nil {
		change(key)
	}
	return key
}

const importToken = "AUtleWNvbnZveSBpbXBvcnQgdG9rZW4="

// setParameters writes into the status what an operator would.
func setParameters(t testing.TB, key *v1alpha1.ImportedKey, p pair, algorithm string) {
	t.Helper()
	public, err := wrapping.ParsePublicKey(p.publicPEM(t))
	if err != nil {
		t.Fatal(err)
	}
	key.Spec.ImportParameters.WrappingKeySpec = v1alpha1.WrappingKeySpec(p.name)
	key.Spec.ImportParameters.WrappingAlgorithm = algorithm
	key.Status.ImportParameters = &v1alpha1.ImportParameters{
		PublicKey:            base64.StdEncoding.EncodeToString(p.spki(t)),
		PublicKeyFingerprint: public.Fingerprint(),
		ImportToken:          importToken,
		TokenExpireTime:      metav1.NewTime(time.Now().Add(time.Hour).Truncate(time.Second)),
		WrappingKeySpec:      v1alpha1.WrappingKeySpec(public.Spec()),
		WrappingAlgorithm:    algorithm,
	}
}

// importedKeyFile is what kubectl get -o yaml would print.
func importedKeyFile(t testing.TB, change func(*v1alpha1.ImportedKey)) string {
	t.Helper()
	text, err := yaml.Marshal(importedKey(t, change))
	if err != nil {
		t.Fatal(err)
	}
	return file(t, "key.yaml", text)
}

func TestWrap_refusesMaterialThatIsNoKeyBeforeAnythingIsWrapped(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		spec     string // AES_256 if empty
		material []byte
		flags    []string
		says     string
	}{
		"nothing":                                 {material: nil, says: "the material is empty"},
		"nothing but white space":                 {material: []byte("\n \n"), flags: []string{"--hex"}, says: "the material is empty"},
		"a byte too few":                          {material: canary[:31], says: "AES_256 requires 32 bytes, but the material has 31\n"},
		"a byte too many":                         {material: append(bytes.Clone(canary), 'x'), says: "requires 32 bytes, but the material has 33\n"},
		"a newline after the key":                 {material: append(bytes.Clone(canary), '\n'), says: "a newline follows the key"},
		"a Windows newline after the key":         {material: append(bytes.Clone(canary), '\r', '\n'), says: "a newline follows the key"},
		"hexadecimal text, not said to be it":     {material: []byte(hex.EncodeToString(canary)), says: "add --hex"},
		"a line of it":                            {material: []byte(hex.EncodeToString(canary) + "\n"), says: "add --hex"},
		"Base64 text, not said to be it":          {material: []byte(base64.StdEncoding.EncodeToString(canary)), says: "add --base64"},
		"a line of Base64":                        {material: []byte(base64.StdEncoding.EncodeToString(canary) + "\n"), says: "add --base64"},
		"raw bytes, said to be hexadecimal":       {material: canary, flags: []string{"--hex"}, says: "is not hexadecimal digits in pairs"},
		"an odd number of digits":                 {material: []byte(hex.EncodeToString(canary)[1:]), flags: []string{"--hex"}, says: "is not hexadecimal digits in pairs"},
		"raw bytes, said to be Base64":            {material: canary, flags: []string{"--base64"}, says: "is not standard Base64 with padding"},
		"Base64 without padding":                  {material: []byte(base64.RawStdEncoding.EncodeToString(canary)), flags: []string{"--base64"}, says: "is not standard Base64 with padding"},
		"Base64 of a shorter key":                 {material: []byte(base64.StdEncoding.EncodeToString(canary[:16])), flags: []string{"--base64"}, says: "the material has 16\n"},
		"a file that is no key at all":            {material: bytes.Repeat(canary, 100), says: "is longer than 1024 bytes"},
		"a key of AES_256 for AES_128":            {spec: "AES_128", material: canary, says: "AES_128 requires 16 bytes, but the material has 32\n"},
		"a key of AES_128 for AES_192":            {spec: "AES_192", material: canary[:16], says: "AES_192 requires 24 bytes"},
		"hexadecimal text of an SM4 key as bytes": {spec: "SM4", material: []byte(hex.EncodeToString(canary[:16])), says: "SM4 requires 16 bytes, but the material has 32\nhint: it looks like hex text"},
		"a key type of a later version":           {spec: "AES_512", material: canary, says: "does not support keySpec AES_512"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			parameters := importedKeyFile(t, func(key *v1alpha1.ImportedKey) {
				if test.spec != "" {
					key.Spec.KeySpec = v1alpha1.KeySpec(test.spec)
				}
			})
			args := append([]string{"wrap", "--parameters", parameters}, test.flags...)
			call{args: args, stdin: bytes.NewReader(test.material)}.run(t).fails(t, 1, test.says)
		})
	}
}

func TestWrap_refusesAKeyThatCannotTakeTheMaterial(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		change func(*v1alpha1.ImportedKey)
		says   []string
	}{
		"no parameters yet": {
			func(key *v1alpha1.ImportedKey) { key.Status.ImportParameters = nil },
			[]string{"kubectl wait --for=jsonpath='{.status.importParameters.publicKey}' importedkey/payments -n team-a"},
		},
		"no parameters, for a reason": {
			func(key *v1alpha1.ImportedKey) {
				key.Status.ImportParameters = nil
				key.Status.Conditions = []metav1.Condition{{Type: "Ready", Status: "False", Message: "ClusterKeyStore main does not exist."}}
			},
			[]string{"kubectl wait", "no import parameters yet: ClusterKeyStore main does not exist."},
		},
		"an expired token": {
			func(key *v1alpha1.ImportedKey) {
				key.Status.ImportParameters.TokenExpireTime = metav1.NewTime(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
			},
			[]string{"expired at 2026-01-02T03:04:05Z", "kubectl annotate importedkey payments -n team-a --overwrite keyconvoy.io/renew-import-parameters="},
		},
		"a public key of another fingerprint": {
			func(key *v1alpha1.ImportedKey) {
				key.Status.ImportParameters.PublicKey = base64.StdEncoding.EncodeToString(otherRSAPair(t).spki(t))
			},
			[]string{"one of them was changed"},
		},
		"no fingerprint": {
			func(key *v1alpha1.ImportedKey) { key.Status.ImportParameters.PublicKeyFingerprint = "" },
			[]string{"one of them was changed"},
		},
		"a damaged public key": {
			func(key *v1alpha1.ImportedKey) {
				key.Status.ImportParameters.PublicKey = key.Status.ImportParameters.PublicKey[:100]
			},
			[]string{"status.importParameters.publicKey"},
		},
		"a public key of another type than said": {
			func(key *v1alpha1.ImportedKey) { key.Status.ImportParameters.WrappingKeySpec = "RSA_4096" },
			[]string{"is RSA_2048, but wrappingKeySpec is RSA_4096"},
		},
		"an algorithm that does not fit the public key": {
			func(key *v1alpha1.ImportedKey) { key.Status.ImportParameters.WrappingAlgorithm = "SM2PKE" },
			[]string{"status.importParameters"},
		},
		"a damaged token": {
			func(key *v1alpha1.ImportedKey) { key.Status.ImportParameters.ImportToken = "?" },
			[]string{"importToken"},
		},
		"no token": {
			func(key *v1alpha1.ImportedKey) { key.Status.ImportParameters.ImportToken = "" },
			[]string{"importToken"},
		},
		"no parameters any more": {
			func(key *v1alpha1.ImportedKey) { key.Status.ImportParameters = nil; key.Status.KeyState = "Enabled" },
			[]string{"is Enabled and has no import parameters", "kubectl annotate importedkey payments -n team-a", "kubectl wait"},
		},
		"a key that is about to be destroyed": {
			func(key *v1alpha1.ImportedKey) { key.Status.KeyState = "PendingDeletion" },
			[]string{"the key state of team-a/payments is PendingDeletion"},
		},
		"an expiry that is over": {
			func(key *v1alpha1.ImportedKey) { key.Spec.Material = expired() },
			[]string{"spec.material.expireTime of team-a/payments is in the past (2026-01-02T03:04:05Z)", "--expire-time never"},
		},
		"a key on its way out": {
			func(key *v1alpha1.ImportedKey) { now := metav1.Now(); key.DeletionTimestamp = &now },
			[]string{"is being deleted"},
		},
		"a key that has had other material": {
			func(key *v1alpha1.ImportedKey) { key.Status.MaterialFingerprint = fingerprintOf(t, make([]byte, 32)) },
			[]string{"accepts only the material of its first import", "create another ImportedKey"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			parameters := importedKeyFile(t, test.change)
			out := filepath.Join(t.TempDir(), "patch.yaml")
			call{args: []string{"wrap", "--parameters", parameters, "--out", out}, stdin: bytes.NewReader(canary)}.
				run(t).fails(t, 1, test.says...)
			if _, err := os.Stat(out); err == nil {
				t.Error("it wrote a patch all the same")
			}
		})
	}
}

func expired() *v1alpha1.MaterialSpec {
	over := metav1.NewTime(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	return &v1alpha1.MaterialSpec{EncryptedKeyMaterial: "b2xk", ImportToken: "b2xk", ExpireTime: &over}
}

func TestWrap_setsTheExpiryAskedFor(t *testing.T) {
	t.Parallel()
	next := time.Now().AddDate(1, 0, 0).Truncate(time.Second)
	for name, test := range map[string]struct {
		change func(*v1alpha1.ImportedKey)
		flags  []string
		want   string // of the patch; "keep" for nothing said, "none" for taking it away
	}{
		"none":                  {nil, nil, "keep"},
		"a time":                {nil, []string{"--expire-time", next.Format(time.RFC3339)}, next.UTC().Format(time.RFC3339)},
		"another time than was": {func(key *v1alpha1.ImportedKey) { key.Spec.Material = expired() }, []string{"--expire-time", next.UTC().Format(time.RFC3339)}, next.UTC().Format(time.RFC3339)},
		"never, where it was":   {func(key *v1alpha1.ImportedKey) { key.Spec.Material = expired() }, []string{"--expire-time", "never"}, "none"},
		"never, as it was":      {nil, []string{"--expire-time", "never"}, "none"},
		"as it was, in a future": {func(key *v1alpha1.ImportedKey) {
			key.Spec.Material = expired()
			key.Spec.Material.ExpireTime.Time = next
		}, nil, "keep"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			args := append([]string{"wrap", "--parameters", importedKeyFile(t, test.change), "--in", file(t, "m", canary)}, test.flags...)
			material := readPatch(t, keyconvoy(t, args...).succeeds(t).out).Spec.Material
			got, said := material["expireTime"]
			switch {
			case test.want == "keep" && said, test.want == "none" && (!said || got != nil):
				t.Errorf("the patch has %v", material)
			case test.want != "keep" && test.want != "none" && (got == nil || *got != test.want):
				t.Errorf("the patch has %v, without %s", material, test.want)
			}
		})
	}
}

func fingerprintOf(t testing.TB, material []byte) string {
	t.Helper()
	fingerprint, err := hsm.FingerprintOf(hsm.AES256, material)
	if err != nil {
		t.Fatal(err)
	}
	return fingerprint.String()
}

func TestWrap_refusesFilesThatAreNoImportedKey(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ text, says string }{
		"a list of them":       {"apiVersion: v1\nkind: List\nitems: []\n", "is not a keyconvoy.io/v1alpha1 ImportedKey"},
		"another kind":         {"apiVersion: keyconvoy.io/v1alpha1\nkind: DataKey\n", "kubectl get importedkey NAME"},
		"another group":        {"apiVersion: example.com/v1\nkind: ImportedKey\n", "is not a keyconvoy.io/v1alpha1 ImportedKey"},
		"something else":       {"\x00\x01", "is neither YAML nor JSON"},
		"nothing":              {"", "is not a keyconvoy.io/v1alpha1 ImportedKey"},
		"fields of wrong type": {"apiVersion: keyconvoy.io/v1alpha1\nkind: ImportedKey\nstatus: 1\n", "is invalid"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			parameters := file(t, "key.yaml", []byte(test.text))
			keyconvoy(t, "wrap", "--parameters", parameters, "--in", file(t, "material.bin", canary)).fails(t, 1, test.says)
		})
	}
	keyconvoy(t, "wrap", "--parameters", "no/such/file").fails(t, 1, "no such file")
	keyconvoy(t, "wrap", "--parameters", importedKeyFile(t, nil), "--in", "no/such/file").fails(t, 1, "no such file")
}

// patched is the patch that wrap prints.
type patched struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Metadata   struct{ Name, Namespace string }
	Spec       struct {
		Material map[string]*string `json:"material"`
	} `json:"spec"`
}

func readPatch(t testing.TB, text string) patched {
	t.Helper()
	var patch patched
	if err := yaml.UnmarshalStrict([]byte(text), &patch); err != nil {
		t.Fatalf("%v in:\n%s", err, text)
	}
	return patch
}

func (p patched) ciphertext(t testing.TB) []byte {
	t.Helper()
	return unbase64(t, *p.Spec.Material["encryptedKeyMaterial"])
}

func unbase64(t testing.TB, text string) []byte {
	t.Helper()
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestWrap_makesAPatchWhoseMaterialOpensslOpens(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ bits, algorithm string }{
		{"2048", "RSAES_OAEP_SHA_256"}, {"3072", "RSAES_OAEP_SHA_256"}, {"4096", "RSAES_OAEP_SHA_256"},
		{"2048", "RSAES_OAEP_SHA_1"}, {"2048", "RSAES_PKCS1_V1_5"}, {"", "SM2PKE"},
	} {
		t.Run(test.algorithm+" "+test.bits, func(t *testing.T) {
			t.Parallel()
			p := sm2Pair(t)
			if test.bits != "" {
				p = rsaPairOf(t, test.bits)
			}
			parameters := importedKeyFile(t, func(key *v1alpha1.ImportedKey) { setParameters(t, key, p, test.algorithm) })
			got := keyconvoy(t, "wrap", "--parameters", parameters, "--in", file(t, "m", canary)).succeeds(t)
			patch := readPatch(t, got.out)

			ciphertext := patch.ciphertext(t)
			if test.algorithm == "SM2PKE" { // openssl reads no raw format
				var err error
				if ciphertext, err = wrapping.ConvertSM2(ciphertext, wrapping.C1C3C2, wrapping.ASN1); err != nil {
					t.Fatal(err)
				}
			}
			if opened := p.decrypt(t, test.algorithm, ciphertext); !bytes.Equal(opened, canary) {
				t.Error("openssl opens it to something else")
			}
			if *patch.Spec.Material["importToken"] != importToken || len(patch.Spec.Material) != 2 {
				t.Errorf("the patch has %v", patch.Spec.Material)
			}
			if patch.APIVersion != "keyconvoy.io/v1alpha1" || patch.Kind != "ImportedKey" ||
				patch.Metadata.Name != "payments" || patch.Metadata.Namespace != "team-a" {
				t.Errorf("the patch is of %+v", patch)
			}
			if got.errOut != "" {
				t.Errorf("standard error has %q", got.errOut)
			}
		})
	}
}

func TestWrap_takesMaterialInTheEncodingThatIsNamed(t *testing.T) {
	t.Parallel()
	hexText, base64Text := hex.EncodeToString(canary), base64.StdEncoding.EncodeToString(canary)
	for name, test := range map[string]struct {
		material string
		flags    []string
	}{
		"raw":                         {string(canary), nil},
		"hexadecimal":                 {hexText, []string{"--hex"}},
		"hexadecimal in capitals":     {strings.ToUpper(hexText), []string{"--hex"}},
		"hexadecimal in lines":        {hexText[:32] + "\r\n" + hexText[32:] + "\n", []string{"--hex"}},
		"Base64":                      {base64Text, []string{"--base64"}},
		"Base64 in lines with blanks": {" " + base64Text[:20] + "\n\t" + base64Text[20:] + "\n", []string{"--base64"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			args := append([]string{"wrap", "--parameters", importedKeyFile(t, nil)}, test.flags...)
			got := call{args: args, stdin: strings.NewReader(test.material)}.run(t).succeeds(t)
			opened := rsaPair(t).decrypt(t, "RSAES_OAEP_SHA_256", readPatch(t, got.out).ciphertext(t))
			if !bytes.Equal(opened, canary) {
				t.Error("it wrapped something else")
			}
		})
	}
}

func TestWrap_takesOnlyThePublicKeyOfTheWantedFingerprint(t *testing.T) {
	t.Parallel()
	parameters, material := importedKeyFile(t, nil), file(t, "m", canary)
	sum := sha256.Sum256(rsaPair(t).spki(t))
	right := hex.EncodeToString(sum[:])
	other := strings.Repeat("0", 63) + "1"
	for name, test := range map[string]struct {
		fingerprint string
		code        int
		says        string
	}{
		"as sha256sum prints it":     {right, 0, ""},
		"in capitals":                {strings.ToUpper(right), 0, ""},
		"as the status has it":       {"SHA256:" + right, 0, ""},
		"another":                    {other, 1, "is SHA256:" + right + ", but --fingerprint is SHA256:" + other},
		"half of it":                 {right[:32], 2, "--fingerprint must be 64 hexadecimal digits"},
		"a variable that is not set": {"", 2, "--fingerprint must be 64 hexadecimal digits"},
		"of another digest":          {"MD5:" + right, 2, "--fingerprint must be 64 hexadecimal digits"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := keyconvoy(t, "wrap", "--parameters", parameters, "--in", material, "--fingerprint", test.fingerprint)
			if test.code == 0 {
				got.succeeds(t)
				return
			}
			got.fails(t, test.code, test.says)
			if got.out != "" {
				t.Errorf("it prints %q", got.out)
			}
		})
	}
}

func TestWrap_takesTheSameMaterialAgain(t *testing.T) {
	t.Parallel()
	parameters := importedKeyFile(t, func(key *v1alpha1.ImportedKey) {
		key.Status.MaterialFingerprint = fingerprintOf(t, canary)
	})
	keyconvoy(t, "wrap", "--parameters", parameters, "--in", file(t, "m", canary)).succeeds(t)
}

func TestWrap_readsParametersFromStandardInputAndAsJSON(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(importedKeyFile(t, nil))
	if err != nil {
		t.Fatal(err)
	}
	asJSON, err := yaml.YAMLToJSON(text)
	if err != nil {
		t.Fatal(err)
	}
	got := call{
		args:  []string{"wrap", "--parameters", "-", "--in", file(t, "m", canary), "--format", "json"},
		stdin: bytes.NewReader(asJSON),
	}.run(t).succeeds(t)
	if !strings.HasPrefix(got.out, "{\n") {
		t.Errorf("this is no JSON: %s", got.out)
	}
	readPatch(t, got.out)
}

func TestWrap_writesThePatchAndSaysHowToUseIt(t *testing.T) {
	t.Parallel()
	out := filepath.Join(t.TempDir(), "patch.yaml")
	got := keyconvoy(t, "wrap", "--parameters", importedKeyFile(t, nil), "--in", file(t, "m", canary), "--out", out).succeeds(t)
	if want := "kubectl patch importedkey payments -n team-a --type merge --patch-file " + out; !strings.Contains(got.errOut, want) || got.out != "" {
		t.Errorf("it says %q and %q", got.out, got.errOut)
	}
	text, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	readPatch(t, string(text))
}
