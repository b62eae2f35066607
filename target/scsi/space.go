package scsi

import (
	"encoding/binary"
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// Space is how much room there is for a LUN.
type Space struct {
	// Used is how much the LUN occupies on one replica, in bytes.
	Used int64
	// Available is how much can still be allocated for it, in bytes: the least over its replicas. Other LUNs draw on the same.
	Available int64
	// WarnBelow is the Available, in bytes, at which initiators are warned unless they have chosen otherwise (MODE SELECT); 0: they
	// are not.
	WarnBelow int64
}

// thresholdSetBytes is what RESOURCE COUNT and THRESHOLD COUNT count: 1 MiB, so that 16 TiB fit well into 32 bits.
const thresholdSetBytes = 1 << 20

// thresholdExponent is VPD page B2h's: the logical blocks in a threshold set, as a power of two.
func thresholdExponent(logicalBlockBytes int) byte {
	n := byte(0)
	for size := logicalBlockBytes; size < thresholdSetBytes; size *= 2 {
		n++
	}
	return n
}

// thresholdSets returns bytes in threshold sets, rounded down, as it fits into 32 bits.
func thresholdSets(bytes int64) uint32 {
	return uint32(min(max(bytes, 0)/thresholdSetBytes, math.MaxUint32))
}

// thresholdKind is one of the thresholds: a soft threshold (type 0) of one LBA mapping resource.
type thresholdKind struct {
	resource   byte // THRESHOLD RESOURCE, and the parameter code of the log page
	increasing bool // THRESHOLD ARMING: reached from below; else from above
	scope      byte // of the resource: 1 this logical unit, 2 shared with others
	count      func(s Space) int64
}

var thresholdKinds = [spaceThresholds]thresholdKind{
	{resource: 0x01, scope: 2, count: func(s Space) int64 { return s.Available }},
	{resource: 0x02, increasing: true, scope: 1, count: func(s Space) int64 { return s.Used }},
}

// threshold returns what holds of threshold i: what was chosen, or the default.
func (v *modeValues) threshold(i int, s Space) spaceThreshold {
	if t := v.thresholds[i]; t.chosen {
		return t
	}
	if i == 0 && s.WarnBelow > 0 {
		return spaceThreshold{enabled: true, count: thresholdSets(s.WarnBelow + thresholdSetBytes - 1)}
	}
	return spaceThreshold{}
}

// provisioningHeader is the part of the logical block provisioning page before its threshold descriptors: SITUA=0, every
// initiator is told.
const provisioningHeader = 12

// provisioningMask: of each threshold, ENABLED and THRESHOLD COUNT can be changed.
var provisioningMask = []byte{
	provisioningHeader: 0x80, provisioningHeader + 4: 0xFF, 0xFF, 0xFF, 0xFF,
	provisioningHeader + 8: 0x80, provisioningHeader + 12: 0xFF, 0xFF, 0xFF, 0xFF,
}

// provisioningPage is the logical block provisioning mode page (SBC-3 r36 §6.5.9).
func provisioningPage(u *Unit, v modeValues) []byte {
	b := make([]byte, provisioningHeader, provisioningHeader+8*spaceThresholds)
	space := u.cfg.Space()
	for i, k := range thresholdKinds {
		t := v.threshold(i, space)
		b = append(b, bit(7, t.enabled)|bit(0, k.increasing), k.resource, 0, 0)
		b = binary.BigEndian.AppendUint32(b, t.count)
	}
	return b
}

// takeProvisioningPage leaves a default that is only repeated a default.
func takeProvisioningPage(u *Unit, v *modeValues, body []byte) {
	space := u.cfg.Space()
	for i := range v.thresholds {
		d := body[provisioningHeader+8*i:]
		t := spaceThreshold{enabled: d[0]&0x80 != 0, count: binary.BigEndian.Uint32(d[4:])}
		if have := v.threshold(i, space); t.enabled != have.enabled || t.count != have.count {
			t.chosen = true
			v.thresholds[i] = t
		}
	}
}

// spaceWatch notices when a threshold is crossed. Nobody tells it: commands look, at most once per spaceEvery.
type spaceWatch struct {
	crossings [spaceThresholds]atomic.Uint64 // how often a threshold was reached: every nexus compares
	next      atomic.Int64                   // when to look again, since processStart

	mu      sync.Mutex
	reached [spaceThresholds]bool
}

const spaceEvery = time.Second

// processStart is where monotonic times that fit into an integer count from.
var processStart = time.Now()

// crossings counts how often each threshold was reached.
type crossings [spaceThresholds]uint64

func (w *spaceWatch) crossed() (c crossings) {
	for i := range c {
		c[i] = w.crossings[i].Load()
	}
	return c
}

// thresholdReached is THIN PROVISIONING SOFT THRESHOLD REACHED. INFORMATION says which: the offset of its descriptor in the mode page
// (SBC-3 §4.7.3.7.6).
func thresholdReached(i int) *Sense {
	return &Sense{Key: UnitAttention, Code: 0x3807, Info: uint64(subpageHeader + provisioningHeader + 8*i), HasInfo: true}
}

// subpageHeader is the length of the header of a mode page in subpage format.
const subpageHeader = 4

// look returns crossings, brought up to date if it is time. A threshold that is reached when the unit is first used is
// nobody's news: a nexus compares with what it found at its own first command.
func (w *spaceWatch) look(u *Unit) crossings {
	if u.cfg.Space == nil {
		return crossings{}
	}
	now := int64(time.Since(processStart))
	if now < w.next.Load() || !w.mu.TryLock() {
		return w.crossed()
	}
	defer w.mu.Unlock()
	w.next.Store(now + int64(spaceEvery))
	values, space := u.modes(), u.cfg.Space()
	for i, k := range thresholdKinds {
		t := values.threshold(i, space)
		reached := t.enabled && !values.quietSpace && k.reached(t.count, space, w.reached[i])
		if reached && !w.reached[i] {
			w.crossings[i].Add(1)
		}
		w.reached[i] = reached
	}
	return w.crossed()
}

// reached says whether the resource stands at or beyond its threshold. One that was reached is left only at one threshold set's
// distance, so that a value that trembles is not reported again and again.
func (k *thresholdKind) reached(count uint32, s Space, before bool) bool {
	have, limit := k.count(s), int64(count)*thresholdSetBytes
	margin := int64(0)
	if before {
		margin = thresholdSetBytes
	}
	if k.increasing {
		return have >= limit-margin
	}
	return have <= limit+margin
}
