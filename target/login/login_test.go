package login

import (
	"errors"
	"maps"
	"strings"
	"testing"

	"sanctuary/target/pdu"
)

func config() Config {
	return Config{
		Offer: DefaultOffer(), GroupTag: 3, Admit: func(*Params) error { return nil },
		Establish: func(*Params) (uint16, error) { return 9, nil },
	}
}

func request(l pdu.LoginRequest) *pdu.Header {
	var h pdu.Header
	l.Tag, l.ISID = 1, [6]byte{1, 2, 3}
	l.Put(&h)
	return &h
}

var (
	toFull        = pdu.LoginRequest{Transit: true, Current: pdu.StageOperational, Next: pdu.StageFullFeature}
	toOperational = pdu.LoginRequest{Transit: true, Current: pdu.StageSecurity, Next: pdu.StageOperational}
	names         = "InitiatorName=iqn.I\x00TargetName=iqn.T\x00SessionType=Normal\x00"
	discovery     = "InitiatorName=iqn.I\x00SessionType=Discovery\x00"
)

func answersOf(t *testing.T, text []byte) map[string]string {
	t.Helper()
	pairs, err := pdu.ParseText(text)
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]string)
	for _, p := range pairs {
		got[p.Key] = p.Value
	}
	return got
}

func TestKeysAreNegotiatedByTheirFunctions(t *testing.T) {
	for _, c := range []struct{ offer, answer string }{ // answer empty: none
		{"HeaderDigest=None", "None"},
		{"HeaderDigest=CRC32C", "CRC32C"},
		{"HeaderDigest=CRC32C,None", "CRC32C"},
		{"HeaderDigest=None,CRC32C", "None"},
		{"DataDigest=X-other,CRC32C", "CRC32C"},
		{"DataDigest=X-other", "Reject"},
		{"InitialR2T=No", "No"},
		{"InitialR2T=Yes", "Yes"},
		{"InitialR2T=yes", "Reject"},
		{"ImmediateData=Yes", "Yes"},
		{"ImmediateData=No", "No"},
		{"MaxBurstLength=512", "512"},
		{"MaxBurstLength=0x1000", "4096"},
		{"MaxBurstLength=16776192", "1048576"},
		{"MaxBurstLength=511", "Reject"},
		{"MaxBurstLength=16777216", "Reject"},
		{"MaxBurstLength=-1", "Reject"},
		{"MaxBurstLength=99999999999999999999", "Reject"},
		{"MaxBurstLength=+512", "Reject"},
		{"MaxBurstLength=", "Reject"},
		{"FirstBurstLength=65536", "65536"},
		{"FirstBurstLength=1048576", "262144"},
		{"MaxOutstandingR2T=1", "1"},
		{"MaxOutstandingR2T=65535", "8"},
		{"MaxOutstandingR2T=0", "Reject"},
		{"MaxConnections=8", "1"},
		{"DefaultTime2Wait=2", "2"},
		{"DefaultTime2Wait=3601", "Reject"},
		{"DefaultTime2Retain=20", "0"},
		{"ErrorRecoveryLevel=2", "0"},
		{"DataPDUInOrder=No", "Yes"},
		{"DataSequenceInOrder=Yes", "Yes"},
		{"IFMarker=Yes", "No"},
		{"OFMarker=No", "No"},
		{"OFMarkInt=1~2", "Reject"},
		{"TaskReporting=FastAbort,RFC3720", "RFC3720"},
		{"iSCSIProtocolLevel=2", "1"},
		{"iSCSIProtocolLevel=0", "0"},
		{"X-com.example=5", "NotUnderstood"},
		{"SendTargets=All", "Reject"},
		{"TargetAddress=1.2.3.4", "Reject"},
		{"InitiatorAlias=me", ""},
		{"X-unknown=NotUnderstood", ""},
		{"MaxBurstLength=Irrelevant", ""},
	} {
		m := New(config())
		r, err := m.Step(request(toFull), []byte(names+c.offer+"\x00"))
		if err != nil || !r.Done {
			t.Errorf("%s: %v, done %v", c.offer, err, r.Done)
			continue
		}
		got := answersOf(t, r.Text)
		key, _, _ := strings.Cut(c.offer, "=")
		if got[key] != c.answer {
			t.Errorf("%s: answered %q, want %q", c.offer, got[key], c.answer)
		}
		if got["TargetPortalGroupTag"] != "3" || got["MaxRecvDataSegmentLength"] != "262144" {
			t.Errorf("%s: declarations are missing in %v", c.offer, got)
		}
	}
}

func TestOutcome(t *testing.T) {
	m := New(config())
	text := names + "HeaderDigest=CRC32C\x00InitialR2T=No\x00ImmediateData=No\x00MaxRecvDataSegmentLength=131072\x00" +
		"MaxBurstLength=524288\x00MaxOutstandingR2T=4\x00DefaultTime2Retain=0\x00InitiatorAlias=host\x00"
	r, err := m.Step(request(toFull), []byte(text))
	if err != nil || !r.Done || r.Response.TSIH != 9 || !r.Response.Transit || r.Response.Next != pdu.StageFullFeature {
		t.Fatalf("%+v, %v", r.Response, err)
	}
	want := Params{
		Initiator: "iqn.i", Target: "iqn.t", InitiatorAlias: "host", ISID: [6]byte{1, 2, 3}, TSIH: 9, HeaderDigest: true,
		InitialR2T: false, ImmediateData: false, MaxRecvData: 262144, MaxSendData: 131072, MaxBurst: 524288,
		FirstBurst: 65536, MaxOutstandingR2T: 4, Time2Wait: 2, Time2Retain: 0, MaxConnections: 1,
	}
	if got := m.Params(); got != want {
		t.Errorf("negotiated\n%+v, want\n%+v", got, want)
	}
	if _, err := m.Step(request(toFull), nil); err == nil {
		t.Error("a login request after the end was taken")
	}
}

func TestStagesOneAfterTheOther(t *testing.T) {
	m := New(config())
	r, err := m.Step(request(toOperational), []byte(names+"AuthMethod=CHAP,None\x00"))
	if got := answersOf(t, r.Text); err != nil || got["AuthMethod"] != "None" || !r.Response.Transit || r.Done || r.Response.TSIH != 0 {
		t.Fatalf("%+v, %v, %v", r.Response, got, err)
	}
	// A step without T stays in its stage; keys may come in any number of steps.
	r, err = m.Step(request(pdu.LoginRequest{Current: pdu.StageOperational}), []byte("InitialR2T=No\x00"))
	if got := answersOf(t, r.Text); err != nil || got["InitialR2T"] != "No" || r.Response.Transit || got["MaxRecvDataSegmentLength"] == "" {
		t.Fatalf("%+v, %v, %v", r.Response, got, err)
	}
	r, err = m.Step(request(toFull), []byte("MaxBurstLength=4096\x00"))
	if got := answersOf(t, r.Text); err != nil || !r.Done || got["MaxBurstLength"] != "4096" || got["MaxRecvDataSegmentLength"] != "" {
		t.Fatalf("%+v, %v, %v", r.Response, got, err)
	}
}

func TestTextMayComeInPieces(t *testing.T) {
	m := New(config())
	text := names + "MaxBurstLength=4096\x00"
	for i := range len(text) {
		r, err := m.Step(request(pdu.LoginRequest{Continue: true, Current: pdu.StageOperational}), []byte(text[i:i+1]))
		if err != nil || len(r.Text) != 0 || r.Response.Transit {
			t.Fatalf("piece %d: %+v, %v", i, r, err)
		}
	}
	r, err := m.Step(request(toFull), nil)
	if err != nil || !r.Done || answersOf(t, r.Text)["MaxBurstLength"] != "4096" {
		t.Errorf("%q, %v", r.Text, err)
	}
}

func TestDiscoverySessionsNegotiateOnlyWhatMattersToThem(t *testing.T) {
	m := New(config())
	r, err := m.Step(request(toFull), []byte(discovery+"MaxBurstLength=4096\x00HeaderDigest=CRC32C\x00DefaultTime2Wait=0\x00"))
	if err != nil || !r.Done {
		t.Fatal(err)
	}
	want := map[string]string{"MaxBurstLength": "Irrelevant", "HeaderDigest": "CRC32C", "DefaultTime2Wait": "0", "MaxRecvDataSegmentLength": "262144"}
	if got := answersOf(t, r.Text); !maps.Equal(got, want) {
		t.Errorf("answered %v, want %v", got, want)
	}
	if p := m.Params(); !p.Discovery || p.Target != "" {
		t.Errorf("%+v", p)
	}
}

func TestRefusals(t *testing.T) {
	type step struct {
		h    *pdu.Header
		text string
	}
	one := func(l pdu.LoginRequest, text string) []step { return []step{{request(l), text}} }
	changed := func(f func(h *pdu.Header)) []step {
		h := request(toFull)
		f(h)
		return []step{{request(pdu.LoginRequest{Current: pdu.StageOperational}), names}, {h, ""}}
	}
	for _, c := range []struct {
		name  string
		steps []step
		cfg   func(*Config)
		want  Status
	}{
		{"no initiator name", one(toFull, "TargetName=iqn.t\x00"), nil, MissingParameter},
		{"no target name", one(toFull, "InitiatorName=iqn.i\x00"), nil, MissingParameter},
		{"empty name", one(toFull, "InitiatorName=\x00"), nil, InitiatorError},
		{"long name", one(toFull, "InitiatorName="+strings.Repeat("i", 224)+"\x00"), nil, InitiatorError},
		{"blank in a name", one(toFull, "InitiatorName=iqn.i i\x00"), nil, InitiatorError},
		{"no kind of name", one(toFull, "InitiatorName=myhost\x00"), nil, InitiatorError},
		{"session type", one(toFull, names[:20]+"SessionType=Other\x00"), nil, SessionTypeUnknown},
		{"version 1 at least", one(pdu.LoginRequest{Transit: true, Current: 1, Next: 3, VersionMin: 1, VersionMax: 2}, names), nil, VersionNotSupported},
		{"stage 2", one(pdu.LoginRequest{Current: 2}, names), nil, InitiatorError},
		{"stage 3", one(pdu.LoginRequest{Current: 3}, names), nil, InitiatorError},
		{"to stage 2", one(pdu.LoginRequest{Transit: true, Current: 1, Next: 2}, names), nil, InitiatorError},
		{"backwards", one(pdu.LoginRequest{Transit: true, Current: 1, Next: 0}, names), nil, InitiatorError},
		{"T and C", one(pdu.LoginRequest{Transit: true, Continue: true, Current: 1, Next: 3}, names), nil, InitiatorError},
		{"second connection", one(pdu.LoginRequest{Transit: true, Current: 1, Next: 3, TSIH: 5}, names), nil, NoSuchSession},
		{"no text", one(toFull, "garbage\x00"), nil, InitiatorError},
		{"digest key twice", one(toFull, names+"DataDigest=None\x00DataDigest=None\x00"), nil, InitiatorError},
		{"bad segment length", one(toFull, names+"MaxRecvDataSegmentLength=100\x00"), nil, InitiatorError},
		{"only CHAP", one(toOperational, names+"AuthMethod=CHAP\x00"), nil, AuthenticationFailed},
		{"not a login request", []step{{&pdu.Header{0: byte(pdu.OpSCSICommand), 1: 0x80}, ""}}, nil, InvalidDuringLogin},
		{"stage changes by itself", []step{{request(pdu.LoginRequest{}), names}, {request(toFull), ""}}, nil, InitiatorError},
		{"tag changes", changed(func(h *pdu.Header) { h[19]++ }), nil, InitiatorError},
		{"ISID changes", changed(func(h *pdu.Header) { h[8]++ }), nil, InitiatorError},
		{"CID changes", changed(func(h *pdu.Header) { h[21]++ }), nil, InitiatorError},
		{"too much text", one(pdu.LoginRequest{Continue: true, Current: 1}, strings.Repeat("A", defaultMaxText+1)), nil, OutOfResources},
		{"moved nowhere", one(toFull, names), func(c *Config) {
			c.Admit = func(*Params) error { return &Refusal{Status: MovedTemporarily} }
		}, ServiceUnavailable},
		{"not admitted", one(toFull, names), func(c *Config) {
			c.Admit = func(*Params) error { return &Refusal{Status: TargetNotFound} }
		}, TargetNotFound},
		{"not established", one(toFull, names), func(c *Config) {
			c.Establish = func(*Params) (uint16, error) { return 0, errors.New("anything") }
		}, TargetError},
	} {
		cfg := config()
		if c.cfg != nil {
			c.cfg(&cfg)
		}
		m := New(cfg)
		for i, s := range c.steps {
			r, err := m.Step(s.h, []byte(s.text))
			if i < len(c.steps)-1 {
				if err != nil {
					t.Errorf("%s: refused at step %d already: %v", c.name, i, err)
				}
				continue
			}
			var ref *Refusal
			if !errors.As(err, &ref) || ref.Status != c.want || Status(r.Response.Status) != c.want || r.Done || r.Response.Transit {
				t.Errorf("%s: %+v, %v; want status %04Xh", c.name, r.Response, err, uint16(c.want))
			}
			if _, err := m.Step(request(toFull), []byte(names)); err == nil {
				t.Errorf("%s: the login went on after it was refused", c.name)
			}
		}
	}
}

func TestContinuationBombIsCutOff(t *testing.T) {
	m := New(config())
	var err error
	n := 0
	for ; err == nil && n < 1000; n++ {
		_, err = m.Step(request(pdu.LoginRequest{Continue: true, Current: 1}), make([]byte, 1024))
	}
	if n != 17 {
		t.Errorf("cut off after %d KiB, want 17", n)
	}
}

func TestEndlessLoginIsCutOff(t *testing.T) {
	m := New(config())
	var err error
	n := 0
	for ; err == nil && n < 1000; n++ {
		_, err = m.Step(request(pdu.LoginRequest{Current: pdu.StageOperational}), []byte(names[:(1-min(n, 1))*len(names)]))
	}
	if n != maxRequests+1 {
		t.Errorf("cut off after %d requests, want %d", n, maxRequests+1)
	}
}

func TestRedirectNamesTheAddress(t *testing.T) {
	cfg := config()
	cfg.Admit = func(*Params) error { return &Refusal{Status: MovedTemporarily, Address: "[fd00::1]:3260,2"} }
	r, err := New(cfg).Step(request(toFull), []byte(names))
	// RFC 7143 §13.8: no portal group tag here.
	if err == nil || r.Response.Status != 0x0101 || answersOf(t, r.Text)["TargetAddress"] != "[fd00::1]:3260" {
		t.Errorf("%+v %q %v", r.Response, r.Text, err)
	}
}

func TestConfigNamesTheFieldThatIsWrong(t *testing.T) {
	for field, spoil := range map[string]func(*Config){
		"MaxRecvData": func(c *Config) { c.Offer.MaxRecvData = 100 },
		"FirstBurst":  func(c *Config) { c.Offer.FirstBurst = c.Offer.MaxBurst + 1 },
		"GroupTag":    func(c *Config) { c.GroupTag = 0 },
		"Establish":   func(c *Config) { c.Establish = nil },
	} {
		c := config()
		if err := c.Validate(); err != nil {
			t.Fatal(err)
		}
		spoil(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}
