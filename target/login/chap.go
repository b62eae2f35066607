package login

import (
	"crypto/md5" // #nosec G501 -- CHAP_A=5 is MD5; Credentials.Algorithms switches it off
	"crypto/rand"
	"crypto/sha1" // #nosec G505 -- CHAP_A=6 is SHA-1; the same
	"crypto/sha256"
	"crypto/sha3"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"slices"
	"strconv"
	"strings"

	"sanctuary/target/pdu"
)

// Lengths in bytes. RFC 7143 §12.1.3 lets a challenge have up to 1024.
const (
	ChallengeBytes    = 32 // of the challenges we send
	MaxChallengeBytes = 1024
	maxAlgorithms     = 16 // entries of CHAP_A looked at
)

// chap is the target's side of one CHAP exchange (RFC 7143 §12.1.3, RFC 1994). The initiator proves itself first; what
// it may then ask of us is computed for nobody else.
type chap struct {
	credentials Credentials
	stage       chapStage
	algorithm   Algorithm
	id          byte
	challenge   [ChallengeBytes]byte
	mutual      bool // we have proved ourselves too
}

type chapStage uint8

const (
	chapWantsAlgorithm chapStage = iota // the initiator's CHAP_A comes next
	chapWantsResponse                   // CHAP_N and CHAP_R come next, with CHAP_I and CHAP_C if it wants proof of us
	chapPassed
)

func isCHAPKey(key string) bool {
	switch key {
	case "CHAP_A", "CHAP_I", "CHAP_C", "CHAP_N", "CHAP_R":
		return true
	}
	return false
}

// step takes the CHAP keys of one request, none twice, and returns the answer. Any error refuses the login.
func (c *chap) step(keys []pdu.Pair) ([]pdu.Pair, error) {
	got := make(map[string]string, len(keys))
	for _, k := range keys {
		got[k.Key] = k.Value
	}
	allowed := []string{"CHAP_A"}
	switch c.stage {
	case chapWantsResponse:
		allowed = []string{"CHAP_N", "CHAP_R", "CHAP_I", "CHAP_C"}
	case chapPassed:
		allowed = nil
	}
	for k := range got {
		if !slices.Contains(allowed, k) {
			return nil, fmt.Errorf("%s out of turn", k)
		}
	}
	if c.stage == chapWantsAlgorithm {
		return c.choose(got["CHAP_A"])
	}
	return c.verify(got)
}

// choose takes the strongest algorithm that both sides allow, whatever the order of the initiator's list: one that can do
// better is held to it.
func (c *chap) choose(list string) ([]pdu.Pair, error) {
	var offered []int
	for v := range strings.SplitSeq(list, ",") {
		if len(offered) == maxAlgorithms {
			break
		}
		n, ok := ParseNumber(v)
		if !ok {
			n = -1
		}
		offered = append(offered, n)
	}
	for _, a := range Strongest() {
		if slices.Contains(offered, int(a)) && (c.credentials.Algorithms == nil || slices.Contains(c.credentials.Algorithms, a)) {
			c.algorithm = a
			break
		}
	}
	if c.algorithm == 0 {
		return nil, fmt.Errorf("CHAP_A=%.40q names no algorithm that is allowed here", list)
	}
	// crypto/rand.Read never fails; see its documentation.
	var id [1]byte
	_, _ = rand.Read(id[:])
	_, _ = rand.Read(c.challenge[:])
	c.id = id[0]
	c.stage = chapWantsResponse
	return []pdu.Pair{
		{Key: "CHAP_A", Value: strconv.Itoa(int(c.algorithm))},
		{Key: "CHAP_I", Value: strconv.Itoa(int(c.id))},
		{Key: "CHAP_C", Value: FormatBinary(c.challenge[:])},
	}, nil
}

// verify checks the initiator's response and, if it asks for that, answers its challenge.
func (c *chap) verify(got map[string]string) ([]pdu.Pair, error) {
	user, named := got["CHAP_N"]
	value, answered := got["CHAP_R"]
	if !named || !answered {
		return nil, errors.New("CHAP_N or CHAP_R is missing")
	}
	response, err := ParseBinary(value, c.algorithm.Size(), c.algorithm.Size())
	if err != nil {
		return nil, fmt.Errorf("CHAP_R: %w", err)
	}
	// Text, also where it looks like a number (0x..., 0b...): CHAP_N is a text value (RFC 7143 §12.1.3).
	rightUser := subtle.ConstantTimeCompare([]byte(user), []byte(c.credentials.User))
	rightSecret := subtle.ConstantTimeCompare(response, Respond(c.algorithm, c.id, c.credentials.Secret, c.challenge[:]))
	switch {
	case rightUser != 1:
		return nil, fmt.Errorf("the CHAP user is %.40q, not the one set for this initiator", user)
	case rightSecret != 1:
		return nil, fmt.Errorf("wrong CHAP secret (user %.40q)", user)
	}
	id, hasID := got["CHAP_I"]
	value, hasChallenge := got["CHAP_C"]
	if !hasID && !hasChallenge {
		c.stage = chapPassed
		return nil, nil
	}
	if !hasID || !hasChallenge {
		return nil, errors.New("CHAP_I without CHAP_C, or CHAP_C without CHAP_I")
	}
	n, ok := ParseNumber(id)
	if !ok || n > 255 {
		return nil, fmt.Errorf("CHAP_I=%.40q", id)
	}
	challenge, err := ParseBinary(value, 1, MaxChallengeBytes)
	switch {
	case err != nil:
		return nil, fmt.Errorf("CHAP_C: %w", err)
	case subtle.ConstantTimeCompare(challenge, c.challenge[:]) == 1:
		// RFC 7143 §9.2.1: targets MUST check for this condition and close the connection.
		return nil, errors.New("the initiator sent our own challenge back")
	case c.credentials.MutualUser == "":
		return nil, errors.New("the initiator wants this target to prove itself, but no mutual user and secret are set")
	}
	ours := Respond(c.algorithm, byte(n), c.credentials.MutualSecret, challenge)
	if c.credentials.MutualSecret == c.credentials.Secret || subtle.ConstantTimeCompare(ours, response) == 1 {
		return nil, errors.New("the mutual secret is the initiator's secret")
	}
	c.stage, c.mutual = chapPassed, true
	return []pdu.Pair{{Key: "CHAP_N", Value: c.credentials.MutualUser}, {Key: "CHAP_R", Value: FormatBinary(ours)}}, nil
}

func (a Algorithm) hash() hash.Hash {
	switch a {
	case MD5:
		return md5.New() // #nosec G401
	case SHA1:
		return sha1.New() // #nosec G401
	case SHA256:
		return sha256.New()
	case SHA3256:
		return sha3.New256()
	}
	return nil
}

// Size returns the length of a response in bytes: 16..32; 0 for an unknown algorithm.
func (a Algorithm) Size() int {
	if h := a.hash(); h != nil {
		return h.Size()
	}
	return 0
}

// Respond returns the answer to a challenge (RFC 1994 §4.1): the hash of the identifier, the secret and the challenge. a is
// one of Strongest.
func Respond(a Algorithm, id byte, secret string, challenge []byte) []byte {
	h := a.hash()
	h.Write([]byte{id})
	h.Write([]byte(secret))
	h.Write(challenge)
	return h.Sum(nil)
}

// FormatBinary writes a binary value in hexadecimal (RFC 7143 §6.1), which every initiator reads.
func FormatBinary(b []byte) string { return "0x" + hex.EncodeToString(b) }

// ParseBinary reads a binary value of least..most bytes, in hexadecimal (0x) or base64 (0b), RFC 7143 §6.1. Its length is
// judged by the text, before anything is decoded.
func ParseBinary(v string, least, most int) ([]byte, error) {
	if len(v) < 2 || v[0] != '0' {
		return nil, errors.New("no binary value: use 0x and hexadecimal digits, or 0b and base64")
	}
	text := v[2:]
	var (
		n      int
		decode func(string) ([]byte, error)
	)
	switch v[1] {
	case 'x', 'X':
		if len(text)%2 != 0 {
			return nil, errors.New("odd number of hexadecimal digits")
		}
		n, decode = len(text)/2, hex.DecodeString
	case 'b', 'B':
		bare := strings.TrimRight(text, "=")
		if pad := len(text) - len(bare); pad > 2 || pad > 0 && len(text)%4 != 0 {
			return nil, errors.New("bad padding of base64")
		}
		text = bare
		n, decode = base64.RawStdEncoding.DecodedLen(len(text)), base64.RawStdEncoding.Strict().DecodeString
	default:
		return nil, errors.New("no binary value: use 0x and hexadecimal digits, or 0b and base64")
	}
	if n < least || n > most {
		return nil, fmt.Errorf("binary value of %d bytes, expected %d..%d", n, least, most)
	}
	b, err := decode(text)
	if err != nil || len(b) != n { // base64 passes over line ends
		return nil, errors.New("bad digit in a binary value") // without the value: it may be a secret's echo
	}
	return b, nil
}
