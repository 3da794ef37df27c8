package controllers_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
)

// search looks for secrets in a value as it is, in hexadecimal, and in Base64 wherever they may stand in
// what was encoded. It returns the names of those that it finds.
func search(value []byte, secrets map[string][]byte) []string {
	var found []string
	lower := bytes.ToLower(value)
	for name, secret := range secrets {
		hit := bytes.Contains(value, secret) || bytes.Contains(lower, []byte(hex.EncodeToString(secret)))
		for _, encoding := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			for before := range 3 {
				// The characters at the borders hold bits of the neighbours.
				text := encoding.EncodeToString(append(make([]byte, before), secret...))
				hit = hit || bytes.Contains(value, []byte(text[before+1:len(text)-1]))
			}
		}
		if hit {
			found = append(found, name)
		}
	}
	slices.Sort(found)
	return found
}

func TestSearch_findsKeyBytesInEveryShape(t *testing.T) {
	t.Parallel()
	key := []byte("\xfb\xffsixteen bytes +")
	for name, value := range map[string][]byte{
		"raw":              key,
		"hex":              []byte(hex.EncodeToString(key)),
		"upper-case hex":   []byte(strings.ToUpper(hex.EncodeToString(key))),
		"Base64":           []byte(base64.StdEncoding.EncodeToString(key)),
		"URL-safe Base64":  []byte(base64.URLEncoding.EncodeToString(key)),
		"Base64, after 1":  []byte(base64.StdEncoding.EncodeToString(append([]byte("x"), key...))),
		"Base64, after 2":  []byte(base64.StdEncoding.EncodeToString(append([]byte("xy"), key...))),
		"Base64 in Base64": []byte(base64.StdEncoding.EncodeToString(append(slices.Clone(key), "and more"...))),
	} {
		if found := search(append([]byte("before "), value...), map[string][]byte{"key": key}); len(found) != 1 {
			t.Errorf("%s: found %v", name, found)
		}
	}
	if found := search([]byte("nothing"), map[string][]byte{"key": key}); len(found) != 0 {
		t.Errorf("found %v in nothing", found)
	}
}

// nowhere checks that secrets are in no object of the test's namespaces, in no event and in no log line.
// Entries of Secrets are looked into as they are, too.
func (o *operator) nowhere(t testing.TB, secrets map[string][]byte) {
	t.Helper()
	looked := map[string]int{}
	look := func(where string, value []byte) {
		looked[strings.Fields(where)[0]]++
		for _, name := range search(value, secrets) {
			t.Errorf("%s holds the %s", where, name)
		}
	}
	for _, list := range []client.ObjectList{
		&v1alpha1.KeyStoreList{}, &v1alpha1.ClusterKeyStoreList{}, &v1alpha1.ImportedKeyList{}, &v1alpha1.DataKeyList{},
		&v1alpha1.ExportedDataKeyList{}, &corev1.SecretList{}, &corev1.ConfigMapList{}, &eventsv1.EventList{},
	} {
		if err := o.List(t.Context(), list); err != nil {
			t.Fatal(err)
		}
		if err := meta.EachListItem(list, func(item runtime.Object) error {
			object := item.(client.Object)
			where := fmt.Sprintf("%T %s/%s", object, object.GetNamespace(), object.GetName())
			look(where, []byte(harness.JSON(object)))
			if s, ok := object.(*corev1.Secret); ok {
				for entry, value := range s.Data {
					look(where+" "+entry, value)
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	look("log", []byte(o.Log.String()))
	for _, kind := range []string{"*v1.Secret", "*v1alpha1.ImportedKey", "*v1alpha1.DataKey", "*v1alpha1.ExportedDataKey", "log"} {
		if looked[kind] == 0 {
			t.Errorf("there was no %s to look into: %v", kind, looked)
		}
	}
}
