package controllers

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/keyring"
	"github.com/keyconvoy/keyconvoy/internal/keystore"
	"github.com/keyconvoy/keyconvoy/internal/kms"
)

// collector computes metrics from the cache when they are scraped, so that none outlives its object.
type collector struct {
	client client.Reader
	clock  clock.PassiveClock
}

// scrapeTimeout bounds a scrape while the caches are not filled yet.
const scrapeTimeout = 5 * time.Second

var (
	objectsMetric = prometheus.NewDesc("keyconvoy_objects",
		"Objects by kind, and by the status and reason of their Ready condition.", []string{"kind", "ready", "reason"}, nil)
	keysMetric = prometheus.NewDesc("keyconvoy_keys",
		"Master keys by key state.", []string{"state"}, nil)
	exportsMetric = prometheus.NewDesc("keyconvoy_exports",
		"Exported data keys by wrapping algorithm and custody.", []string{"algorithm", "custody"}, nil)
	unheldKeysMetric = prometheus.NewDesc("keyconvoy_keys_without_holder",
		"Master keys that no object holds, by the kind of the key stores whose status reports them; absent while there are none.", []string{"kind"}, nil)
	missingKeysMetric = prometheus.NewDesc("keyconvoy_missing_keys",
		"Master keys that objects hold and that the module of their key store does not have, by the kind of the key stores whose status reports them.", []string{"kind"}, nil)
	formerDataKeysMetric = prometheus.NewDesc("keyconvoy_data_keys_under_former_versions",
		"DataKeys under versions of GeneratedKeys that are not primary: what the compromise of these versions would expose. Absent while there are no GeneratedKeys.", nil, nil)
	unusedVersionsMetric = prometheus.NewDesc("keyconvoy_unused_former_versions",
		"Versions of GeneratedKeys that are not primary and under which there is no DataKey. Absent while there are no GeneratedKeys.", nil, nil)
	materialExpiryMetric = prometheus.NewDesc("keyconvoy_next_material_expiry_seconds",
		"Seconds until the first key material ends; absent when none ever does.", nil, nil)
	tokenExpiryMetric = prometheus.NewDesc("keyconvoy_next_token_expiry_seconds",
		"Seconds until the first import token of a key that waits for its material ends; absent when none waits.", nil, nil)
)

// newLeftInModule returns the counter of keys that may have been left in a module.
func newLeftInModule() prometheus.Counter {
	return prometheus.NewCounter(prometheus.CounterOpts{
		Name: "keyconvoy_left_in_module_total",
		Help: "Keys that may have been left in a module: their objects were deleted, or their material was to be destroyed, when the module could not be reached.",
	})
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{objectsMetric, unheldKeysMetric, missingKeysMetric, keysMetric, exportsMetric, formerDataKeysMetric, unusedVersionsMetric, materialExpiryMetric, tokenExpiryMetric} {
		ch <- d
	}
}

// Collect implements prometheus.Collector. Where the cache cannot be read there are no metrics, which is
// better than wrong ones.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	s := scrape{unheld: map[string]int{}, missing: map[string]int{}, objects: map[[3]string]int{}, keys: map[string]int{}, exports: map[[2]string]int{}}
	if s.read(ctx, c.client) != nil {
		return
	}
	s.send(ch, c.clock.Now())
}

// scrape is what one look at the cache counted.
type scrape struct {
	objects                 map[[3]string]int
	unheld, missing         map[string]int // by kind of key store
	keys                    map[string]int
	exports                 map[[2]string]int
	nextMaterial, nextToken time.Time // zero: none
	// former are the versions of GeneratedKeys that are not primary, with the number of DataKeys under them; nil without
	// GeneratedKeys.
	former map[string]int
}

func (s *scrape) read(ctx context.Context, c client.Reader) error {
	for _, read := range []func(context.Context, client.Reader) error{
		s.readStores, s.readImportedKeys, s.readGeneratedKeys, s.readDataKeys, s.readExports, s.readClusterExports, s.readAccessKeys,
	} {
		if err := read(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

func (s *scrape) count(kind string, conditions []metav1.Condition) {
	status, reason := string(metav1.ConditionUnknown), ""
	if c := meta.FindStatusCondition(conditions, v1alpha1.ConditionReady); c != nil {
		status, reason = string(c.Status), c.Reason
	}
	s.objects[[3]string{kind, status, reason}]++
}

func (s *scrape) countKeys(kind string, status *v1alpha1.KeyStoreStatus) {
	if status.KeysWithoutHolder != nil {
		s.unheld[kind] += int(status.KeysWithoutHolder.Count)
	}
	missing := 0
	if status.MissingKeys != nil {
		missing = int(status.MissingKeys.Count)
	}
	s.missing[kind] += missing // 0 is a series, too, for the alert
}

func (s *scrape) readStores(ctx context.Context, c client.Reader) error {
	var cluster v1alpha1.ClusterKeyStoreList
	if err := list(ctx, c, &cluster); err != nil {
		return err
	}
	for i := range cluster.Items {
		s.count(keystore.KindClusterKeyStore, cluster.Items[i].Status.Conditions)
		s.countKeys(keystore.KindClusterKeyStore, &cluster.Items[i].Status)
	}
	var namespaced v1alpha1.KeyStoreList
	err := list(ctx, c, &namespaced)
	for i := range namespaced.Items {
		s.count(keystore.KindKeyStore, namespaced.Items[i].Status.Conditions)
		s.countKeys(keystore.KindKeyStore, &namespaced.Items[i].Status)
	}
	return err
}

func (s *scrape) readImportedKeys(ctx context.Context, c client.Reader) error {
	var keys v1alpha1.ImportedKeyList
	err := list(ctx, c, &keys)
	for i := range keys.Items {
		status := &keys.Items[i].Status
		s.count(keyring.KindImportedKey, status.Conditions)
		if status.KeyState != "" {
			s.keys[string(status.KeyState)]++
		}
		if at := status.MaterialExpireTime; at != nil {
			s.nextMaterial = earlier(s.nextMaterial, at.Time)
		}
		// The token of a key that has its material may expire: there is nothing to do about it.
		if p := status.ImportParameters; p != nil && kms.KeyState(status.KeyState) == kms.StatePendingImport {
			s.nextToken = earlier(s.nextToken, p.TokenExpireTime.Time)
		}
	}
	return err
}

func (s *scrape) readGeneratedKeys(ctx context.Context, c client.Reader) error {
	var keys v1alpha1.GeneratedKeyList
	err := list(ctx, c, &keys)
	for i := range keys.Items {
		status := &keys.Items[i].Status
		s.count(keyring.KindGeneratedKey, status.Conditions)
		s.countFormer(status)
		if status.KeyState != "" {
			s.keys[string(status.KeyState)]++
		}
	}
	return err
}

func (s *scrape) countFormer(status *v1alpha1.GeneratedKeyStatus) {
	if s.former == nil {
		s.former = map[string]int{}
	}
	for _, version := range status.Versions {
		if version.State == v1alpha1.VersionActive && kms.KeyState(status.KeyState) != kms.StateDeleted {
			s.former[version.KeyVersionID] = 0
		}
	}
}

func earlier(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}

func (s *scrape) readDataKeys(ctx context.Context, c client.Reader) error {
	var keys v1alpha1.DataKeyList
	err := list(ctx, c, &keys)
	for i := range keys.Items {
		s.count("DataKey", keys.Items[i].Status.Conditions)
		if version := keys.Items[i].Status.KeyVersionID; s.isFormer(version) {
			s.former[version]++
		}
	}
	return err
}

func (s *scrape) isFormer(version string) bool {
	_, ok := s.former[version]
	return ok
}

func (s *scrape) readExports(ctx context.Context, c client.Reader) error {
	var exports v1alpha1.ExportedDataKeyList
	err := list(ctx, c, &exports)
	for i := range exports.Items {
		e := &exports.Items[i]
		s.count("ExportedDataKey", e.Status.Conditions)
		if e.Status.SecretRef != nil || e.Status.ExportedDataKey != "" {
			s.exports[[2]string{e.Spec.WrappingAlgorithm, string(e.Status.Custody)}]++
		}
	}
	return err
}

func (s *scrape) readClusterExports(ctx context.Context, c client.Reader) error {
	var exports v1alpha1.ClusterExportedDataKeyList
	err := list(ctx, c, &exports)
	for i := range exports.Items {
		s.count("ClusterExportedDataKey", exports.Items[i].Status.Conditions)
	}
	return err
}

func (s *scrape) readAccessKeys(ctx context.Context, c client.Reader) error {
	var keys v1alpha1.AccessKeyList
	err := list(ctx, c, &keys)
	for i := range keys.Items {
		s.count("AccessKey", keys.Items[i].Status.Conditions)
	}
	return err
}

func (s *scrape) send(ch chan<- prometheus.Metric, now time.Time) {
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	for labels, n := range s.objects {
		gauge(objectsMetric, float64(n), labels[:]...)
	}
	for kind, n := range s.unheld {
		gauge(unheldKeysMetric, float64(n), kind)
	}
	for kind, n := range s.missing {
		gauge(missingKeysMetric, float64(n), kind)
	}
	for state, n := range s.keys {
		gauge(keysMetric, float64(n), state)
	}
	for labels, n := range s.exports {
		gauge(exportsMetric, float64(n), labels[:]...)
	}
	if s.former != nil {
		dataKeys, unused := 0, 0
		for _, n := range s.former {
			dataKeys += n
			if n == 0 {
				unused++
			}
		}
		gauge(formerDataKeysMetric, float64(dataKeys))
		gauge(unusedVersionsMetric, float64(unused))
	}
	if !s.nextMaterial.IsZero() {
		gauge(materialExpiryMetric, s.nextMaterial.Sub(now).Seconds())
	}
	if !s.nextToken.IsZero() {
		gauge(tokenExpiryMetric, s.nextToken.Sub(now).Seconds())
	}
}
