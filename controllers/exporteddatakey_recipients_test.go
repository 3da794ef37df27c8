package controllers_test

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

func TestExportedDataKey_recipientThatIsNoPublicKey_isRefusedWithWhatToDo(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	o.dataKey(t, "dek")
	key := rsaRecipient().public.RSA()
	private := rsaRecipient().privatePEM(t)
	block, _ := pem.Decode(private)
	pkcs1 := pem.EncodeToMemory(&pem.Block{Type: "RSA PUBLIC KEY", Bytes: x509.MarshalPKCS1PublicKey(key)})
	for name, c := range map[string]struct {
		text string
		says string
	}{
		"pkcs1-pem":       {string(pkcs1), "a PKCS#1 public key; convert it: openssl rsa -RSAPublicKey_in -in key.pem -pubout"},
		"pkcs1-der":       {base64.StdEncoding.EncodeToString(x509.MarshalPKCS1PublicKey(key)), "for DER add -inform DER"},
		"private-pem":     {string(private), "a private key, which must not be put here; give the public key"},
		"private-der":     {base64.StdEncoding.EncodeToString(block.Bytes), "treat the private key as disclosed"},
		"private-too":     {string(rsaRecipient().pem()) + string(private), "a private key, which must not be put here"},
		"garbage":         {"garbage", "not a public key: give a SubjectPublicKeyInfo"},
		"cut-base64":      {rsaRecipient().public.Base64()[:100], "not a public key: give a SubjectPublicKeyInfo"},
		"pem-without-end": {strings.Split(string(rsaRecipient().pem()), "-----END")[0], "keep its line breaks"},
		"ssh":             {"ssh-rsa AAAAB3NzaC1yc2E= user@host", "an SSH public key; convert it: ssh-keygen -e -m PKCS8"},
	} {
		t.Run(name, func(t *testing.T) {
			e := newExport(name, toBlob(c.text))
			o.Make(t, e)
			o.Stalls(t, e, "InvalidParameter", "InvalidParameter: ", "PublicKeyBlob: ", c.says)
			o.absent(t, name)
			if o.Event(t, e, "InvalidParameter") == "" {
				t.Error("there is no event")
			}
		})
	}
	o.Hide("recipient's private key", block.Bytes[40:])
}

// A private key in the place of a public one is not repeated anywhere: checkHidden.
func TestExportedDataKey_privateKeyInASecret_isRefusedAndNotRepeated(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	o.dataKey(t, "dek")
	private := rsaRecipient().privatePEM(t)
	block, _ := pem.Decode(private)
	o.Hide("recipient's private key", block.Bytes[40:])
	s := o.makeSecret(t, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "tls"}, Data: map[string][]byte{"tls.key": private, "tls.crt": rsaRecipient().certificate(t, 1)}})
	e := newExport("e", toSecret("tls", "tls.key"))
	o.Make(t, e)
	o.Stalls(t, e, "InvalidParameter", "a private key, which must not be put here")
	o.Change(t, s, func() { s.Data["tls.key"] = rsaRecipient().pem() })
	o.Ready(t, e)
	o.checkExport(t, e, rsaRecipient())
}

func TestExportedDataKey_keyAndAlgorithmThatDoNotFit_areRefused(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	o.dataKey(t, "dek")
	o.dataKey(t, "long", withBytes(1024))
	rsa3072 := func(s *v1alpha1.ExportedDataKeySpec) { s.WrappingKeySpec = "RSA_3072" }
	for name, c := range map[string]struct {
		change []exportChange
		says   string
	}{
		"sm2-for-rsa":           {[]exportChange{toBlob(sm2Recipient().public.Base64())}, "WrappingKeySpec: The public key is EC_SM2, not RSA_2048."},
		"rsa-for-sm2":           {[]exportChange{withSM2}, "WrappingKeySpec: The public key is RSA_2048, not EC_SM2."},
		"another-size":          {[]exportChange{rsa3072}, "WrappingKeySpec: The public key is RSA_2048, not RSA_3072."},
		"too-long-for-sha-256":  {[]exportChange{ofDataKey("long")}, "190"},
		"too-long-for-sha-1":    {[]exportChange{ofDataKey("long"), withRSA("RSAES_OAEP_SHA_1")}, "214"},
		"sm2-in-a-pem-of-an-ec": {[]exportChange{toBlob(p256PEM), withSM2}, "the curve must be SM2"},
	} {
		t.Run(name, func(t *testing.T) {
			e := newExport(name, c.change...)
			o.Make(t, e)
			o.Stalls(t, e, "InvalidParameter", "InvalidParameter: The specified parameter is not valid.", c.says)
			o.absent(t, name)
		})
	}
	// SM2 takes any length.
	if got := o.openExport(t, o.export(t, "long-sm2", ofDataKey("long"), toBlob(sm2Recipient().public.Base64()), withSM2), sm2Recipient()); len(got) != 1024 {
		t.Errorf("%d bytes", len(got))
	}
}

// p256PEM is a key on another curve than SM2's.
const p256PEM = `-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEaxfR8uEsQkf4vOblY6RA8ncDfYEt
6zOg9KE5RdiYwpZP40Li/hp/m47n60p8D54WK84zV2sxXs7LtkBoN79R9Q==
-----END PUBLIC KEY-----
`

func TestExportedDataKey_takesAPublicKeyInEveryForm(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	want := o.dataKeyBytes(t, o.dataKey(t, "dek"))
	key := o.pendingKey(t, "other", under("RSA_2048", "RSAES_OAEP_SHA_256"))
	to := rsaRecipient()
	certificate := to.certificate(t, 1)
	block, _ := pem.Decode(certificate)
	o.makeSecret(t, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "keys"}, Data: map[string][]byte{
		"tls.crt": certificate,
		"der":     to.public.SPKI(), "pem": to.pem(), "base64": []byte(inLines(to.public.Base64())),
	}})
	o.configMap(t, "map", "pem", string(to.pem()))
	for name, change := range map[string]exportChange{
		"base64":                 toBlob(to.public.Base64()),
		"base64-in-lines":        toBlob(inLines(to.public.Base64())),
		"pem":                    toBlob(string(to.pem())),
		"certificate":            toBlob(string(certificate)),
		"certificate-der":        toBlob(base64.StdEncoding.EncodeToString(block.Bytes)),
		"secret-certificate":     toSecret("keys", "tls.crt"),
		"secret-der":             toSecret("keys", "der"),
		"secret-pem":             toSecret("keys", "pem"),
		"secret-base64-in-lines": toSecret("keys", "base64"),
		"configmap-pem":          toConfigMap("map", "pem"),
	} {
		t.Run(name, func(t *testing.T) {
			e := o.export(t, name, change)
			o.checkExport(t, e, to)
			if !bytes.Equal(o.openExport(t, e, to), want) {
				t.Error("it is another data key")
			}
		})
	}
	t.Run("imported-key", func(t *testing.T) {
		e := o.export(t, "imported-key", toKey("other"))
		if e.Status.RecipientFingerprint != key.Status.ImportParameters.PublicKeyFingerprint {
			t.Errorf("the recipient is %s", e.Status.RecipientFingerprint)
		}
	})
}

func TestExportedDataKey_waitsForItsSourcesAndWakes(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	ofLater := newExport("of-later", ofDataKey("later"))
	toLater := newExport("to-later", toKey("later"))
	secret := newExport("secret", toSecret("keys", "tls.crt"))
	configMap := newExport("config-map", toConfigMap("map", "key"))
	o.dataKey(t, "dek")
	o.Make(t, ofLater, toLater, secret, configMap)
	o.Waits(t, ofLater, v1alpha1.ReasonKeyNotReady, "DataKey "+o.Namespace+"/later does not exist or has no data key yet")
	o.Waits(t, toLater, v1alpha1.ReasonKeyNotReady, "The ImportedKey later does not exist or publishes no import parameters")
	o.Waits(t, secret, v1alpha1.ReasonSourceNotFound, "entry tls.crt of Secret "+o.Namespace+"/keys does not exist")
	o.Waits(t, configMap, v1alpha1.ReasonSourceNotFound, "entry key of ConfigMap "+o.Namespace+"/map does not exist")

	s := o.makeSecret(t, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "keys"}, Data: map[string][]byte{"other": []byte("x")}})
	m := o.configMap(t, "map", "other", "x")
	o.Again(t, secret, func() { o.Change(t, s, func() { s.Data["another"] = []byte("x") }) })
	o.Waits(t, secret, v1alpha1.ReasonSourceNotFound)
	o.Change(t, s, func() { s.Data["tls.crt"] = rsaRecipient().certificate(t, 1) })
	o.Change(t, m, func() { m.Data["key"] = string(rsaRecipient().pem()) })
	o.pendingKey(t, "later", under("RSA_2048", "RSAES_OAEP_SHA_256"))
	o.dataKey(t, "later")
	o.Ready(t, ofLater, toLater, secret, configMap)
	for _, e := range []*v1alpha1.ExportedDataKey{ofLater, toLater, secret, configMap} {
		if all := o.Events(t, e); len(all) != 0 {
			t.Errorf("waiting is no event: %q", all)
		}
	}
}

func TestExportedDataKey_anotherRecipientKeyIsExportedToAnew(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	want := o.dataKeyBytes(t, o.dataKey(t, "dek"))
	s := o.makeSecret(t, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "tls"}, Data: map[string][]byte{"tls.crt": rsaRecipient().certificate(t, 1)}})
	e := o.export(t, "e", toSecret("tls", "tls.crt"))
	first := o.checkExport(t, e, rsaRecipient())

	o.Again(t, e, func() { o.Change(t, s, func() { s.Data["tls.crt"] = rsaRecipient().certificate(t, 2) }) })
	o.Again(t, e, func() { o.Change(t, s, func() { s.Data["tls.crt"] = rsaRecipient().pem() }) })
	o.Ready(t, e)
	if renewed := o.checkExport(t, e, rsaRecipient()); renewed.ResourceVersion != first.ResourceVersion {
		t.Error("a renewed certificate of the same key changed the Secret")
	}

	o.Change(t, s, func() { s.Data["tls.crt"] = otherRSARecipient().certificate(t, 3) })
	o.secretWith(t, "e", func(s *corev1.Secret) string {
		if bytes.Equal(s.Data["exportedDataKey"], first.Data["exportedDataKey"]) {
			return "it is still the former export"
		}
		return ""
	})
	o.Until(t, e, func() string {
		if e.Status.RecipientFingerprint != otherRSARecipient().public.Fingerprint() {
			return "the status names the former recipient"
		}
		return ""
	})
	if second := o.checkExport(t, e, otherRSARecipient()); second.UID != first.UID {
		t.Error("the Secret is another")
	}
	if !bytes.Equal(o.openExport(t, e, otherRSARecipient()), want) {
		t.Error("it is another data key")
	}
	harness.WantWords(t, o.Event(t, e, "RecipientChanged"), []string{otherRSARecipient().public.Fingerprint(), rsaRecipient().public.Fingerprint()})
	if all := o.Events(t, e); len(all) != 1 {
		t.Errorf("there are events %q", all)
	}
}

// An export to another recipient is not what was requested.
func TestExportedDataKey_recipientThatPublishesNothing_isNotTakenForTheFormerOne(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	o.dataKey(t, "dek")
	e := o.export(t, "e")
	o.Change(t, e, func() { toKey("absent")(&e.Spec) })
	o.Waits(t, e, v1alpha1.ReasonKeyNotReady, "The ImportedKey absent does not exist")
	o.pendingKey(t, "absent", under("RSA_2048", "RSAES_OAEP_SHA_256"))
	o.Ready(t, e)
	if e.Status.RecipientFingerprint == rsaRecipient().public.Fingerprint() {
		t.Error("it is still for the former recipient")
	}
}

func TestExportedDataKey_formatsOfSM2(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	want := o.dataKeyBytes(t, o.dataKey(t, "dek"))
	to := sm2Recipient()
	e := o.export(t, "e", toBlob(to.public.Base64()), withSM2)
	c1c3c2 := o.exportedBytes(t, e)
	if len(c1c3c2) != 97+len(want) || c1c3c2[0] != 4 {
		t.Errorf("the default has %d bytes and begins with %#x", len(c1c3c2), c1c3c2[0])
	}
	former := c1c3c2
	for _, format := range []string{"C1C2C3", "ASN1", "C1C3C2"} {
		o.Change(t, e, func() { e.Spec.SM2CiphertextFormat = format })
		o.Ready(t, e)
		o.checkExport(t, e, to)
		got := o.exportedBytes(t, e)
		if bytes.Equal(got, former) {
			t.Errorf("%s: it is the former export", format)
		}
		if former = got; format == "ASN1" != (got[0] == 0x30) {
			t.Errorf("%s begins with %#x", format, got[0])
		}
		if !bytes.Equal(o.openExport(t, e, to), want) {
			t.Errorf("%s: it is another data key", format)
		}
		if _, err := to.private.Unwrap(wrapping.SM2PKE, map[string]wrapping.SM2Format{
			"C1C2C3": wrapping.C1C3C2, "ASN1": wrapping.C1C3C2, "C1C3C2": wrapping.C1C2C3,
		}[format], got); err == nil {
			t.Errorf("%s opens in another format too", format)
		}
	}
}

func TestExportedDataKey_isOpenedByOpenssl(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	want := o.dataKeyBytes(t, o.dataKey(t, "dek"))
	for name, c := range map[string]struct {
		to     recipient
		change exportChange
	}{
		"oaep-sha-256": {rsaRecipient(), withRSA("RSAES_OAEP_SHA_256")},
		"oaep-sha-1":   {rsaRecipient(), withRSA("RSAES_OAEP_SHA_1")},
		"sm2-asn1":     {sm2Recipient(), withSM2Format("ASN1")},
	} {
		t.Run(name, func(t *testing.T) {
			e := o.export(t, name, toBlob(c.to.public.Base64()), c.change)
			if !bytes.Equal(opensslOpen(t, c.to, e.Spec.WrappingAlgorithm, o.exportedBytes(t, e)), want) {
				t.Error("openssl opens it to another data key")
			}
			if !bytes.Equal(o.openExport(t, e, c.to), want) {
				t.Error("it is another data key")
			}
		})
	}
}
