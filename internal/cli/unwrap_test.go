package cli_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/ciphertext"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// unwrapFailure is the one message for every ciphertext of the right length and form that does not open.
func unwrapFailure(algorithm string) string {
	return "the ciphertext cannot be decrypted with " + algorithm + ": it is for another key, uses another algorithm or format, or is damaged"
}

// What is said depends on the length and the form of the ciphertext alone.
func TestUnwrap_saysWhatACiphertextIsThatDoesNotOpen(t *testing.T) {
	t.Parallel()
	rsa, sm2 := rsaPair(t), sm2Pair(t)
	good := rsa.encrypt(t, "RSAES_OAEP_SHA_256", canary)
	goodSM2 := sm2.encrypt(t, "SM2PKE", canary)
	flip := func(data []byte, at int) []byte {
		changed := bytes.Clone(data)
		changed[at] ^= 1
		return changed
	}
	oaep, sm2pke := unwrapFailure("RSAES_OAEP_SHA_256"), unwrapFailure("SM2PKE")
	encode := func(data []byte) []byte { return []byte(base64.StdEncoding.EncodeToString(data)) }
	blob := ciphertext.Blob{KeyVersionID: uuid.New(), Scheme: ciphertext.DerivedKeyWrap, Payload: make([]byte, 40)}.String()
	const isBlob = "this is the ciphertextBlob of a DataKey"
	for name, test := range map[string]struct {
		key        pair
		ciphertext []byte
		flags      []string
		says       string
	}{
		"for another key":                 {rsa, otherRSAPair(t).encrypt(t, "RSAES_OAEP_SHA_256", canary), nil, oaep},
		"under another hash":              {rsa, rsa.encrypt(t, "RSAES_OAEP_SHA_1", canary), nil, oaep},
		"under another padding":           {rsa, rsa.encrypt(t, "RSAES_PKCS1_V1_5", canary), nil, oaep},
		"changed":                         {rsa, flip(good, 100), nil, oaep},
		"nothing inside":                  {rsa, rsa.encrypt(t, "RSAES_OAEP_SHA_256", nil), nil, oaep},
		"cut short":                       {rsa, good[:200], nil, "has 200 bytes, but a key of type RSA_2048 decrypts 256"},
		"with something after it":         {rsa, append(bytes.Clone(good), '\n'), nil, "has 257 bytes"},
		"empty":                           {rsa, nil, nil, "the ciphertext is empty"},
		"a line end":                      {rsa, []byte("\n"), nil, "the ciphertext is empty"},
		"empty, in Base64":                {rsa, []byte("\n"), []string{"--base64"}, "the ciphertext is empty"},
		"Base64 that was not said to be":  {rsa, encode(good), nil, "add --base64"},
		"Base64 of SM2 in lines":          {sm2, append(encode(goodSM2), '\n'), nil, "add --base64"},
		"Base64 twice":                    {rsa, encode(encode(good)), []string{"--base64"}, "is Base64 text"},
		"hexadecimal text":                {rsa, []byte(hex.EncodeToString(good)), nil, "xxd -r -p"},
		"a DataKey's ciphertextBlob":      {rsa, []byte(blob + "\n"), nil, isBlob},
		"a ciphertextBlob, with --base64": {rsa, []byte(blob), []string{"--base64"}, isBlob},
		"a ciphertextBlob and an SM2 key": {sm2, []byte(blob), nil, isBlob},
		"SM2 changed":                     {sm2, flip(goodSM2, len(goodSM2)-1), nil, sm2pke},
		"SM2 cut short":                   {sm2, goodSM2[:50], nil, sm2pke},
		"SM2 in another format":           {sm2, goodSM2, []string{"--sm2-format", "C1C2C3"}, sm2pke},
		"SM2 for an RSA key":              {rsa, goodSM2, nil, "but a key of type RSA_2048 decrypts 256"},
		"RSA for an SM2 key":              {sm2, good, nil, sm2pke},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			algorithm := "RSAES_OAEP_SHA_256"
			if test.key.name == "EC_SM2" {
				algorithm = "SM2PKE"
			}
			dir := t.TempDir()
			out := filepath.Join(dir, "old")
			if err := os.WriteFile(out, []byte("old"), 0o600); err != nil {
				t.Fatal(err)
			}
			args := append([]string{"unwrap", "--key-file", test.key.file(t), "--algorithm", algorithm, "--out", out}, test.flags...)
			got := call{args: args, stdin: bytes.NewReader(test.ciphertext)}.run(t)
			got.fails(t, 1)
			message, hint, _ := strings.Cut(got.errOut, "\nhint: ")
			if strings.Count(strings.TrimSpace(message+hint), "\n") > 0 || !strings.HasPrefix(message, "error: ") || !strings.Contains(got.errOut, test.says) {
				t.Errorf("the output is %q; want an error, and at most one hint, with %q", got.errOut, test.says)
			}
			checkDir(t, dir, map[string]string{"old": "old"})
		})
	}
}

// checkDir checks that a directory has these files and nothing beside them.
func checkDir(t testing.TB, dir string, want map[string]string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		content, _ := os.ReadFile(filepath.Join(dir, entry.Name()))
		if wanted, ok := want[entry.Name()]; !ok || wanted != string(content) {
			t.Errorf("%s should not be there, or not like this", entry.Name())
		}
	}
	if len(entries) != len(want) {
		t.Errorf("%d files, not %d", len(entries), len(want))
	}
}

func TestUnwrap_refusesPrivateKeysItCannotUse(t *testing.T) {
	t.Parallel()
	rsa := rsaPair(t)
	for name, test := range map[string]struct {
		key  []byte
		says string
	}{
		"with a password":           {openssl(t, rsa.pem, "pkey", "-aes256", "-passout", "pass:secret"), "openssl pkey -in key.pem -out plain.pem"},
		"the public half":           {rsa.publicPEM(t), "use its private key"},
		"of another curve":          {openssl(t, nil, "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"), "key.pem: "},
		"of another algorithm":      {openssl(t, nil, "genpkey", "-algorithm", "ED25519"), "key.pem: "},
		"too small":                 {openssl(t, nil, "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"), "key.pem: "},
		"damaged":                   {rsa.pem[:len(rsa.pem)/2], "key.pem: "},
		"nothing":                   {nil, "the private key is empty"},
		"something else altogether": {canary, "not a private key"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			call{
				args:    []string{"unwrap", "--key-file", file(t, "key.pem", test.key), "--algorithm", "RSAES_OAEP_SHA_256", "--out", "-"},
				stdin:   strings.NewReader("x"),
				secrets: [][]byte{[]byte(strings.Split(string(rsa.pem), "\n")[5])},
			}.run(t).fails(t, 1, test.says)
		})
	}
	keyconvoy(t, "unwrap", "--key-file", "no/such/file", "--in", "x", "--out", "-").fails(t, 1, "no such file")
	keyconvoy(t, "unwrap", "--key-file", rsa.file(t), "--in", "no/such/file", "--algorithm", "RSAES_OAEP_SHA_1", "--out", "-").fails(t, 1, "no such file")
	keyconvoy(t, "unwrap", "--key-file", rsa.file(t), "--in", "x", "--out", "-").fails(t, 2, "--algorithm is required with an RSA key")
	keyconvoy(t, "unwrap", "--key-file", rsa.file(t), "--in", "x", "--algorithm", "SM2PKE", "--out", "-").fails(t, 1, "RSA_2048")
	keyconvoy(t, "unwrap", "--key-file", rsa.file(t), "--in", rsa.file(t), "--base64", "--algorithm", "RSAES_OAEP_SHA_1", "--out", "-").
		fails(t, 1, "is not standard Base64")
}

// exportFor is the Secret that an ExportedDataKey of the canary has.
func exportFor(t testing.TB, p pair, algorithm string) map[string][]byte {
	t.Helper()
	public, err := wrapping.ParsePublicKey(p.publicPEM(t))
	if err != nil {
		t.Fatal(err)
	}
	return map[string][]byte{
		"exportedDataKey":      p.encrypt(t, algorithm, canary),
		"keyId":                []byte("6b0ddb83-6e6c-4a4b-8b7e-0a5f8cf2a6a1"),
		"keyVersionId":         []byte("0f2cf5d2-3c5a-5d0e-9e55-6c4b6f3b0f11"),
		"wrappingKeySpec":      []byte(p.name),
		"wrappingAlgorithm":    []byte(algorithm),
		"recipientFingerprint": []byte(public.Fingerprint()),
	}
}

// mount lays a Secret out as the kubelet does: links to a directory that a link points at.
func mount(t testing.TB, entries map[string][]byte) string {
	t.Helper()
	dir := t.TempDir()
	const version = "..2026_11_21_20_00_00.1"
	if err := os.Mkdir(filepath.Join(dir, version), 0o755); err != nil {
		t.Fatal(err)
	}
	links := map[string]string{"..data": version}
	for name, content := range entries {
		if err := os.WriteFile(filepath.Join(dir, version, name), content, 0o644); err != nil {
			t.Fatal(err)
		}
		links[name] = filepath.Join("..data", name)
	}
	for name, target := range links {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestUnwrapSecret_refusesOneThatIsNotForUsOrNotWhole(t *testing.T) {
	t.Parallel()
	rsa := rsaPair(t)
	without := func(entry string) func(map[string][]byte) { return func(e map[string][]byte) { delete(e, entry) } }
	with := func(entry, value string) func(map[string][]byte) {
		return func(e map[string][]byte) { e[entry] = []byte(value) }
	}
	for name, test := range map[string]struct {
		change func(map[string][]byte)
		says   []string
	}{
		"for another recipient": {
			func(e map[string][]byte) {
				e["recipientFingerprint"] = exportFor(t, otherRSAPair(t), "RSAES_OAEP_SHA_256")["recipientFingerprint"]
			},
			[]string{"exported for another recipient", "SHA256:"},
		},
		"without the ciphertext":       {without("exportedDataKey"), []string{"has no entry exportedDataKey", "mount the whole Secret"}},
		"without the algorithm":        {without("wrappingAlgorithm"), []string{"has no entry wrappingAlgorithm"}},
		"without the type of key":      {without("wrappingKeySpec"), []string{"has no entry wrappingKeySpec"}},
		"without the fingerprint":      {without("recipientFingerprint"), []string{"has no entry recipientFingerprint"}},
		"of an unknown algorithm":      {with("wrappingAlgorithm", "ROT13"), []string{"wrappingAlgorithm"}},
		"whose algorithm does not fit": {with("wrappingAlgorithm", "SM2PKE"), []string{"wrappingKeySpec and wrappingAlgorithm"}},
		"whose type of key is another": {with("wrappingKeySpec", "RSA_4096"), []string{"is not RSA_2048"}},
		"whose ciphertext is damaged":  {with("exportedDataKey", "x"), []string{"has 1 bytes"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			entries := exportFor(t, rsa, "RSAES_OAEP_SHA_256")
			test.change(entries)
			keyconvoy(t, "unwrap", "--secret-dir", mount(t, entries), "--key-file", rsa.file(t), "--out", filepath.Join(t.TempDir(), "out")).
				fails(t, 1, test.says...)
		})
	}
	keyconvoy(t, "unwrap", "--secret-dir", "no/such/dir", "--key-file", rsa.file(t), "--out", "x").fails(t, 1, "no such file")
	keyconvoy(t, "unwrap", "--secret-dir", rsa.file(t), "--key-file", rsa.file(t), "--out", "x").fails(t, 1, "is not a directory")
}

func TestUnwrapSecret_takesTheAlgorithmFromTheSecret(t *testing.T) {
	t.Parallel()
	for name, p := range map[string]pair{"RSAES_OAEP_SHA_256": rsaPair(t), "RSAES_OAEP_SHA_1": rsaPair(t), "SM2PKE": sm2Pair(t)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			entries := exportFor(t, p, name)
			plain := t.TempDir()
			for entry, content := range entries {
				if err := os.WriteFile(filepath.Join(plain, entry), content, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			for _, dir := range []string{mount(t, entries), plain} {
				out := filepath.Join(t.TempDir(), "out")
				keyconvoy(t, "unwrap", "--secret-dir", dir, "--key-file", p.file(t), "--out", out).succeeds(t)
				checkFile(t, out, string(canary))
			}
		})
	}
}

func checkFile(t testing.TB, name, want string) {
	t.Helper()
	content, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if string(content) != want {
		t.Errorf("%s has other content", name)
	}
	info, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != 0o600 {
		t.Errorf("%s has mode %v", name, info.Mode())
	}
}

func TestUnwrap_opensWhatOpensslEncryptsWithEveryFormOfKey(t *testing.T) {
	t.Parallel()
	rsa, sm2 := rsaPair(t), sm2Pair(t)
	forms := map[string]struct {
		pair pair
		key  []byte
	}{
		"RSA PKCS#8 PEM": {rsa, rsa.pem},
		"RSA PKCS#8 DER": {rsa, openssl(t, rsa.pem, "pkcs8", "-topk8", "-nocrypt", "-outform", "DER")},
		"RSA PKCS#1 PEM": {rsa, openssl(t, rsa.pem, "rsa", "-traditional")},
		"RSA PKCS#1 DER": {rsa, openssl(t, rsa.pem, "rsa", "-traditional", "-outform", "DER")},
		"SM2 PKCS#8 PEM": {sm2, sm2.pem},
		"SM2 PKCS#8 DER": {sm2, openssl(t, sm2.pem, "pkcs8", "-topk8", "-nocrypt", "-outform", "DER")},
		"SM2 SEC1 PEM":   {sm2, openssl(t, sm2.pem, "ec")},
		"SM2 SEC1 DER":   {sm2, openssl(t, sm2.pem, "ec", "-outform", "DER")},
	}
	for name, form := range forms {
		for _, algorithm := range []string{"RSAES_OAEP_SHA_256", "RSAES_OAEP_SHA_1", "SM2PKE"} {
			if (algorithm == "SM2PKE") != (form.pair.name == "EC_SM2") {
				continue
			}
			t.Run(name+" "+algorithm, func(t *testing.T) {
				t.Parallel()
				in := file(t, "in", form.pair.encrypt(t, algorithm, canary))
				out := filepath.Join(t.TempDir(), "out")
				got := keyconvoy(t, "unwrap", "--key-file", file(t, "key", form.key), "--in", in, "--algorithm", algorithm, "--out", out).succeeds(t)
				checkFile(t, out, string(canary))
				if got.out+got.errOut != "" {
					t.Errorf("it says %q and %q", got.out, got.errOut)
				}
			})
		}
	}
}

func TestUnwrap_opensEveryFormatOfSM2(t *testing.T) {
	t.Parallel()
	sm2 := sm2Pair(t)
	der := sm2.encrypt(t, "SM2PKE", canary)
	for name, test := range map[string]struct {
		format wrapping.SM2Format
		flags  []string
	}{
		"ASN1, found out":    {wrapping.ASN1, nil},
		"ASN1, as said":      {wrapping.ASN1, []string{"--sm2-format", "ASN1"}},
		"C1C3C2, found out":  {wrapping.C1C3C2, nil},
		"C1C3C2, as said":    {wrapping.C1C3C2, []string{"--sm2-format", "C1C3C2"}},
		"C1C2C3, as said":    {wrapping.C1C2C3, []string{"--sm2-format", "C1C2C3"}},
		"with the algorithm": {wrapping.C1C3C2, []string{"--algorithm", "SM2PKE"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ciphertext, err := wrapping.ConvertSM2(der, wrapping.ASN1, test.format)
			if err != nil {
				t.Fatal(err)
			}
			out := filepath.Join(t.TempDir(), "out")
			args := append([]string{"unwrap", "--key-file", sm2.file(t), "--out", out}, test.flags...)
			call{args: args, stdin: bytes.NewReader(ciphertext)}.run(t).succeeds(t)
			checkFile(t, out, string(canary))
		})
	}
}

func TestUnwrap_readsBase64AndAKeyFromStandardInput(t *testing.T) {
	t.Parallel()
	rsa := rsaPair(t)
	in := openssl(t, rsa.encrypt(t, "RSAES_OAEP_SHA_256", canary), "base64") // in lines
	out := filepath.Join(t.TempDir(), "out")
	call{
		args:  []string{"unwrap", "--key-file", "-", "--in", file(t, "in", in), "--base64", "--algorithm", "RSAES_OAEP_SHA_256", "--out", out},
		stdin: bytes.NewReader(rsa.pem),
	}.run(t).succeeds(t)
	checkFile(t, out, string(canary))
}

func TestUnwrap_warnsOfAKeyThatAllMayRead(t *testing.T) {
	t.Parallel()
	rsa := rsaPair(t)
	key := rsa.file(t)
	for mode, warns := range map[os.FileMode]bool{0o600: false, 0o440: false, 0o644: true, 0o444: true} {
		if err := os.Chmod(key, mode); err != nil {
			t.Fatal(err)
		}
		in := bytes.NewReader(rsa.encrypt(t, "RSAES_OAEP_SHA_1", canary))
		out := filepath.Join(t.TempDir(), "out")
		got := call{args: []string{"unwrap", "--key-file", key, "--algorithm", "RSAES_OAEP_SHA_1", "--out", out}, stdin: in}.run(t).succeeds(t)
		if strings.Contains(got.errOut, "warning: every user of this machine can read "+key) != warns {
			t.Errorf("with mode %v it says %q", mode, got.errOut)
		}
	}
}

func TestUnwrapOut_replacesAFileByAPrivateOne(t *testing.T) {
	t.Parallel()
	rsa := rsaPair(t)
	dir := t.TempDir()
	out := filepath.Join(dir, "ledger.key")
	if err := os.WriteFile(out, []byte("a longer content that was there before"), 0o644); err != nil {
		t.Fatal(err)
	}
	in := file(t, "in", rsa.encrypt(t, "RSAES_OAEP_SHA_256", canary))
	call{
		args: []string{"unwrap", "--key-file", rsa.file(t), "--algorithm", "RSAES_OAEP_SHA_256", "--in", in, "--out", "ledger.key"},
		dir:  dir,
	}.run(t).succeeds(t)
	checkFile(t, out, string(canary))
	checkDir(t, dir, map[string]string{"ledger.key": string(canary)})
}

func TestUnwrapOut_refusesPlacesThatWouldBeLost(t *testing.T) {
	t.Parallel()
	rsa := rsaPair(t)
	dir := t.TempDir()
	key, in := rsa.file(t), file(t, "in", rsa.encrypt(t, "RSAES_OAEP_SHA_256", canary))
	target, link, fifo := filepath.Join(dir, "target"), filepath.Join(dir, "link"), filepath.Join(dir, "fifo")
	for _, err := range []error{
		os.WriteFile(target, []byte("t"), 0o600), os.Symlink(target, link), syscall.Mkfifo(fifo, 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, test := range map[string]struct {
		out  string
		code int
		says string
	}{
		"a directory":                  {dir, 1, "is not a regular file"},
		"a link":                       {link, 1, "is not a regular file"},
		"a pipe":                       {fifo, 1, "is not a regular file"},
		"a device":                     {os.DevNull, 1, "is not a regular file"},
		"a directory that is missing":  {filepath.Join(dir, "no/such/out"), 1, "no such file"},
		"the private key":              {key, 2, "--out is the same file as --key-file"},
		"the private key, by a detour": {filepath.Dir(key) + "/../" + filepath.Base(filepath.Dir(key)) + "/key.pem", 2, "--key-file"},
		"the ciphertext":               {in, 2, "--out is the same file as --in"},
	} {
		t.Run(name, func(t *testing.T) {
			keyconvoy(t, "unwrap", "--key-file", key, "--in", in, "--algorithm", "RSAES_OAEP_SHA_256", "--out", test.out).
				fails(t, test.code, test.says)
		})
	}
	for name, mode := range map[string]os.FileMode{link: os.ModeSymlink, fifo: os.ModeNamedPipe, dir: os.ModeDir} {
		if info, err := os.Lstat(name); err != nil || info.Mode().Type() != mode {
			t.Errorf("%s no longer exists: %v", name, err)
		}
	}
}

func TestUnwrapOut_writesInTheEncodingAskedFor(t *testing.T) {
	t.Parallel()
	rsa := rsaPair(t)
	for encoding, want := range map[string]string{
		"raw": string(canary), "hex": hex.EncodeToString(canary) + "\n", "base64": base64.StdEncoding.EncodeToString(canary) + "\n",
	} {
		got := call{
			args:   []string{"unwrap", "--key-file", rsa.file(t), "--algorithm", "RSAES_OAEP_SHA_1", "--encoding", encoding, "--out", "-"},
			stdin:  bytes.NewReader(rsa.encrypt(t, "RSAES_OAEP_SHA_1", canary)),
			public: true,
		}.run(t).succeeds(t)
		if got.out != want || got.errOut != "" {
			t.Errorf("%s: it writes other bytes, or says %q", encoding, got.errOut)
		}
	}
}
