package wrapping

import (
	"bytes"
	"crypto/rsa"
	"slices"

	"github.com/emmansun/gmsm/smx509"
)

const (
	// maxChain limits the certificates of a chain, and therefore the number of verified signatures.
	maxChain = 10
	// maxSignerBits limits the RSA key of a signer, as crypto/tls does, because verification with a huge key is slow.
	maxSignerBits = 8192
)

var (
	errChain = &KeyError{"the certificates do not form one chain, so the recipient's certificate cannot be determined; " +
		"use only the recipient's certificate"}
	errChainCA = &KeyError{"all certificates in the chain are CA certificates; use the recipient's certificate, " +
		"alone or with its chain"}
	errChainTooLong = &KeyError{"more than 10 certificates; use only the recipient's certificate"}
)

// leafOf returns the recipient's certificate: the one that signed no other, and that all others signed directly or
// indirectly. The order does not matter, and certificates may be repeated.
func leafOf(blocks []block) ([]byte, error) {
	blocks = slices.CompactFunc(slices.SortedFunc(slices.Values(blocks), func(a, b block) int { return bytes.Compare(a.der, b.der) }),
		func(a, b block) bool { return bytes.Equal(a.der, b.der) })
	switch {
	case len(blocks) == 1:
		return blocks[0].der, nil
	case len(blocks) > maxChain:
		return nil, errChainTooLong
	}
	var chain []*smx509.Certificate
	for _, b := range blocks {
		cert, err := smx509.ParseCertificate(b.der)
		if err != nil {
			return nil, b.invalid("contains a damaged certificate; use only the recipient's certificate")
		}
		chain = append(chain, cert)
	}
	var leaf *smx509.Certificate
	for _, cert := range chain {
		if slices.ContainsFunc(chain, func(other *smx509.Certificate) bool { return other != cert && signed(cert, other) }) {
			continue
		}
		if leaf != nil {
			return nil, errChain
		}
		leaf = cert
	}
	switch {
	case leaf == nil || !leadTo(leaf, chain):
		return nil, errChain
	case leaf.IsCA:
		return nil, errChainCA
	}
	return leaf.Raw, nil
}

// leadTo reports whether each certificate of the chain signed the leaf, directly or through others.
func leadTo(leaf *smx509.Certificate, chain []*smx509.Certificate) bool {
	reached := []*smx509.Certificate{leaf}
	for i := 0; i < len(reached); i++ {
		for _, cert := range chain {
			if !slices.Contains(reached, cert) && signed(cert, reached[i]) {
				reached = append(reached, cert)
			}
		}
	}
	return len(reached) == len(chain)
}

// signed reports whether the key of one certificate signed the other.
func signed(signer, cert *smx509.Certificate) bool {
	if key, ok := signer.PublicKey.(*rsa.PublicKey); ok && key.N.BitLen() > maxSignerBits {
		return false
	}
	return bytes.Equal(signer.RawSubject, cert.RawIssuer) &&
		signer.CheckSignature(cert.SignatureAlgorithm, cert.RawTBSCertificate, cert.Signature) == nil
}
