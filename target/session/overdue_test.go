package session

import (
	"strings"
	"testing"
	"time"

	"sanctuary/target/pdu"
)

// connectOverdue returns a peer with writes under way: of one with R2T all is asked for, of the other unsolicited data is to come.
func connectOverdue(t *testing.T, timeout time.Duration) (p *peer, r2t pdu.Header) {
	p = connect(t, setup{
		keys:   []pdu.Pair{{Key: "InitialR2T", Value: "No"}, {Key: "ImmediateData", Value: "No"}, {Key: "MaxBurstLength", Value: "262144"}},
		config: func(c *Config) { c.Ping, c.PingTimeout, c.DataTimeout = timeout/10, 10*time.Second, timeout },
	})
	p.statSN = 0
	c := p.rw(true, 0, 256<<10, 256<<10)
	p.issue(c, nil)
	r2t, _ = p.expect(pdu.OpR2T)
	c = p.rw(true, 0, 4096, 4096)
	c.Final = false
	p.issue(c, nil)
	if p.memory.Used() == 0 {
		t.Fatal("the writes hold no memory")
	}
	return p, r2t
}

func (p *peer) expectNoData() {
	p.Helper()
	p.expectClosed(0, ErrNoData)
	for since := time.Now(); p.memory.Used() != 0; time.Sleep(time.Millisecond) {
		if time.Since(since) > 5*time.Second {
			p.Fatalf("%d bytes are still lent", p.memory.Used())
		}
	}
}

// An initiator that answers pings, and sends no data of what it writes, does not keep memory for ever.
func TestWritesWhoseDataNeverComesEnd(t *testing.T) {
	p, _ := connectOverdue(t, 300*time.Millisecond)
	p.expectNoData()
}

// Nor does one whose data trickles.
func TestWritesWhoseDataTricklesEnd(t *testing.T) {
	const timeout = 200 * time.Millisecond
	p, r := connectOverdue(t, timeout)
	began := time.Now()
	for n := uint32(0); len(p.ended) == 0; n++ {
		if time.Since(began) > 10*overdueTimes*timeout {
			t.Fatal("it goes on")
		}
		var h pdu.Header
		(&pdu.DataOut{Tag: r.Tag(), TransferTag: r.TransferTag(), DataSN: n, BufferOffset: 16 * n}).Put(&h)
		if p.w.Append(&h, make([]byte, 16)) != nil || p.w.Flush() != nil {
			break
		}
		time.Sleep(timeout / 20)
	}
	err := <-p.ended
	p.ended <- err
	p.expectNoData()
	if !strings.Contains(err.Error(), "not all") && time.Since(began) > timeout*overdueTimes {
		t.Errorf("it ended with: %v", err)
	}
}

// One that is slow, and sends some all the time, is served.
func TestSlowWritesAreServed(t *testing.T) {
	const timeout = 500 * time.Millisecond
	p := connect(t, setup{
		keys:   []pdu.Pair{{Key: "InitialR2T", Value: "Yes"}, {Key: "ImmediateData", Value: "No"}, {Key: "MaxBurstLength", Value: "262144"}},
		config: func(c *Config) { c.Ping, c.PingTimeout, c.DataTimeout = timeout/10, 10*time.Second, timeout },
	})
	p.statSN = 0
	c := p.rw(true, 0, 4096, 4096)
	p.issue(c, nil)
	r, _ := p.expect(pdu.OpR2T)
	data := pattern(4096, 9)
	for n := range 16 {
		time.Sleep(timeout / 8)
		p.dataOut(pdu.DataOut{Tag: r.Tag(), TransferTag: r.TransferTag(), DataSN: uint32(n), BufferOffset: uint32(256 * n), Final: n == 15}, data[256*n:256*(n+1)])
	}
	p.expectStatus(c.Tag, 0)
}
