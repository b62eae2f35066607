package vfs

import "testing"

func TestHolderIsReadFromTheKernelsList(t *testing.T) {
	const locks = `1: POSIX  ADVISORY  WRITE 11 08:01:77 0 EOF
2: FLOCK  ADVISORY  READ  12 08:01:77 0 EOF
2: -> FLOCK  ADVISORY  WRITE 13 08:01:77 0 EOF
3: FLOCK  ADVISORY  WRITE 14 08:01:78 0 EOF
4: FLOCK  ADVISORY  WRITE 15 fe:00:77 0 EOF
`
	if pid, ok := holder(locks, 77); !ok || pid != 15 {
		t.Errorf("%d, %t", pid, ok)
	}
	if pid, ok := holder(locks, 79); ok {
		t.Errorf("%d holds what nobody holds", pid)
	}
}
