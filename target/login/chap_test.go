package login

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"

	"sanctuary/target/pdu"
)

var (
	oneWay = Credentials{User: "alice", Secret: "alice's secret"}
	mutual = Credentials{User: "alice", Secret: "alice's secret", MutualUser: "target", MutualSecret: "the target's secret"}
)

func secured(c Credentials) Config {
	cfg := config()
	cfg.Credentials = func(*Params) (Credentials, error) { return c, nil }
	return cfg
}

// exchange is an initiator in the security stage.
type exchange struct {
	*testing.T
	m *Machine
}

func (x exchange) step(l pdu.LoginRequest, keys ...string) (map[string]string, Reply, error) {
	x.Helper()
	text := ""
	if len(keys) > 0 {
		text = strings.Join(keys, "\x00") + "\x00"
	}
	r, err := x.m.Step(request(l), []byte(text))
	return answersOf(x.T, r.Text), r, err
}

// challenge logs in as far as the target's challenge.
func challenge(t *testing.T, cfg Config, algorithms string) (x exchange, got map[string]string) {
	t.Helper()
	x = exchange{t, New(cfg)}
	got, r, err := x.step(toOperational, names+"AuthMethod=CHAP,None")
	if err != nil || got["AuthMethod"] != "CHAP" || r.Response.Transit || got["TargetPortalGroupTag"] != "3" {
		t.Fatalf("%v, %+v, %v", got, r.Response, err)
	}
	got, r, err = x.step(pdu.LoginRequest{}, "CHAP_A="+algorithms)
	if err != nil || r.Response.Transit {
		t.Fatalf("%v, %+v, %v", got, r.Response, err)
	}
	return x, got
}

// response is what an initiator with that secret answers.
func response(t *testing.T, got map[string]string, secret string) []byte {
	t.Helper()
	a, _ := strconv.Atoi(got["CHAP_A"])
	id, err := strconv.ParseUint(got["CHAP_I"], 10, 8)
	c, err2 := hex.DecodeString(strings.TrimPrefix(got["CHAP_C"], "0x"))
	if err = errors.Join(err, err2); err != nil || len(c) != ChallengeBytes || Algorithm(a).Size() == 0 {
		t.Fatalf("%v: %v", got, err)
	}
	return Respond(Algorithm(a), byte(id), secret, c)
}

func (x exchange) refused(what, reason string, l pdu.LoginRequest, keys ...string) {
	x.Helper()
	_, r, err := x.step(l, keys...)
	var ref *Refusal
	if !errors.As(err, &ref) || ref.Status != AuthenticationFailed || !strings.Contains(ref.Reason, reason) || len(r.Text) != 0 {
		x.Errorf("%s: %v %q, want a refusal with %q", what, err, r.Text, reason)
	}
	if err != nil && (strings.Contains(err.Error(), oneWay.Secret) || strings.Contains(err.Error(), mutual.MutualSecret)) {
		x.Errorf("%s: the reason shows a secret", what)
	}
	if _, _, err := x.step(toFull, names); err == nil {
		x.Errorf("%s: the login went on", what)
	}
}

// The published vector is RFC 1994's formula computed by another program:
// printf '\x2asecretsecret\x00\x01\x02\x03' | md5sum, sha1sum, sha256sum, openssl dgst -sha3-256.
func TestResponsesAreThoseOfOtherPrograms(t *testing.T) {
	for a, want := range map[Algorithm]string{
		MD5:     "c5fcf2f80d66ec835714074e8f7d0cda",
		SHA1:    "d9821b5596ce16d53bab1026f8307801bd455a47",
		SHA256:  "1ba295868ea6cff0ea11346f46ea545bebe33f34b0328d2ab0d04c28fd61ad6f",
		SHA3256: "fe36cfd91e2a0c20557fd076c9e9ae89612d9f38c334f2249c1c311f10f7b43b",
	} {
		if got := hex.EncodeToString(Respond(a, 0x2A, "secretsecret", []byte{0, 1, 2, 3})); got != want {
			t.Errorf("%v: %s, want %s", a, got, want)
		}
	}
}

func TestCHAPOneWay(t *testing.T) {
	for _, a := range Strongest() {
		x, got := challenge(t, secured(oneWay), strconv.Itoa(int(a)))
		answer, r, err := x.step(toOperational, "CHAP_N=alice", "CHAP_R="+FormatBinary(response(t, got, oneWay.Secret)))
		if err != nil || len(answer) != 0 || !r.Response.Transit {
			t.Fatalf("%v: %v, %+v, %v", a, answer, r.Response, err)
		}
		if _, r, err = x.step(toFull); err != nil || !r.Done {
			t.Fatalf("%v: %+v, %v", a, r.Response, err)
		}
		if p := x.m.Params(); p.User != "alice" || p.Algorithm != a || p.Mutual {
			t.Errorf("%v: %+v", a, p)
		}
	}
}

func TestCHAPMutual(t *testing.T) {
	x, got := challenge(t, secured(mutual), "7")
	mine := []byte("a challenge of the initiator's")
	answer, r, err := x.step(toOperational, "CHAP_N=alice", "CHAP_R=0b"+base64.StdEncoding.EncodeToString(response(t, got, mutual.Secret)),
		"CHAP_I=0xff", "CHAP_C=0b"+base64.StdEncoding.EncodeToString(mine))
	want := map[string]string{"CHAP_N": "target", "CHAP_R": FormatBinary(Respond(SHA256, 255, mutual.MutualSecret, mine))}
	if err != nil || !maps.Equal(answer, want) || !r.Response.Transit || !x.m.Params().Mutual {
		t.Errorf("%v, %+v, %v; want %v", answer, r.Response, err, want)
	}
}

func TestCHAPStraightToFullFeaturePhase(t *testing.T) {
	x, got := challenge(t, secured(oneWay), "7")
	_, r, err := x.step(pdu.LoginRequest{Transit: true, Current: pdu.StageSecurity, Next: pdu.StageFullFeature},
		"CHAP_N=alice", "CHAP_R="+FormatBinary(response(t, got, oneWay.Secret)))
	if err != nil || !r.Done {
		t.Errorf("%+v, %v", r.Response, err)
	}
}

func TestCHAPTakesTheStrongestAlgorithmThatBothAllow(t *testing.T) {
	for _, c := range []struct {
		offered string
		allowed []Algorithm
		want    string // empty: refused
	}{
		{"5,6,7,8", nil, "8"},
		{"5", nil, "5"},
		{"7,5", nil, "7"},
		{"5,7", nil, "7"},
		{"0x8", nil, "8"},
		{"5,6,7,8", []Algorithm{MD5}, "5"},
		{"5,6,7,8", []Algorithm{SHA1, SHA256}, "7"},
		{"5", []Algorithm{SHA3256, SHA256, SHA1}, ""}, // MD5 switched off
		{"56", nil, ""},
		{"", nil, ""},
		{",", nil, ""},
		{"9,10,0", nil, ""},
		{"-5", nil, ""},
		{"5 ", nil, ""},
		{"4294967301", nil, ""}, // 2^32 + 5
		{strings.Repeat("1,", 16) + "7", nil, ""},
	} {
		cfg := secured(Credentials{User: "alice", Secret: oneWay.Secret, Algorithms: c.allowed})
		if c.want != "" {
			if _, got := challenge(t, cfg, c.offered); got["CHAP_A"] != c.want {
				t.Errorf("%s of %v: chose %s, want %s", c.offered, c.allowed, got["CHAP_A"], c.want)
			}
			continue
		}
		x := exchange{t, New(cfg)}
		if _, _, err := x.step(toOperational, names+"AuthMethod=CHAP"); err != nil {
			t.Fatal(err)
		}
		x.refused(c.offered, "algorithm", pdu.LoginRequest{}, "CHAP_A="+c.offered)
	}
}

func TestCHAPNamesThatLookLikeNumbersAreText(t *testing.T) {
	for _, user := range []string{"0xA1", "0bQQ==", "0x", "Reject", "None", "a=b,c"} {
		x, got := challenge(t, secured(Credentials{User: user, Secret: oneWay.Secret}), "7")
		if _, r, err := x.step(toOperational, "CHAP_N="+user, "CHAP_R="+FormatBinary(response(t, got, oneWay.Secret))); err != nil || !r.Response.Transit {
			t.Errorf("%s: %v", user, err)
		}
	}
	x, got := challenge(t, secured(Credentials{User: "0xA1", Secret: oneWay.Secret}), "7")
	x.refused("decoded name", "user", toOperational, "CHAP_N=\xA1", "CHAP_R="+FormatBinary(response(t, got, oneWay.Secret)))
}

func TestCHAPRefusals(t *testing.T) {
	right := func(got map[string]string) string { return FormatBinary(response(t, got, mutual.Secret)) }
	for _, c := range []struct {
		name   string
		keys   func(got map[string]string) []string
		reason string
	}{
		{"wrong secret", func(got map[string]string) []string {
			return []string{"CHAP_N=alice", "CHAP_R=" + FormatBinary(response(t, got, "alice's secreT"))}
		}, "wrong CHAP secret"},
		{"the target's secret", func(got map[string]string) []string {
			return []string{"CHAP_N=alice", "CHAP_R=" + FormatBinary(response(t, got, mutual.MutualSecret))}
		}, "wrong CHAP secret"},
		{"wrong user", func(got map[string]string) []string {
			return []string{"CHAP_N=bob", "CHAP_R=" + right(got)}
		}, "user"},
		{"user in capitals", func(got map[string]string) []string {
			return []string{"CHAP_N=Alice", "CHAP_R=" + right(got)}
		}, "user"},
		{"no response", func(map[string]string) []string { return []string{"CHAP_N=alice"} }, "missing"},
		{"no user", func(got map[string]string) []string { return []string{"CHAP_R=" + right(got)} }, "missing"},
		{"truncated response", func(got map[string]string) []string {
			return []string{"CHAP_N=alice", "CHAP_R=" + right(got)[:64]}
		}, "31 bytes"},
		{"half a byte", func(got map[string]string) []string {
			return []string{"CHAP_N=alice", "CHAP_R=" + right(got)[:65]}
		}, "odd"},
		{"no byte", func(map[string]string) []string { return []string{"CHAP_N=alice", "CHAP_R=0x"} }, "0 bytes"},
		{"no prefix", func(got map[string]string) []string {
			return []string{"CHAP_N=alice", "CHAP_R=" + right(got)[2:]}
		}, "no binary value"},
		{"response with a byte too many", func(got map[string]string) []string {
			return []string{"CHAP_N=alice", "CHAP_R=" + right(got) + "00"}
		}, "33 bytes"},
		{"oversized hexadecimal", func(map[string]string) []string {
			return []string{"CHAP_N=alice", "CHAP_R=0x" + strings.Repeat("00", 4000)}
		}, "4000 bytes"},
		{"oversized base64", func(got map[string]string) []string {
			return []string{"CHAP_N=alice", "CHAP_R=0bb3ZlcnNpemUK" + base64.StdEncoding.EncodeToString(response(t, got, mutual.Secret))}
		}, "41 bytes"},
		{"no hexadecimal", func(map[string]string) []string {
			return []string{"CHAP_N=alice", "CHAP_R=0x" + strings.Repeat("zz", 32)}
		}, "bad digit"},
		{"response twice", func(got map[string]string) []string {
			return []string{"CHAP_N=alice", "CHAP_R=" + right(got), "CHAP_R=" + right(got)}
		}, "twice"},
		{"algorithm again", func(got map[string]string) []string {
			return []string{"CHAP_A=5"}
		}, "twice"},
		{"our challenge back", func(got map[string]string) []string {
			return []string{"CHAP_N=alice", "CHAP_R=" + right(got), "CHAP_I=1", "CHAP_C=" + got["CHAP_C"]}
		}, "our own challenge"},
		{"our challenge back, in base64", func(got map[string]string) []string {
			c, _ := ParseBinary(got["CHAP_C"], 32, 32)
			return []string{"CHAP_N=alice", "CHAP_R=" + right(got), "CHAP_I=1", "CHAP_C=0b" + base64.StdEncoding.EncodeToString(c)}
		}, "our own challenge"},
		{"challenge without identifier", func(got map[string]string) []string {
			return []string{"CHAP_N=alice", "CHAP_R=" + right(got), "CHAP_C=0x00"}
		}, "without"},
		{"identifier out of range", func(got map[string]string) []string {
			return []string{"CHAP_N=alice", "CHAP_R=" + right(got), "CHAP_I=256", "CHAP_C=0x00"}
		}, "CHAP_I"},
		{"empty challenge", func(got map[string]string) []string {
			return []string{"CHAP_N=alice", "CHAP_R=" + right(got), "CHAP_I=1", "CHAP_C=0x"}
		}, "CHAP_C"},
		{"oversized challenge", func(got map[string]string) []string {
			return []string{"CHAP_N=alice", "CHAP_R=" + right(got), "CHAP_I=1", "CHAP_C=0x" + strings.Repeat("00", 1025)}
		}, "1025 bytes"},
		{"a challenge, but no proof", func(map[string]string) []string {
			return []string{"CHAP_N=alice", "CHAP_R=0x" + strings.Repeat("00", 32), "CHAP_I=1", "CHAP_C=0x0011"}
		}, "wrong CHAP secret"},
	} {
		x, got := challenge(t, secured(mutual), "7")
		x.refused(c.name, c.reason, toOperational, c.keys(got)...)
	}

	x, got := challenge(t, secured(oneWay), "7")
	x.refused("mutual, but not set", "prove itself", toOperational,
		"CHAP_N=alice", "CHAP_R="+right(got), "CHAP_I=1", "CHAP_C=0x0011")

	// A response recorded from one login, played in another.
	_, first := challenge(t, secured(oneWay), "7")
	recorded := right(first)
	x, second := challenge(t, secured(oneWay), "7")
	if first["CHAP_C"] == second["CHAP_C"] {
		t.Error("the same challenge twice")
	}
	x.refused("replay", "wrong CHAP secret", toOperational, "CHAP_N=alice", "CHAP_R="+recorded)

	x, got = challenge(t, secured(oneWay), "7")
	if _, _, err := x.step(pdu.LoginRequest{}, "CHAP_N=alice", "CHAP_R="+right(got)); err != nil {
		t.Fatal(err)
	}
	x.refused("a challenge after the proof", "out of turn", toOperational, "CHAP_I=1", "CHAP_C=0x00")
}

func TestAuthenticationCannotBeAvoided(t *testing.T) {
	begin := func() exchange { return exchange{t, New(secured(oneWay))} }
	begin().refused("skipped", "skipped", toFull, names)
	begin().refused("None", "CHAP is needed", toOperational, names+"AuthMethod=None")
	begin().refused("unknown method", "CHAP is needed", toOperational, names+"AuthMethod=KRB5,SPKM1")
	begin().refused("no method", "no AuthMethod", toOperational, names)
	begin().refused("straight to the end", "no AuthMethod", pdu.LoginRequest{Transit: true, Next: pdu.StageFullFeature}, names)
	begin().refused("CHAP without AuthMethod", "before AuthMethod", pdu.LoginRequest{}, names+"CHAP_A=5")
	begin().refused("discovery without proof", "CHAP is needed", toOperational, discovery+"AuthMethod=None")
	begin().refused("discovery, skipped", "skipped", toFull, discovery)

	// The stage is not left before the proof, however often that is asked for.
	x := begin()
	for i, keys := range []string{names + "AuthMethod=None,CHAP", "", "CHAP_A=7", ""} {
		if got, r, err := x.step(toOperational, keys); err != nil || r.Response.Transit || i == 0 && got["AuthMethod"] != "CHAP" {
			t.Errorf("step %d: %v, %+v, %v", i, got, r.Response, err)
		}
	}
	if _, _, err := x.step(toFull); err == nil {
		t.Error("the operational stage was entered without proof")
	}

	// One name proves, the other uses: no.
	x, got := challenge(t, secured(oneWay), "7")
	if _, _, err := x.step(toOperational, "InitiatorName=iqn.other", "CHAP_N=alice",
		"CHAP_R="+FormatBinary(response(t, got, oneWay.Secret))); err == nil {
		t.Error("another InitiatorName after the first request was taken")
	}
}

func TestDiscoveryNeedsTheSameProof(t *testing.T) {
	x := exchange{t, New(secured(oneWay))}
	if _, _, err := x.step(toOperational, discovery+"AuthMethod=CHAP"); err != nil {
		t.Fatal(err)
	}
	got, _, err := x.step(pdu.LoginRequest{}, "CHAP_A=7")
	if err != nil {
		t.Fatal(err)
	}
	if _, r, err := x.step(pdu.LoginRequest{Transit: true, Next: pdu.StageFullFeature}, "CHAP_N=alice",
		"CHAP_R="+FormatBinary(response(t, got, oneWay.Secret))); err != nil || !r.Done {
		t.Errorf("%+v, %v", r.Response, err)
	}
}

func TestNobodyIsAdmittedOrRedirectedBeforeTheProof(t *testing.T) {
	cfg := secured(mutual)
	asked := 0
	cfg.Admit = func(p *Params) error {
		asked++
		if p.User != "alice" || !p.Mutual {
			t.Errorf("asked before the proof: %+v", p)
		}
		return &Refusal{Status: MovedTemporarily, Address: "192.0.2.1:3260"}
	}
	x, got := challenge(t, cfg, "8")
	answer, r, err := x.step(toOperational, "CHAP_N=alice", "CHAP_R="+FormatBinary(response(t, got, mutual.Secret)), "CHAP_I=7", "CHAP_C=0xabcd")
	if err != nil || answer["CHAP_R"] == "" || !r.Response.Transit || asked != 0 {
		t.Fatalf("%v, %+v, %v: the initiator has a right to our proof first", answer, r.Response, err)
	}
	answer, r, err = x.step(toFull)
	if err == nil || r.Response.Status != uint16(MovedTemporarily) || answer["TargetAddress"] != "192.0.2.1:3260" || asked != 1 {
		t.Errorf("%v, %+v, %v, asked %d times", answer, r.Response, err, asked)
	}
}

func TestUnknownInitiatorsHaveNothingToProve(t *testing.T) {
	x := exchange{t, New(secured(Credentials{}))}
	if got, r, err := x.step(toOperational, names+"AuthMethod=CHAP,None"); err != nil || got["AuthMethod"] != "None" || !r.Response.Transit {
		t.Errorf("%v, %+v, %v", got, r.Response, err)
	}
	exchange{t, New(secured(Credentials{}))}.refused("only CHAP, but no secret here", "None is needed", toOperational, names+"AuthMethod=CHAP")
}

func TestBadCredentialsLetNobodyIn(t *testing.T) {
	x := exchange{t, New(secured(Credentials{User: "alice", Secret: "short"}))}
	_, _, err := x.step(toOperational, names+"AuthMethod=CHAP,None")
	var ref *Refusal
	if !errors.As(err, &ref) || ref.Status != TargetError || strings.Contains(ref.Reason, "short") {
		t.Error(err)
	}
	cfg := config()
	cfg.Credentials = func(*Params) (Credentials, error) { return Credentials{}, &Refusal{Status: ServiceUnavailable} }
	_, _, err = exchange{t, New(cfg)}.step(toOperational, names+"AuthMethod=CHAP,None")
	if !errors.As(err, &ref) || ref.Status != ServiceUnavailable {
		t.Error(err)
	}
}

func TestCredentialsValidate(t *testing.T) {
	for _, c := range []struct {
		credentials Credentials
		want        string // empty: good
	}{
		{Credentials{}, ""},
		{oneWay, ""},
		{mutual, ""},
		{Credentials{User: "0xA", Secret: strings.Repeat("s", 255)}, ""},
		{Credentials{User: "a", Secret: "12345678901"}, "11 bytes"},
		{Credentials{User: "a", Secret: strings.Repeat("s", 256)}, "256 bytes"},
		{Credentials{User: strings.Repeat("a", 256), Secret: oneWay.Secret}, "user has 256 bytes"},
		{Credentials{User: "a\n", Secret: oneWay.Secret}, "control character"},
		{Credentials{User: "a", Secret: "a secret with \x00"}, "control character"},
		{Credentials{Secret: oneWay.Secret}, "without a user"},
		{Credentials{MutualUser: "t", MutualSecret: mutual.MutualSecret}, "without a user"},
		{Credentials{User: "a", Secret: oneWay.Secret, MutualUser: "t"}, "go together"},
		{Credentials{User: "a", Secret: oneWay.Secret, MutualUser: "t", MutualSecret: "too short"}, "mutual secret has 9 bytes"},
		{Credentials{User: "a", Secret: oneWay.Secret, MutualUser: "t", MutualSecret: oneWay.Secret}, "choose another"},
		{Credentials{User: "a", Secret: oneWay.Secret, Algorithms: []Algorithm{}}, "allow at least one"},
		{Credentials{User: "a", Secret: oneWay.Secret, Algorithms: []Algorithm{9}}, "unknown algorithm 9"},
	} {
		err := c.credentials.Validate()
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: %v, want %q", c.credentials, err, c.want)
		}
	}
}

func TestSecretsAreNotShown(t *testing.T) {
	shown := fmt.Sprintf("%v %+v %#v %s", mutual, mutual, mutual, &mutual)
	b, err := json.Marshal(mutual)
	if err != nil {
		t.Fatal(err)
	}
	shown += string(b)
	log := strings.Builder{}
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "credentials", mutual, "pointer", &mutual)
	shown += log.String()
	if strings.Contains(shown, mutual.Secret) || strings.Contains(shown, mutual.MutualSecret) || !strings.Contains(shown, "alice") {
		t.Error(shown)
	}
}

func TestAlgorithmNames(t *testing.T) {
	for _, a := range Strongest() {
		if got, err := ParseAlgorithm(a.String()); err != nil || got != a {
			t.Errorf("%v: %v, %v", a, got, err)
		}
	}
	if _, err := ParseAlgorithm("sha-512"); err == nil {
		t.Error("sha-512 was taken")
	}
	if !slices.IsSortedFunc(Strongest(), func(a, b Algorithm) int { return int(b) - int(a) }) {
		t.Error("not the strongest first")
	}
}

func TestParseName(t *testing.T) {
	long := "iqn.2001-04.com.example:" + strings.Repeat("x", MaxNameBytes)
	for name, want := range map[string]string{ // empty: refused
		"iqn.1991-05.com.Microsoft:HOST":           "iqn.1991-05.com.microsoft:host",
		"IQN.2001-04.com.example":                  "iqn.2001-04.com.example",
		"iqn.2008-11.org.linux-kvm:my_guest":       "iqn.2008-11.org.linux-kvm:my_guest",
		"eui.02004567A425678D":                     "eui.02004567a425678d",
		"naa.52004567BA64678D":                     "naa.52004567ba64678d",
		"NAA.62004567BA64678D0123456789ABCDEF":     "naa.62004567ba64678d0123456789abcdef",
		long[:MaxNameBytes]:                        long[:MaxNameBytes],
		long[:MaxNameBytes+1]:                      "",
		"":                                         "",
		"iqn.":                                     "",
		"iqn":                                      "",
		"host":                                     "",
		"wwn.2001":                                 "",
		"eui.02004567A425678":                      "",
		"eui.02004567A425678G":                     "",
		"naa.52004567BA64678D0":                    "",
		"iqn.2001-04.com.example:a b":              "",
		"iqn.2001-04.com.example:a,i,0x":           "",
		"iqn.2001-04.com.example:\x7f":             "",
		"iqn.2001-04.com.example:gr\u00fc\u00dfe":  "",
		"iqn.2001-04.com.example:\u212aelvin sign": "", // folds to k by Unicode's rules
	} {
		if got, err := ParseName(name); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v; want %q", name, got, err, want)
		}
	}
}
