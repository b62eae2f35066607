package initiator

import (
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"sanctuary/target/login"
	"sanctuary/target/pdu"
)

// ErrNotProved: the target could not prove itself, or did not ask for the proof it should have asked for.
var ErrNotProved = errors.New("the target did not prove itself")

// authenticate passes the security stage with CHAP (RFC 7143 §12.1.3) and, if a mutual user is set, has the target prove itself
// too. It never offers AuthMethod=None. A redirection may come instead.
func (n *negotiation) authenticate(c *login.Credentials, names []pdu.Pair) (redirect string, err error) {
	n.request.Current, n.request.Next, n.request.Transit = pdu.StageSecurity, pdu.StageOperational, false
	got, redirect, err := n.exchange(append(names, pdu.Pair{Key: "AuthMethod", Value: "CHAP"}))
	if err != nil || redirect != "" {
		return redirect, err
	}
	if got["AuthMethod"] != "CHAP" {
		return "", fmt.Errorf("%w: it chose AuthMethod=%.40s", ErrNotProved, got["AuthMethod"])
	}
	algorithms := c.Algorithms
	if algorithms == nil {
		algorithms = login.Strongest()
	}
	var offer []string
	for _, a := range algorithms {
		offer = append(offer, strconv.Itoa(int(a)))
	}
	if got, redirect, err = n.exchange([]pdu.Pair{{Key: "CHAP_A", Value: strings.Join(offer, ",")}}); err != nil || redirect != "" {
		return redirect, err
	}
	a, badA := strconv.ParseUint(got["CHAP_A"], 10, 8)
	id, badID := strconv.ParseUint(got["CHAP_I"], 0, 8)
	theirs, err := login.ParseBinary(got["CHAP_C"], 1, login.MaxChallengeBytes)
	algorithm := login.Algorithm(a)
	if err = errors.Join(badA, badID, err); err != nil {
		return "", fmt.Errorf("%w: CHAP challenge: %w", ErrProtocol, err)
	}
	if !slices.Contains(algorithms, algorithm) {
		return "", fmt.Errorf("%w: it chose CHAP_A=%d, which was not offered", ErrProtocol, a)
	}
	answer := []pdu.Pair{
		{Key: "CHAP_N", Value: c.User},
		{Key: "CHAP_R", Value: login.FormatBinary(login.Respond(algorithm, byte(id), c.Secret, theirs))},
	}
	var mine [1 + login.ChallengeBytes]byte // identifier and challenge
	if c.MutualUser != "" {
		_, _ = rand.Read(mine[:])
		answer = append(answer, pdu.Pair{Key: "CHAP_I", Value: strconv.Itoa(int(mine[0]))},
			pdu.Pair{Key: "CHAP_C", Value: login.FormatBinary(mine[1:])})
	}
	n.request.Transit = true
	if got, redirect, err = n.exchange(answer); err != nil || redirect != "" {
		return redirect, err
	}
	if c.MutualUser != "" {
		response, err := login.ParseBinary(got["CHAP_R"], algorithm.Size(), algorithm.Size())
		if err != nil {
			return "", fmt.Errorf("%w: CHAP_R: %w", ErrNotProved, err)
		}
		want := login.Respond(algorithm, mine[0], c.MutualSecret, mine[1:])
		if got["CHAP_N"] != c.MutualUser || subtle.ConstantTimeCompare(response, want) != 1 {
			return "", fmt.Errorf("%w: wrong user or secret", ErrNotProved)
		}
	}
	if !n.transit {
		return "", fmt.Errorf("%w: the target does not leave the security stage", ErrProtocol)
	}
	return "", nil
}
