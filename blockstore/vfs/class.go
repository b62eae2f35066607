package vfs

// Class says how fast a medium is, and whether what is on it lasts.
type Class string

// Classes.
const (
	ClassRAM Class = "ram" // memory: gone when the power is
	ClassSSD Class = "ssd" // no moving parts
	ClassHDD Class = "hdd" // rotating
)
