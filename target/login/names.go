package login

import (
	"errors"
	"fmt"
	"strings"
)

// MaxNameBytes is the longest iSCSI name (RFC 7143 §4.2.7.1).
const MaxNameBytes = 223

// ParseName checks an iSCSI name and returns it in the form names are compared in (RFC 7143 §4.2.7, RFC 3722: in lower
// case). Every name from a login has been through it; names kept elsewhere must go through it too to be found.
//
// Less strict than the RFC: an underscore is taken, and the date and domain of an iqn. are not looked at, because
// initiators in the field have such names and nothing depends on it. Stricter: only ASCII. RFC 3722 folds other characters
// by the tables of Unicode 3.2; a name folded differently on two sides would be a lock that sometimes opens.
func ParseName(v string) (string, error) {
	if v == "" || len(v) > MaxNameBytes {
		return "", fmt.Errorf("iSCSI name of %d bytes, use 1..%d", len(v), MaxNameBytes)
	}
	name := strings.ToLower(v)
	switch kind, rest, _ := strings.Cut(name, "."); {
	case rest == "":
		return "", fmt.Errorf("iSCSI name %.40q: use iqn., eui. or naa. and what identifies it", v)
	case kind == "iqn":
		for i := range len(name) {
			if !inName(name[i]) {
				return "", fmt.Errorf("byte %02Xh in an iSCSI name: use letters, digits, '.', ':', '-' and '_'", name[i])
			}
		}
	case kind == "eui":
		if len(rest) != 16 || !isHex(rest) {
			return "", errors.New("iSCSI name: eui. takes 16 hexadecimal digits")
		}
	case kind == "naa":
		if len(rest) != 16 && len(rest) != 32 || !isHex(rest) {
			return "", errors.New("iSCSI name: naa. takes 16 or 32 hexadecimal digits")
		}
	default:
		return "", fmt.Errorf("iSCSI name %.40q: it begins with iqn., eui. or naa. and goes on", v)
	}
	return name, nil
}

func inName(c byte) bool {
	return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '.' || c == ':' || c == '-' || c == '_'
}

func isHex(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
