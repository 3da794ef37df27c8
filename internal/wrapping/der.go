package wrapping

import (
	"bytes"
	"crypto/rsa"
	encasn1 "encoding/asn1"
	"math/big"

	"github.com/emmansun/gmsm/sm2"
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"github.com/keyconvoy/keyconvoy/internal/redact"
)

// The DER of keys. This code does not use crypto/x509 or gmsm's smx509, because these accept invalid DER (bytes after
// the key inside its BIT STRING) and include every other public-key scheme.

var (
	oidRSAEncryption = encasn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1} // RFC 8017, appendix A.1
	oidECPublicKey   = encasn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}     // RFC 5480, section 2.1.1
	oidSM2           = encasn1.ObjectIdentifier{1, 2, 156, 10197, 1, 301}   // GM/T 0006
	tagContext0      = asn1.Tag(0).ContextSpecific().Constructed()
	tagContext1      = asn1.Tag(1).ContextSpecific().Constructed()
)

// parseSPKI reads a SubjectPublicKeyInfo (RFC 5280, section 4.1.2.7).
func parseSPKI(der []byte) (*PublicKey, error) {
	in := cryptobyte.String(der)
	var seq cryptobyte.String
	var key []byte
	if !in.ReadASN1(&seq, asn1.SEQUENCE) || !in.Empty() {
		return nil, errPublicDamaged
	}
	algorithm, err := readAlgorithm(&seq, errPublicDamaged)
	if err != nil {
		return nil, err
	}
	if !seq.ReadASN1BitStringAsBytes(&key) || !seq.Empty() {
		return nil, errPublicDamaged
	}
	// DER has one form for each value, and this one leaves nothing open: it is what marshalling would make.
	spki := bytes.Clone(der)
	if algorithm == ECSM2 {
		return newSM2(key, spki)
	}
	return parseRSAPublic(key, spki)
}

// readAlgorithm reads an AlgorithmIdentifier (RFC 5280, section 4.1.1.2) and returns ECSM2, or "" for
// RSA of any size.
func readAlgorithm(in *cryptobyte.String, damaged *KeyError) (KeySpec, error) {
	var seq cryptobyte.String
	var oid encasn1.ObjectIdentifier
	if !in.ReadASN1(&seq, asn1.SEQUENCE) || !seq.ReadASN1ObjectIdentifier(&oid) {
		return "", damaged
	}
	switch {
	case oid.Equal(oidRSAEncryption):
		var null cryptobyte.String
		if seq.Empty() {
			return "", errRSANoNull
		}
		if !seq.ReadASN1(&null, asn1.NULL) || !null.Empty() || !seq.Empty() {
			return "", damaged
		}
		return "", nil
	case oid.Equal(oidECPublicKey):
		if err := readCurve(seq); err != nil {
			return "", err
		}
		return ECSM2, nil
	}
	return "", otherAlgorithm(oid)
}

// readCurve reads the parameters of an elliptic-curve key (RFC 5480, section 2.1.1), which must name the curve SM2.
func readCurve(parameters cryptobyte.String) error {
	var curve encasn1.ObjectIdentifier
	if parameters.PeekASN1Tag(asn1.SEQUENCE) {
		return errKeyExplicit
	}
	if !parameters.ReadASN1ObjectIdentifier(&curve) || !parameters.Empty() || !curve.Equal(oidSM2) {
		return otherCurve(curve)
	}
	return nil
}

// parseRSAPublic reads an RSAPublicKey (RFC 8017, appendix A.1.1).
func parseRSAPublic(der, spki []byte) (*PublicKey, error) {
	in := cryptobyte.String(der)
	var seq cryptobyte.String
	var n, e big.Int
	if !in.ReadASN1(&seq, asn1.SEQUENCE) || !in.Empty() ||
		!seq.ReadASN1Integer(&n) || !seq.ReadASN1Integer(&e) || !seq.Empty() {
		return nil, errPublicDamaged
	}
	return newRSA(&n, &e, spki)
}

// certificateSPKI returns the SubjectPublicKeyInfo of a certificate (RFC 5280, section 4.1) and ignores everything
// else.
func certificateSPKI(der []byte) ([]byte, error) {
	in := cryptobyte.String(der)
	var cert, tbs, spki cryptobyte.String
	if !in.ReadASN1(&cert, asn1.SEQUENCE) || !in.Empty() || !cert.ReadASN1(&tbs, asn1.SEQUENCE) {
		return nil, errCertificate
	}
	if firstTags(tbs) == [4]asn1.Tag{asn1.INTEGER, asn1.SEQUENCE, asn1.SEQUENCE, tagContext0} { // RFC 2986, section 4.1
		return nil, errPublicRequest
	}
	if !tbs.SkipOptionalASN1(tagContext0) || // version
		!tbs.SkipASN1(asn1.INTEGER) || // serialNumber
		!tbs.SkipASN1(asn1.SEQUENCE) || // signature
		!tbs.SkipASN1(asn1.SEQUENCE) || // issuer
		!tbs.SkipASN1(asn1.SEQUENCE) || // validity
		!tbs.SkipASN1(asn1.SEQUENCE) || // subject
		!tbs.ReadASN1Element(&spki, asn1.SEQUENCE) {
		return nil, errCertificate
	}
	return spki, nil
}

func marshalRSA(key *rsa.PublicKey) []byte {
	return marshal(func(b *cryptobyte.Builder) {
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1ObjectIdentifier(oidRSAEncryption)
				b.AddASN1NULL()
			})
			b.AddASN1(asn1.BIT_STRING, func(b *cryptobyte.Builder) {
				b.AddUint8(0) // no unused bits
				b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1BigInt(key.N)
					b.AddASN1Int64(int64(key.E))
				})
			})
		})
	})
}

func marshalSM2(point []byte) []byte {
	return marshal(func(b *cryptobyte.Builder) {
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
			addSM2Algorithm(b)
			b.AddASN1BitString(point)
		})
	})
}

func addSM2Algorithm(b *cryptobyte.Builder) {
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oidECPublicKey)
		b.AddASN1ObjectIdentifier(oidSM2)
	})
}

// marshalSM2Private returns a PrivateKeyInfo (RFC 5958, section 2) around an ECPrivateKey (RFC 5915,
// section 3) with its public key and without the curve, which the outer layer names: the same bytes
// as OpenSSL writes.
func marshalSM2Private(scalar, point []byte) redact.Bytes {
	return marshal(func(b *cryptobyte.Builder) {
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1Int64(0)
			addSM2Algorithm(b)
			b.AddASN1(asn1.OCTET_STRING, func(b *cryptobyte.Builder) {
				b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1Int64(1)
					b.AddASN1OctetString(scalar)
					b.AddASN1(tagContext1, func(b *cryptobyte.Builder) { b.AddASN1BitString(point) })
				})
			})
		})
	})
}

// marshal runs a builder that cannot fail, because identifiers are fixed and values are bounded. The buffer is large
// enough from the start, so that growing it leaves no copy of a private key.
func marshal(build func(*cryptobyte.Builder)) []byte {
	b := cryptobyte.NewBuilder(make([]byte, 0, 1024))
	build(b)
	return b.BytesOrPanic()
}

// parsePKCS8 reads a PrivateKeyInfo.
func parsePKCS8(der []byte) (*PrivateKey, error) {
	algorithm, key, err := readPKCS8(der)
	if err != nil {
		return nil, err
	}
	if algorithm == ECSM2 {
		return parseSEC1(key, true)
	}
	return parsePKCS1(key)
}

// readPKCS8 returns the key in a PrivateKeyInfo (RFC 5958, section 2) and skips optional attributes and public key.
func readPKCS8(der []byte) (algorithm KeySpec, key cryptobyte.String, err error) {
	in := cryptobyte.String(der)
	var seq cryptobyte.String
	var version int
	if !in.ReadASN1(&seq, asn1.SEQUENCE) || !in.Empty() ||
		!seq.ReadASN1Integer(&version) || version < 0 || version > 1 {
		return "", nil, errPrivateDamaged
	}
	if algorithm, err = readAlgorithm(&seq, errPrivateDamaged); err != nil {
		return "", nil, err
	}
	if !seq.ReadASN1(&key, asn1.OCTET_STRING) ||
		!seq.SkipOptionalASN1(tagContext0) || !seq.SkipOptionalASN1(asn1.Tag(1).ContextSpecific()) || !seq.Empty() {
		return "", nil, errPrivateDamaged
	}
	return algorithm, key, nil
}

// parseSEC1 reads an ECPrivateKey.
func parseSEC1(der []byte, curveKnown bool) (*PrivateKey, error) {
	scalar, public, err := readSEC1(der, curveKnown)
	if err != nil {
		return nil, err
	}
	key, err := newSM2Private(scalar)
	if err != nil {
		return nil, err
	}
	if public != nil && !samePoint(public, key.sm2) {
		return nil, errPrivateMismatch
	}
	return key, nil
}

// readSEC1 returns the scalar and the public key, which may be nil, of an ECPrivateKey (RFC 5915, section 3) on the
// SM2 curve. A standalone key must name the curve; in PKCS#8 the outer layer names it.
func readSEC1(der []byte, curveKnown bool) (scalar, public cryptobyte.String, err error) {
	in := cryptobyte.String(der)
	var seq, parameters cryptobyte.String
	var version int
	var hasParameters bool
	if !in.ReadASN1(&seq, asn1.SEQUENCE) || !in.Empty() ||
		!seq.ReadASN1Integer(&version) || version != 1 ||
		!seq.ReadASN1(&scalar, asn1.OCTET_STRING) ||
		!seq.ReadOptionalASN1(&parameters, &hasParameters, tagContext0) ||
		!seq.ReadOptionalASN1(&public, nil, tagContext1) || !seq.Empty() {
		return nil, nil, errPrivateDamaged
	}
	if hasParameters || !curveKnown {
		if err := readCurve(parameters); err != nil {
			return nil, nil, err
		}
	}
	return scalar, public, nil
}

// samePoint reports whether a BIT STRING contains the public key of a private key.
func samePoint(bitString cryptobyte.String, key *sm2.PrivateKey) bool {
	var point []byte
	if !bitString.ReadASN1BitStringAsBytes(&point) || !bitString.Empty() {
		return false
	}
	want, ok := pointBytes(key.X, key.Y)
	return ok && string(point) == string(want)
}

// checkPKCS1Size checks the modulus of an RSAPrivateKey (RFC 8017, appendix A.1.2).
func checkPKCS1Size(der []byte) error {
	in := cryptobyte.String(der)
	var seq cryptobyte.String
	var version int
	var n big.Int
	if !in.ReadASN1(&seq, asn1.SEQUENCE) || !seq.ReadASN1Integer(&version) || !seq.ReadASN1Integer(&n) {
		return errPrivateDamaged
	}
	_, err := rsaSpec(&n)
	return err
}
