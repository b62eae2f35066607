package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// floor is what no replicated write on files can be faster than: a copy elsewhere takes a message there and back, and to be durable takes a disk's
// time. Both in µs, each one after the other as at depth 1.
type floor struct {
	sync []float64 // fdatasync of floorBytes written into a file that has its blocks
	trip []float64 // over TCP and loopback, 4 KiB there and 64 bytes back
}

const (
	floorBytes  = 8 << 10 // what a write of 4 KiB takes in a journal
	floorRounds = 1000
)

// add takes a sample of each, in the folder where the file LUNs are.
func (f *floor) add(dir string) error {
	err := f.addSyncs(filepath.Join(dir, "floor"))
	return errors.Join(err, f.addTrips())
}

func (f *floor) addSyncs(path string) (err error) {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close(), os.Remove(path)) }()
	block := make([]byte, floorBytes)
	for i := range floorRounds {
		if _, err := file.WriteAt(block, int64(i)*floorBytes); err != nil {
			return err
		}
	}
	if err := file.Sync(); err != nil {
		return err
	}
	for i := range floorRounds {
		start := time.Now()
		if _, err := file.WriteAt(block, int64(i)*floorBytes); err != nil {
			return err
		}
		if err := unix.Fdatasync(int(file.Fd())); err != nil {
			return fmt.Errorf("fdatasync: %w", err)
		}
		f.sync = append(f.sync, float64(time.Since(start))/float64(time.Microsecond))
	}
	return nil
}

func (f *floor) addTrips() error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer l.Close()
	served := make(chan error, 1)
	go func() { served <- answer(l) }()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return err
	}
	there, back := make([]byte, 4<<10), make([]byte, 64)
	for range floorRounds {
		start := time.Now()
		if _, err := conn.Write(there); err != nil {
			return errors.Join(err, conn.Close())
		}
		if _, err := io.ReadFull(conn, back); err != nil {
			return errors.Join(err, conn.Close())
		}
		f.trip = append(f.trip, float64(time.Since(start))/float64(time.Microsecond))
	}
	return errors.Join(conn.Close(), <-served)
}

// answer takes one connection and answers 4 KiB with 64 bytes until it is closed.
func answer(l net.Listener) error {
	conn, err := l.Accept()
	if err != nil {
		return err
	}
	defer conn.Close()
	there, back := make([]byte, 4<<10), make([]byte, 64)
	for {
		if _, err := io.ReadFull(conn, there); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if _, err := conn.Write(back); err != nil {
			return err
		}
	}
}

func (f *floor) String() string {
	return fmt.Sprintf("Beside it, before and after all jobs: fdatasync of %d KiB in the folder of the file LUNs took %.0f µs, 4 KiB over loopback TCP and 64 bytes back %.0f µs (medians).",
		floorBytes>>10, median(f.sync), median(f.trip))
}
