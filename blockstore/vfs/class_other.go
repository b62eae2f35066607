//go:build unix && !linux

package vfs

// ClassOf returns ClassSSD: only Linux tells.
func ClassOf(string) (class Class, why string) {
	return ClassSSD, "this system does not tell whether a disk rotates: taken for an SSD"
}
