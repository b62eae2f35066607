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
	"net/url"
	"testing"
	"time"

	"google.golang.org/grpc/credentials"

	"sanctuary/proto/peerpb"
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
	return a.credentialsFor(t, node, nil)
}

// credentialsFor names a cluster too.
func (a *authority) credentialsFor(t *testing.T, node string, clusters []*url.URL) func(*Config) {
	t.Helper()
	key, cert := a.sign(t, &x509.Certificate{
		SerialNumber: big.NewInt(2), DNSNames: []string{node}, URIs: clusters, NotAfter: time.Now().Add(time.Hour),
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

// A node with a good certificate cannot speak for another: not with a hello, not with a call, and not with a Raft request.
func TestACertificateSpeaksForItsOwnNodeOnly(t *testing.T) {
	n, ca := newNetwork(), newAuthority(t)
	b := n.start(t, "b", "", ca.credentials(t, "b"))
	if err := b.Handle("who", func(_ context.Context, from string, _ []byte) ([]byte, error) { return []byte(from), nil }); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Group(GroupConfig{Group: "g", Epoch: 1, Self: "b/1", AllowSnapshot: true}); err != nil {
		t.Fatal(err)
	}
	// It is a's certificate, and the node says that it is c.
	liar := n.start(t, "c", "", ca.credentials(t, "a"))
	if _, err := liar.Call(t.Context(), "b", "who", nil); !errors.Is(err, ErrWrongNode) {
		t.Errorf("the hello of a node that is not who it says: %v", err)
	}
	// The transfer and bulk connections have no hello. The same node, as itself, and then speaking for c in single requests.
	a := n.start(t, "a", "", ca.credentials(t, "a"))
	if _, err := a.Call(t.Context(), "b", "who", nil); err != nil {
		t.Fatal(err)
	}
	l, err := a.link(t.Context(), "b")
	if err != nil {
		t.Fatal(err)
	}
	as := func(node string) *peerpb.CallRequest {
		return &peerpb.CallRequest{Cluster: testCluster, FromNode: node, ToNode: "b", Method: "who"}
	}
	envelope := &peerpb.Envelope{Cluster: testCluster, Group: "g", Epoch: 1, FromServer: "c/1", ToServer: "b/1", FromNode: "c"}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	said := func(what string, st *peerpb.Status, err error) {
		t.Helper()
		if err != nil || !errors.Is(errorOf("b", st), ErrWrongNode) {
			t.Errorf("%s for another node: %v, %v", what, st, err)
		}
	}
	reply, err := peerpb.NewPeerClient(l.transfer).Call(ctx, as("c"))
	said("a bulk call", reply.GetStatus(), err)
	if reply, err = peerpb.NewPeerClient(l.transfer).Call(ctx, as("a")); err != nil || string(reply.GetBody()) != "a" {
		t.Errorf("a bulk call as itself: %v, %v", reply, err)
	}
	m, err := l.request(ctx, &peerpb.ControlMessage{Body: &peerpb.ControlMessage_CallRequest{CallRequest: as("c")}})
	said("a call", m.GetCallReply().GetStatus(), err)
	m, err = l.request(ctx, &peerpb.ControlMessage{Body: &peerpb.ControlMessage_RaftRequest{RaftRequest: &peerpb.RaftRequest{
		Envelope: envelope, Request: &peerpb.RaftRequest_Vote{Vote: &peerpb.VoteRequest{Term: 9}},
	}}})
	said("a vote", m.GetRaftReply().GetStatus(), err)
	appends, err := peerpb.NewPeerClient(l.bulk).Append(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := appends.SendMsg(&outFrame{envelope: envelope, id: 1, total: 1, chunk: [][]byte{{0}}}); err != nil {
		t.Fatal(err)
	}
	appended, err := appends.Recv()
	said("entries", appended.GetStatus(), err)
	snapshots, err := peerpb.NewPeerClient(l.transfer).Snapshot(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := snapshots.Send(&peerpb.SnapshotFrame{Envelope: envelope, Request: &peerpb.SnapshotRequest{}}); err != nil {
		t.Fatal(err)
	}
	installed, err := snapshots.CloseAndRecv()
	said("a snapshot", installed.GetStatus(), err)
}

func TestACertificateOfAnotherClusterIsRefused(t *testing.T) {
	n, ca := newNetwork(), newAuthority(t)
	of := func(cluster string) []*url.URL { return []*url.URL{{Scheme: clusterScheme, Host: cluster}} }
	b := n.start(t, "b", "", ca.credentialsFor(t, "b", of(testCluster)))
	if err := b.Handle("who", func(_ context.Context, from string, _ []byte) ([]byte, error) { return []byte(from), nil }); err != nil {
		t.Fatal(err)
	}
	good := n.start(t, "a", "", ca.credentialsFor(t, "a", of(testCluster)))
	if _, err := good.Call(t.Context(), "b", "who", nil); err != nil {
		t.Errorf("with a certificate of this cluster: %v", err)
	}
	other := n.start(t, "c", "", ca.credentialsFor(t, "c", of("another")))
	if _, err := other.Call(t.Context(), "b", "who", nil); !errors.Is(err, ErrWrongCluster) {
		t.Errorf("with a certificate of another cluster: %v", err)
	}
}
