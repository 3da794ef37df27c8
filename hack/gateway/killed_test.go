//go:build cgo

package gateway

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"syscall"
	"testing"

	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
)

// kill ends a process as a node that fails does.
func (s *site) kill(t *testing.T, pid int) {
	t.Helper()
	s.killed[pid] = true
	must(t, syscall.Kill(pid, syscall.SIGKILL))
}

// importing is a key that waits for its material, and the request that imports it.
type importing struct {
	caller  caller
	id      string
	request map[string]string
}

// ask calls an operation at a gateway until it succeeds.
func ask(t *testing.T, c caller, gateway int, action string, parameters map[string]string) (members map[string]string) {
	t.Helper()
	eventually(t, func() error {
		var code string
		if members, code = c.call(t, gateway, action, parameters); code != "" {
			return fmt.Errorf("%s is answered with %q %v", action, code, members)
		}
		return nil
	})
	return members
}

func newImporting(t *testing.T, c caller, gateway int) importing {
	t.Helper()
	id := ask(t, c, gateway, "CreateKey", map[string]string{"Origin": "EXTERNAL"})["KeyMetadata.KeyId"]
	parameters := ask(t, c, gateway, "GetParametersForImport", map[string]string{
		"KeyId": id, "WrappingKeySpec": "RSA_2048", "WrappingAlgorithm": "RSAES_OAEP_SHA_256",
	})
	material := make([]byte, 32)
	_, _ = rand.Read(material)
	return importing{c, id, map[string]string{
		"KeyId": id, "ImportToken": parameters["ImportToken"], "EncryptedKeyMaterial": encrypt(t, parameters["PublicKey"], material),
		"KeyMaterialExpireUnix": "4102444800",
	}}
}

// begin sends the import to a gateway. The channel gets its code.
func (i importing) begin(t *testing.T, gateway int) <-chan string {
	t.Helper()
	ended := make(chan string, 1)
	go func() {
		_, code := i.caller.call(t, gateway, "ImportKeyMaterial", i.request)
		ended <- code
	}()
	return ended
}

// object returns the object of the key.
func (i importing) object(t *testing.T, s *site) (*v1alpha1.ImportedKey, error) {
	t.Helper()
	var list v1alpha1.ImportedKeyList
	must(t, s.List(t.Context(), &list, client.InNamespace(team)))
	for n := range list.Items {
		if string(list.Items[n].UID) == i.id {
			return &list.Items[n], nil
		}
	}
	return nil, fmt.Errorf("there is no ImportedKey %s", i.id)
}

// ends repeats the import at a gateway, which must succeed, and uses the key.
func (i importing) ends(t *testing.T, s *site, gateway int) {
	t.Helper()
	ask(t, i.caller, gateway, "ImportKeyMaterial", i.request)
	made := ask(t, i.caller, gateway, "GenerateDataKeyWithoutPlaintext", map[string]string{"KeyId": i.id})
	object, err := i.object(t, s)
	must(t, err)
	if object.Status.KeyState != "Enabled" || object.Status.MaterialFingerprint == "" || made["KeyVersionId"] != object.Status.KeyVersionID {
		t.Errorf("The key has the state %s and the version %s, and the data key is of version %s",
			object.Status.KeyState, object.Status.KeyVersionID, made["KeyVersionId"])
	}
}

// A client whose request was not answered sends it again.
func TestKilled(t *testing.T) {
	s := start(t)
	c := oldSDK{s, "JSON", "POST"}

	// The gateway ends after it has written the object, before the operator has made the change.
	first := newImporting(t, c, 0)
	must(t, syscall.Kill(s.operator, syscall.SIGSTOP))
	answered := first.begin(t, 0)
	eventually(t, func() error {
		object, err := first.object(t, s)
		if err == nil && object.Spec.Material == nil {
			err = fmt.Errorf("the object has no material")
		}
		return err
	})
	s.kill(t, s.pids[0])
	if code := <-answered; code == "" {
		t.Error("The gateway that was killed answered that the import has succeeded")
	}
	must(t, syscall.Kill(s.operator, syscall.SIGCONT))
	first.ends(t, s, 1)

	// The operator ends after the module has imported the material, before it writes the status.
	s.kill(t, s.operator)
	api, held := holdingAPI(t, s.config)
	s.operator = s.launchOperator(kubeconfig(t, t.TempDir(), &rest.Config{Host: api.URL}, ""))
	second := newImporting(t, c, 1)
	answered = second.begin(t, 1)
	<-held
	s.kill(t, s.operator)
	if code := <-answered; code != "ServiceUnavailableTemporary" {
		t.Errorf("Without an operator, the import is answered with %q", code)
	}
	s.operator = s.launchOperator(kubeconfig(t, t.TempDir(), s.config, ""))
	second.ends(t, s, 1)

	var keys v1alpha1.ImportedKeyList
	must(t, s.List(t.Context(), &keys))
	if len(keys.Items) != 2 {
		t.Errorf("There are %d keys, want 2", len(keys.Items))
	}
}

// holdingAPI is an API server that does not answer when the status of a key is written that has got its material. held is told.
func holdingAPI(t *testing.T, cfg *rest.Config) (api *httptest.Server, held <-chan struct{}) {
	t.Helper()
	host, err := url.Parse(cfg.Host)
	must(t, err)
	proxy := httputil.NewSingleHostReverseProxy(host)
	proxy.FlushInterval = -1 // watches
	proxy.Transport, err = rest.TransportFor(cfg)
	must(t, err)
	holds := make(chan struct{}, 1)
	api = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPatch && strings.Contains(r.URL.Path, "/importedkeys/") && strings.HasSuffix(r.URL.Path, "/status") {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				return
			}
			if bytes.Contains(body, []byte("materialFingerprint")) {
				select {
				case holds <- struct{}{}:
				default:
				}
				<-r.Context().Done()
				return
			}
			r.Body = io.NopCloser(bytes.NewReader(body))
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(api.Close)
	return api, holds
}
