package main

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
)

const (
	operatorNamespace = "keyconvoy-system"
	operatorAccount   = "keyconvoy-controller-manager"
	namespace         = "bench" // of all measured objects
)

// cluster is a separate control plane, with an empty etcd that flushes each write to the disk. Keyconvoy is installed
// as in config/default, but without the Deployment, because there is no node.
type cluster struct {
	client.Client // with the permissions of an administrator

	tools      *tools
	dir        string // files of the control plane and the operator
	kubeconfig string
	cfg        *rest.Config
	http       *http.Client
}

// tools are the programs that make builds for the benchmark.
type tools struct {
	launcher  string // of the control plane
	kubectl   string
	keyconvoy string
}

func findTools() (*tools, error) {
	const assets = "KUBEBUILDER_ASSETS" // the launcher reads it too
	dir, err := filepath.Abs(cmp.Or(os.Getenv(assets), "bin/controlplane"))
	if err != nil {
		return nil, err
	}
	if err := os.Setenv(assets, dir); err != nil {
		return nil, err
	}
	t := &tools{
		launcher:  "bin/tools/controlplane",
		kubectl:   filepath.Join(dir, "kubectl"),
		keyconvoy: "bin/keyconvoy",
	}
	for _, path := range []*string{&t.launcher, &t.kubectl, &t.keyconvoy} {
		absolute, err := filepath.Abs(*path)
		if err != nil {
			return nil, err
		}
		if _, err := os.Stat(absolute); err != nil {
			return nil, fmt.Errorf("%w: run make bench in the root of the repository, which builds it", err)
		}
		*path = absolute
	}
	return t, nil
}

// newCluster starts a control plane. The caller must stop it, even after an error.
func newCluster(ctx context.Context, t *tools) (*cluster, error) {
	dir, err := os.MkdirTemp("", "keyconvoy-bench-")
	if err != nil {
		return nil, err
	}
	c := &cluster{tools: t, dir: dir, kubeconfig: filepath.Join(dir, "kubeconfig")}
	if _, err := command(ctx, t.launcher, "up", "--fsync", "--kubeconfig", c.kubeconfig); err != nil {
		return c, err
	}
	if c.cfg, err = clientcmd.BuildConfigFromFlags("", c.kubeconfig); err != nil {
		return c, err
	}
	c.cfg.QPS = -1
	if c.http, err = rest.HTTPClientFor(c.cfg); err != nil {
		return c, err
	}
	scheme := runtime.NewScheme()
	if err := clientgoscheme.AddToScheme(scheme); err != nil {
		return c, err
	}
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		return c, err
	}
	if c.Client, err = client.New(c.cfg, client.Options{Scheme: scheme}); err != nil {
		return c, err
	}
	err = c.install(ctx)
	return c, err
}

func (c *cluster) stop() {
	if _, err := command(context.Background(), c.tools.launcher, "down", "--kubeconfig", c.kubeconfig); err != nil {
		fmt.Fprintln(os.Stderr, "Stopping the control plane:", err)
	}
	_ = os.RemoveAll(c.dir)
}

func (c *cluster) install(ctx context.Context) error {
	if _, err := command(ctx, c.tools.kubectl, "--kubeconfig", c.kubeconfig, "apply", "-k", "config/default"); err != nil {
		return err
	}
	_, err := command(ctx, c.tools.kubectl, "--kubeconfig", c.kubeconfig, "wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
	if err != nil {
		return err
	}
	reader := &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "bench-metrics"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "keyconvoy-metrics-reader"},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: namespace, Name: "scraper"}},
	}
	for _, o := range []client.Object{
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}},
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "scraper"}},
		reader,
	} {
		if err := c.Create(ctx, o); err != nil {
			return err
		}
	}
	return nil
}

// token requests a token of a ServiceAccount.
func (c *cluster) token(ctx context.Context, namespace, name string) (string, error) {
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
	request := &authenticationv1.TokenRequest{}
	if err := c.SubResource("token").Create(ctx, account, request); err != nil {
		return "", err
	}
	return request.Status.Token, nil
}

// asOperator returns a client with the identity and permissions of the operator.
func (c *cluster) asOperator(ctx context.Context) (*http.Client, error) {
	path, err := c.operatorKubeconfig(ctx)
	if err != nil {
		return nil, err
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		return nil, err
	}
	return rest.HTTPClientFor(cfg)
}

// operatorKubeconfig writes a kubeconfig with the permissions of the Deployment's ServiceAccount.
func (c *cluster) operatorKubeconfig(ctx context.Context) (string, error) {
	token, err := c.token(ctx, operatorNamespace, operatorAccount)
	if err != nil {
		return "", err
	}
	config, err := clientcmd.LoadFromFile(c.kubeconfig)
	if err != nil {
		return "", err
	}
	for name := range config.AuthInfos {
		config.AuthInfos[name] = &clientcmdapi.AuthInfo{Token: token}
	}
	path := filepath.Join(c.dir, "operator.kubeconfig")
	return path, clientcmd.WriteToFile(*config, path)
}

// command runs a program and returns what it printed.
func command(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", filepath.Base(name), strings.Join(args, " "), err, stderr.String())
	}
	return string(out), nil
}
