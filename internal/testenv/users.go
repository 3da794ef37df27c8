package testenv

import (
	"os"
	"path/filepath"
	"testing"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// AddUser returns the configuration of a user without permissions; bind a role to the name to grant some. It impersonates
// the user in every request.
func (e *Env) AddUser(name string, groups ...string) *rest.Config {
	cfg := rest.CopyConfig(e.Config)
	cfg.Impersonate = rest.ImpersonationConfig{UserName: name, Groups: groups}
	return cfg
}

// As returns a client without a cache that impersonates a user.
func (e *Env) As(t testing.TB, name string, groups ...string) client.Client {
	t.Helper()
	c, err := client.New(e.AddUser(name, groups...), client.Options{Scheme: e.Scheme})
	if err != nil {
		t.Fatalf("Creating a client for %s: %v", name, err)
	}
	return c
}

// Kubeconfig writes a kubeconfig with the identity of cfg, or of the administrator if cfg is nil, and with a default
// namespace. It returns the path of the file, which is deleted when the test ends.
func (e *Env) Kubeconfig(t testing.TB, cfg *rest.Config, namespace string) string {
	t.Helper()
	if cfg == nil {
		cfg = e.Config
	}
	const name = "test"
	file := clientcmdapi.Config{
		CurrentContext: name,
		Contexts:       map[string]*clientcmdapi.Context{name: {Cluster: name, AuthInfo: name, Namespace: namespace}},
		Clusters: map[string]*clientcmdapi.Cluster{name: {
			Server: cfg.Host, CertificateAuthorityData: cfg.CAData, InsecureSkipTLSVerify: cfg.Insecure,
		}},
		AuthInfos: map[string]*clientcmdapi.AuthInfo{name: {
			ClientCertificateData: cfg.CertData, ClientKeyData: cfg.KeyData, Token: cfg.BearerToken,
			Impersonate: cfg.Impersonate.UserName, ImpersonateGroups: cfg.Impersonate.Groups,
		}},
	}
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(file, path); err != nil {
		t.Fatalf("Writing a kubeconfig: %v", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
