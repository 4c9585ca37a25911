package main

// Job: the certificate of the simulated server, and its thumbprints.
// Rule: a new self-signed one at each start, so that a thumbprint of an earlier run is a wrong one.

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1" //nolint:gosec // VDDK knows servers by SHA-1
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

type identity struct {
	tls    tls.Certificate
	file   string
	sha1   string
	sha256 string
}

func makeCertificate(folder string, expired bool) (*identity, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		return nil, err
	}
	begin, end := time.Now().Add(-48*time.Hour), time.Now().AddDate(2, 0, 0)
	if expired {
		end = time.Now().Add(-24 * time.Hour)
	}
	template := &x509.Certificate{
		SerialNumber: serial, NotBefore: begin, NotAfter: end,
		Subject:     pkix.Name{CommonName: "localhost", Organization: []string{"vSphere simulator"}},
		DNSNames:    []string{"localhost"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IsCA:        true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(folder, "certificate.pem")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return nil, err
	}
	one, two := sha1.Sum(der), sha256.Sum256(der)
	return &identity{
		tls:  tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key},
		file: file, sha1: colons(one[:]), sha256: colons(two[:]),
	}, nil
}

func colons(sum []byte) string {
	pairs := make([]string, len(sum))
	for i, b := range sum {
		pairs[i] = fmt.Sprintf("%02X", b)
	}
	return strings.Join(pairs, ":")
}
