package fetch

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
)

// await waits until the export is in the status, and returns the object.
func (c *Client) await(ctx context.Context, object *v1alpha1.ExportedDataKey) (exported *v1alpha1.ExportedDataKey, err error) {
	var last string // what the object waits for
	err = c.follow(ctx, &v1alpha1.ExportedDataKeyList{}, client.ObjectKeyFromObject(object), object.ResourceVersion, func(e watch.Event) (bool, error) {
		now, ok := e.Object.(*v1alpha1.ExportedDataKey)
		switch {
		case !ok:
			return false, nil
		case e.Type == watch.Deleted:
			return true, &Error{Kind: Refused, Problem: fmt.Sprintf("the ExportedDataKey %s was deleted before the data key was exported", now.Name)}
		}
		if err := checkUnchanged(object, now); err != nil {
			return true, err
		}
		switch {
		case now.Status.ObservedGeneration != now.Generation:
			return false, nil
		case isTrue(now, v1alpha1.ConditionReady) && now.Status.ExportedDataKey != "":
			exported = now
			return true, nil
		}
		last = message(now)
		if isTrue(now, v1alpha1.ConditionStalled) {
			return true, &Error{Kind: Refused, Problem: "the data key was not exported: " + last}
		}
		return false, nil
	})
	if ended, late := isLate(err); late {
		return nil, lateExport(ended, last)
	}
	return exported, err
}

// Next waits until the DataKey has a data key with another digest than was, and returns the digest. It requires the verb
// watch on the DataKey. Errors of the API server that may pass are retried until ctx ends. Errors are *Error, or that of ctx.
func (c *Client) Next(ctx context.Context, dataKey types.NamespacedName, was string) (digest string, err error) {
	err = c.follow(ctx, &v1alpha1.DataKeyList{}, dataKey, "", func(e watch.Event) (bool, error) {
		now, ok := e.Object.(*v1alpha1.DataKey)
		if !ok || e.Type == watch.Deleted {
			return false, nil
		}
		digest = digestOf(now)
		return digest != "" && digest != was, nil
	})
	return digest, err
}

// digestOf returns what identifies a data key (v1alpha1.DataKeyReference), or "" while the DataKey has no data key.
func digestOf(k *v1alpha1.DataKey) string {
	if k.Status.DataKeyDigest != "" || k.Status.CiphertextBlob == "" {
		return k.Status.DataKeyDigest
	}
	sum := sha256.Sum256([]byte(k.Status.CiphertextBlob))
	return hex.EncodeToString(sum[:])
}

// follow watches one object, from a version on or from its present state if there is none, until seen says that it is done. A
// watch that ends is begun again. It needs the verb watch only.
func (c *Client) follow(ctx context.Context, list client.ObjectList, name types.NamespacedName, version string, seen func(watch.Event) (done bool, err error)) error {
	return retry(ctx, func(ctx context.Context) error {
		w, err := c.api.Watch(ctx, list, client.InNamespace(name.Namespace), client.MatchingFields{metav1.ObjectNameField: name.Name},
			&client.ListOptions{Raw: &metav1.ListOptions{ResourceVersion: version}})
		if err != nil {
			version = "" // it may be too old
			return explainWatch(err, list, name)
		}
		defer w.Stop()
		version = ""
		for {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case e, ok := <-w.ResultChan():
				if !ok {
					return errWatchEnded
				}
				if e.Type == watch.Error {
					return explainWatch(apierrors.FromObject(e.Object), list, name)
				}
				if done, err := seen(e); done || err != nil {
					return err
				}
			}
		}
	})
}

func isTrue(e *v1alpha1.ExportedDataKey, condition string) bool {
	return meta.IsStatusConditionTrue(e.Status.Conditions, condition)
}

// message is what the operator says of the object.
func message(e *v1alpha1.ExportedDataKey) string {
	if c := meta.FindStatusCondition(e.Status.Conditions, v1alpha1.ConditionReady); c != nil {
		return c.Reason + ": " + c.Message
	}
	return ""
}
