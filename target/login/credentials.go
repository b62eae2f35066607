package login

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
)

// Algorithm is the hash of a CHAP exchange as CHAP_A numbers it (RFC 1994 §3; IANA "PPP Authentication Algorithms").
type Algorithm uint8

// Algorithms, the weakest first.
const (
	MD5     Algorithm = 5
	SHA1    Algorithm = 6
	SHA256  Algorithm = 7
	SHA3256 Algorithm = 8
)

func (a Algorithm) String() string {
	switch a {
	case MD5:
		return "md5"
	case SHA1:
		return "sha-1"
	case SHA256:
		return "sha-256"
	case SHA3256:
		return "sha3-256"
	}
	return "algorithm " + strconv.Itoa(int(a))
}

// ParseAlgorithm reads what String writes.
func ParseAlgorithm(s string) (Algorithm, error) {
	for _, a := range Strongest() {
		if s == a.String() {
			return a, nil
		}
	}
	return 0, fmt.Errorf("CHAP algorithm %.20q: use sha3-256, sha-256, sha-1 or md5", s)
}

// Strongest returns every algorithm, the strongest first.
func Strongest() []Algorithm { return []Algorithm{SHA3256, SHA256, SHA1, MD5} }

// Limits of CHAP names and secrets, in bytes. RFC 7143 §12.1.3 asks for 128 bits of a secret without IPsec and forbids
// fewer than 96; both are accepted down to the latter, as Windows takes 12 to 16 bytes only.
const (
	MinSecretBytes = 12
	MaxSecretBytes = 255
	MaxUserBytes   = 255
)

// Credentials is what an initiator must prove with CHAP, and what it may ask us to prove. It never shows its secrets:
// not when printed, logged or marshalled.
type Credentials struct {
	User   string // CHAP_N of the initiator; empty: nothing to prove (AuthMethod=None)
	Secret string // the initiator's, MinSecretBytes..MaxSecretBytes

	MutualUser   string // CHAP_N of this target, empty: it can not prove itself
	MutualSecret string // this target's; never equal to Secret

	// Algorithms that are good enough; nil for all. The strongest that the initiator offers too is used.
	Algorithms []Algorithm
}

// Validate names the field that is wrong, never its value.
func (c *Credentials) Validate() error {
	if c.User == "" {
		if c.Secret != "" || c.MutualUser != "" || c.MutualSecret != "" {
			return errors.New("CHAP: a secret or a mutual user without a user: give the initiator's user and secret too")
		}
		return nil
	}
	if err := checkUser("user", c.User); err != nil {
		return err
	}
	if err := checkSecret("secret", c.Secret); err != nil {
		return err
	}
	if (c.MutualUser == "") != (c.MutualSecret == "") {
		return errors.New("CHAP: the mutual user and the mutual secret go together: give both or none")
	}
	if c.MutualUser != "" {
		if err := checkUser("mutual user", c.MutualUser); err != nil {
			return err
		}
		if err := checkSecret("mutual secret", c.MutualSecret); err != nil {
			return err
		}
		if c.MutualSecret == c.Secret {
			// RFC 7143 §9.2.1: or either side could use the other to compute its own answers.
			return errors.New("CHAP: the mutual secret is the initiator's secret: choose another")
		}
	}
	if c.Algorithms != nil && len(c.Algorithms) == 0 {
		return errors.New("CHAP: no algorithm is allowed, so nobody could log in: allow at least one")
	}
	for _, a := range c.Algorithms {
		if !slices.Contains(Strongest(), a) {
			return fmt.Errorf("CHAP: unknown %v: use 5 (MD5), 6 (SHA-1), 7 (SHA-256) or 8 (SHA3-256)", a)
		}
	}
	return nil
}

func checkUser(what, v string) error {
	if len(v) < 1 || len(v) > MaxUserBytes {
		return fmt.Errorf("CHAP: the %s has %d bytes: use 1..%d", what, len(v), MaxUserBytes)
	}
	return checkText(what, v)
}

func checkSecret(what, v string) error {
	if len(v) < MinSecretBytes || len(v) > MaxSecretBytes {
		return fmt.Errorf("CHAP: the %s has %d bytes: use %d..%d", what, len(v), MinSecretBytes, MaxSecretBytes)
	}
	return checkText(what, v)
}

// checkText refuses what a text key could not carry, or nobody could type.
func checkText(what, v string) error {
	for i := range len(v) {
		if v[i] < ' ' || v[i] == 0x7F {
			return fmt.Errorf("CHAP: the %s has a control character at byte %d: leave it out", what, i)
		}
	}
	return nil
}

// String shows the users, not the secrets.
func (c Credentials) String() string {
	if c.User == "" {
		return "no CHAP"
	}
	if c.MutualUser == "" {
		return fmt.Sprintf("CHAP user %q", c.User)
	}
	return fmt.Sprintf("CHAP user %q, mutual user %q", c.User, c.MutualUser)
}

// GoString is String, for %#v.
func (c Credentials) GoString() string { return c.String() }

// LogValue implements slog.LogValuer.
func (c Credentials) LogValue() slog.Value { return slog.StringValue(c.String()) }

// MarshalText implements encoding.TextMarshaler, so that JSON gets String as well.
func (c Credentials) MarshalText() ([]byte, error) { return []byte(c.String()), nil }
