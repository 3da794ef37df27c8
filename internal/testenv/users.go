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

// AddUser returns the configuration of a user who may do nothing until a role is bound to the name. The
// server sees every request as this user's, by impersonation.
func (e *Env) AddUser(name string, groups ...string) *rest.Config {
	cfg := rest.CopyConfig(e.Config)
	cfg.Impersonate = rest.ImpersonationConfig{UserName: name, Groups: groups}
	return cfg
}

// As returns a client without a cache that acts as that user.
func (e *Env) As(t testing.TB, name string, groups ...string) client.Client {
	t.Helper()
	c, err := client.New(e.AddUser(name, groups...), client.Options{Scheme: e.Scheme})
	if err != nil {
		t.Fatalf("Making a client for %s: %v", name, err)
	}
	return c
}

// Kubeconfig writes a file that lets a child process act as cfg does, with namespace as its default
// one, and returns its path. The file goes when the test ends. cfg is nil for the administrator.
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
