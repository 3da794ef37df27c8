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
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// maxObject is the longest object that an API server keeps, and more.
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
		return nil, fmt.Errorf("%s holds no %s ImportedKey; write it with: kubectl get importedkey NAME -n NAMESPACE -o yaml",
			describeInput(name), keyconvoy.GroupVersion)
	}
	var key keyconvoy.ImportedKey
	if err := yaml.Unmarshal(text, &key); err != nil {
		return nil, fmt.Errorf("the ImportedKey in %s does not parse: %w", describeInput(name), err)
	}
	return &key, nil
}

// The key states that matter here (KeyState).
const (
	statePendingImport   keyconvoy.KeyState = "PendingImport"
	statePendingDeletion keyconvoy.KeyState = "PendingDeletion"
	stateDeleted         keyconvoy.KeyState = "Deleted"
)

// wrappingTarget is what material is encrypted under, checked.
type wrappingTarget struct {
	publicKey *wrapping.PublicKey
	algorithm wrapping.Algorithm
	token     string
}

// targetOf takes the import parameters out of a key's status, and refuses those that would not work.
func targetOf(key *keyconvoy.ImportedKey, now time.Time) (wrappingTarget, error) {
	parameters := key.Status.ImportParameters
	switch {
	case key.DeletionTimestamp != nil:
		return wrappingTarget{}, fmt.Errorf("the ImportedKey %s/%s is being deleted", key.Namespace, key.Name)
	case key.Status.KeyState == statePendingDeletion, key.Status.KeyState == stateDeleted:
		return wrappingTarget{}, fmt.Errorf("the key state of %s/%s is %s, in which it takes no material", key.Namespace, key.Name, key.Status.KeyState)
	case parameters == nil:
		return wrappingTarget{}, noParameters(key)
	case !now.Before(parameters.TokenExpireTime.Time):
		return wrappingTarget{}, fmt.Errorf("the import token of %s/%s ended at %s; %s", key.Namespace, key.Name,
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
		return wrappingTarget{}, errors.New("status.importParameters.importToken is damaged: it is no Base64; read the object again")
	}
	return wrappingTarget{publicKey: publicKey, algorithm: algorithm, token: parameters.ImportToken}, nil
}

// readPublicKey reads the public key and holds it against what is said about it beside it.
func readPublicKey(parameters *keyconvoy.ImportParameters) (*wrapping.PublicKey, error) {
	key, err := wrapping.ParsePublicKey([]byte(parameters.PublicKey))
	if err != nil {
		return nil, fmt.Errorf("status.importParameters.publicKey: %w", err)
	}
	if !strings.EqualFold(key.Fingerprint(), parameters.PublicKeyFingerprint) {
		return nil, fmt.Errorf("status.importParameters.publicKey has fingerprint %s and not %s as said beside it: "+
			"somebody changed one of them; read the object again", key.Fingerprint(), parameters.PublicKeyFingerprint)
	}
	if string(key.Spec()) != string(parameters.WrappingKeySpec) {
		return nil, fmt.Errorf("status.importParameters.publicKey is %s and not %s as said beside it", key.Spec(), parameters.WrappingKeySpec)
	}
	return key, nil
}

// noParameters says how to get some, or why waiting is in vain.
func noParameters(key *keyconvoy.ImportedKey) error {
	waiting := fmt.Sprintf("kubectl wait --for=jsonpath='{.status.importParameters.publicKey}' importedkey/%s -n %s", key.Name, key.Namespace)
	if state := key.Status.KeyState; state != "" && state != statePendingImport {
		return fmt.Errorf("the ImportedKey %s/%s is %s and has no import parameters; to import again, %s; then wait: %s",
			key.Namespace, key.Name, state, renew(key), waiting)
	}
	message := fmt.Sprintf("the ImportedKey %s/%s has no import parameters yet; wait for them: %s", key.Namespace, key.Name, waiting)
	for _, condition := range key.Status.Conditions {
		if condition.Type == keyconvoy.ConditionReady && condition.Status != metav1.ConditionTrue && condition.Message != "" {
			message += "; the operator says: " + condition.Message
		}
	}
	return errors.New(message)
}

// renew says how to ask the operator for another key pair and token.
func renew(key *keyconvoy.ImportedKey) string {
	return fmt.Sprintf("ask for new import parameters: kubectl annotate importedkey %s -n %s --overwrite %s=\"$(date +%%s)\"",
		key.Name, key.Namespace, keyconvoy.AnnotationRenewImportParameters)
}

// never is the expiry time of material that does not expire.
const never = "never"

// expiry is until when material is to last; the zero value keeps what the key says.
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
		return expiry{}, usagef("--expire-time is a time such as %s, or %s", now.AddDate(1, 0, 0).UTC().Format(time.RFC3339), never)
	}
	if !at.After(now) {
		return expiry{}, usagef("--expire-time is in the past")
	}
	return expiry{at: at.UTC().Truncate(time.Second)}, nil
}

// checkExpiry refuses to put material in under a time that is over: it would be destroyed at once.
func checkExpiry(key *keyconvoy.ImportedKey, want expiry, now time.Time) error {
	if key.Spec.Material == nil || key.Spec.Material.ExpireTime == nil || want != (expiry{}) {
		return nil
	}
	if at := key.Spec.Material.ExpireTime; !now.Before(at.Time) {
		return fmt.Errorf("spec.material.expireTime of %s/%s is over (%s); say until when the material is to last now: "+
			"--expire-time TIME, or --expire-time %s", key.Namespace, key.Name, at.UTC().Format(time.RFC3339), never)
	}
	return nil
}
