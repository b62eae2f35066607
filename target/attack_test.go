package target

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"sanctuary/target/login"
	"sanctuary/target/pdu"
)

// security sends one login request of the security stage and returns the status and the keys of the answer.
func (i *rawInitiator) security(transit bool, keys ...string) (login.Status, map[string]string) {
	i.Helper()
	var h pdu.Header
	(&pdu.LoginRequest{Transit: transit, Current: pdu.StageSecurity, Next: pdu.StageFullFeature, ISID: [6]byte{1}, CmdSN: i.cmdSN}).Put(&h)
	i.send(&h, strings.Join(keys, "\x00")+"\x00")
	h, data, err := i.read()
	if err != nil || h.Opcode() != pdu.OpLoginResponse {
		i.Fatalf("%v %v", h.Opcode(), err)
	}
	got := map[string]string{}
	for _, pair := range strings.Split(strings.TrimSuffix(data, "\x00"), "\x00") {
		k, v, _ := strings.Cut(pair, "=")
		got[k] = v
	}
	return login.Status(h.LoginStatus()), got
}

// Whatever is tried instead of a proof is refused with 0201h and nothing else in the answer, is in the log with its reason, and
// counts: after a few of any kind the next is not even looked at.
func TestWhatIsTriedInsteadOfAProofIsRefusedLoggedAndLimited(t *testing.T) {
	hers := login.Credentials{
		User: "alice", Secret: "alice's secret", MutualUser: "target", MutualSecret: "the target's secret", Algorithms: []login.Algorithm{login.SHA256, login.SHA3256},
	}
	x, r, log := guarded(t, nil)
	r.credentials["iqn.test:alice"] = hers
	target := ""
	names := func() []string {
		return []string{"InitiatorName=iqn.test:alice", "TargetName=" + target, "AuthMethod=CHAP"}
	}
	// asked is a connection that has been given a challenge.
	asked := func(from string) (*rawInitiator, map[string]string) {
		i := x.dialFrom(from)
		if s, got := i.security(false, names()...); s != 0 || got["AuthMethod"] != "CHAP" {
			t.Fatalf("%04Xh, %v", uint16(s), got)
		}
		s, got := i.security(false, "CHAP_A=7")
		if s != 0 || got["CHAP_A"] != "7" {
			t.Fatalf("%04Xh, %v", uint16(s), got)
		}
		return i, got
	}
	answer := func(a login.Algorithm, got map[string]string, secret string) string {
		id, _ := strconv.Atoi(got["CHAP_I"])
		c, err := login.ParseBinary(got["CHAP_C"], 32, 32)
		if err != nil {
			t.Fatal(err)
		}
		return login.FormatBinary(login.Respond(a, byte(id), secret, c))
	}
	proof := func(from string, keys func(got map[string]string) []string) (login.Status, map[string]string) {
		i, got := asked(from)
		return i.security(true, append([]string{"CHAP_N=alice"}, keys(got)...)...)
	}
	recorded := ""
	for n, c := range []struct {
		name, reason string
		try          func(from string) (login.Status, map[string]string)
	}{
		{"wrong secret", "wrong CHAP secret", func(from string) (login.Status, map[string]string) {
			return proof(from, func(got map[string]string) []string {
				return []string{"CHAP_R=" + answer(login.SHA256, got, "a wrong secret")}
			})
		}},
		{"our challenge sent back", "our own challenge", func(from string) (login.Status, map[string]string) {
			return proof(from, func(got map[string]string) []string {
				return []string{"CHAP_R=" + answer(login.SHA256, got, hers.Secret), "CHAP_I=1", "CHAP_C=" + got["CHAP_C"]}
			})
		}},
		{"our challenge put to us on another connection", "wrong CHAP secret", func(from string) (login.Status, map[string]string) {
			_, first := asked(from)
			return proof(from, func(map[string]string) []string {
				return []string{"CHAP_R=0x" + strings.Repeat("00", 32), "CHAP_I=" + first["CHAP_I"], "CHAP_C=" + first["CHAP_C"]}
			})
		}},
		{"truncated response", "31 bytes", func(from string) (login.Status, map[string]string) {
			return proof(from, func(got map[string]string) []string {
				return []string{"CHAP_R=" + answer(login.SHA256, got, hers.Secret)[:64]}
			})
		}},
		{"oversized response", "4000 bytes", func(from string) (login.Status, map[string]string) {
			return proof(from, func(map[string]string) []string { return []string{"CHAP_R=0x" + strings.Repeat("00", 4000)} })
		}},
		{"oversized challenge", "1025 bytes", func(from string) (login.Status, map[string]string) {
			return proof(from, func(got map[string]string) []string {
				return []string{"CHAP_R=" + answer(login.SHA256, got, hers.Secret), "CHAP_I=1", "CHAP_C=0x" + strings.Repeat("00", 1025)}
			})
		}},
		{"only weak algorithms offered", "no algorithm that is allowed", func(from string) (login.Status, map[string]string) {
			i := x.dialFrom(from)
			i.security(false, names()...)
			return i.security(false, "CHAP_A=5,6")
		}},
		{"response by a weaker algorithm", "16 bytes", func(from string) (login.Status, map[string]string) {
			return proof(from, func(got map[string]string) []string { return []string{"CHAP_R=" + answer(login.MD5, got, hers.Secret)} })
		}},
		{"no proof wanted", "CHAP is needed", func(from string) (login.Status, map[string]string) {
			return x.dialFrom(from).security(true, names()[0], names()[1], "AuthMethod=None")
		}},
		{"replay", "wrong CHAP secret", func(from string) (login.Status, map[string]string) {
			if recorded == "" { // what was heard of a login that went well
				s, _ := proof(from, func(got map[string]string) []string {
					recorded = "CHAP_R=" + answer(login.SHA256, got, hers.Secret)
					return []string{recorded}
				})
				if s != login.Success {
					t.Fatalf("the login to be recorded: %04Xh", uint16(s))
				}
			}
			return proof(from, func(map[string]string) []string { return []string{recorded} })
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			target = fmt.Sprintf("iqn.test:attack%d", n)
			from, before := fmt.Sprintf("127.0.3.%d", n+1), x.p.LoginStats()
			for range failuresPerLogin {
				if s, got := c.try(from); s != login.AuthenticationFailed || got["CHAP_R"] != "" || got["CHAP_N"] != "" {
					t.Fatalf("%04Xh, %v", uint16(s), got)
				}
			}
			eventually(t, "all are counted and in the log", func() bool {
				lines := 0
				for line := range strings.Lines(log.String()) {
					if strings.Contains(line, `msg="login refused"`) && strings.Contains(line, "target="+target) && strings.Contains(line, "status=0201h") &&
						strings.Contains(line, c.reason) && strings.Contains(line, "remote="+from) {
						lines++
					}
				}
				return lines == failuresPerLogin && x.p.LoginStats().NotProved == before.NotProved+failuresPerLogin
			})
			// Not even with the right secret.
			i := x.dialFrom(from)
			if s, _ := i.security(false, names()...); s != login.ServiceUnavailable || x.p.LoginStats().Throttled != before.Throttled+1 {
				t.Errorf("after %d failures: %04Xh", failuresPerLogin, uint16(s))
			}
		})
	}
	for _, secret := range []string{hers.Secret, hers.MutualSecret, strings.TrimPrefix(recorded, "CHAP_R=")} {
		if strings.Contains(log.String(), secret) {
			t.Errorf("the log shows %q", secret)
		}
	}
}
