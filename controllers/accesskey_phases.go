package controllers

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"encoding/base64"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/reconciler"
	"github.com/keyconvoy/keyconvoy/internal/redact"
	"github.com/keyconvoy/keyconvoy/internal/secrets"
)

// The entries of an access key's Secret.
const (
	entryAccessKeyID     = "accessKeyId"
	entryAccessKeySecret = "accessKeySecret"
)

// accessKeySecretLen is the length of a secret in bytes, before it is encoded.
const accessKeySecretLen = 32

// accessKeySecrets hold access keys. They go with their objects.
var accessKeySecrets = &secrets.Class{
	Type: v1alpha1.SecretTypeAccessKey, Mark: "keyconvoy.io/access-key", Entries: []string{entryAccessKeyID, entryAccessKeySecret}, Owner: "AccessKey",
}

// accessKeyIDOf derives the identifier from the UID of the object, so that no object can get that of another one.
func accessKeyIDOf(uid string) (string, error) {
	id, err := uuid.Parse(uid)
	return "KC" + base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(id[:]), err
}

// identify sets target, and the identifier in the status. Reasons: InvalidParameter.
func (r *accessKeyReconciler) identify(_ context.Context, s *accessKeyScope) (err error) {
	if err := readable(s.object); err != nil {
		return err
	}
	if s.object.Status.AccessKeyID, err = accessKeyIDOf(string(s.object.UID)); err != nil {
		return err
	}
	s.target, err = secrets.NewTarget(accessKeySecrets, s.object, nil)
	return err
}

const (
	// accountInterval is how often the operator checks that the ServiceAccount is still the same one. The gateway checks it for
	// requests, too. To watch ServiceAccounts would take permissions and memory for all of them.
	accountInterval = 10 * time.Minute
	// missingAccountInterval is how often the operator looks for a ServiceAccount that does not exist yet.
	missingAccountInterval = 10 * time.Second
)

// bindAccount sets the UID of the ServiceAccount in the status, once. Otherwise an access key would get the roles of another
// ServiceAccount that is created with the name of a deleted one. Reasons: ServiceAccountNotFound, InputReplaced.
func (r *accessKeyReconciler) bindAccount(ctx context.Context, s *accessKeyScope) error {
	account := &metav1.PartialObjectMetadata{}
	account.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("ServiceAccount"))
	name := string(s.object.Spec.ServiceAccountName)
	err := r.live.Get(ctx, inNamespace(s.object, name), account)
	if client.IgnoreNotFound(err) != nil {
		return err
	}
	switch bound := s.object.Status.ServiceAccountUID; {
	case bound == "" && err != nil:
		missing := reconciler.Wait(v1alpha1.ReasonServiceAccountNotFound, fmt.Sprintf(
			"ServiceAccount %s does not exist. The operator continues when it is created.", name))
		missing.After = missingAccountInterval
		return missing
	case bound == "":
		s.object.Status.ServiceAccountUID = string(account.UID)
	case err != nil || bound != string(account.UID):
		return reconciler.Stall(v1alpha1.ReasonInputReplaced, fmt.Sprintf(
			"ServiceAccount %s was deleted, and the access key is no longer accepted, also if another ServiceAccount has the name. "+
				"Delete this object, and create it again for the other ServiceAccount.", name))
	}
	return nil
}

// findSecret sets secret. It ends the reconcile if the Secret is as it was left. If the Secret is someone else's, the status no longer
// names one, and the gateway rejects the access key. Reasons: TargetNotOwned.
func (r *accessKeyReconciler) findSecret(ctx context.Context, s *accessKeyScope) error {
	m, err := r.secrets.Look(ctx, s.target.Ref)
	if err != nil {
		return err
	}
	if known := s.object.Status.SecretRef; known != nil && s.target.IsAsLeft(m, &v1alpha1.SecretReference{UID: known.UID, ResourceVersion: known.ResourceVersion}) {
		return reconciler.ErrDone
	}
	s.secret, err = r.secrets.Own(ctx, s.target)
	return forgetTaken(s, err)
}

// forgetTaken removes the Secret from the status if an error says that it is someone else's. It returns the error.
func forgetTaken(s *accessKeyScope, err error) error {
	var taken *secrets.TakenError
	if errors.As(err, &taken) {
		s.object.Status.SecretRef = nil
	}
	return err
}

// ensureSecret writes the Secret with its secret, or with a new one if there is none. It keeps only the secret of the Secret in the
// status: any other one may be from someone who knows it. If the operator ended before it wrote the status, no client has used the
// secret. Reasons: TargetNotOwned, APIServer.
func (r *accessKeyReconciler) ensureSecret(ctx context.Context, s *accessKeyScope) error {
	secret := redact.Bytes(nil)
	if known := s.object.Status.SecretRef; s.secret != nil && known != nil && known.UID == string(s.secret.UID) {
		secret = s.secret.Data[entryAccessKeySecret]
	}
	if len(secret) < accessKeySecretLen { // so short a secret was not generated here
		secret = newAccessKeySecret()
	}
	defer secret.Wipe()
	ref, err := r.secrets.Ensure(ctx, secrets.Desired{Target: s.target, Data: map[string][]byte{
		entryAccessKeyID: []byte(s.object.Status.AccessKeyID), entryAccessKeySecret: secret,
	}}, s.secret)
	if err != nil {
		return forgetTaken(s, err)
	}
	s.object.Status.SecretRef = &v1alpha1.AccessKeySecret{Name: ref.Name, UID: ref.UID, ResourceVersion: ref.ResourceVersion}
	return nil
}

// newAccessKeySecret generates a secret, as text.
func newAccessKeySecret() redact.Bytes {
	raw := make(redact.Bytes, accessKeySecretLen)
	defer raw.Wipe()
	_, _ = rand.Read(raw) // it never fails (Go 1.24)
	return base64.RawURLEncoding.AppendEncode(nil, raw)
}

// accessKeyError gives an error its reason. The name of the Secret is that of the object.
func accessKeyError(err error) error {
	var taken *secrets.TakenError
	if errors.As(err, &taken) {
		return reconciler.Stall(v1alpha1.ReasonTargetNotOwned, fmt.Sprintf(
			"%s already exists and is not managed by this object. Create the AccessKey with another name, or delete the Secret.", taken.Ref))
	}
	return explained(err)
}
