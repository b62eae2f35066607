package witness

import "github.com/hashicorp/raft"

// Strip returns the entries without what only data replicas need: payloads of commands. Index, term, type and
// configuration stay, which is all that a vote and a commit rest on. The originals are not changed: Raft, the journal
// and the other peers' transport still read them.
func Strip(entries []*raft.Log) []*raft.Log {
	bare := make([]raft.Log, len(entries))
	out := make([]*raft.Log, len(entries))
	for i, e := range entries {
		bare[i] = *e
		if e.Type == raft.LogCommand {
			bare[i].Data, bare[i].Extensions = nil, nil
		}
		out[i] = &bare[i]
	}
	return out
}
