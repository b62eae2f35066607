package initiator_test

import (
	"fmt"
	"sync/atomic"
	"testing"

	"sanctuary/target/initiator"
)

// BenchmarkSession is one connection over loopback to a LUN in memory: the whole of the target and of this initiator, and
// nothing of storage or replication. What it allocates is both sides' together.
func BenchmarkSession(b *testing.B) {
	for _, depth := range []int{1, 32} {
		for _, op := range []string{"read", "write"} {
			b.Run(fmt.Sprintf("%s 4 KiB at depth %d", op, depth), func(b *testing.B) {
				c := newCluster(b, 1)
				s := ready(b, c, func(*initiator.Config) {})
				b.ReportAllocs()
				b.SetBytes(4096)
				var next atomic.Int64
				done := make(chan error)
				for range depth {
					go func() {
						buf := make([]byte, 4096)
						for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
							var err error
							if lba := uint64(i*8) % sectors; op == "read" {
								err = s.Read(b.Context(), lba, 8, buf)
							} else {
								err = s.Write(b.Context(), lba, 8, buf)
							}
							if err != nil {
								done <- err
								return
							}
						}
						done <- nil
					}()
				}
				for range depth {
					if err := <-done; err != nil {
						b.Error(err)
					}
				}
			})
		}
	}
}
