package replication

import (
	"encoding/binary"
	"errors"
)

// vouchRequest and vouchAnswer are in docs/FORMATS.md, "Vouches".
type vouchRequest struct {
	count uint32
	sum   uint64
	ended []uint64
}

type vouchAnswer struct {
	differs bool
	tokens  []uint64
}

const (
	vouchVersion = 1
	// maxEnded bounds what is ended with one vouch; the rest goes with the next.
	maxEnded = 4096
)

var errMalformedVouch = errors.New("malformed vouch")

func (q vouchRequest) encode() []byte {
	b := binary.LittleEndian.AppendUint32([]byte{vouchVersion}, q.count)
	b = binary.LittleEndian.AppendUint64(b, q.sum)
	return appendTokens(b, q.ended)
}

func decodeVouchRequest(b []byte) (q vouchRequest, err error) {
	if len(b) < 13 || b[0] != vouchVersion {
		return q, errMalformedVouch
	}
	q.count, q.sum = binary.LittleEndian.Uint32(b[1:]), binary.LittleEndian.Uint64(b[5:])
	q.ended, err = decodeTokens(b[13:])
	return q, err
}

func (a vouchAnswer) encode() []byte {
	if !a.differs {
		return []byte{vouchVersion, 0}
	}
	return appendTokens([]byte{vouchVersion, 1}, a.tokens)
}

func decodeVouchAnswer(b []byte) (a vouchAnswer, err error) {
	if len(b) < 2 || b[0] != vouchVersion {
		return a, errMalformedVouch
	}
	a.differs = b[1] != 0
	a.tokens, err = decodeTokens(b[2:])
	return a, err
}

func appendTokens(b []byte, tokens []uint64) []byte {
	for _, t := range tokens {
		b = binary.LittleEndian.AppendUint64(b, t)
	}
	return b
}

func decodeTokens(b []byte) (out []uint64, err error) {
	if len(b)%8 != 0 {
		return nil, errMalformedVouch
	}
	for ; len(b) > 0; b = b[8:] {
		out = append(out, binary.LittleEndian.Uint64(b))
	}
	return out, nil
}
