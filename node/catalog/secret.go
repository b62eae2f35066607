package catalog

import (
	"fmt"
	"io"
	"log/slog"
)

// Lengths of a CHAP secret in bytes. RFC 7143 §9.2.1 asks for at least 96 bits; CHAP_R and the initiators end at 255.
const (
	MinSecretBytes = 12
	MaxSecretBytes = 255
)

// Secret is a CHAP secret. It has to be stored as it is: CHAP proves knowledge of the secret itself. It is written in JSON,
// because the catalog's log must hold it, and never in text: every verb of fmt and slog gives "[secret]".
type Secret string

const hidden = "[secret]"

// String returns "[secret]".
func (Secret) String() string { return hidden }

// Format writes "[secret]" for every verb.
func (Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, hidden) }

// LogValue returns "[secret]".
func (Secret) LogValue() slog.Value { return slog.StringValue(hidden) }

// Reveal returns the secret itself, for the computation of CHAP responses.
func (s Secret) Reveal() string { return string(s) }

// Format writes the user for every verb. Secret.Format alone is not enough: for a verb that does not suit a struct, fmt prints
// the struct's fields without asking them.
func (c CHAP) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "user "+c.User) }

// LogValue names the user only: handlers that write JSON would write the secrets.
func (c CHAP) LogValue() slog.Value { return slog.StringValue("user " + c.User) }

// LogValue names the host only.
func (h Host) LogValue() slog.Value { return slog.StringValue(h.Name) }

// LogValue names the host only.
func (c *SetHost) LogValue() slog.Value { return slog.StringValue(c.Host.Name) }

// Redacted returns the host without its secrets.
func (h Host) Redacted() Host {
	if h.CHAP != nil {
		h.CHAP = &CHAP{User: h.CHAP.User, MutualUser: h.CHAP.MutualUser}
	}
	return h
}

// Mutual says whether the target proves itself to the initiator too.
func (c *CHAP) Mutual() bool { return c != nil && c.MutualUser != "" }

// check says what is wrong with the credentials of a host, without showing them.
func (c *CHAP) check(host string) error {
	user := func(what, s string) error {
		if len(s) == 0 || len(s) > 255 || !printable(s, '!') {
			return refuse(CodeInvalid, "the %s of host %q needs 1 to 255 printable ASCII characters without spaces", what, host)
		}
		return nil
	}
	secret := func(what string, s Secret) error {
		switch {
		case len(s) < MinSecretBytes || len(s) > MaxSecretBytes:
			return refuse(CodeInvalid, "the %s of host %q has %d bytes: it needs %d to %d (Windows takes 12 to 16)", what, host, len(s), MinSecretBytes, MaxSecretBytes)
		case !printable(string(s), ' '):
			return refuse(CodeInvalid, "the %s of host %q has a byte that is not printable ASCII: not every initiator could be given it", what, host)
		}
		return nil
	}
	if err := user("CHAP user", c.User); err != nil {
		return err
	}
	if err := secret("CHAP secret", c.Secret); err != nil {
		return err
	}
	if c.MutualUser == "" && c.MutualSecret == "" {
		return nil
	}
	if err := user("mutual CHAP user", c.MutualUser); err != nil {
		return err
	}
	if err := secret("mutual CHAP secret", c.MutualSecret); err != nil {
		return err
	}
	if c.MutualSecret == c.Secret {
		return refuse(CodeInvalid, "the two CHAP secrets of host %q are the same: whoever makes the target answer a challenge would have the initiator's answer (RFC 7143 §9.2.1); use two", host)
	}
	return nil
}

// printable says whether s consists of ASCII from lowest to '~'.
func printable(s string, lowest byte) bool {
	for i := range len(s) {
		if s[i] < lowest || s[i] > '~' {
			return false
		}
	}
	return true
}
