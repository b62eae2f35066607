package main

import (
	"time"

	"sanctuary/node/api"
)

// sampleRecovery is a LUN of which one copy is left, and a witness that has seen more.
func sampleRecovery() api.Recovery {
	at := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	before, after := at.Add(-time.Minute), at.Add(-40*time.Second)
	return api.Recovery{
		LUN: "vm1", ID: sampleLUN().ID, History: 1, From: "beta/2", Node: "beta",
		Lost: api.RecoveryLoss{ProvenBy: "witness/3", Entries: 12, BytesAtMost: 12 << 18, Seconds: 20, Unknown: []string{"alpha/1"}},
		Replicas: []api.RecoveryReplica{
			{Replica: "alpha/1", Node: "alpha", Role: "data", Unusable: "its node does not answer", NotHeardSince: &at},
			{Replica: "beta/2", Node: "beta", Role: "data", Reached: true, Term: 4, Index: 120, NewestEntry: &before},
			{Replica: "witness/3", Node: "witness", Role: "witness", Reached: true, Term: 4, Index: 132, NewestEntry: &after},
		},
	}
}

// recoveredLUN has been recovered from that copy, and its replicas are on their way.
func recoveredLUN() api.LUN {
	l := sampleLUN()
	l.History, l.Owner = 2, "beta"
	l.Recoveries = []api.RecoveryRecord{{
		History: 2, Replica: "beta/2", At: time.Date(2026, 11, 1, 12, 5, 0, 0, time.UTC), Through: "witness", By: "kk", Why: "alpha burnt down", Lost: sampleRecovery().Lost.String(),
	}}
	l.Replicas[0].ID, l.Replicas[0].State, l.Replicas[0].InSync = "alpha/4", "joining", false
	l.Replicas[1].Leaving = true
	return l
}

func recoveryAnswers() map[string]any {
	done := sampleRecovery()
	done.Done, done.History = true, 2
	return map[string]any{
		"GET /v1/luns/vm1/recovery":              sampleRecovery(),
		"POST /v1/luns/" + done.ID + "/recovery": done,
		"DELETE /v1/nodes/beta":                  map[string]any{},
		"POST /v1/nodes/beta/drain":              api.Drain{Node: "beta", LUNs: []api.DrainLUN{{LUN: "vm1"}, {LUN: "vm2", Error: "there is no place for the LUN"}}},
		"POST /v1/nodes/alpha/drain":             api.Drain{Node: "alpha"},
		"POST /v1/luns/vm1/replicas":             sampleLUN(),
		"GET /v1/luns/vm1":                       sampleLUN(),
		"POST /v1/luns/vm1/replicas/beta/revert": api.RebuildBefore{Index: 4711, Began: time.Date(2026, 11, 1, 12, 5, 0, 0, time.UTC)},
		"POST /v1/luns/vm1/replicas/alpha/revert": api.Conflict("How far the rebuild is: sanctuary lun show vm1.",
			"the copy of LUN \"vm1\" on node alpha stays as it is: the copy that it is rebuilt from has answered in the last seconds"),
	}
}

// recoveryLines are command lines about replicas and recovery.
func recoveryLines() []commandLine {
	refused := sampleRecovery()
	refused.Refused = "it is served, by node alpha"
	return []commandLine{
		{name: "lun-recover", line: "lun recover vm1"},
		{name: "lun-recover-json", line: "lun recover vm1 --node beta -o json"},
		{name: "lun-recover-refused", line: "lun recover vm1", answers: map[string]any{"GET /v1/luns/vm1/recovery": refused}},
		{name: "lun-recover-refused-accept", line: "lun recover vm1 --accept-loss --yes", answers: map[string]any{"GET /v1/luns/vm1/recovery": refused}},
		{name: "lun-recover-accept", line: "lun recover vm1 --accept-loss --by kk", input: "vm1\n"},
		{name: "lun-recover-wrong-name", line: "lun recover vm1 --accept-loss", input: "vm2\n"},
		{name: "lun-recover-yes", line: "lun recover vm1 --accept-loss --yes --why fire -o json"},
		{name: "lun-recover-nothing-decided", line: "lun recover vm1 --by kk"},
		{name: "lun-show-recovered", line: "lun show vm1", answers: map[string]any{"GET /v1/luns/vm1": recoveredLUN()}},
		{name: "replica-add", line: "lun replica add vm1 --node gamma --pool ssd1"},
		{name: "replica-add-any", line: "lun replica add vm1 --wait 0s", answers: map[string]any{
			"DELETE /v1/nodes/beta":      map[string]any{},
			"POST /v1/nodes/beta/drain":  api.Drain{Node: "beta", LUNs: []api.DrainLUN{{LUN: "vm1"}, {LUN: "vm2", Error: "there is no place for the LUN"}}},
			"POST /v1/nodes/alpha/drain": api.Drain{Node: "alpha"},
			"POST /v1/luns/vm1/replicas": recoveredLUN(),
		}},
		{name: "replica-remove", line: "lun replica remove vm1 --node beta --witness gamma"},
		{name: "replica-remove-nothing", line: "lun replica remove vm1"},
		{name: "replica-move", line: "lun replica move vm1 --from beta --to gamma -o json"},
		{name: "replica-move-witness", line: "lun replica move vm1 --from witness --to gamma"},
		{name: "replica-move-pool", line: "lun replica move vm1 --from beta --to beta --pool ssd1"},
		{name: "replica-move-nowhere", line: "lun replica move vm1 --from beta"},
		{name: "replica-revert", line: "lun replica revert vm1 --node beta", input: "vm1\n"},
		{name: "replica-revert-yes", line: "lun replica revert vm1 --node beta --yes -o json"},
		{name: "replica-revert-nothing", line: "lun replica revert vm1"},
		{name: "replica-revert-refused", line: "lun replica revert vm1 --node alpha --yes"},
		{name: "rescue-catalog", line: "rescue-catalog /var/lib/sanctuary"},
		{name: "rescue-catalog-nothing-there", line: "rescue-catalog /nonexistent --accept-loss"},
		{name: "node-drain", line: "node drain beta"},
		{name: "node-drain-nothing", line: "node drain alpha"},
		{name: "node-remove", line: "node remove beta"},
		{name: "node-remove-runs", line: "node remove beta -o json", answers: map[string]any{"DELETE /v1/nodes/beta": api.Conflict("Stop it first.", "node beta runs")}},
		{name: "replica-move-long", line: "lun replica move vm1 --from beta --to gamma --wait 1h"},
	}
}
