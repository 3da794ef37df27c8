package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	keyconvoy "github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/b64"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// maxObject is longer than any object that an API server stores.
const maxObject = 2 << 20

// readImportedKey reads an ImportedKey that kubectl get -o yaml (or json) printed.
func readImportedKey(ctx context.Context, name string, in io.Reader) (*keyconvoy.ImportedKey, error) {
	text, err := readBounded(ctx, name, in, maxObject)
	if err != nil {
		return nil, err
	}
	var kind metav1.TypeMeta
	if err := yaml.Unmarshal(text, &kind); err != nil {
		return nil, fmt.Errorf("%s is neither YAML nor JSON: %w", describeInput(name), err)
	}
	if kind.Kind != "ImportedKey" || kind.APIVersion != keyconvoy.GroupVersion.String() {
		return nil, fmt.Errorf("%s is not a %s ImportedKey\nhint: create the file with kubectl get importedkey NAME -n NAMESPACE -o yaml",
			describeInput(name), keyconvoy.GroupVersion)
	}
	var key keyconvoy.ImportedKey
	if err := yaml.Unmarshal(text, &key); err != nil {
		return nil, fmt.Errorf("the ImportedKey in %s is invalid: %w", describeInput(name), err)
	}
	if invalid := key.Invalid(); len(invalid) > 0 {
		return nil, fmt.Errorf("the ImportedKey in %s is invalid: %s is not %s", describeInput(name), invalid[0].Path, invalid[0].Want)
	}
	return &key, nil
}

// The key states that wrap distinguishes (KeyState).
const (
	statePendingImport   keyconvoy.KeyState = "PendingImport"
	statePendingDeletion keyconvoy.KeyState = "PendingDeletion"
	stateDeleted         keyconvoy.KeyState = "Deleted"
)

// wrappingTarget is the verified public key, algorithm and token for wrapping.
type wrappingTarget struct {
	publicKey *wrapping.PublicKey
	algorithm wrapping.Algorithm
	token     string
}

// targetOf returns the import parameters in a key's status, and rejects those that would fail.
func targetOf(key *keyconvoy.ImportedKey, now time.Time) (wrappingTarget, error) {
	parameters := key.Status.ImportParameters
	if invalid := key.Invalid(); len(invalid) > 0 {
		return wrappingTarget{}, fmt.Errorf("%s of %s/%s is not %s\nhint: correct it, and get the object again",
			invalid[0].Path, key.Namespace, key.Name, invalid[0].Want)
	}
	switch {
	case key.DeletionTimestamp != nil:
		return wrappingTarget{}, fmt.Errorf("the ImportedKey %s/%s is being deleted", key.Namespace, key.Name)
	case key.Status.KeyState == statePendingDeletion, key.Status.KeyState == stateDeleted:
		return wrappingTarget{}, fmt.Errorf("the key state of %s/%s is %s, in which no material can be imported", key.Namespace, key.Name, key.Status.KeyState)
	case parameters == nil:
		return wrappingTarget{}, noParameters(key)
	case !now.Before(parameters.TokenExpireTime.Time):
		return wrappingTarget{}, fmt.Errorf("the import token of %s/%s expired at %s\nhint: %s", key.Namespace, key.Name,
			parameters.TokenExpireTime.UTC().Format(time.RFC3339), renew(key))
	}

	publicKey, err := readPublicKey(parameters)
	if err != nil {
		return wrappingTarget{}, err
	}
	algorithm := wrapping.Algorithm(parameters.WrappingAlgorithm)
	if err := wrapping.CheckFit(publicKey.Spec(), algorithm); err != nil {
		return wrappingTarget{}, fmt.Errorf("status.importParameters: %w", err)
	}
	if _, err := b64.Decode(parameters.ImportToken); err != nil || parameters.ImportToken == "" {
		return wrappingTarget{}, errors.New("status.importParameters.importToken is invalid: it is not Base64\nhint: get the object again")
	}
	return wrappingTarget{publicKey: publicKey, algorithm: algorithm, token: parameters.ImportToken}, nil
}

// readPublicKey reads the public key and compares it with the fingerprint and type in the same status.
func readPublicKey(parameters *keyconvoy.ImportParameters) (*wrapping.PublicKey, error) {
	key, err := wrapping.ParsePublicKey([]byte(parameters.PublicKey))
	if err != nil {
		return nil, fmt.Errorf("status.importParameters.publicKey: %w", err)
	}
	if !strings.EqualFold(key.Fingerprint(), parameters.PublicKeyFingerprint) {
		return nil, fmt.Errorf("the fingerprint of status.importParameters.publicKey is %s, but publicKeyFingerprint is %s: "+
			"one of them was changed\nhint: get the object again", key.Fingerprint(), parameters.PublicKeyFingerprint)
	}
	if string(key.Spec()) != string(parameters.WrappingKeySpec) {
		return nil, fmt.Errorf("the type of status.importParameters.publicKey is %s, but wrappingKeySpec is %s", key.Spec(), parameters.WrappingKeySpec)
	}
	return key, nil
}

// noParameters returns an error that says how to get import parameters.
func noParameters(key *keyconvoy.ImportedKey) error {
	waiting := fmt.Sprintf("kubectl wait --for=jsonpath='{.status.importParameters.publicKey}' importedkey/%s -n %s", key.Name, key.Namespace)
	if state := key.Status.KeyState; state != "" && state != statePendingImport {
		return fmt.Errorf("ImportedKey %s/%s is %s and has no import parameters\nhint: to import again, %s; then wait: %s",
			key.Namespace, key.Name, state, renew(key), waiting)
	}
	message := fmt.Sprintf("ImportedKey %s/%s has no import parameters yet", key.Namespace, key.Name)
	for _, condition := range key.Status.Conditions {
		if condition.Type == keyconvoy.ConditionReady && condition.Status != metav1.ConditionTrue && condition.Message != "" {
			message += ": " + condition.Message
		}
	}
	return errors.New(message + "\nhint: wait for them: " + waiting)
}

// renew returns how to request a new key pair and token.
func renew(key *keyconvoy.ImportedKey) string {
	return fmt.Sprintf("request new import parameters: kubectl annotate importedkey %s -n %s --overwrite %s=\"$(date +%%s)\"",
		key.Name, key.Namespace, keyconvoy.AnnotationRenewImportParameters)
}

// never is the expiry time of material that does not expire.
const never = "never"

// expiry is the requested expiry of material; the zero value keeps that of the key.
type expiry struct {
	never bool
	at    time.Time
}

func parseExpiry(text string, now time.Time) (expiry, error) {
	switch text {
	case "":
		return expiry{}, nil
	case never:
		return expiry{never: true}, nil
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return expiry{}, usagef("--expire-time must be a time such as %s, or %s", now.AddDate(1, 0, 0).UTC().Format(time.RFC3339), never)
	}
	if err := kms.CheckExpireTime(at, now); err != nil {
		return expiry{}, usagef("--expire-time: %s", detailOf(err))
	}
	return expiry{at: at.UTC().Truncate(time.Second)}, nil
}

// detailOf returns the detail of an operation's error, without its code.
func detailOf(err error) string {
	var e *kms.Error
	if errors.As(err, &e) && e.Detail != "" {
		return e.Detail
	}
	return err.Error()
}

// checkExpiry rejects wrapping for a key whose expireTime would make the import fail.
func checkExpiry(key *keyconvoy.ImportedKey, want expiry, now time.Time) error {
	if key.Spec.Material == nil || key.Spec.Material.ExpireTime == nil || want != (expiry{}) {
		return nil
	}
	if at := key.Spec.Material.ExpireTime; !now.Before(at.Time) {
		return fmt.Errorf("spec.material.expireTime of %s/%s is in the past (%s)\nhint: set a new time with "+
			"--expire-time TIME, or --expire-time %s", key.Namespace, key.Name, at.UTC().Format(time.RFC3339), never)
	}
	if err := kms.CheckExpireTime(key.Spec.Material.ExpireTime.Time, now); err != nil {
		return fmt.Errorf("spec.material.expireTime of %s/%s: %s", key.Namespace, key.Name, detailOf(err))
	}
	return nil
}
