package secrets

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	corev1ac "k8s.io/client-go/applyconfigurations/core/v1"
)

// pinRecordName is the Secret in the operator's namespace with the record of rejected PINs. Deleting it resets the
// record.
const (
	pinRecordName                    = "keyconvoy-pin-record"
	pinRecordEntry                   = "record"
	typePINRecord  corev1.SecretType = "keyconvoy.io/pin-record"
)

// PINRecord stores the record of a pins.Guard in a Secret. It implements pins.Storage: the version is that of the
// Secret.
type PINRecord struct{ secrets *Client }

// PINRecord returns the record, which is in the operator's namespace.
func (c *Client) PINRecord() *PINRecord { return &PINRecord{c} }

// Load implements pins.Storage.
func (p *PINRecord) Load(ctx context.Context) (content []byte, version string, err error) {
	s, err := p.secrets.Read(ctx, p.secrets.operatorRef(pinRecordName))
	if err != nil || s == nil {
		return nil, "", err
	}
	return s.Data[pinRecordEntry], s.ResourceVersion, nil
}

// Save implements pins.Storage.
func (p *PINRecord) Save(ctx context.Context, content []byte, version string) (newVersion string, err error) {
	if version == "" {
		version = neverVersion
	}
	s := corev1ac.Secret(pinRecordName, p.secrets.operatorNamespace).WithType(typePINRecord).WithResourceVersion(version).
		WithData(map[string][]byte{pinRecordEntry: content})
	if err = p.secrets.apply(ctx, s); err != nil {
		return "", err
	}
	return *s.ResourceVersion, nil
}
