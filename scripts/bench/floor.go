package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// floor is what no write on files can be faster than: to be durable takes a disk's time.
type floor struct {
	sync []float64 // µs, one after the other as at depth 1: fdatasync of floorBytes written into a file that has its blocks
}

const (
	floorBytes  = 8 << 10 // what a write of 4 KiB takes in a journal
	floorRounds = 1000
)

// add takes samples in the folder where the file LUNs are.
func (f *floor) add(dir string) (err error) {
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

func (f *floor) String() string {
	return fmt.Sprintf("Beside it, before and after all jobs: fdatasync of %d KiB in the folder of the file LUNs took %.0f µs (median).", floorBytes>>10, median(f.sync))
}
