package wrapping_test

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

func toUTF16(text []byte, order binary.AppendByteOrder, mark bool) []byte {
	var out []byte
	if mark {
		out = order.AppendUint16(out, 0xfeff)
	}
	for _, unit := range utf16.Encode([]rune(string(text))) {
		out = order.AppendUint16(out, unit)
	}
	return out
}

// withAlgorithm is a key's SubjectPublicKeyInfo under another AlgorithmIdentifier.
func withAlgorithm(t *testing.T, key *wrapping.PublicKey, algorithm string) []byte {
	t.Helper()
	spki := key.SPKI()
	bitString := spki[19:] // of RSA: after SEQUENCE and AlgorithmIdentifier
	if key.SM2() != nil {
		bitString = spki[23:]
	}
	return sequence(t, sequence(t, unhex(t, algorithm)), bitString)
}

// What is recognised by name comes with a command; openssl runs each as it is printed, and the result is taken.
func TestParsePublicKey_recognisesWhatIsNoPublicKey_withACommandThatHelps(t *testing.T) {
	t.Parallel()
	rsaPublic, sm2Public := rsaKey().Public(), sm2Key().Public()
	point := hex.EncodeToString(sm2Public.SPKI()[26:])
	noNull := withAlgorithm(t, rsaPublic, "06092a864886f70d010101")
	oaep := withAlgorithm(t, rsaPublic, "06092a864886f70d010107")
	for name, tc := range map[string]struct {
		key   *wrapping.PublicKey
		given func(sh shell) []byte // makes the input and writes it to the file that the command names
		run   string                // a part of the message, and what a shell runs
		names []string
	}{
		"PKCS#1, PEM": {rsaPublic, func(sh shell) []byte {
			sh.write("key.pem", toPEM("RSA PUBLIC KEY", x509.MarshalPKCS1PublicKey(rsaPublic.RSA())))
			return sh.read("key.pem")
		}, "openssl rsa -RSAPublicKey_in -in key.pem -pubout", []string{"PKCS#1"}},
		"RSA without NULL": {rsaPublic, func(sh shell) []byte {
			sh.write("key.pem", toPEM("PUBLIC KEY", noNull))
			return noNull
		}, "openssl rsa -in key.pem -out new.pem -pubin -pubout; cat new.pem", []string{"NULL", "-pubin -pubout"}},
		"RSA with the OAEP OID": {rsaPublic, func(sh shell) []byte {
			sh.write("key.pem", toPEM("PUBLIC KEY", oaep))
			return oaep
		}, "openssl asn1parse -in key.pem -strparse OFFSET -noout -out rsa.der; openssl rsa -RSAPublicKey_in -inform DER -in rsa.der -pubout", []string{"id-RSAES-OAEP"}},
		"SM2 with explicit parameters": {sm2Public, func(sh shell) []byte {
			sh.openssl("ec", "-in", "private.pem", "-pubout", "-param_enc", "explicit", "-out", "key.pem")
			return sh.read("key.pem")
		}, "openssl ec -in key.pem -param_enc named_curve -out new.pem -pubin -pubout; cat new.pem", []string{"explicit parameters"}},
		"SM2 compressed": {sm2Public, func(sh shell) []byte {
			sh.openssl("ec", "-in", "private.pem", "-pubout", "-conv_form", "compressed", "-out", "key.pem")
			return sh.read("key.pem")
		}, "openssl ec -pubin -in key.pem -pubout -conv_form uncompressed", []string{"compressed"}},
		"a request, PEM": {rsaPublic, func(sh shell) []byte {
			sh.openssl("req", "-new", "-key", "private.pem", "-subj", "/CN=request", "-out", "request.pem")
			return sh.read("request.pem")
		}, "openssl req -in request.pem -pubkey -noout", []string{"certificate request"}},
		"a request of SM2, DER": {sm2Public, func(sh shell) []byte {
			sh.openssl("req", "-new", "-key", "private.pem", "-subj", "/CN=request", "-out", "request.pem")
			return sh.openssl("req", "-in", "request.pem", "-outform", "DER")
		}, "openssl req -in request.pem -pubkey -noout", []string{"certificate request", "-inform DER"}},
		"a certificate with trust settings": {rsaPublic, func(sh shell) []byte {
			sh.openssl("x509", "-in", "private.crt", "-addtrust", "serverAuth", "-trustout", "-out", "cert.pem")
			return sh.read("cert.pem")
		}, "openssl x509 -in cert.pem -out plain.pem; cat plain.pem", []string{"TRUSTED CERTIFICATE"}},
		"PKCS#7, PEM": {rsaPublic, func(sh shell) []byte {
			sh.openssl("crl2pkcs7", "-nocrl", "-certfile", "private.crt", "-out", "file.p7b")
			return sh.read("file.p7b")
		}, "openssl pkcs7 -in file.p7b -print_certs", []string{"PKCS#7"}},
		"PKCS#7, DER": {rsaPublic, func(sh shell) []byte {
			sh.openssl("crl2pkcs7", "-nocrl", "-certfile", "private.crt", "-out", "file.p7b")
			return sh.openssl("pkcs7", "-in", "file.p7b", "-outform", "DER")
		}, "openssl pkcs7 -in file.p7b -print_certs", []string{"PKCS#7", "-inform DER"}},
		"PKCS#12": {rsaPublic, func(sh shell) []byte {
			sh.openssl("pkcs12", "-export", "-inkey", "private.pem", "-in", "private.crt", "-passout", "pass:", "-out", "file.p12")
			return sh.read("file.p12")
		}, "openssl pkcs12 -in file.p12 -clcerts -nokeys -passin pass:", []string{"PKCS#12"}},
		"a point in hexadecimal": {sm2Public, func(shell) []byte { return []byte(point + "\n") }, pointCommand, []string{"a bare SM2 point"}},
		"a point in upper case, in two lines": {sm2Public, func(shell) []byte { return []byte(strings.ToUpper(point[:66] + "\r\n" + point[66:])) },
			pointCommand, []string{"a bare SM2 point"}},
		"a point without its 04": {sm2Public, func(shell) []byte { return []byte(point[2:]) }, pointCommand, []string{"a bare SM2 point"}},
		"a point in Base64": {sm2Public, func(shell) []byte { return []byte(base64.StdEncoding.EncodeToString(unhex(t, point))) },
			pointCommand, []string{"a bare SM2 point"}},
		"a point, raw": {sm2Public, func(shell) []byte { return unhex(t, point) }, pointCommand, []string{"a bare SM2 point"}},
		"a key in hexadecimal": {rsaPublic, func(sh shell) []byte {
			sh.write("key.hex", []byte(hex.EncodeToString(rsaPublic.SPKI())))
			return sh.read("key.hex")
		}, "xxd -r -p key.hex >key.der; cat key.der", []string{"hexadecimal text"}},
		"UTF-16 as Windows writes it": {rsaPublic, func(sh shell) []byte {
			sh.write("key.pem", toUTF16(toPEM("PUBLIC KEY", rsaPublic.SPKI()), binary.LittleEndian, true))
			return sh.read("key.pem")
		}, "iconv -f UTF-16 -t UTF-8 key.pem >utf8.pem; cat utf8.pem", []string{"UTF-16"}},
		"UTF-16, big end first": {rsaPublic, func(sh shell) []byte {
			sh.write("key.pem", toUTF16(toPEM("PUBLIC KEY", rsaPublic.SPKI()), binary.BigEndian, true))
			return sh.read("key.pem")
		}, "iconv -f UTF-16 -t UTF-8 key.pem >utf8.pem; cat utf8.pem", []string{"UTF-16"}},
		"UTF-16 without a mark": {rsaPublic, func(sh shell) []byte {
			sh.write("key.pem", toUTF16(toPEM("PUBLIC KEY", rsaPublic.SPKI()), binary.LittleEndian, true))
			return sh.read("key.pem")[2:]
		}, "iconv -f UTF-16 -t UTF-8 key.pem >utf8.pem; cat utf8.pem", []string{"UTF-16"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sh := newShell(t)
			private := rsaKey()
			if tc.key.SM2() != nil {
				private = sm2Key()
			}
			sh.write("private.pem", toPEM("PRIVATE KEY", pkcs8(t, private)))
			sh.openssl("req", "-x509", "-key", "private.pem", "-subj", "/CN=recipient", "-out", "private.crt")
			message := mustRefuse(t, tc.given(sh))
			for _, name := range tc.names {
				if !strings.Contains(message, name) {
					t.Errorf("it says %q, without %q", message, name)
				}
			}
			run := tc.run
			for _, command := range strings.Split(strings.TrimSuffix(run, " -passin pass:"), "; ") {
				if words := strings.TrimSuffix(command, " -pubin -pubout"); !strings.HasPrefix(words, "cat ") && !strings.Contains(message, words) {
					t.Errorf("it says %q, without the command %q", message, words)
				}
			}
			if offset := bitStringOffset(sh); offset != "" {
				run = strings.ReplaceAll(run, "OFFSET", offset)
			}
			run = strings.ReplaceAll(run, "POINT", point[2:])
			got, err := wrapping.ParsePublicKey(sh.run(run))
			if err != nil || !got.Equal(tc.key) {
				t.Errorf("what %q makes is not taken: %v", run, err)
			}
		})
	}
}

const pointCommand = "echo 3059301306072a8648ce3d020106082a811ccf5501822d03420004POINT | xxd -r -p | openssl pkey -pubin -inform DER"

// run runs a command line as a person does.
func (sh shell) run(line string) []byte {
	sh.t.Helper()
	var stderr bytes.Buffer
	cmd := exec.Command("sh", "-c", line)
	cmd.Dir, cmd.Stderr = sh.dir, &stderr
	out, err := cmd.Output()
	if err != nil {
		sh.t.Fatalf("%s: %v: %s", line, err, stderr.Bytes())
	}
	return out
}

var bitString = regexp.MustCompile(`(?m)^ *(\d+):d=1 .*BIT STRING`)

// bitStringOffset finds what a person reads in the output of openssl asn1parse.
func bitStringOffset(sh shell) string {
	out, err := exec.Command("openssl", "asn1parse", "-in", sh.dir+"/key.pem").Output()
	if m := bitString.FindSubmatch(out); err == nil && m != nil {
		return string(m[1])
	}
	return ""
}

func mustRefuse(t *testing.T, in []byte) (message string) {
	t.Helper()
	key, err := wrapping.ParsePublicKey(in)
	var keyError *wrapping.KeyError
	if key != nil || !errors.As(err, &keyError) {
		t.Fatalf("got key %v, error %v; want a *KeyError", key, err)
	}
	if text := err.Error(); len(text) > 250 || strings.Contains(text, "\n") {
		t.Errorf("it says %q; want at most 250 characters on one line", text)
	}
	return err.Error()
}

func TestParsePublicKey_namesKeysOfOtherKinds(t *testing.T) {
	t.Parallel()
	sh := newShell(t)
	generate := func(algorithm string, options ...string) []byte {
		sh.openssl(append([]string{"genpkey", "-algorithm", algorithm, "-out", "key.pem"}, options...)...)
		return sh.openssl("pkey", "-in", "key.pem", "-pubout")
	}
	curve := func(name string) []byte {
		return generate("EC", "-pkeyopt", "ec_paramgen_curve:"+name, "-pkeyopt", "ec_param_enc:named_curve")
	}
	sh.openssl("genpkey", "-genparam", "-algorithm", "DSA", "-pkeyopt", "dsa_paramgen_bits:1024", "-out", "dsa.pem")
	sm2Public := sm2Key().Public()
	for name, tc := range map[string]struct {
		in    []byte
		names string
	}{
		"P-224":            {curve("P-224"), "on the curve P-224"},
		"P-256":            {curve("P-256"), "on the curve P-256"},
		"P-384":            {curve("P-384"), "on the curve P-384"},
		"P-521":            {curve("P-521"), "on the curve P-521"},
		"secp256k1":        {curve("secp256k1"), "on the curve secp256k1"},
		"brainpool":        {curve("brainpoolP256r1"), "on the curve brainpoolP256r1"},
		"a nameless curve": {curve("sect283k1"), "does not name the curve SM2"},
		"Ed25519":          {generate("ED25519"), "Ed25519"},
		"Ed448":            {generate("ED448"), "Ed448"},
		"X25519":           {generate("X25519"), "X25519"},
		"X448":             {generate("X448"), "X448"},
		"PSS":              {generate("RSA-PSS", "-pkeyopt", "rsa_keygen_bits:2048"), "for signatures only (RSASSA-PSS)"},
		"PSS, restricted": {generate("RSA-PSS", "-pkeyopt", "rsa_keygen_bits:2048", "-pkeyopt", "rsa_pss_keygen_md:sha256"),
			"for signatures only (RSASSA-PSS)"},
		"SM2 under its own OID": {withAlgorithm(t, sm2Public, "06082a811ccf5501822d"), "must be id-ecPublicKey"},
		"another algorithm":     {withAlgorithm(t, sm2Public, "06032a0304"), "neither an RSA key for encryption nor an SM2 key"},
		"SSH Ed25519":           {[]byte("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI me@here\n"), "an SSH key that is not RSA"},
		"SSH ECDSA":             {[]byte("ecdsa-sha2-nistp256 AAAAE2VjZHNh me@here\n"), "an SSH key that is not RSA"},
		"SSH in RFC 4716":       {[]byte("---- BEGIN SSH2 PUBLIC KEY ----\nAAAA\n---- END SSH2 PUBLIC KEY ----\n"), "ssh-keygen -i -m RFC4716"},
		"a JSON Web Key":        {[]byte(`{"kty":"RSA","n":"0vx7","e":"AQAB"}`), "JSON Web Key"},
		"a private JWK":         {[]byte(`{"kty":"RSA","n":"0vx7","e":"AQAB","d":"X4cT"}`), "a private key, which must not be put here"},
		"a PuTTY key":           {[]byte("PuTTY-User-Key-File-3: ssh-rsa\n"), "a private key, which must not be put here"},
		"a private key in hex":  {[]byte(hex.EncodeToString(pkcs8(t, rsaKey()))), "a private key, which must not be put here"},
		"a revocation list":     {toPEM("X509 CRL", []byte{0x30, 0}), "PEM block 1 (line 1) is neither PUBLIC KEY nor CERTIFICATE"},
		"parameters alone":      {toPEM("EC PARAMETERS", []byte{5, 0}), "neither PUBLIC KEY nor CERTIFICATE"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if message := mustRefuse(t, tc.in); !strings.Contains(message, tc.names) {
				t.Errorf("it says %q, without %q", message, tc.names)
			}
		})
	}
}

// ssh-keygen writes what its message says.
func TestParsePrivateKey_recognisesWhatItDoesNotRead_withACommandThatHelps(t *testing.T) {
	t.Parallel()
	rsaDER, sm2DER := pkcs8(t, rsaKey()), pkcs8(t, sm2Key())
	for name, tc := range map[string]struct {
		key   *wrapping.PrivateKey
		given func(sh shell) []byte
		run   string
	}{
		"PKCS#12": {rsaKey(), func(sh shell) []byte {
			sh.write("private.pem", toPEM("PRIVATE KEY", rsaDER))
			sh.openssl("req", "-x509", "-key", "private.pem", "-subj", "/CN=recipient", "-out", "private.crt")
			sh.openssl("pkcs12", "-export", "-inkey", "private.pem", "-in", "private.crt", "-passout", "pass:", "-out", "file.p12")
			return sh.read("file.p12")
		}, "openssl pkcs12 -in file.p12 -nocerts -noenc -passin pass:"},
		"SM2 with explicit parameters": {sm2Key(), func(sh shell) []byte {
			sh.write("private.pem", toPEM("PRIVATE KEY", sm2DER))
			sh.openssl("ec", "-in", "private.pem", "-param_enc", "explicit", "-out", "key.pem")
			return sh.read("key.pem")
		}, "openssl ec -in key.pem -param_enc named_curve -out new.pem; cat new.pem"},
		"RSA without NULL": {rsaKey(), func(sh shell) []byte {
			algorithm := unhex(t, "300d06092a864886f70d0101010500")
			_, tail, found := bytes.Cut(rsaDER, algorithm)
			if !found {
				t.Fatal("no algorithm")
			}
			der := sequence(t, []byte{2, 1, 0}, sequence(t, algorithm[2:13]), tail)
			sh.write("key.pem", toPEM("PRIVATE KEY", der))
			return der
		}, "openssl rsa -in key.pem -out new.pem; cat new.pem"},
		"UTF-16": {rsaKey(), func(sh shell) []byte {
			sh.write("key.pem", toUTF16(toPEM("PRIVATE KEY", rsaDER), binary.LittleEndian, true))
			return sh.read("key.pem")
		}, "iconv -f UTF-16 -t UTF-8 key.pem >utf8.pem; cat utf8.pem"},
		"OpenSSH": {rsaKey(), func(sh shell) []byte {
			sh.write("copy", toPEM("PRIVATE KEY", rsaDER))
			sh.run("ssh-keygen -p -q -N '' -f copy >&2")
			return sh.read("copy")
		}, "ssh-keygen -p -m PKCS8 -f copy -N '' >&2; cat copy"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sh := newShell(t)
			_, err := wrapping.ParsePrivateKey(tc.given(sh))
			command, _, _ := strings.Cut(tc.run, "; ")
			command, _, _ = strings.Cut(command, " -passin")
			command, _, _ = strings.Cut(command, " -N")
			var keyError *wrapping.KeyError
			if !errors.As(err, &keyError) || !strings.Contains(err.Error(), command) {
				t.Fatalf("it says %v, without %q", err, command)
			}
			got, err := wrapping.ParsePrivateKey(sh.run(tc.run))
			if err != nil || !got.Public().Equal(tc.key.Public()) {
				t.Errorf("what %q makes is not taken: %v", tc.run, err)
			}
		})
	}
}
