package api

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
)

// Recovery says what a forced recovery of a LUN would mean, or has meant.
type Recovery struct {
	LUN      string            `json:"lun" doc:"Name of the LUN"`
	ID       string            `json:"id" doc:"Its ID" format:"uuid"`
	History  uint64            `json:"history" doc:"Number of its present history: each forced recovery begins a new one"`
	Refused  string            `json:"refused,omitempty" doc:"Why it is not recovered by force now"`
	From     string            `json:"from,omitempty" doc:"Replica it would go on, or goes on, from"`
	Node     string            `json:"node,omitempty" doc:"The node of that replica"`
	Lost     RecoveryLoss      `json:"lost" doc:"What would be lost"`
	Replicas []RecoveryReplica `json:"replicas" nullable:"false" doc:"What was found of each replica"`
	Done     bool              `json:"done" doc:"It has been decided: the LUN goes on from that copy"`
}

// RecoveryLoss is what others, or the copy itself, prove to have existed and the copy does not hold.
type RecoveryLoss struct {
	ProvenBy    string   `json:"proven_by,omitempty" doc:"Replica whose log is longer, or the copy itself of what it once held; absent: nobody who can be reached knows of more than the copy holds"`
	Entries     uint64   `json:"entries" doc:"Log entries the copy lacks: each holds one or several writes"`
	BytesAtMost int64    `json:"bytes_at_most" doc:"What they can have held"`
	Seconds     float64  `json:"seconds" doc:"About the time from the copy's newest entry to the newest that is proven, by the clocks of their nodes"`
	LostFrom    uint64   `json:"lost_from,omitempty" doc:"First log entry that the copy itself once held and that is lost, since its log is damaged from there on, and cut off; absent: none"`
	LostTo      uint64   `json:"lost_to,omitempty" doc:"Last of them"`
	Unknown     []string `json:"unknown" nullable:"false" doc:"Replicas that could not be asked: what they alone hold is not known"`
}

// String returns the loss in words.
func (l RecoveryLoss) String() string {
	s := "nothing that is known of"
	if l.ProvenBy != "" {
		s = fmt.Sprintf("%d log entries, at most %d bytes, that %s proves to have existed", l.Entries, l.BytesAtMost, l.ProvenBy)
		if l.Seconds > 0 {
			s += fmt.Sprintf("; the copy is about %.0f s behind", max(1, l.Seconds))
		}
	}
	if l.LostFrom > 0 {
		s += fmt.Sprintf("; of the copy's own log entries %d to %d are lost, since it is damaged", l.LostFrom, l.LostTo)
	}
	if len(l.Unknown) > 0 {
		s += fmt.Sprintf("; not asked: %v", l.Unknown)
	}
	return s
}

// RecoveryReplica is what was found of one replica.
type RecoveryReplica struct {
	Replica       string     `json:"replica" doc:"Its ID"`
	Node          string     `json:"node"`
	Role          string     `json:"role" enum:"data,witness"`
	Reached       bool       `json:"reached" doc:"Its node has answered"`
	Unusable      string     `json:"unusable,omitempty" doc:"Why it is no copy to go on from"`
	Term          uint64     `json:"term,omitempty" doc:"Raft term of its newest log entry"`
	Index         uint64     `json:"index,omitempty" doc:"Its newest log entry"`
	NewestEntry   *time.Time `json:"newest_entry,omitempty" doc:"About when that entry was stored there, by the clock of its node"`
	LastHeard     *time.Time `json:"last_heard,omitempty" doc:"When another replica last heard it"`
	NotHeardSince *time.Time `json:"not_heard_since,omitempty" doc:"No replica that answers has heard it since it was started, at this time"`
}

// RecoverSpec asks for a forced recovery.
type RecoverSpec struct {
	AcceptLoss bool   `json:"accept_loss" doc:"Must be true: whatever the copy does not hold is lost"`
	History    uint64 `json:"history" doc:"The history that was looked at: a LUN that is in another one is left alone"`
	Node       string `json:"node,omitempty" maxLength:"63" doc:"Node whose copy it is to go on from; empty: the one that holds most"`
	By         string `json:"by,omitempty" maxLength:"256" doc:"Who decides this, for the record"`
	Why        string `json:"why,omitempty" maxLength:"1000" doc:"Why, for the record"`
}

// RecoveryRecord is a forced recovery that was made.
type RecoveryRecord struct {
	History uint64    `json:"history" doc:"Number of the history it began"`
	Replica string    `json:"replica" doc:"Replica the LUN went on from"`
	At      time.Time `json:"at"`
	Through string    `json:"through" doc:"Node that decided it"`
	By      string    `json:"by,omitempty" doc:"Who asked for it"`
	Why     string    `json:"why,omitempty"`
	Lost    string    `json:"lost,omitempty" doc:"What was known to be lost"`
}

type (
	recoveryRequest struct {
		LUNRequest
		Node string `query:"node" maxLength:"63" doc:"Node whose copy to look at; empty: the one that holds most"`
	}
	recoverRequest struct {
		LUNRequest
		WaitQuery
		Body RecoverSpec
	}
)

func (s *Server) registerRecovery() {
	look := reads("get-recovery", "/v1/luns/{lun}/recovery", "What a forced recovery of a LUN would mean", "luns")
	look.Description = "Nothing is changed. Any node answers, after asking the LUN's other nodes."
	huma.Register(s.api, look, s.getRecovery)
	do := changes("recover-lun", http.MethodPost, "/v1/luns/{lun}/recovery", "Let a LUN go on from one copy, by force", "luns", http.StatusOK, s.toLeader)
	do.Description = "Refused while the LUN could help itself. What the copy does not hold is lost, and every other replica is made anew from it."
	huma.Register(s.api, do, s.recoverLUN)
}

func (s *Server) getRecovery(ctx context.Context, in *recoveryRequest) (*reply[Recovery], error) {
	r, err := s.svc.Recovery(ctx, in.LUN, in.Node)
	if err != nil {
		return nil, asProblem(err)
	}
	return &reply[Recovery]{r}, nil
}

func (s *Server) recoverLUN(ctx context.Context, in *recoverRequest) (*reply[Recovery], error) {
	wait, err := in.duration(defaultWait)
	if err != nil {
		return nil, err
	}
	if !in.Body.AcceptLoss {
		return nil, Invalid("Look first (sanctuary lun recover NAME), then repeat with --accept-loss.", "a forced recovery needs accept_loss")
	}
	r, err := s.svc.RecoverLUN(ctx, in.LUN, in.Body)
	if err != nil {
		return nil, asProblem(err)
	}
	s.settle(ctx)
	if _, err := s.await(ctx, r.ID, wait, LUN.Served); err != nil {
		return nil, asProblem(err)
	}
	return &reply[Recovery]{r}, nil
}
