package api

// Logins are how the logins at one node's portals have ended since it was started.
type Logins struct {
	Node        string `json:"node" doc:"Node whose portals these are"`
	Succeeded   uint64 `json:"succeeded"`
	Moved       uint64 `json:"moved" doc:"Sent to another portal"`
	NotProved   uint64 `json:"not_proved" doc:"Wrong secret, or none where one is needed"`
	Throttled   uint64 `json:"throttled" doc:"Refused unseen after too many of those"`
	NotAllowed  uint64 `json:"not_allowed" doc:"At a target that the initiator may not use. It is told that there is none"`
	NotFound    uint64 `json:"not_found" doc:"At a target that does not exist, or not on this node"`
	Unavailable uint64 `json:"unavailable" doc:"Refused for a moment: the node was not ready, leaving, or out of room"`
	Malformed   uint64 `json:"malformed" doc:"Broke the protocol"`
	Unfinished  uint64 `json:"unfinished" doc:"Closed, broken or timed out before the end"`
	TurnedAway  uint64 `json:"turned_away" doc:"Connections beyond a limit, closed unheard"`
	Panics      uint64 `json:"panics" doc:"Connections ended by a mistake of the program"`
}
