package login

import (
	"encoding/base64"
	"strings"
	"testing"

	"sanctuary/target/pdu"
)

// Whatever comes, in whatever order and pieces: no panic, bounded answers, full feature phase only with names, by
// Establish and, where a secret is set that the fuzzer does not know, never.
func FuzzLoginFSM(f *testing.F) {
	f.Add([]byte{0x87, 30}, []byte(names), false)
	f.Add([]byte{0x81, 40, 0x87, 0}, []byte(names+"AuthMethod=None\x00"), false)
	f.Add([]byte{0x44, 3, 0x87, 200}, []byte(names+"MaxBurstLength=4096\x00"), false)
	first := names + "AuthMethod=CHAP,None\x00"
	f.Add([]byte{0x81, byte(len(first)), 0x00, 9, 0x81, 255}, []byte(first+"CHAP_A=7\x00CHAP_N=alice\x00CHAP_R=0x"+strings.Repeat("00", 32)+"\x00"), true)
	f.Add([]byte{0x83, 255}, []byte(discovery+"AuthMethod=None\x00CHAP_A=5\x00"), true)
	f.Fuzz(func(t *testing.T, script, text []byte, secret bool) {
		cfg := config()
		if secret {
			cfg = secured(oneWay)
		}
		admitted, established := 0, 0
		cfg.Admit = func(p *Params) error {
			admitted++
			if secret && p.User == "" {
				t.Fatal("asked for admission without proof")
			}
			return nil
		}
		cfg.Establish = func(p *Params) (uint16, error) {
			established++
			if p.Initiator == "" || p.Target == "" && !p.Discovery || admitted != 1 {
				t.Fatalf("established without names or admission: %+v", p)
			}
			if name, err := ParseName(p.Initiator); err != nil || name != p.Initiator {
				t.Fatalf("name %q: %v", p.Initiator, err)
			}
			return 1, nil
		}
		m := New(cfg)
		for ; len(script) >= 2; script = script[2:] {
			n := min(int(script[1]), len(text))
			h := request(pdu.LoginRequest{})
			h[1] = script[0]
			r, err := m.Step(h, text[:n])
			text = text[n:]
			if len(r.Text) > 8192 {
				t.Fatalf("answer of %d bytes", len(r.Text))
			}
			if r.Done && (err != nil || established != 1 || secret) {
				t.Fatal("done, but not established or not proved")
			}
			if r.Response.Transit && r.Response.Current == pdu.StageSecurity && secret {
				t.Fatal("left the security stage without proof")
			}
			if p := m.Params(); p.MaxSendData < 512 || p.MaxBurst < 512 || p.FirstBurst < 512 || p.MaxOutstandingR2T < 1 {
				t.Fatalf("negotiated out of range: %+v", p)
			}
			if err != nil || r.Done {
				return
			}
		}
	})
}

// A value in hexadecimal or base64 is decoded within its bounds or refused, and is read back from what we write.
func FuzzCHAPValue(f *testing.F) {
	for _, v := range []string{
		"", "0", "0x", "0b", "0X00", "0x0", "0B" + base64.StdEncoding.EncodeToString(make([]byte, 32)), "0bAA", "0bAA=", "0bAA==",
		"0bAB==", "0b====", "0bA=A=", "0x" + strings.Repeat("ff", 1025), "0xzz", "0bQUJD\n", "5", "0b" + strings.Repeat("/", 4096),
	} {
		f.Add(v, 1, 1024)
	}
	f.Add("0x"+strings.Repeat("00", 32), 32, 32)
	f.Fuzz(func(t *testing.T, v string, least, most int) {
		least, most = min(max(least, 0), 2048), min(max(most, 0), 2048)
		b, err := ParseBinary(v, least, most)
		if err != nil {
			if b != nil {
				t.Fatal("a value with an error")
			}
			return
		}
		if len(b) < least || len(b) > most || len(v) < len(b) {
			t.Fatalf("%q: %d bytes, asked for %d..%d", v, len(b), least, most)
		}
		for _, written := range []string{FormatBinary(b), "0b" + base64.StdEncoding.EncodeToString(b), "0B" + base64.RawStdEncoding.EncodeToString(b)} {
			if again, err := ParseBinary(written, len(b), len(b)); err != nil || string(again) != string(b) {
				t.Fatalf("%q is read back as %x, %v", written, again, err)
			}
		}
		// The same in a login: never proof, whatever it is.
		x := exchange{t, New(secured(mutual))}
		for _, keys := range []string{names + "AuthMethod=CHAP", "CHAP_A=8"} {
			if _, _, err := x.step(pdu.LoginRequest{}, keys); err != nil {
				t.Fatal(err)
			}
		}
		if len(v) < pdu.MaxValueBytes {
			if _, _, err := x.step(toOperational, "CHAP_N=alice", "CHAP_R="+v, "CHAP_I=1", "CHAP_C="+v); err == nil {
				t.Fatalf("%q was taken for proof", v)
			}
		}
	})
}

// A name is refused, or in the one form all names are compared in.
func FuzzName(f *testing.F) {
	for _, v := range []string{"iqn.2001-04.com.example:A", "eui.02004567A425678D", "naa.52004567BA64678D", "iqn.\u212a", "IQN.x"} {
		f.Add(v)
	}
	f.Fuzz(func(t *testing.T, v string) {
		name, err := ParseName(v)
		if err != nil {
			return
		}
		if again, err := ParseName(name); err != nil || again != name {
			t.Fatalf("%q becomes %q, and that %q, %v", v, name, again, err)
		}
		if strings.ContainsAny(name, " ,\x00\"\\\n") || len(name) > MaxNameBytes {
			t.Fatalf("%q", name)
		}
	})
}
