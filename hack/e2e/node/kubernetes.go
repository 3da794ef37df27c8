package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/keyconvoy/keyconvoy/hack/controlplane/environment"
)

const nodeName = "node"

// controlPlane is etcd and the API server.
type controlPlane struct {
	env   *envtest.Environment
	admin *rest.Config
	// kubeletCert is the certificate of the API server as a client of the kubelet.
	kubeletCert string
}

// startControlPlane starts etcd and an API server that authorizes kubelets and ServiceAccounts as production does.
func (n *node) startControlPlane() (controlPlane, error) {
	log.SetLogger(logr.FromSlogHandler(slog.DiscardHandler))
	p := controlPlane{kubeletCert: filepath.Join(stateDir, "kubelet-client.crt")}
	key := filepath.Join(stateDir, "kubelet-client.key")
	if err := writeClientCertificate(p.kubeletCert, key); err != nil {
		return p, err
	}
	etcdLog, err := n.openLog("etcd")
	if err != nil {
		return p, err
	}
	apiServerLog, err := n.openLog("kube-apiserver")
	if err != nil {
		return p, err
	}
	p.env, err = environment.New(environment.Places{
		EtcdDir: filepath.Join(stateDir, "etcd"), APIServerDir: filepath.Join(stateDir, "kube-apiserver"),
		EtcdLog: etcdLog, APIServerLog: apiServerLog,
	})
	if err != nil {
		return p, err
	}
	server := p.env.ControlPlane.APIServer
	server.SecureServing.Address, server.SecureServing.Port = apiServerAddress, apiServerPort
	server.Configure().
		Set("authorization-mode", "Node", "RBAC").
		Set("enable-admission-plugins", "NodeRestriction").
		Disable("disable-admission-plugins"). // envtest's default: ServiceAccount
		Set("service-account-issuer", "https://kubernetes.default.svc").
		Set("kubelet-preferred-address-types", "InternalIP").
		Set("kubelet-client-certificate", p.kubeletCert).
		Set("kubelet-client-key", key)
	if p.admin, err = p.env.Start(); err != nil {
		return p, err
	}
	return p, os.WriteFile(kubeconfig, p.env.KubeConfig, 0o600)
}

// kubeconfigOf writes the credentials of a component and returns the file.
func (p controlPlane) kubeconfigOf(component string, user envtest.User) (string, error) {
	account, err := p.env.AddUser(user, nil)
	if err != nil {
		return "", err
	}
	content, err := account.KubeConfig()
	if err != nil {
		return "", err
	}
	file := filepath.Join(stateDir, component+".kubeconfig")
	return file, os.WriteFile(file, content, 0o600)
}

// startControllers starts the controller manager and the scheduler.
func (n *node) startControllers(p controlPlane) error {
	ca := filepath.Join(stateDir, "ca.crt")
	if err := os.WriteFile(ca, p.admin.CAData, 0o600); err != nil {
		return err
	}
	for component, flags := range map[string][]string{
		"kube-controller-manager": {"--use-service-account-credentials", "--root-ca-file=" + ca},
		"kube-scheduler":          nil,
	} {
		credentials, err := p.kubeconfigOf(component, envtest.User{Name: "system:" + component})
		if err != nil {
			return err
		}
		flags = append(flags, "--kubeconfig="+credentials, "--leader-elect=false", "--bind-address=127.0.0.1",
			"--cert-dir="+filepath.Join(stateDir, component))
		if err := n.run(component, flags...); err != nil {
			return err
		}
	}
	return nil
}

// kubeletConfig has what is different on this node: no DNS, no iptables, no swap to look for, and both versions of
// cgroups.
const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: %s
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: %s}
authorization: {mode: Webhook}
cgroupDriver: cgroupfs
cgroupRoot: /%s
failCgroupV1: false
failSwapOn: false
containerRuntimeEndpoint: unix://` + containerdSocket + `
makeIPTablesUtilChains: false
registerNode: true
resolvConf: ""
# The disk is the machine's memory, which others fill too.
evictionHard: {memory.available: 50Mi}
imageGCHighThresholdPercent: 100
`

func (n *node) startKubelet(p controlPlane) error {
	credentials, err := p.kubeconfigOf("kubelet", envtest.User{Name: "system:node:" + nodeName, Groups: []string{"system:nodes"}})
	if err != nil {
		return err
	}
	config := filepath.Join(stateDir, "kubelet.yaml")
	content := fmt.Sprintf(kubeletConfig, apiServerAddress, p.kubeletCert, n.cgroup)
	if err := os.WriteFile(config, []byte(content), 0o600); err != nil {
		return err
	}
	return n.run("kubelet", "--config="+config, "--kubeconfig="+credentials, "--hostname-override="+nodeName,
		"--node-ip="+apiServerAddress)
}

// waitReady waits until the kubelet has registered the node and is ready for pods.
func waitReady(ctx context.Context, config *rest.Config) error {
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	return waitFor(ctx, func() error {
		node, err := client.CoreV1().Nodes().Get(ctx, nodeName, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, condition := range node.Status.Conditions {
			if condition.Type == corev1.NodeReady && condition.Status != corev1.ConditionTrue {
				return errors.New(condition.Message)
			}
			if condition.Type == corev1.NodeReady {
				return nil
			}
		}
		return errors.New("the kubelet has not reported the status of the node")
	})
}

// writeClientCertificate makes a certificate of an administrator that is its own authority.
func writeClientCertificate(certFile, keyFile string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "kube-apiserver-kubelet-client", Organization: []string{"system:masters"}},
		NotBefore:    time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		IsCA:        true, BasicConstraintsValid: true,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), 0o600),
		os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600),
	)
}
