package gateway

import (
	"context"

	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/audit"
	"github.com/keyconvoy/keyconvoy/internal/gateway/wire"
	"github.com/keyconvoy/keyconvoy/internal/keyring"
	"github.com/keyconvoy/keyconvoy/internal/keystore"
	"github.com/keyconvoy/keyconvoy/internal/kms"
)

// operations performs requests. It implements wire.Operations.
type operations struct {
	cached     client.Reader
	live       client.Reader // reads from the API server
	writer     client.Client
	directory  *directory
	keys       *keyring.Ring
	stores     *keystore.Lane
	authorizer *authorizer
	clock      clock.PassiveClock
}

// call is one request.
type call struct {
	*operations
	wire.Parameters

	object *v1alpha1.AccessKey
	who    account
	line   *audit.Record
}

// operation performs one request. The table is the only place that knows them all.
type operation func(ctx context.Context, c *call) (wire.Object, error)

func table() map[string]operation {
	out := map[string]operation{
		"GetParametersForImport":          getParametersForImport,
		"GenerateDataKeyWithoutPlaintext": dryRunnable(generateDataKey),
		"ExportDataKey":                   dryRunnable(exportDataKey),
		"GenerateAndExportDataKey":        dryRunnable(generateAndExportDataKey),
		"ReEncrypt":                       dryRunnable(reEncrypt),

		"DescribeKey":     describeKey,
		"ListKeys":        listKeys,
		"ListKeyVersions": listKeyVersions,

		"CreateKey":            createKey,
		"EnableKey":            enableKey,
		"DisableKey":           disableKey,
		"ScheduleKeyDeletion":  scheduleKeyDeletion,
		"CancelKeyDeletion":    cancelKeyDeletion,
		"ImportKeyMaterial":    importKeyMaterial,
		"DeleteKeyMaterial":    deleteKeyMaterial,
		"UpdateKeyDescription": updateKeyDescription,

		"TagResource":        tagResource,
		"UntagResource":      untagResource,
		"ListResourceTags":   listResourceTags,
		"CreateAlias":        createAlias,
		"UpdateAlias":        updateAlias,
		"DeleteAlias":        deleteAlias,
		"ListAliases":        listAliases,
		"ListAliasesByKeyId": listAliasesByKeyID,
	}
	for _, action := range withPlaintext {
		out[action] = noPlaintext
	}
	return out
}

// withPlaintext are the operations that take or return plaintext. All are refused.
var withPlaintext = []string{
	"Encrypt", "Decrypt", "GenerateDataKey", "AsymmetricEncrypt", "AsymmetricDecrypt", "AdvanceEncrypt", "AdvanceDecrypt", "AdvanceGenerateDataKey",
	"GetSecretValue",
}

var all = table()

// noPlaintext refuses the operations that take or return plaintext.
func noPlaintext(context.Context, *call) (wire.Object, error) {
	return nil, unsupported("Keyconvoy never takes or returns a plaintext, so that keys and what they protect exist in plaintext only in " +
		"cryptographic modules and at the recipients. Use GenerateDataKeyWithoutPlaintext, and ExportDataKey to a public key of yours.")
}

// Has implements wire.Operations.
func (o *operations) Has(action string) bool { return all[action] != nil }

// Do implements wire.Operations.
func (o *operations) Do(ctx context.Context, r *wire.Request) (wire.Object, error) {
	c := o.callOf(r)
	out, err := all[r.Action](ctx, c)
	if err = explained(err); err != nil {
		if code := kms.CodeOf(err); code.HTTPStatus() >= 500 {
			log.FromContext(ctx).Error(err, "A request failed", "action", r.Action, "requestID", r.ID, "accessKey", client.ObjectKeyFromObject(c.object).String())
		}
		return nil, err
	}
	return out, nil
}

func (o *operations) callOf(r *wire.Request) *call {
	key := r.AccessKey.Holder.(*v1alpha1.AccessKey)
	line := lineOf(r)
	r.Note = line
	return &call{
		operations: o, Parameters: r.Parameters, object: key, line: line,
		who: account{key.Namespace, string(key.Spec.ServiceAccountName), key.Status.ServiceAccountUID},
	}
}

// lineOf begins the audit log's line of a request.
func lineOf(r *wire.Request) *audit.Record {
	key := r.AccessKey.Holder.(*v1alpha1.AccessKey)
	line := &audit.Record{
		Time: r.Time, RequestID: r.ID, Operation: audit.UnknownOperation, AccessKeyID: r.AccessKey.ID, SourceAddress: r.Source.String(),
		Object: audit.Object{Kind: "AccessKey", Namespace: key.Namespace, Name: key.Name, UID: string(key.UID)},
	}
	for _, known := range audit.Operations() {
		if string(known) == r.Action {
			line.Operation = known
		}
	}
	return line
}

// dryRunnable gives an operation the parameter DryRun. Such operations change nothing but the caller's own data, so a dry run performs them
// and drops the result.
func dryRunnable(perform operation) operation {
	return func(ctx context.Context, c *call) (wire.Object, error) {
		dryRun, err := c.Bool("DryRun")
		if err != nil {
			return nil, err
		}
		out, err := perform(ctx, c)
		if !dryRun {
			return out, err
		}
		if err == nil {
			return nil, &kms.Error{Code: kms.DryRunOperationError, Detail: "The operation would have succeeded. Nothing was returned."}
		}
		if wire.CodeOf(err) == string(wire.AliasNotFound) {
			err = keyNotFound()
		}
		return nil, kms.DryRun(explained(err))
	}
}
