package block

// Finding is something that is wrong with what lies on a disk, found by looking at it.
type Finding struct {
	Kind string `json:"kind"` // what kind of structure: "leaf", "journal entry"; the words are those of docs/FORMATS.md
	// Path is the file or device, Offset the byte in it where the structure begins; -1: no place in particular.
	Path   string `json:"path"`
	Offset int64  `json:"offset"`
	Volume string `json:"volume,omitempty"` // the volume it belongs to
	What   string `json:"what"`             // what was found
	Data   string `json:"data"`             // what that means for the data
	Next   string `json:"next"`             // what to do
}
