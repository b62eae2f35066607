package cutblock

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

// The NBD protocol (github.com/NetworkBlockDevice/nbd, doc/proto.md): fixed newstyle negotiation, simple replies. Numbers are big-endian.
const (
	magicServer  = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption  = 0x49484156454f5054 // "IHAVEOPT"
	magicReply   = 0x0003e889045565a9 // to an option
	magicRequest = 0x25609513
	magicAnswer  = 0x67446698

	flagFixedNewstyle = 1 << 0
	flagNoZeroes      = 1 << 1

	optionExportName = 1
	optionAbort      = 2
	optionInfo       = 6
	optionGo         = 7

	replyAck         = 1
	replyInfo        = 3
	replyUnsupported = 1<<31 + 1

	infoExport    = 0
	infoBlockSize = 3

	exportFlags = 1<<0 | 1<<2 | 1<<3 // has flags, takes flushes, takes FUA

	commandRead  = 0
	commandWrite = 1
	commandEnd   = 2
	commandFlush = 3
	commandFUA   = 1 << 0

	errInvalid = 22

	maxOption = 64 << 10
	maxBytes  = 32 << 20 // of one command
)

// Serve answers clients, one after the other or at once, until the listener is closed; then it waits for all of them to have gone.
func (d *Disk) Serve(l net.Listener) error {
	var clients sync.WaitGroup
	defer clients.Wait()
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		clients.Go(func() {
			defer conn.Close()
			// A client that ends, in whichever way, is what a cut looks like from here.
			if err := d.negotiate(conn); err == nil {
				_ = d.transmit(conn)
			}
		})
	}
}

// negotiate returns nil once the client wants to transmit.
func (d *Disk) negotiate(conn io.ReadWriter) error {
	if err := send(conn, uint64(magicServer), uint64(magicOption), uint16(flagFixedNewstyle|flagNoZeroes)); err != nil {
		return err
	}
	var clientFlags uint32
	if err := receive(conn, &clientFlags); err != nil {
		return err
	}
	for {
		var magic uint64
		var option, size uint32
		if err := receive(conn, &magic, &option, &size); err != nil {
			return err
		}
		if magic != magicOption || size > maxOption {
			return fmt.Errorf("option %d of %d bytes with magic number %x", option, size, magic)
		}
		if _, err := io.CopyN(io.Discard, conn, int64(size)); err != nil { // there is one export, whatever it is called
			return err
		}
		reply := func(kind uint32, size int, fields ...any) error {
			return send(conn, append([]any{uint64(magicReply), option, kind, uint32(size)}, fields...)...)
		}
		switch option {
		case optionExportName:
			fields := []any{uint64(d.size), uint16(exportFlags)}
			if clientFlags&flagNoZeroes == 0 {
				fields = append(fields, make([]byte, 124))
			}
			return send(conn, fields...)
		case optionInfo, optionGo:
			err := errors.Join(
				reply(replyInfo, 12, uint16(infoExport), uint64(d.size), uint16(exportFlags)),
				reply(replyInfo, 14, uint16(infoBlockSize), uint32(SectorBytes), uint32(4096), uint32(maxBytes)),
				reply(replyAck, 0))
			if err != nil || option == optionGo {
				return err
			}
		case optionAbort:
			return errors.Join(reply(replyAck, 0), io.EOF)
		default:
			if err := reply(replyUnsupported, 0); err != nil {
				return err
			}
		}
	}
}

// transmit answers commands in order.
func (d *Disk) transmit(conn io.ReadWriter) error {
	for {
		var magic, size uint32
		var flags, command uint16
		var handle, offset uint64
		if err := receive(conn, &magic, &flags, &command, &handle, &offset, &size); err != nil {
			return err
		}
		if magic != magicRequest || size > maxBytes {
			return fmt.Errorf("command %d of %d bytes with magic number %x", command, size, magic)
		}
		var data []byte
		if command == commandWrite || command == commandRead {
			data = make([]byte, size)
		}
		if command == commandWrite {
			if _, err := io.ReadFull(conn, data); err != nil {
				return err
			}
		}
		powered, failure := true, uint32(0)
		inside := offset%SectorBytes == 0 && size%SectorBytes == 0 && offset <= uint64(d.size) && uint64(size) <= uint64(d.size)-offset
		switch {
		case command == commandEnd:
			return nil
		case command == commandFlush:
			powered = d.flush()
		case command == commandRead && inside:
			powered = d.read(data, int64(offset))
		case command == commandWrite && inside:
			powered = d.write(data, int64(offset), flags&commandFUA != 0)
		default:
			failure = errInvalid
		}
		if !powered { // no answer, ever
			_, err := io.Copy(io.Discard, conn)
			return err
		}
		answer := []any{uint32(magicAnswer), failure, handle}
		if command == commandRead && failure == 0 {
			answer = append(answer, data)
		}
		if err := send(conn, answer...); err != nil {
			return err
		}
	}
}

func send(w io.Writer, fields ...any) error {
	var out []byte
	for _, f := range fields {
		var err error
		if out, err = binary.Append(out, binary.BigEndian, f); err != nil {
			return err
		}
	}
	_, err := w.Write(out)
	return err
}

func receive(r io.Reader, fields ...any) error {
	for _, f := range fields {
		if err := binary.Read(r, binary.BigEndian, f); err != nil {
			return err
		}
	}
	return nil
}
