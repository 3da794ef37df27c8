package wrapping_test

import (
	"bytes"
	"errors"
	"regexp"
	"strings"
	"testing"

	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

var position = regexp.MustCompile(`\bline \d+`)

// A key that cannot be read is never replaced by another one of the same input.
func TestParsePublicKey_refusesAnInputWithABlockThatCannotBeRead(t *testing.T) {
	t.Parallel()
	chain := newChain(t, ofRSA)
	leaf, rest := string(toPEM("CERTIFICATE", chain.leaf)), string(toPEM("CERTIFICATE", chain.issuer))+string(toPEM("CERTIFICATE", chain.root))
	key := string(toPEM("PUBLIC KEY", otherRSAKey().Public().SPKI()))
	each := func(prefix string) string {
		return prefix + strings.ReplaceAll(strings.TrimSuffix(leaf, "\n"), "\n", "\n"+prefix) + "\n"
	}
	replace := func(old, by string) string { return strings.Replace(leaf, old, by, 1) }
	for sentence, damaged := range map[string]string{
		"a character that is not Base64":       replace("\nMII", "\nM*I"),
		"a NUL in its Base64":                  replace("\nMII", "\nM\x00I"),
		"no END line":                          replace("-----END CERTIFICATE-----\n", ""),
		"no BEGIN line":                        replace("-----BEGIN CERTIFICATE-----\n", ""),
		"a BEGIN line without dashes":          replace("-----BEGIN CERTIFICATE-----", "BEGIN CERTIFICATE"),
		"four dashes before BEGIN":             replace("-----BEGIN", "----BEGIN"),
		"four dashes after BEGIN":              replace("CERTIFICATE-----", "CERTIFICATE----"),
		"six dashes before BEGIN":              replace("-----BEGIN", "------BEGIN"),
		"dashes of a word processor":           replace("-----BEGIN CERTIFICATE-----", "—–BEGIN CERTIFICATE—–"),
		"BEGIN in lower case":                  replace("BEGIN", "begin"),
		"BEGIN misspelt":                       replace("BEGIN", "BEGN"),
		"a label in lower case":                replace("BEGIN CERTIFICATE", "BEGIN certificate"),
		"an unknown label":                     strings.ReplaceAll(leaf, "CERTIFICATE", "CERTIFICAT"),
		"no label":                             strings.ReplaceAll(leaf, " CERTIFICATE", ""),
		"another END than BEGIN":               replace("END CERTIFICATE", "END PUBLIC KEY"),
		"a damaged END line":                   replace("-----END CERTIFICATE-----", "-----END CERTIFICATE---"),
		"text behind its BEGIN line":           replace("CERTIFICATE-----", "CERTIFICATE----- # mine"),
		"text before its BEGIN line":           replace("-----BEGIN", "cert: -----BEGIN"),
		"its first line on its BEGIN line":     replace("CERTIFICATE-----\n", "CERTIFICATE----- "),
		"its END line on its last line":        replace("\n-----END", "-----END"),
		"everything on one line":               strings.ReplaceAll(leaf, "\n", " ") + "\n",
		"line ends as two characters":          strings.ReplaceAll(leaf, "\n", `\n`) + "\n",
		"line ends of old Macs":                strings.ReplaceAll(leaf, "\n", "\r") + "\n",
		"a blank before each line":             each(" "),
		"a tab before each line":               each("\t"),
		"the marks of a quotation":             each("> "),
		"the marks of a comment":               each("# "),
		"a byte-order mark in front":           "\n\ufeff" + leaf,
		"headers":                              replace("CERTIFICATE-----\n", "CERTIFICATE-----\nComment: mine\n\n"),
		"text among its lines":                 replace("\nMII", "\nas agreed\nMII"),
		"the next block's BEGIN in it":         replace("\nMII", "\n-----BEGIN CERTIFICATE-----\nMII"),
		"one line missing":                     removeLine(leaf, 3),
		"half of its lines":                    leaf[:len(leaf)/2] + "\n",
		"half of its lines, but its last line": leaf[:len(leaf)/2] + "\n-----END CERTIFICATE-----\n",
	} {
		for where, in := range map[string]string{
			"then the chain":        damaged + rest,
			"after the chain":       rest + damaged,
			"then a public key":     damaged + key,
			"after a public key":    key + damaged,
			"after text and a key":  "subject=CN = x\n" + key + damaged,
			"all of it in Base64":   string(toB64([]byte(damaged + key))),
			"and Windows line ends": strings.ReplaceAll(damaged+rest, "\n", "\r\n"),
		} {
			t.Run(sentence+", "+where, func(t *testing.T) {
				t.Parallel()
				got, err := wrapping.ParsePublicKey([]byte(in))
				var keyError *wrapping.KeyError
				if got != nil || !errors.As(err, &keyError) {
					t.Fatalf("got key %v, error %v; want a *KeyError", got, err)
				}
				if text := err.Error(); !position.MatchString(text) && !strings.Contains(text, "more than one public key") || len(text) > 250 {
					t.Errorf("it says %q; want the position", text)
				}
			})
		}
	}
}

func removeLine(text string, i int) string {
	lines := strings.SplitAfter(text, "\n")
	return strings.Join(append(lines[:i:i], lines[i+1:]...), "")
}

// Whatever single character is missing or another: the leaf's key is found, or none.
func TestParsePublicKey_damageOfOneCharacter_neverGivesTheKeyOfAnotherBlock(t *testing.T) {
	t.Parallel()
	chain := newChain(t, ofSM2)
	leaf, rest := toPEM("CERTIFICATE", chain.leaf), toPEM("CERTIFICATE", chain.issuer)
	want := chain.key
	for i := range leaf {
		for _, by := range []string{"", " ", "-", "x", "\n", "\x00"} {
			in := bytes.Join([][]byte{leaf[:i], []byte(by), leaf[i+1:], rest}, nil)
			if got, err := wrapping.ParsePublicKey(in); err == nil && !got.Equal(want) {
				t.Fatalf("with character %d as %q the key of another block is taken", i, by)
			}
		}
	}
}

// What openssl and people write around blocks is no part of them.
func TestParsePublicKey_skipsTextAroundBlocks(t *testing.T) {
	t.Parallel()
	chain := newChain(t, ofRSA)
	leaf, issuer, root := string(toPEM("CERTIFICATE", chain.leaf)), string(toPEM("CERTIFICATE", chain.issuer)), string(toPEM("CERTIFICATE", chain.root))
	for sentence, in := range map[string]string{
		"as openssl s_client -showcerts": "CONNECTED(00000003)\n---\nCertificate chain\n 0 s:CN = front-end.begin.example\n   i:CN = issuer\n" + leaf +
			" 1 s:CN = issuer\n   i:CN = root\n" + issuer + "---\nServer certificate\nsubject=CN = leaf\n\nissuer=CN = issuer\n\n---\n",
		"as openssl pkcs12":       "Bag Attributes\n    localKeyID: 54 BD 21 \nsubject=CN = leaf\nissuer=CN = issuer\n" + leaf + "Bag Attributes: <No Attributes>\n" + issuer + root,
		"with comments":           "# the recipient\n" + leaf + "\n# its CA (since 2024-01-01, dev -- ops)\n" + issuer,
		"blanks behind the lines": strings.ReplaceAll(leaf, "\n", " \t\r\n"),
	} {
		t.Run(sentence, func(t *testing.T) {
			t.Parallel()
			got, err := wrapping.ParsePublicKey([]byte(in))
			if err != nil || !got.Equal(chain.key) {
				t.Errorf("%v, %v", got, err)
			}
		})
	}
}
