package reserve

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"strings"
)

// MaxListBytes is the longest parameter list that is read: room for more TransportIDs than a Table could hold of that name length.
const MaxListBytes = 64 << 10

// basicList is the length of a parameter list without TransportIDs.
const basicList = 24

// ParseOut reads a PERSISTENT RESERVE OUT command: the SERVICE ACTION, the byte with SCOPE and TYPE, and the parameter list.
// Errors are *Refusal.
func ParseOut(action, scopeType byte, list []byte) (*Request, error) {
	r := &Request{Action: Action(action), Scope: scopeType >> 4, Type: Type(scopeType & 0x0F)}
	if r.Action > RegisterAndMove {
		return nil, errInvalidCDB
	}
	if len(list) < basicList || len(list) > MaxListBytes {
		return nil, errListLength
	}
	r.Key, r.ServiceKey = binary.BigEndian.Uint64(list), binary.BigEndian.Uint64(list[8:])
	if r.Action == RegisterAndMove {
		return r, r.parseMove(list)
	}
	registers := r.Action == Register || r.Action == RegisterAndIgnore
	r.Specified = list[20]&0x08 != 0
	r.AllPorts = list[20]&0x04 != 0 && registers
	r.Persist = list[20]&0x01 != 0 && registers
	switch {
	case r.Specified && r.Action != Register:
		return nil, errInvalidList
	case !r.Specified && len(list) != basicList:
		return nil, errListLength
	case !r.Specified:
		return r, nil
	}
	if len(list) < basicList+4 {
		return nil, errListLength
	}
	ids, err := parseTransportIDs(list[basicList:])
	r.Ports = ids
	return r, err
}

// parseMove reads the parameter list of REGISTER AND MOVE (SPC-4 r37 §6.16.4).
func (r *Request) parseMove(list []byte) error {
	r.Unregister, r.Persist = list[17]&0x02 != 0, list[17]&0x01 != 0
	r.TargetPort = binary.BigEndian.Uint16(list[18:])
	ids, err := parseTransportIDs(list[20:])
	if err == nil && len(ids) != 1 {
		err = errInvalidList
	}
	r.Ports = ids
	return err
}

// parseTransportIDs reads a length of four bytes and as many bytes of TransportIDs, which must be all there is.
func parseTransportIDs(b []byte) ([]Port, error) {
	length := binary.BigEndian.Uint32(b)
	b = b[4:]
	if uint64(length) != uint64(len(b)) {
		return nil, errListLength
	}
	var ports []Port
	for len(b) > 0 {
		p, n, err := parseTransportID(b)
		if err != nil {
			return nil, err
		}
		ports = append(ports, p)
		b = b[n:]
	}
	return ports, nil
}

// Layout of an iSCSI TransportID (SPC-4 r37 §7.6.4.6): FORMAT CODE and PROTOCOL IDENTIFIER, a reserved byte, ADDITIONAL LENGTH
// (a multiple of 4, at least 20), then the initiator port's name, ended and padded by NULs.
const (
	transportPort      = 0x45 // FORMAT CODE 01b: an initiator port; PROTOCOL IDENTIFIER 5h: iSCSI
	transportHeader    = 4
	transportMinLength = 20
	portSeparator      = ",i,0x"
)

// parseTransportID reads one TransportID and returns its length. A TransportID of format 00b names an initiator with all its
// ports, of which a unit that is on several nodes cannot know the list; it is refused.
func parseTransportID(b []byte) (Port, int, error) {
	if len(b) < transportHeader+transportMinLength {
		return Port{}, 0, errListLength
	}
	length := int(binary.BigEndian.Uint16(b[2:]))
	switch {
	case b[0] != transportPort || length < transportMinLength || length%4 != 0:
		return Port{}, 0, errInvalidList
	case length > len(b)-transportHeader:
		return Port{}, 0, errListLength
	}
	name := b[transportHeader : transportHeader+length]
	end := bytes.IndexByte(name, 0)
	if end < 0 || len(bytes.Trim(name[end:], "\x00")) > 0 {
		return Port{}, 0, errInvalidList
	}
	at := lastSeparator(name[:end])
	if at < 1 || at > MaxNameBytes {
		return Port{}, 0, errInvalidList
	}
	digits := string(name[at+len(portSeparator) : end])
	var p Port
	// RFC 7143 §4.2.7.1: names compare without regard to case; at login they have been put in lower case.
	p.Initiator = strings.ToLower(string(name[:at]))
	if len(p.Initiator) != at || len(digits) == 0 || len(digits) > 2*len(p.ISID) {
		return Port{}, 0, errInvalidList
	}
	if !printable(p.Initiator) {
		return Port{}, 0, errInvalidList
	}
	isid, err := hex.DecodeString(strings.Repeat("0", 2*len(p.ISID)-len(digits)) + digits)
	if err != nil {
		return Port{}, 0, errInvalidList
	}
	copy(p.ISID[:], isid)
	return p, transportHeader + length, nil
}

// lastSeparator returns where the initiator's name ends: from the end, for its own text may hold the separator. It looks at the bytes as
// they are: names outside of ASCII have other lengths in lower case.
func lastSeparator(name []byte) int {
	for at := len(name) - len(portSeparator); at >= 0; at-- {
		if strings.EqualFold(string(name[at:at+len(portSeparator)]), portSeparator) {
			return at
		}
	}
	return -1
}

// printable refuses control characters and spaces; names outside of ASCII are UTF-8 and let through.
func printable(s string) bool {
	for i := range len(s) {
		if s[i] <= 0x20 || s[i] == 0x7F {
			return false
		}
	}
	return true
}

// appendTransportID appends the TransportID of an initiator port.
func appendTransportID(dst []byte, p Port) []byte {
	at := len(dst)
	dst = append(dst, transportPort, 0, 0, 0)
	dst = append(dst, p.Initiator...)
	dst = append(dst, portSeparator...)
	dst = hex.AppendEncode(dst, p.ISID[:])
	dst = append(dst, 0)
	for len(dst)-at < transportHeader+transportMinLength || (len(dst)-at)%4 != 0 {
		dst = append(dst, 0)
	}
	binary.BigEndian.PutUint16(dst[at+2:], uint16(len(dst)-at-transportHeader))
	return dst
}
