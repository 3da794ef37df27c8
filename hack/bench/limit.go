package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
)

// The limit is the speed of a bare client that makes, for each export, the same two writes as the operator: the same
// Secret with the same kind of request, and the same status. It prepares all bodies in advance, watches nothing and
// decides nothing, so nothing that makes these two writes on the same machine can be faster.

// bodies are the requests that the operator sent for one export, which contain the name of the export.
type bodies struct {
	Secret []byte // of a server-side apply
	Status []byte // of a merge patch
}

// placeholder is the name of the export from which the bodies are copied.
const placeholder = 0

// sampleBodies lets the operator reconcile one export, and returns what it wrote.
func sampleBodies(ctx context.Context, t *tools, r *recipient) (bodies, error) {
	c, err := newCluster(ctx, t)
	if c != nil {
		defer c.stop()
	}
	if err != nil {
		return bodies{}, err
	}
	s, err := newStore(ctx, onSoftware, c.dir)
	if err != nil {
		return bodies{}, err
	}
	o, err := c.startOperator(ctx, s, false)
	if err != nil {
		return bodies{}, err
	}
	if err := c.bringKey(ctx, s); err != nil {
		return bodies{}, err
	}
	export := r.export(placeholder)
	if err := c.Create(ctx, export); err != nil {
		return bodies{}, err
	}
	if err := c.until(ctx, export, func() bool { return export.Status.SecretRef != nil }); err != nil {
		return bodies{}, err
	}
	secret := &corev1.Secret{}
	if err := c.Get(ctx, client.ObjectKeyFromObject(export), secret); err != nil {
		return bodies{}, err
	}
	if err := o.stop(); err != nil {
		return bodies{}, err
	}
	return bodiesOf(secret, export)
}

func bodiesOf(secret *corev1.Secret, export *v1alpha1.ExportedDataKey) (b bodies, err error) {
	// The owner does not exist in the new cluster. The API server does not check the UIDs of owners.
	applied := &corev1.Secret{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"},
		ObjectMeta: metav1.ObjectMeta{
			Name: secret.Name, Namespace: secret.Namespace, Labels: secret.Labels, Annotations: secret.Annotations,
			OwnerReferences: secret.OwnerReferences,
		},
		Type: secret.Type, Data: secret.Data,
	}
	if b.Secret, err = json.Marshal(applied); err != nil {
		return b, err
	}
	b.Status, err = json.Marshal(map[string]any{"status": export.Status})
	return b, err
}

// limitRun is one run of the bare client.
type limitRun struct {
	Write       string  `json:"write"` // how it wrote the Secret: apply or create
	Concurrency int     `json:"concurrency"`
	Objects     int     `json:"objects"`
	Seconds     float64 `json:"seconds"`
	PerSecond   float64 `json:"perSecond"`
}

// The ways to write a Secret. The operator applies; create is the cheapest request for the API server.
const (
	byApply  = "apply"
	byCreate = "create"
)

func measureLimit(ctx context.Context, t *tools, r *recipient, b bodies, write string, concurrency, n int) (run limitRun, err error) {
	c, err := newCluster(ctx, t)
	if c != nil {
		defer c.stop()
	}
	if err != nil {
		return run, err
	}
	// One additional export warms up the API server, as the operator does before converge.
	if err := c.createExports(ctx, r, 0, n+1); err != nil {
		return run, err
	}
	o, err := c.observe(ctx)
	if err != nil {
		return run, err
	}
	defer o.stop()
	if err := o.waitSeen(ctx, n+1); err != nil {
		return run, err
	}
	// The API server authorizes an administrator with less work than a ServiceAccount, so use the operator's.
	sender, err := c.asOperator(ctx)
	if err != nil {
		return run, err
	}
	if err := c.writeBoth(ctx, sender, b, write, n); err != nil {
		return run, err
	}
	start := time.Now()
	if err := forEach(ctx, n, concurrency, func(ctx context.Context, i int) error { return c.writeBoth(ctx, sender, b, write, i) }); err != nil {
		return run, err
	}
	end, err := o.waitReady(ctx, n+1)
	if err != nil {
		return run, err
	}
	seconds := end.Sub(start).Seconds()
	return limitRun{Write: write, Concurrency: concurrency, Objects: n, Seconds: seconds, PerSecond: float64(n) / seconds}, nil
}

// writeBoth writes a Secret and a status.
func (c *cluster) writeBoth(ctx context.Context, sender *http.Client, b bodies, write string, i int) error {
	was, name := []byte(exportName(placeholder)), exportName(i)
	secret, status := bytes.ReplaceAll(b.Secret, was, []byte(name)), bytes.ReplaceAll(b.Status, was, []byte(name))
	secrets := c.cfg.Host + "/api/v1/namespaces/" + namespace + "/secrets"
	var err error
	if write == byApply {
		err = send(ctx, sender, http.MethodPatch, secrets+"/"+name+"?fieldManager="+v1alpha1.ManagedBy+"&force=true", "application/apply-patch+yaml", secret)
	} else {
		err = send(ctx, sender, http.MethodPost, secrets+"?fieldManager="+v1alpha1.ManagedBy, "application/json", secret)
	}
	if err != nil {
		return err
	}
	exports := c.cfg.Host + "/apis/keyconvoy.io/v1alpha1/namespaces/" + namespace + "/exporteddatakeys/"
	return send(ctx, sender, http.MethodPatch, exports+name+"/status", "application/merge-patch+json", status)
}

// send sends a request and reads the whole response, so that the connection is reused.
func send(ctx context.Context, c *http.Client, method, url, contentType string, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", contentType)
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode >= http.StatusMultipleChoices {
		path, _, _ := strings.Cut(url, "?")
		err = fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, answer)
	}
	return err
}
