package controllers

import (
	"context"
	"encoding/base64"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/audit"
	"github.com/keyconvoy/keyconvoy/internal/b64"
	"github.com/keyconvoy/keyconvoy/internal/keyring"
	"github.com/keyconvoy/keyconvoy/internal/keystore"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/secrets"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// renewBefore is how long before their end the parameters of a key that still waits are renewed. The
// former pair stays good until its own end.
const renewBefore = 2 * time.Hour

// identify sets key, and the status fields that follow from the object alone. Reasons: InvalidParameter.
func (r *importedKeyReconciler) identify(_ context.Context, s *importScope) error {
	if err := readable(s.object); err != nil {
		return err
	}
	key, err := keyring.Of(s.object).KMS()
	if err != nil {
		return err
	}
	s.key = key
	status := &s.object.Status
	status.KeyID = key.ID.String()
	if keyring.Of(s.object).Bound() {
		status.KeyVersionID = key.Primary.ID.String()
	}
	status.Origin = string(key.Origin)
	status.KeyState = v1alpha1.KeyState(key.State)
	return nil
}

// publishParameters keeps a public key and token in the status while the key waits for material, or
// when the user asks for new ones, and destroys the pairs of those that have ended, whatever state the key
// is in. It sets after. Reasons: those of operations, UnsupportedOperation, ServiceUnavailableTemporary.
func (r *importedKeyReconciler) publishParameters(ctx context.Context, s *importScope) error {
	if s.key.State == kms.StateDeleted {
		return nil
	}
	var err error
	switch decideParameters(s.object, s.now) {
	case renewParameters:
		if err = r.newParameters(ctx, s); err != nil {
			return r.endRefused(ctx, s, err)
		}
	case endParameters:
		err = r.destroyEnded(ctx, s)
	}
	if err != nil {
		return err
	}
	if p := s.object.Status.ImportParameters; p != nil {
		end := p.TokenExpireTime.Time
		if s.key.State == kms.StatePendingImport {
			end = end.Add(-renewBefore)
		}
		s.lookAgain(end)
	}
	return nil
}

func (r *importedKeyReconciler) newParameters(ctx context.Context, s *importScope) error {
	spec := s.object.Spec.GetImportParameters()
	asked := annotationValue(s.object, v1alpha1.AnnotationRenewImportParameters)
	// The client token follows from what was published before: should the status not be written, the
	// next try finds the same pair instead of making another.
	token := asked
	if p := s.object.Status.ImportParameters; p != nil {
		token += "/" + p.PublicKeyFingerprint
	}
	line := keyLine(audit.GetParametersForImport, s.object, s.key)
	line.Algorithm = wrapping.Algorithm(spec.WrappingAlgorithm)
	var made kms.ImportParameters
	err := r.use(ctx, s.object, line, func(ops keystore.Session, line *audit.Record) (err error) {
		made, err = ops.GetParametersForImport(ctx, kms.ImportParametersRequest{
			Key:               s.key,
			WrappingKeySpec:   wrapping.KeySpec(spec.WrappingKeySpec),
			WrappingAlgorithm: wrapping.Algorithm(spec.WrappingAlgorithm),
			ClientToken:       token,
		})
		if err == nil {
			line.RecipientFingerprint = made.PublicKey.Fingerprint()
		}
		return err
	})
	if err != nil {
		return err
	}
	s.object.Status.RenewedFor = asked
	s.object.Status.ImportParameters = &v1alpha1.ImportParameters{
		PublicKey:            made.PublicKey.Base64(),
		PublicKeyFingerprint: made.PublicKey.Fingerprint(),
		ImportToken:          base64.StdEncoding.EncodeToString(made.ImportToken),
		TokenExpireTime:      metav1.NewTime(made.TokenExpireTime),
		WrappingKeySpec:      spec.WrappingKeySpec,
		WrappingAlgorithm:    spec.WrappingAlgorithm,
	}
	s.setFormerEnd(made.OthersExpireTime)
	return nil
}

// destroyEnded destroys the pairs that have ended, and takes what ended of them out of the status. It asks
// no consent: see cleanUp.
func (r *importedKeyReconciler) destroyEnded(ctx context.Context, s *importScope) error {
	var next time.Time
	err := r.stores.CleanUp(ctx, s.masterKey.key().Store(), func(ops keystore.Session) error {
		return r.recorded(keyLine(audit.DestroyImportParameters, s.object, s.key), func(*audit.Record) (err error) {
			next, err = ops.DestroyImportParameters(ctx, s.key.ID, false)
			return err
		})
	})
	if err != nil {
		return err
	}
	if p := s.object.Status.ImportParameters; p != nil && ended(&p.TokenExpireTime, s.now) {
		s.object.Status.ImportParameters = nil
	}
	s.setFormerEnd(next)
	return nil
}

// endRefused destroys what has ended of a key that may have no new parameters: they are refused, and it is not asked
// again before something changes.
func (r *importedKeyReconciler) endRefused(ctx context.Context, s *importScope, refused error) error {
	status := &s.object.Status
	p := status.ImportParameters
	if ended(status.FormerParametersExpireTime, s.now) || p != nil && ended(&p.TokenExpireTime, s.now) {
		if r.destroyEnded(ctx, s) != nil {
			return refused // which is tried again, or waits for the same module
		}
	}
	if p := status.ImportParameters; p != nil {
		s.lookAgain(p.TokenExpireTime.Time)
	}
	return refused
}

// setFormerEnd says when the pairs are looked at again before those end that are published.
func (s *importScope) setFormerEnd(at time.Time) {
	status := &s.object.Status
	status.FormerParametersExpireTime = nil
	if p := status.ImportParameters; !at.IsZero() && (p == nil || at.Before(p.TokenExpireTime.Time)) {
		status.FormerParametersExpireTime = &metav1.Time{Time: at}
	}
}

func ended(at *metav1.Time, now time.Time) bool { return at != nil && !now.Before(at.Time) }

type parametersDecision int

const (
	keepParameters  parametersDecision = iota // as they are, also when there are none
	renewParameters                           // publish new ones
	endParameters                             // some have expired, and the key does not wait for others
)

// decideParameters says what is to be done about the import parameters.
func decideParameters(object *v1alpha1.ImportedKey, now time.Time) parametersDecision {
	p, former, want := object.Status.ImportParameters, object.Status.FormerParametersExpireTime, object.Spec.GetImportParameters()
	waits := kms.KeyState(object.Status.KeyState) == kms.StatePendingImport
	switch {
	case annotationValue(object, v1alpha1.AnnotationRenewImportParameters) != object.Status.RenewedFor:
		return renewParameters
	case p == nil && waits:
		return renewParameters
	case waits && (p.WrappingKeySpec != want.WrappingKeySpec || p.WrappingAlgorithm != want.WrappingAlgorithm):
		return renewParameters
	case waits && !now.Before(p.TokenExpireTime.Add(-renewBefore)):
		return renewParameters
	case ended(former, now), p != nil && ended(&p.TokenExpireTime, now):
		return endParameters
	}
	return keepParameters
}

// annotationValue is an annotation's value as the status keeps it.
func annotationValue(object metav1.Object, name string) string {
	return keyring.AnnotationValue(object.GetAnnotations()[name])
}

// importMaterial imports the material unless the very same was imported before. Reasons: PendingImport,
// SourceNotFound, KeyVersionTaken, those of operations, and the codes of ImportKeyMaterial.
func (r *importedKeyReconciler) importMaterial(ctx context.Context, s *importScope) error {
	status := &s.object.Status
	if s.object.Spec.Material == nil || s.key.State == kms.StatePendingDeletion || s.key.State == kms.StateDeleted {
		return nil
	}
	if err := r.findMaterial(ctx, s); err != nil {
		return err
	}
	// Source Secrets may be deleted after the import.
	if s.object.Status.HasMaterial && (s.sources == "" || s.sources == status.SourcesVersion) {
		return nil
	}
	// Expired material is not imported again from unchanged sources.
	if !s.object.Status.HasMaterial && s.sources != "" && s.sources == status.SourcesVersion {
		return nil
	}
	if awaitsSources(status) {
		return r.recordMaterial(ctx, s)
	}
	material, importToken, err := r.readMaterial(ctx, s)
	if err != nil {
		return err
	}
	expires := expireUnix(s.object)
	inputs := secrets.InputsDigest(material, importToken, expires)
	if inputs == status.InputsDigest {
		status.SourcesVersion = s.sources
		return nil
	}
	imported, token, err := r.importInModule(ctx, s, kms.ImportKeyMaterialRequest{
		Key: s.key, EncryptedKeyMaterial: material, ImportToken: importToken, KeyMaterialExpireUnix: expires,
	})
	if err != nil {
		return err
	}
	status.MaterialFingerprint = imported.Fingerprint.String()
	status.HasMaterial, status.Custody = true, v1alpha1.Custody(imported.Custody)
	status.InputsDigest = inputs
	status.SourcesVersion = s.sources
	status.MaterialExpireTime = s.object.Spec.Material.ExpireTime
	status.Token = token
	return s.happen(kms.EventImportKeyMaterial)
}

// importInModule imports material, and returns the token that has it now. The material of a lost key gets the version that
// adopt names, unless another object holds that version. Reasons: see importMaterial, and KeyVersionTaken.
func (r *importedKeyReconciler) importInModule(ctx context.Context, s *importScope, req kms.ImportKeyMaterialRequest) (imported kms.Version, token string, err error) {
	err = r.stores.Use(ctx, s.object.Namespace, s.object.Spec.KeyStoreRef, func(ops keystore.Session) error {
		token = ops.Token
		other, err := r.rivalOfRestored(ctx, s, token)
		if err != nil {
			return err
		}
		if other != nil {
			return errKeyVersionTaken
		}
		return r.recorded(keyLine(audit.ImportKeyMaterial, s.object, s.key), func(line *audit.Record) (err error) {
			imported, err = ops.ImportKeyMaterial(ctx, req)
			line.Custody = imported.Custody
			return err
		})
	})
	return imported, token, err
}

// rivalOfRestored returns the object that comes before one as the holder of the version under which it imports the material
// of a lost key, or nil.
func (r *importedKeyReconciler) rivalOfRestored(ctx context.Context, s *importScope, token string) (*keyring.Key, error) {
	key := keyring.Of(s.object)
	if key.Holds() {
		return nil, nil //nolint:nilnil // documented: there is none
	}
	return r.keys.Rival(ctx, key, s.key.Primary.ID.String(), token)
}

// expireUnix is KeyMaterialExpireUnix: nil for never.
func expireUnix(object *v1alpha1.ImportedKey) *int64 {
	if at := object.Spec.Material.ExpireTime; at != nil {
		return ptr.To(at.Unix())
	}
	return nil
}

// findMaterial sets sources from the cache, without reading anything; "" when something is missing.
func (r *importedKeyReconciler) findMaterial(ctx context.Context, s *importScope) error {
	m := s.object.Spec.Material
	version := func(inline string, from *v1alpha1.EntrySource) (string, error) {
		if from == nil {
			return secrets.DigestOf(inline), nil
		}
		kind, ref := entryOf(from)
		found, err := r.secrets.Look(ctx, r.secrets.Ref(s.object, kind, string(ref.Name)))
		if err != nil || found == nil {
			return "", err
		}
		return secrets.Version(found) + "/" + string(ref.Key), nil
	}
	material, err := version(m.EncryptedKeyMaterial, m.EncryptedKeyMaterialFrom)
	if err != nil {
		return err
	}
	token, err := version(m.ImportToken, m.ImportTokenFrom)
	if err != nil {
		return err
	}
	if material != "" && token != "" {
		s.sources = secrets.DigestOf(material, token, secrets.ExpireText(expireUnix(s.object)))
	}
	return nil
}

// inputsOf is the digest of what the spec would have imported, "" where a source of it no longer exists. It sets
// sources. Reasons: SourceNotFound, InvalidParameter.
func (r *importedKeyReconciler) inputsOf(ctx context.Context, s *importScope) (string, error) {
	if err := r.findMaterial(ctx, s); err != nil || s.sources == "" {
		return "", err
	}
	material, token, err := r.readMaterial(ctx, s)
	if err != nil {
		return "", err
	}
	return secrets.InputsDigest(material, token, expireUnix(s.object)), nil
}

// readMaterial returns the wrapped material and the token. Reasons: SourceNotFound, InvalidParameter.
func (r *importedKeyReconciler) readMaterial(ctx context.Context, s *importScope) (material, token []byte, err error) {
	m := s.object.Spec.Material
	material, err = r.readBinary(ctx, s.object, "EncryptedKeyMaterial", m.EncryptedKeyMaterial, m.EncryptedKeyMaterialFrom)
	if err != nil {
		return nil, nil, err
	}
	token, err = r.readBinary(ctx, s.object, "ImportToken", m.ImportToken, m.ImportTokenFrom)
	return material, token, err
}

func (r *importedKeyReconciler) readBinary(ctx context.Context, object *v1alpha1.ImportedKey, field, inline string, from *v1alpha1.EntrySource) ([]byte, error) {
	if from == nil {
		raw, err := b64.Decode(inline)
		if err != nil {
			return nil, &kms.Error{Code: kms.InvalidParameter, Parameter: field,
				Detail: "It is not standard Base64. openssl base64 -A, or keyconvoy wrap, writes it."}
		}
		return raw, nil
	}
	kind, ref := entryOf(from)
	source := r.secrets.Ref(object, kind, string(ref.Name))
	value, _, err := r.secrets.Entry(ctx, source, string(ref.Key))
	if err != nil {
		return nil, err
	}
	if value == nil {
		return nil, missingSource(source, ref, field)
	}
	// What an ExportedDataKey writes is raw; what a person puts there is Base64. Raw ciphertext of an
	// RSA or SM2 key is never Base64 text through and through.
	if raw, err := b64.Decode(string(value)); err == nil {
		return raw, nil
	}
	return value, nil
}
