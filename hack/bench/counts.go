package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"maps"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"k8s.io/apimachinery/pkg/util/wait"
)

// counts are requests and calls since the processes started, as the API server and the operator count them.
type counts struct {
	requests map[string]int // answered by the API server, by verb and resource: "APPLY secrets"
	sent     int            // sent by the operator
	calls    map[string]int // into the module, by operation and result: "ExportDataKey OK"
	usage    usage
}

// count reads the counters of both. Reading them costs the operator two requests, with which it authenticates and
// authorizes the reader.
func (o *operator) count(ctx context.Context) (counts, error) {
	var c counts
	var err error
	if c.requests, err = o.cluster.requestsUntilNow(ctx); err != nil {
		return c, err
	}
	own, err := o.scrape(ctx)
	if err != nil {
		return c, err
	}
	for _, n := range sum(own["rest_client_requests_total"], func(map[string]string) string { return "all" }) {
		c.sent += n
	}
	c.calls = sum(own["keyconvoy_module_call_duration_seconds"], func(l map[string]string) string {
		return l["operation"] + " " + l["result"]
	})
	c.usage, err = o.usage()
	return c, err
}

// requestsUntilNow returns the requests that the API server has answered since its start.
func (c *cluster) requestsUntilNow(ctx context.Context) (map[string]int, error) {
	server, err := scrape(ctx, c.http, c.cfg.Host+"/metrics", "")
	if err != nil {
		return nil, err
	}
	return sum(server["apiserver_request_total"], ofOperator), nil
}

// waitSettled waits until the operator has reconciled n exports since its start and has nothing left to do.
func (o *operator) waitSettled(ctx context.Context, n int) (time.Time, error) {
	var at time.Time
	err := wait.PollUntilContextTimeout(ctx, 100*time.Millisecond, 2*time.Minute, true, func(ctx context.Context) (bool, error) {
		families, err := o.scrape(ctx)
		if err != nil {
			return false, err
		}
		ofExports := func(l map[string]string) string { return l["controller"] + l["name"] }
		done := sum(families["controller_runtime_reconcile_total"], ofExports)["exporteddatakey"]
		at = time.Now()
		return done >= n && sum(families["workqueue_depth"], ofExports)["exporteddatakey"] == 0, nil
	})
	return at, err
}

// since returns what was counted after before was read.
func (c counts) since(before counts) counts {
	return counts{
		requests: minus(c.requests, before.requests),
		sent:     c.sent - before.sent,
		calls:    minus(c.calls, before.calls),
		usage:    usage{cpu: c.usage.cpu - before.usage.cpu, peak: c.usage.peak},
	}
}

func minus(a, b map[string]int) map[string]int {
	out := map[string]int{}
	for k, n := range a {
		if n != b[k] {
			out[k] = n - b[k]
		}
	}
	return out
}

// operatorResources are the resources that the operator requests. The API server counts all clients together. The other
// clients of these resources are the benchmark itself, which creates and watches ExportedDataKeys, and the API server,
// which renews a lease.
var operatorResources = []string{
	"secrets", "configmaps", "namespaces", "events", "leases", "tokenreviews", "subjectaccessreviews",
	"keystores", "clusterkeystores", "importedkeys", "datakeys", "exporteddatakeys", "clusterexporteddatakeys",
}

// ofOperator returns the name of a request, or "" if the operator did not send it.
func ofOperator(l map[string]string) string {
	resource := l["resource"]
	if !slices.Contains(operatorResources, resource) {
		return ""
	}
	if sub := l["subresource"]; sub != "" {
		resource += "/" + sub
	}
	return l["verb"] + " " + resource
}

// The classes of requests. Only caches list and watch.
var (
	writeVerbs = []string{"POST", "PUT", "PATCH", "APPLY", "DELETE", "DELETECOLLECTION"}
	readVerbs  = []string{"GET"}
)

// perObject returns the number of requests with the given verbs for Secrets, ConfigMaps, exports and events.
func (c counts) perObject(verbs []string, objects int) float64 {
	n := 0
	for request, count := range c.requests {
		verb, resource, _ := strings.Cut(request, " ")
		base, _, _ := strings.Cut(resource, "/")
		if slices.Contains(verbs, verb) && slices.Contains([]string{"secrets", "configmaps", "exporteddatakeys", "datakeys", "importedkeys", "events"}, base) {
			n += count
		}
	}
	return float64(n) / float64(objects)
}

// sum adds up the counters of a family, or the counts of its histograms, by the name that name returns for their labels.
func sum(family *dto.MetricFamily, name func(labels map[string]string) string) map[string]int {
	out := map[string]int{}
	for _, m := range family.GetMetric() {
		labels := map[string]string{}
		for _, l := range m.GetLabel() {
			labels[l.GetName()] = l.GetValue()
		}
		if of := name(labels); of != "" {
			out[of] += int(m.GetCounter().GetValue()+m.GetGauge().GetValue()) + int(m.GetHistogram().GetSampleCount()) //nolint:gosec // counts are small
		}
	}
	return out
}

// scrape reads the operator's metrics. It retries, because the operator does not listen before it has generated its
// self-signed certificate.
func (o *operator) scrape(ctx context.Context) (families map[string]*dto.MetricFamily, err error) {
	insecure := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}} //nolint:gosec // on the loopback interface
	defer insecure.CloseIdleConnections()
	pollErr := wait.PollUntilContextTimeout(ctx, 20*time.Millisecond, 20*time.Second, true, func(ctx context.Context) (bool, error) {
		families, err = scrape(ctx, insecure, o.metrics, o.bearer)
		return !errors.Is(err, syscall.ECONNREFUSED), nil
	})
	return families, cmp.Or(err, pollErr)
}

func scrape(ctx context.Context, c *http.Client, url, bearer string) (map[string]*dto.MetricFamily, error) {
	body, err := httpGet(ctx, c, url, bearer)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	return parser.TextToMetricFamilies(body)
}

// sorted returns the keys of a map in order.
func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
