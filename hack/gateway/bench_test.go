//go:build cgo

package gateway

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/gateway/wire"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/hsm/software"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/redact"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// connections are the open connections of the benchmarks.
const connections = 32

// BenchmarkGateway compares the gateway with the bare operation, and with a plain server over TLS that checks the same signatures and
// answers at once. All but the gateway run in this process, and the client in all cases.
func BenchmarkGateway(b *testing.B) {
	s := start(b)
	c := single{s}
	id := c.until(b, "CreateKey", nil, "KeyId")
	blob := c.until(b, "GenerateDataKeyWithoutPlaintext", url.Values{"KeyId": {id}}, "CiphertextBlob")
	recipient, err := rsa.GenerateKey(rand.Reader, 2048)
	must(b, err)
	spki, err := x509.MarshalPKIXPublicKey(recipient.Public())
	must(b, err)
	reference := httptest.NewUnstartedServer(wire.New(plain{}, plain{}, func(*wire.Request, string, error, time.Duration) {}, time.Now))
	reference.StartTLS()
	defer reference.Close()
	s2 := &site{id: plainKey.ID, key: string(plainKey.Secret)}
	bare := newBare(b, spki)
	for _, operation := range []struct {
		name       string
		parameters url.Values
		bare       func() error
	}{
		{"ExportDataKey", url.Values{
			"CiphertextBlob": {blob}, "PublicKeyBlob": {base64.StdEncoding.EncodeToString(spki)}, "WrappingKeySpec": {"RSA_2048"}, "WrappingAlgorithm": {"RSAES_OAEP_SHA_256"},
		}, bare.export},
		{"GenerateDataKeyWithoutPlaintext", url.Values{"KeyId": {id}}, bare.generate},
	} {
		b.Run(operation.name+"/bare", func(b *testing.B) { load(b, func() error { return operation.bare() }) })
		b.Run(operation.name+"/plain", func(b *testing.B) {
			send := sender(s2, reference.Client().Transport.(*http.Transport).TLSClientConfig, strings.TrimPrefix(reference.URL, "https://"))
			load(b, func() error { return send(operation.name, operation.parameters) })
		})
		b.Run(operation.name+"/gateway", func(b *testing.B) {
			send := sender(s, s.trust(), s.gateways[0])
			load(b, func() error { return send(operation.name, operation.parameters) })
		})
	}
}

// load calls an operation on all connections, and reports the median and the 99th percentile.
func load(b *testing.B, call func() error) {
	var next atomic.Int64
	times := make([]time.Duration, b.N)
	var callers sync.WaitGroup
	b.ResetTimer()
	for range connections {
		callers.Go(func() {
			for i := int(next.Add(1)) - 1; i < b.N; i = int(next.Add(1)) - 1 {
				start := time.Now()
				if err := call(); err != nil {
					b.Error(err)
					return
				}
				times[i] = time.Since(start)
			}
		})
	}
	callers.Wait()
	b.StopTimer()
	slices.Sort(times)
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "req/s")
	b.ReportMetric(float64(times[len(times)/2].Microseconds()), "µs-median")
	b.ReportMetric(float64(times[len(times)*99/100].Microseconds()), "µs-p99")
}

// sender returns what sends signed requests over kept connections.
func sender(s *site, trust *tls.Config, host string) func(action string, parameters url.Values) error {
	h := &http.Client{Transport: &http.Transport{TLSClientConfig: trust, MaxIdleConnsPerHost: connections}}
	return func(action string, parameters url.Values) error {
		response, err := h.Do(signed(s, host, action, parameters))
		if err != nil {
			return err
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		if err == nil && response.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s: %s", response.Status, body)
		}
		return err
	}
}

// signed returns a request with the signature ACS3.
func signed(s *site, host, action string, parameters url.Values) *http.Request {
	empty := sha256.Sum256(nil)
	headers := map[string]string{
		"host": host, "x-acs-action": action, "x-acs-version": wire.APIVersion, "x-acs-date": time.Now().UTC().Format(time.RFC3339),
		"x-acs-signature-nonce": uuid.NewString(), "x-acs-content-sha256": hex.EncodeToString(empty[:]),
	}
	names := slices.Sorted(maps.Keys(headers))
	query := strings.NewReplacer("+", "%20", "*", "%2A", "%7E", "~").Replace(parameters.Encode())
	text := "POST\n/\n" + query + "\n"
	for _, name := range names {
		text += name + ":" + headers[name] + "\n"
	}
	digest := sha256.Sum256([]byte(text + "\n" + strings.Join(names, ";") + "\n" + headers["x-acs-content-sha256"]))
	mac := hmac.New(sha256.New, []byte(s.key))
	mac.Write([]byte("ACS3-HMAC-SHA256\n" + hex.EncodeToString(digest[:])))
	request, _ := http.NewRequest(http.MethodPost, "https://"+host+"/?"+query, nil)
	for name, value := range headers {
		request.Header.Set(name, value)
	}
	request.Header.Set("Authorization", fmt.Sprintf("ACS3-HMAC-SHA256 Credential=%s,SignedHeaders=%s,Signature=%x", s.id, strings.Join(names, ";"), mac.Sum(nil)))
	return request
}

// single sends single requests.
type single struct{ *site }

// until sends a request until it succeeds, and returns a member of the answer.
func (c single) until(b *testing.B, action string, parameters url.Values, member string) (value string) {
	b.Helper()
	h := &http.Client{Transport: &http.Transport{TLSClientConfig: c.trust()}}
	eventually(b, func() error {
		response, err := h.Do(signed(c.site, c.gateways[0], action, parameters))
		if err != nil {
			return err
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		if err != nil || response.StatusCode != http.StatusOK {
			return errors.Join(err, fmt.Errorf("%s: %s", response.Status, body))
		}
		value = strings.Trim(between(string(body)+",", `"`+member+`":`, ","), `"}`)
		return nil
	})
	return value
}

// plain is what the gateway is compared with: a server with the same protocol, that answers at once.
type plain struct{}

var plainKey = wire.AccessKey{ID: "KCAAAAAAAAAAAAAAAAAAAAAAAAAA", Secret: redact.Bytes("a secret of forty-three characters, or more")}

func (plain) Find(context.Context, string) (*wire.AccessKey, error) { return &plainKey, nil }

func (plain) Has(string) bool { return true }

func (plain) Do(context.Context, *wire.Request) (wire.Object, error) {
	return wire.Object{{Name: "KeyVersionId", Value: uuid.Nil.String()}, {Name: "KeyId", Value: uuid.Nil.String()}, {Name: "ExportedDataKey", Value: strings.Repeat("x", 344)}}, nil
}

// bare is a software store without the gateway.
type bare struct {
	operations kms.Operations
	key        kms.Key
	blob       kms.Blob
	recipient  kms.Recipient
}

func newBare(b *testing.B, spki []byte) *bare {
	b.Helper()
	module, err := software.Open(b.Context(), software.Config{Storage: &hsmtest.Storage{}})
	must(b, err)
	out := &bare{operations: kms.Operations{Module: module}, key: kms.Key{ID: uuid.New(), Spec: hsm.AES256, Origin: kms.OriginModule, State: kms.StateEnabled, Namespace: "a", Name: "a"}}
	out.key.Primary, err = out.operations.CreateKeyVersion(b.Context(), out.key)
	must(b, err)
	made, err := out.operations.GenerateDataKeyWithoutPlaintext(b.Context(), kms.GenerateDataKeyRequest{Key: out.key})
	must(b, err)
	out.blob = made.CiphertextBlob
	public, err := wrapping.ParseSPKI(spki)
	must(b, err)
	out.recipient, err = kms.NewRecipient(public, wrapping.RSA2048, wrapping.RSAESOAEPSHA256)
	must(b, err)
	return out
}

func (s *bare) export() error {
	_, err := s.operations.ExportDataKey(context.Background(), kms.ExportDataKeyRequest{Key: s.key, CiphertextBlob: s.blob, Recipient: s.recipient})
	return err
}

func (s *bare) generate() error {
	_, err := s.operations.GenerateDataKeyWithoutPlaintext(context.Background(), kms.GenerateDataKeyRequest{Key: s.key})
	return err
}

// BenchmarkListKeys lists pages of 100 of 10 000 keys, and reports the memory of the gateway with them.
func BenchmarkListKeys(b *testing.B) {
	const keys = 10_000
	s := start(b)
	c := single{s}
	var next atomic.Int64
	var makers sync.WaitGroup
	for range connections {
		makers.Go(func() {
			for i := next.Add(1); i <= keys; i = next.Add(1) {
				// Their key store does not exist, so that the operator has nothing else to do with them.
				err := s.Create(b.Context(), &v1alpha1.ImportedKey{
					ObjectMeta: metav1.ObjectMeta{Namespace: team, Name: fmt.Sprintf("key-%05d", i)},
					Spec:       v1alpha1.ImportedKeySpec{KeyStoreRef: v1alpha1.KeyStoreReference{Kind: "KeyStore", Name: "none"}, KeySpec: "AES_256"},
				})
				if err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	makers.Wait()
	page := url.Values{"PageSize": {"100"}, "PageNumber": {"50"}}
	eventually(b, func() error {
		if total := c.until(b, "ListKeys", page, "TotalCount"); total != fmt.Sprint(keys) {
			return fmt.Errorf("the gateway has %s keys", total)
		}
		return nil
	})
	send := sender(s, s.trust(), s.gateways[0])
	b.ResetTimer()
	for range b.N {
		must(b, send("ListKeys", page))
	}
	b.StopTimer()
	b.ReportMetric(float64(resident(b, s.pids[0])>>20), "MiB-resident")
}

// resident returns the memory of a process in bytes.
func resident(b *testing.B, pid int) int {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	must(b, err)
	var kilobytes int
	_, err = fmt.Sscan(strings.TrimSuffix(between(string(text), "VmRSS:", "kB"), "kB"), &kilobytes)
	must(b, err)
	return kilobytes << 10
}
