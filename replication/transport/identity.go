package transport

import (
	"context"
	"fmt"

	"google.golang.org/grpc/credentials"
	grpcpeer "google.golang.org/grpc/peer"
)

// clusterScheme marks the URI in a node's certificate that names its cluster: sanctuary://<cluster UUID>.
const clusterScheme = "sanctuary"

// speaksFor says whether whoever sent this RPC may speak for a node: its certificate must be for that node's name and, where it
// names a cluster, for this one. A node with a good certificate is not yet another node. Without TLS everyone may, as there is
// nothing to go by.
func (m *Mux) speaksFor(ctx context.Context, node string) error {
	p, ok := grpcpeer.FromContext(ctx)
	if !ok {
		return fmt.Errorf("%w: nothing is known of the sender", ErrWrongNode)
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		if m.cfg.Credentials != nil && m.cfg.Credentials.Info().SecurityProtocol == "tls" {
			return fmt.Errorf("%w: the sender has not proved who it is", ErrWrongNode)
		}
		return nil
	}
	if len(info.State.PeerCertificates) == 0 {
		return fmt.Errorf("%w: the sender has no certificate", ErrWrongNode)
	}
	leaf := info.State.PeerCertificates[0]
	if err := leaf.VerifyHostname(node); err != nil {
		return fmt.Errorf("%w: the sender speaks for %q with a certificate for %q", ErrWrongNode, node, leaf.DNSNames)
	}
	for _, u := range leaf.URIs {
		if u.Scheme == clusterScheme && u.Host != m.cfg.Cluster {
			return fmt.Errorf("%w: the sender's certificate is for %s, this node belongs to %s", ErrWrongCluster, u.Host, m.cfg.Cluster)
		}
	}
	return nil
}
