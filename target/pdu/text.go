package pdu

import (
	"encoding/binary"
	"fmt"
	"strings"
)

// Limits of text negotiation, all beyond what any initiator needs.
const (
	MaxKeys       = 64   // keys in one negotiation step
	MaxKeyBytes   = 63   // a key's name (RFC 7143 §6.1)
	MaxValueBytes = 8192 // a value
)

// Pair is one text key and its value.
type Pair struct{ Key, Value string }

// ParseText splits a text data segment, reassembled from its continuations, into key=value pairs in the order they were
// sent. A missing final NUL is forgiven. It returns ErrFormat for anything that is no list of pairs, or exceeds the limits.
func ParseText(data []byte) ([]Pair, error) {
	var pairs []Pair
	for rest := string(data); rest != ""; {
		item, after, _ := strings.Cut(rest, "\x00")
		rest = after
		if item == "" { // runs of NULs are padding
			continue
		}
		if len(pairs) == MaxKeys {
			return nil, fmt.Errorf("%w: more than %d text keys", ErrFormat, MaxKeys)
		}
		key, value, ok := strings.Cut(item, "=")
		switch {
		case !ok:
			return nil, fmt.Errorf("%w: text item without '='", ErrFormat)
		case !validKey(key):
			return nil, fmt.Errorf("%w: bad name of a text key", ErrFormat)
		case len(value) > MaxValueBytes:
			return nil, fmt.Errorf("%w: value of %s is longer than %d bytes", ErrFormat, key, MaxValueBytes)
		}
		for i := range len(value) {
			if value[i] < 0x20 || value[i] == 0x7F {
				return nil, fmt.Errorf("%w: control character in the value of %s", ErrFormat, key)
			}
		}
		pairs = append(pairs, Pair{key, value})
	}
	return pairs, nil
}

func validKey(key string) bool {
	if key == "" || len(key) > MaxKeyBytes {
		return false
	}
	for i := range len(key) {
		c := key[i]
		switch {
		case 'A' <= c && c <= 'Z', 'a' <= c && c <= 'z', '0' <= c && c <= '9':
		case c == '.', c == '-', c == '+', c == '@', c == '_':
		case c == '#' && i > 0: // X#, Y#, Z# extension keys of RFC 3720
		default:
			return false
		}
	}
	return true
}

// AppendText appends key=value and its NUL to dst.
func AppendText(dst []byte, key, value string) []byte {
	dst = append(append(append(dst, key...), '='), value...)
	return append(dst, 0)
}

// FormatText returns pairs as a text data segment.
func FormatText(pairs []Pair) []byte {
	var b []byte
	for _, p := range pairs {
		b = AppendText(b, p.Key, p.Value)
	}
	return b
}

// AppendSense appends sense data as the data segment of a SCSI Response carries it: after its length in 2 bytes.
func AppendSense(dst, sense []byte) []byte {
	return append(binary.BigEndian.AppendUint16(dst, uint16(len(sense))), sense...)
}

// ParseSense returns the sense data in the data segment of a SCSI Response, nil if it carries none.
func ParseSense(data []byte) ([]byte, error) {
	if len(data) == 0 {
		return nil, nil
	}
	if len(data) < 2 {
		return nil, fmt.Errorf("%w: sense length of %d byte", ErrFormat, len(data))
	}
	n := int(binary.BigEndian.Uint16(data))
	if n > len(data)-2 {
		return nil, fmt.Errorf("%w: sense of %d bytes in a segment of %d", ErrFormat, n, len(data))
	}
	return data[2 : 2+n], nil
}
