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

// floor is what no write on files can be faster than: to be durable takes a disk's time, and a second copy a network's besides.
type floor struct {
	sync  []float64 // µs, one after the other as at depth 1: fdatasync of floorBytes written into a file that has its blocks
	trips []float64 // µs, of a message and its answer on loopback
}

const (
	floorBytes  = 8 << 10 // what a write of 4 KiB takes in a journal
	floorRounds = 1000
	tripBytes   = 4 << 10
	answerBytes = 64
)

// add takes samples, of the disk in the folder where the file LUNs are.
func (f *floor) add(dir string) error {
	return errors.Join(f.addSyncs(dir), f.addTrips())
}

func (f *floor) addSyncs(dir string) (err error) {
	path := filepath.Join(dir, "floor")
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

// addTrips sends what a write brings to a peer and waits for what the peer says: a process that has two ends of a connection stands for both.
func (f *floor) addTrips() (err error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, listener.Close()) }()
	near, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		return err
	}
	far, err := listener.Accept()
	if err != nil {
		return errors.Join(err, near.Close())
	}
	answered := make(chan error, 1)
	go func() {
		message := make([]byte, tripBytes)
		for range floorRounds {
			if _, err := io.ReadFull(far, message); err != nil {
				answered <- err
				return
			}
			if _, err := far.Write(message[:answerBytes]); err != nil {
				answered <- err
				return
			}
		}
		answered <- nil
	}()
	message := make([]byte, tripBytes)
	for range floorRounds {
		start := time.Now()
		if _, err = near.Write(message); err != nil {
			break
		}
		if _, err = io.ReadFull(near, message[:answerBytes]); err != nil {
			break
		}
		f.trips = append(f.trips, float64(time.Since(start))/float64(time.Microsecond))
	}
	return errors.Join(err, near.Close(), <-answered, far.Close())
}

func (f *floor) String() string {
	return fmt.Sprintf("Beside it, before and after all jobs, medians: fdatasync of %d KiB in the folder of the file LUNs took %.0f µs, a message of %d KiB over TCP on loopback and its answer of %d bytes %.0f µs.",
		floorBytes>>10, median(f.sync), tripBytes>>10, answerBytes, median(f.trips))
}
