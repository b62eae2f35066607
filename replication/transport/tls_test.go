package transport

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"testing"
	"time"

	"google.golang.org/grpc/credentials"
)

// authority signs certificates for nodes by name.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{}
	a.key, a.cert = a.sign(t, &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotAfter: time.Now().Add(time.Hour),
	})
	return a
}

func (a *authority) sign(t *testing.T, template *x509.Certificate) (*ecdsa.PrivateKey, *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = template, key
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(raw)
	if err != nil {
		t.Fatal(err)
	}
	return key, cert
}

func (a *authority) credentials(t *testing.T, node string) func(*Config) {
	t.Helper()
	key, cert := a.sign(t, &x509.Certificate{
		SerialNumber: big.NewInt(2), DNSNames: []string{node}, NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	})
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	creds := credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}},
		RootCAs:      pool, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13,
	})
	return func(c *Config) { c.Credentials = creds }
}

func TestMutualTLSBindsConnectionsToNodeNames(t *testing.T) {
	n, ca := newNetwork(), newAuthority(t)
	a := n.start(t, "a", "", ca.credentials(t, "a"))
	b := n.start(t, "b", "", ca.credentials(t, "b"))
	n.start(t, "c", "", ca.credentials(t, "not-c"))
	plain := n.start(t, "plain", "")
	if err := b.Handle("who", func(_ context.Context, from string, _ []byte) ([]byte, error) { return []byte(from), nil }); err != nil {
		t.Fatal(err)
	}
	if got, err := a.CallBulk(t.Context(), "b", "who", nil); err != nil || string(got) != "a" {
		t.Errorf("with good certificates: %q, %v", got, err)
	}
	if _, err := a.Call(t.Context(), "c", "who", nil); !errors.Is(err, ErrUnreachable) {
		t.Errorf("a node with a certificate of another name: %v", err)
	}
	if _, err := plain.Call(t.Context(), "b", "who", nil); !errors.Is(err, ErrUnreachable) {
		t.Errorf("a node without a certificate: %v", err)
	}
}
