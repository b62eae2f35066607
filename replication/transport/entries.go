//lint:file-ignore SA1019 Raft still fills in and reads the fields it calls deprecated; they travel like the others.

package transport

import (
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"sanctuary/proto/peerpb"
)

// This file writes and reads peerpb.AppendRequest by hand: the same bytes the generated code would read and write, but the
// entries' payloads are referred to, on the way out in the log's own memory, on the way in as slices of one buffer.

// Field numbers of AppendRequest and Entry, as peer.proto has them; a test compares with the generated code.
const (
	reqHeader    = 1
	reqTerm      = 2
	reqLeader    = 3
	reqPrevEntry = 4
	reqPrevTerm  = 5
	reqCommit    = 6
	reqEntries   = 7

	entIndex      = 1
	entTerm       = 2
	entType       = 3
	entData       = 4
	entExtensions = 5
	entSeconds    = 6
	entNanos      = 7
)

// inlineBytes: payloads shorter than this are copied next to their header; a reference would cost more.
const inlineBytes = 256

// entryOverhead is what an entry takes on the wire at most beside its Data and Extensions, in bytes.
const entryOverhead = 80

// entryBytes is an upper bound of an entry's size on the wire.
func entryBytes(l *raft.Log) int { return len(l.Data) + len(l.Extensions) + entryOverhead }

// encodeAppend gives the request as pieces to be sent one after the other, and their length in all. The pieces refer to
// the entries' Data and Extensions.
func encodeAppend(a *raft.AppendEntriesRequest) (pieces [][]byte, total int, err error) {
	small := 0
	for _, e := range a.Entries {
		small += entryOverhead
		if len(e.Data) < inlineBytes {
			small += len(e.Data)
		}
		if len(e.Extensions) < inlineBytes {
			small += len(e.Extensions)
		}
	}
	header, err := marshalProto(headerToWire(a.RPCHeader))
	if err != nil {
		return nil, 0, err
	}
	// One buffer for everything that is not a referred payload. It must not grow: pieces are slices of it.
	b := make([]byte, 0, small+len(header)+len(a.Leader)+96)
	if len(header) > 0 {
		b = appendField(b, reqHeader, header)
	}
	b = appendUint(b, reqTerm, a.Term)
	b = appendField(b, reqLeader, a.Leader)
	b = appendUint(b, reqPrevEntry, a.PrevLogEntry)
	b = appendUint(b, reqPrevTerm, a.PrevLogTerm)
	b = appendUint(b, reqCommit, a.LeaderCommitIndex)
	pieces = make([][]byte, 0, 2*len(a.Entries)+1)
	from := 0 // b[from:] is not in pieces yet
	payload := func(num protowire.Number, p []byte) {
		if len(p) == 0 {
			return
		}
		b = protowire.AppendVarint(protowire.AppendTag(b, num, protowire.BytesType), uint64(len(p)))
		if len(p) < inlineBytes {
			b = append(b, p...)
			return
		}
		pieces = append(pieces, b[from:len(b):len(b)], p)
		from = len(b)
	}
	for _, e := range a.Entries {
		b = protowire.AppendTag(b, reqEntries, protowire.BytesType)
		b = protowire.AppendVarint(b, uint64(entrySize(e)))
		b = appendUint(b, entIndex, e.Index)
		b = appendUint(b, entTerm, e.Term)
		b = appendUint(b, entType, uint64(e.Type))
		payload(entData, e.Data)
		payload(entExtensions, e.Extensions)
		if !e.AppendedAt.IsZero() {
			b = protowire.AppendTag(b, entSeconds, protowire.VarintType)
			b = protowire.AppendVarint(b, uint64(e.AppendedAt.Unix())) // int64 on the wire: two's complement
			b = appendUint(b, entNanos, uint64(e.AppendedAt.Nanosecond()))
		}
	}
	if from < len(b) {
		pieces = append(pieces, b[from:])
	}
	for _, p := range pieces {
		total += len(p)
	}
	return pieces, total, nil
}

// entrySize is the exact size of an Entry on the wire.
func entrySize(e *raft.Log) int {
	n := 0
	number := func(num protowire.Number, v uint64) {
		if v != 0 {
			n += protowire.SizeTag(num) + protowire.SizeVarint(v)
		}
	}
	number(entIndex, e.Index)
	number(entTerm, e.Term)
	number(entType, uint64(e.Type))
	if len(e.Data) > 0 {
		n += protowire.SizeTag(entData) + protowire.SizeBytes(len(e.Data))
	}
	if len(e.Extensions) > 0 {
		n += protowire.SizeTag(entExtensions) + protowire.SizeBytes(len(e.Extensions))
	}
	if !e.AppendedAt.IsZero() {
		n += protowire.SizeTag(entSeconds) + protowire.SizeVarint(uint64(e.AppendedAt.Unix()))
		number(entNanos, uint64(e.AppendedAt.Nanosecond()))
	}
	return n
}

// chunker cuts pieces into chunks.
type chunker struct{ rest [][]byte }

// next gives up to limit bytes as slices of the pieces; empty when there are no more.
func (c *chunker) next(limit int) [][]byte {
	var out [][]byte
	for limit > 0 && len(c.rest) > 0 {
		p := c.rest[0]
		if len(p) > limit {
			out = append(out, p[:limit:limit])
			c.rest[0] = p[limit:]
			return out
		}
		out = append(out, p)
		limit -= len(p)
		c.rest = c.rest[1:]
	}
	return out
}

var errBadAppend = errors.New("malformed append request")

// decodeAppend reads what encodeAppend wrote. Entries refer to raw, which must not change afterwards.
func decodeAppend(raw []byte) (*raft.AppendEntriesRequest, error) {
	a := new(raft.AppendEntriesRequest)
	err := fields(raw, func(num protowire.Number, v uint64, b []byte) error {
		switch num {
		case reqHeader:
			var h peerpb.RaftHeader
			if err := proto.Unmarshal(b, &h); err != nil {
				return fmt.Errorf("%w: header: %w", errBadAppend, err)
			}
			a.RPCHeader = headerFromWire(&h)
		case reqTerm:
			a.Term = v
		case reqLeader:
			a.Leader = b
		case reqPrevEntry:
			a.PrevLogEntry = v
		case reqPrevTerm:
			a.PrevLogTerm = v
		case reqCommit:
			a.LeaderCommitIndex = v
		case reqEntries:
			e, err := decodeEntry(b)
			if err != nil {
				return err
			}
			a.Entries = append(a.Entries, e)
		}
		return nil
	})
	return a, err
}

func decodeEntry(raw []byte) (*raft.Log, error) {
	e := new(raft.Log)
	var seconds, nanos int64
	stamped := false
	err := fields(raw, func(num protowire.Number, v uint64, b []byte) error {
		switch num {
		case entIndex:
			e.Index = v
		case entTerm:
			e.Term = v
		case entType:
			if v > 255 {
				return fmt.Errorf("%w: entry type %d", errBadAppend, v)
			}
			e.Type = raft.LogType(v)
		case entData:
			e.Data = b
		case entExtensions:
			e.Extensions = b
		case entSeconds:
			seconds, stamped = int64(v), true
		case entNanos:
			if v > 999_999_999 {
				return fmt.Errorf("%w: %d nanoseconds", errBadAppend, v)
			}
			nanos = int64(v)
		}
		return nil
	})
	if stamped {
		e.AppendedAt = time.Unix(seconds, nanos)
	}
	return e, err
}

// fields calls each for the varint and bytes fields of a message; fields of other types are skipped. A known number with an
// unexpected type arrives as 0 or nil, as generated code would ignore it.
func fields(raw []byte, each func(num protowire.Number, v uint64, b []byte) error) error {
	for len(raw) > 0 {
		num, kind, n := protowire.ConsumeTag(raw)
		if n < 0 {
			return fmt.Errorf("%w: %w", errBadAppend, protowire.ParseError(n))
		}
		raw = raw[n:]
		var v uint64
		var b []byte
		switch kind {
		case protowire.VarintType:
			v, n = protowire.ConsumeVarint(raw)
		case protowire.BytesType:
			b, n = protowire.ConsumeBytes(raw)
			b = b[:len(b):len(b)] // appending to one entry must not write into the next
		default:
			n = protowire.ConsumeFieldValue(num, kind, raw)
		}
		if n < 0 {
			return fmt.Errorf("%w: field %d: %w", errBadAppend, num, protowire.ParseError(n))
		}
		raw = raw[n:]
		if kind == protowire.VarintType || kind == protowire.BytesType {
			if err := each(num, v, b); err != nil {
				return err
			}
		}
	}
	return nil
}
