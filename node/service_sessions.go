package node

import (
	"context"
	"encoding/hex"
	"strconv"

	"sanctuary/node/api"
	"sanctuary/target"
	"sanctuary/target/login"
)

// sessionView is a session as the API shows it.
func (s service) sessionView(x target.Session) api.Session {
	p := x.Params
	return api.Session{
		ID: api.SessionID(s.n.cfg.Node, strconv.Itoa(int(x.TSIH))), Node: s.n.cfg.Node,
		Initiator: x.Initiator, ISID: hex.EncodeToString(x.ISID[:]), Target: x.Target, Remote: x.Remote, Local: x.Local,
		Since: x.Since, PortalGroup: x.Group.Tag, Port: x.Port, CHAPUser: p.User, Algorithm: algorithm(p), Alias: p.InitiatorAlias, HeaderDigest: p.HeaderDigest, DataDigest: p.DataDigest,
		Commands: x.Stats.Commands, ReadBytes: x.Stats.BytesOut, WrittenBytes: x.Stats.BytesIn,
		Params: api.SessionParams{
			MaxRecvDataSegmentLength: p.MaxRecvData, MaxSendDataSegmentLength: p.MaxSendData,
			MaxBurstLength: p.MaxBurst, FirstBurstLength: p.FirstBurst, MaxOutstandingR2T: p.MaxOutstandingR2T,
			InitialR2T: p.InitialR2T, ImmediateData: p.ImmediateData, ErrorRecoveryLevel: p.ErrorRecoveryLevel,
			DefaultTime2Wait: p.Time2Wait, DefaultTime2Retain: p.Time2Retain,
		},
		Counters: api.SessionCounters{
			PDUsIn: x.Stats.PDUsIn, PDUsOut: x.Stats.PDUsOut, R2Ts: x.Stats.R2Ts, Rejects: x.Stats.Rejects,
			Ignored: x.Stats.Ignored, Crowded: x.Stats.Crowded, Aborted: x.Stats.Aborted,
			Outstanding: x.Stats.Outstanding, LongestQueue: x.Stats.LongestQueue, Idle: x.Stats.SinceCommand,
			Pings: x.Stats.Pings, DigestErrors: x.Stats.DigestErrors, Errors: x.Counters.Errors, Busy: x.Counters.Busy,
			Conflicts: x.Counters.Conflicts, Attentions: x.Counters.Attentions,
		},
	}
}

func algorithm(p login.Params) string {
	if p.User == "" {
		return ""
	}
	return p.Algorithm.String()
}

// Logins implements api.Service.
func (s service) Logins() (api.Logins, bool) {
	portal := s.n.portal.Load()
	if portal == nil {
		return api.Logins{}, false
	}
	l := portal.LoginStats()
	return api.Logins{
		Node: s.n.cfg.Node, Succeeded: l.Succeeded, Moved: l.Moved, NotProved: l.NotProved, Throttled: l.Throttled, NotAllowed: l.NotAllowed,
		NotFound: l.NotFound, Unavailable: l.Unavailable, Malformed: l.Malformed, Unfinished: l.Unfinished, TurnedAway: l.TurnedAway, Panics: l.Panics,
	}, true
}

// CloseSession implements api.Service.
func (s service) CloseSession(_ context.Context, handle string) error {
	tsih, err := strconv.ParseUint(handle, 10, 16)
	if err != nil {
		return api.NotFound("there is no session %q on node %s", handle, s.n.cfg.Node)
	}
	portal := s.n.portal.Load()
	if portal == nil || !portal.CloseSession(uint16(tsih)) {
		return api.NotFound("there is no session %q on node %s", handle, s.n.cfg.Node)
	}
	return nil
}
