package target

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"sanctuary/target/login"
	"sanctuary/target/pdu"
)

// fakeConn has a local address and nothing else.
type fakeConn struct {
	net.Conn
	local net.TCPAddr
}

func (c fakeConn) LocalAddr() net.Addr { return &c.local }

// Whatever is asked for and whatever the portals call themselves: every target named has an address that can be connected to,
// none twice, and what an initiator reads is what was meant.
func FuzzSendTargets(f *testing.F) {
	f.Add("All", "iqn.test:a", "0.0.0.0:3260 [::]:3260 192.0.2.1:3260", []byte{127, 0, 0, 1}, uint16(2))
	f.Add("", "iqn.test:a", "[fe80::1%eth0]:3260", []byte(netip.MustParseAddr("fe80::2").AsSlice()), uint16(2))
	f.Add("iqn.test:A", "iqn.test:a", ":3260 :0 :65536 x a,b:1", []byte(netip.MustParseAddr("::ffff:192.0.2.9").AsSlice()), uint16(2))
	f.Add("iqn.test:b", "iqn.test:a", "host.example:3260 192.0.2.1:3260 192.0.2.1:3260", []byte{}, uint16(7))
	f.Fuzz(func(t *testing.T, value, name, portals string, local []byte, tag uint16) {
		if _, err := login.ParseName(name); err != nil || !printable(portals) {
			return // what the Directory says is our own
		}
		d := &rules{}
		var listing Listing
		listing.Name = name
		for _, a := range strings.Fields(portals) {
			listing.Portals = append(listing.Portals, PortalAddress{a, tag})
		}
		p := &Portal{cfg: Config{Directory: listed{d, []Listing{listing, {Name: "iqn.test:bare"}}}}}
		ip := net.IP(local)
		if len(local) != 4 && len(local) != 16 {
			ip = net.IPv4(127, 0, 0, 1)
		}
		list := p.sendTargets(fakeConn{local: net.TCPAddr{IP: ip, Port: 3260}}, Group{Tag: 2, Port: 2}, &login.Params{Target: "iqn.test:bare"})
		pairs := list(value)
		read, err := pdu.ParseText(pdu.FormatText(pairs[:min(len(pairs), pdu.MaxKeys)]))
		if err != nil {
			t.Fatal(err)
		}
		for i, r := range read {
			if r != pairs[i] {
				t.Fatalf("%v is read as %v", pairs[i], r)
			}
		}
		seen := map[string]bool{}
		for i, a := range pairs {
			switch {
			case a.Key == "TargetName" && (a.Value != name || i+1 == len(pairs)):
				t.Fatalf("%v: a target without an address", pairs)
			case a.Key == "TargetName":
			case a.Key != "TargetAddress" || i == 0 || seen[a.Value] || strings.Count(a.Value, ",") != 1:
				t.Fatalf("%v: %v", pairs, a)
			default:
				seen[a.Value] = true
				address, _, _ := strings.Cut(a.Value, ",")
				host, port, err := net.SplitHostPort(address)
				if ip, bad := netip.ParseAddr(host); err != nil || host == "" || port == "0" || bad == nil && (ip.IsUnspecified() && !net.IP(local).IsUnspecified() || ip.Zone() != "") {
					t.Fatalf("address %q: %v", a.Value, err)
				}
			}
		}
	})
}

func printable(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] == 0x7F {
			return false
		}
	}
	return len(s) < 4096
}

// listed is rules with another list.
type listed struct {
	*rules
	list []Listing
}

func (l listed) List(string, uint16) []Listing { return l.list }
