package login

import (
	"errors"
	"fmt"

	"sanctuary/target/pdu"
)

// Params is a session's parameters: asked for in Config.Offer, negotiated in Machine.Params.
type Params struct {
	Initiator      string // InitiatorName, in lower case (RFC 3722 folds it)
	InitiatorAlias string
	Target         string // TargetName in lower case, empty in a discovery session
	Discovery      bool
	ISID           [6]byte
	TSIH           uint16
	CID            uint16
	User           string    // CHAP user the initiator has proved to be, empty with AuthMethod=None
	Algorithm      Algorithm // of that proof
	Mutual         bool      // this target has proved itself as well

	HeaderDigest, DataDigest bool // CRC32C; in an offer: accepted if the initiator wants it
	InitialR2T               bool
	ImmediateData            bool
	MaxRecvData              int // the longest data segment we take: 512..2^24-1
	MaxSendData              int // the longest data segment the initiator takes (its MaxRecvDataSegmentLength)
	MaxBurst                 int // 512..2^24-1
	FirstBurst               int // 512..2^24-1
	MaxOutstandingR2T        int // 1..65535
	Time2Wait                int // seconds, 0..3600
	Time2Retain              int // seconds, 0..3600
	MaxConnections           int
	ErrorRecoveryLevel       int
}

// DefaultOffer is what suits a storage network: one round trip less for writes up to FirstBurst, long bursts, no
// connection or error recovery beyond a new login.
func DefaultOffer() Params {
	return Params{
		HeaderDigest: true, DataDigest: true, InitialR2T: false, ImmediateData: true,
		MaxRecvData: 256 << 10, MaxBurst: 1 << 20, FirstBurst: 256 << 10, MaxOutstandingR2T: 8,
		Time2Wait: 0, Time2Retain: 0, MaxConnections: 1, ErrorRecoveryLevel: 0,
	}
}

// defaults are the values of keys that were not negotiated (RFC 7143 §13).
func defaults() Params {
	return Params{
		InitialR2T: true, ImmediateData: true, MaxRecvData: 8192, MaxSendData: 8192, MaxBurst: 262144, FirstBurst: 65536,
		MaxOutstandingR2T: 1, Time2Wait: 2, Time2Retain: 20, MaxConnections: 1,
	}
}

// Validate names the field that is out of range.
func (c *Config) Validate() error {
	o := &c.Offer
	for _, f := range []struct {
		name          string
		v, least, top int
	}{
		{"MaxRecvData", o.MaxRecvData, 512, pdu.MaxDataLength},
		{"MaxBurst", o.MaxBurst, 512, pdu.MaxDataLength},
		{"FirstBurst", o.FirstBurst, 512, o.MaxBurst},
		{"MaxOutstandingR2T", o.MaxOutstandingR2T, 1, 65535},
		{"Time2Wait", o.Time2Wait, 0, 3600},
		{"Time2Retain", o.Time2Retain, 0, 3600},
		{"MaxConnections", o.MaxConnections, 1, 1},
		{"ErrorRecoveryLevel", o.ErrorRecoveryLevel, 0, 0},
		{"GroupTag", int(c.GroupTag), 1, 65535},
	} {
		if f.v < f.least || f.v > f.top {
			return fmt.Errorf("login: %s is %d, use %d..%d", f.name, f.v, f.least, f.top)
		}
	}
	if c.Establish == nil || c.Admit == nil {
		return errors.New("login: Admit and Establish are needed")
	}
	return nil
}
