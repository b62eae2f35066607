//lint:file-ignore SA1019 Raft still fills in and reads the fields it calls deprecated; they travel like the others.

package transport

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"sanctuary/proto/peerpb"
)

// fill sets every field of v, all different, so that one forgotten or mixed up shows.
func fill(v reflect.Value, next *int) {
	*next++
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i), next)
		}
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(*next))
	case reflect.Uint8, reflect.Uint64:
		v.SetUint(uint64(*next))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			v.SetBytes(fmt.Appendf(nil, "bytes %d", *next))
		} // entries are filled by hand
	default:
		panic("fill: " + v.Type().String())
	}
}

func filled[T any]() *T {
	out, n := new(T), 0
	fill(reflect.ValueOf(out).Elem(), &n)
	return out
}

func mustEqual(t *testing.T, got, want any) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestEveryFieldOfControlMessagesSurvives(t *testing.T) {
	heartbeat := filled[raft.AppendEntriesRequest]()
	heartbeat.PrevLogEntry, heartbeat.PrevLogTerm, heartbeat.LeaderCommitIndex = 0, 0, 0
	for _, cmd := range []any{heartbeat, filled[raft.RequestVoteRequest](), filled[raft.RequestPreVoteRequest](), filled[raft.TimeoutNowRequest]()} {
		req, err := requestToWire(cmd)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := proto.Marshal(req)
		if err != nil {
			t.Fatal(err)
		}
		var back peerpb.RaftRequest
		if err := proto.Unmarshal(raw, &back); err != nil {
			t.Fatal(err)
		}
		got, err := requestFromWire(&back)
		if err != nil {
			t.Fatal(err)
		}
		mustEqual(t, got, cmd)
	}
	for _, resp := range []any{
		filled[raft.AppendEntriesResponse](), filled[raft.RequestVoteResponse](), filled[raft.RequestPreVoteResponse](), filled[raft.TimeoutNowResponse](),
	} {
		reply, err := replyToWire(resp, nil)
		if err != nil {
			t.Fatal(err)
		}
		got := reflect.New(reflect.TypeOf(resp).Elem()).Interface()
		if err := replyFromWire("peer", reply, got); err != nil {
			t.Fatal(err)
		}
		mustEqual(t, got, resp)
	}
	snapshot := filled[raft.InstallSnapshotRequest]()
	mustEqual(t, snapshotFromWire(snapshotToWire(snapshot)), snapshot)
}

func anyAppend(t *rapid.T) *raft.AppendEntriesRequest {
	payload := rapid.OneOf(rapid.SliceOfN(rapid.Byte(), 0, 40), rapid.SliceOfN(rapid.Byte(), inlineBytes-2, inlineBytes+2), rapid.SliceOfN(rapid.Byte(), 900, 1100))
	orNil := func(b []byte) []byte {
		if len(b) == 0 {
			return nil // proto3 has no empty bytes
		}
		return b
	}
	a := &raft.AppendEntriesRequest{
		RPCHeader: raft.RPCHeader{
			ProtocolVersion: raft.ProtocolVersion(rapid.IntRange(0, 3).Draw(t, "version")),
			ID:              orNil(rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "id")), Addr: orNil(rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "addr")),
		},
		Term: rapid.Uint64().Draw(t, "term"), Leader: orNil(rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "leader")),
		PrevLogEntry: rapid.Uint64().Draw(t, "prev"), PrevLogTerm: rapid.Uint64().Draw(t, "prev term"), LeaderCommitIndex: rapid.Uint64().Draw(t, "commit"),
	}
	for range rapid.IntRange(0, 6).Draw(t, "entries") {
		e := &raft.Log{
			Index: rapid.Uint64().Draw(t, "index"), Term: rapid.Uint64().Draw(t, "entry term"), Type: raft.LogType(rapid.Byte().Draw(t, "type")),
			Data: orNil(payload.Draw(t, "data")), Extensions: orNil(payload.Draw(t, "extensions")),
		}
		if rapid.Bool().Draw(t, "stamped") {
			e.AppendedAt = time.Unix(rapid.Int64Range(-1<<40, 1<<40).Draw(t, "seconds"), rapid.Int64Range(0, 999_999_999).Draw(t, "nanos"))
		}
		a.Entries = append(a.Entries, e)
	}
	return a
}

// TestAppendRequestIsPlainProtobufAndSurvivesChunking checks our own encoding against the generated code, and every way to
// cut it against the whole.
func TestAppendRequestIsPlainProtobufAndSurvivesChunking(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := anyAppend(t)
		pieces, total, err := encodeAppend(want)
		if err != nil {
			t.Fatal(err)
		}
		limit := rapid.IntRange(1, 2000).Draw(t, "limit")
		raw := make([]byte, 0, total)
		for c := (chunker{rest: pieces}); ; {
			out := outFrame{id: 7, total: uint64(total), timeoutMillis: 5, chunk: c.next(limit)}
			if len(out.chunk) == 0 {
				break
			}
			data, err := newCodec().Marshal(&out)
			if err != nil {
				t.Fatal(err)
			}
			// As the generated code sees the frame.
			var plain peerpb.AppendFrame
			if err := proto.Unmarshal(data.Materialize(), &plain); err != nil {
				t.Fatal(err)
			}
			// As our receiver sees it, in buffers cut anywhere.
			at := rapid.IntRange(0, data.Len()).Draw(t, "buffer border")
			flat := data.Materialize()
			var in inFrame
			if err := newCodec().Unmarshal(mem.BufferSlice{mem.SliceBuffer(flat[:at]), mem.SliceBuffer(flat[at:])}, &in); err != nil {
				t.Fatal(err)
			}
			chunk := make([]byte, in.chunkBytes)
			if err := in.copyChunk(chunk); err != nil {
				t.Fatal(err)
			}
			if in.id != 7 || in.total != uint64(total) || in.timeoutMillis != 5 || len(chunk) > limit || !bytes.Equal(chunk, plain.GetChunk()) {
				t.Fatalf("frame %+v, generated code reads %v", in, &plain)
			}
			raw = append(raw, chunk...)
		}
		if len(raw) != total {
			t.Fatalf("%d bytes, announced %d", len(raw), total)
		}
		var generated peerpb.AppendRequest
		if err := proto.Unmarshal(raw, &generated); err != nil {
			t.Fatal(err)
		}
		again, err := proto.Marshal(&generated)
		if err != nil {
			t.Fatal(err)
		}
		for _, encoded := range [][]byte{raw, again} {
			got, err := decodeAppend(encoded)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, want) {
				t.Fatalf("got  %+v\nwant %+v", got, want)
			}
		}
	})
}

func TestPayloadsAreNotCopiedOnSend(t *testing.T) {
	data := bytes.Repeat([]byte{1}, 4096)
	pieces, _, err := encodeAppend(&raft.AppendEntriesRequest{Entries: []*raft.Log{{Index: 1, Data: data}}})
	if err != nil {
		t.Fatal(err)
	}
	out, err := newCodec().Marshal(&outFrame{id: 1, chunk: pieces})
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range out {
		if p := b.ReadOnlyData(); len(p) > 0 && &p[0] == &data[0] {
			return
		}
	}
	t.Error("no buffer on the way to gRPC is the entry's own memory")
}

func FuzzIncomingBytesNeverPanic(f *testing.F) {
	pieces, total, err := encodeAppend(&raft.AppendEntriesRequest{Term: 3, Leader: []byte("x"), Entries: []*raft.Log{{Index: 9, Data: []byte("data"), AppendedAt: time.Unix(5, 6)}}})
	if err != nil {
		f.Fatal(err)
	}
	frame, err := newCodec().Marshal(&outFrame{envelope: &peerpb.Envelope{Cluster: "c"}, id: 1, total: uint64(total), chunk: pieces})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(bytes.Join(pieces, nil))
	f.Add(frame.Materialize())
	f.Add([]byte{0x2a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01})
	f.Add([]byte{0x3a, 0x03, 0x18, 0x80, 0x02})
	f.Fuzz(func(t *testing.T, raw []byte) {
		if a, err := decodeAppend(raw); err == nil {
			for _, e := range a.Entries {
				if len(e.Data)+len(e.Extensions) > len(raw) {
					t.Fatalf("entry %d is larger than its request", e.Index)
				}
			}
		}
		var in inFrame
		defer in.release()
		if err := newCodec().Unmarshal(mem.BufferSlice{mem.SliceBuffer(raw)}, &in); err == nil && in.chunkBytes > len(raw) {
			t.Fatalf("chunk of %d bytes in %d", in.chunkBytes, len(raw))
		}
	})
}

func TestErrorsSurviveTheWire(t *testing.T) {
	for code, sentinel := range sentinels {
		st := statusOf(fmt.Errorf("outer: %w", sentinel), peerpb.Code_CODE_INTERNAL)
		if st.GetCode() != code {
			t.Errorf("%v travels as %v, want %v", sentinel, st.GetCode(), code)
		}
		if err := errorOf("peer", st); !errors.Is(err, sentinel) {
			t.Errorf("%v came back as %v", sentinel, err)
		}
	}
	// The outermost reason counts: a hook's own ErrBusy is the hook's business.
	if st := statusOf(fmt.Errorf("%w: %w", ErrRefused, ErrBusy), peerpb.Code_CODE_INTERNAL); st.GetCode() != peerpb.Code_CODE_REFUSED {
		t.Errorf("refused for being busy travels as %v", st.GetCode())
	}
	if st := statusOf(errors.New("other"), peerpb.Code_CODE_RAFT); st.GetCode() != peerpb.Code_CODE_RAFT {
		t.Errorf("an unknown error travels as %v", st.GetCode())
	}
}

func TestNoErrorReadsAsAGrantedPreVote(t *testing.T) {
	st := statusOf(errors.New("x: unexpected command"), peerpb.Code_CODE_RAFT)
	old := errorOf("peer", &peerpb.Status{Code: peerpb.Code_CODE_RAFT, Text: "unexpected command"})
	if strings.Contains(st.GetText(), "unexpected command") || strings.Contains(old.Error(), "unexpected command") {
		t.Errorf("Raft would count this as a vote: %q, %q", st.GetText(), old)
	}
}

func TestCutKeepsWithinTheLimitButNeverEmpties(t *testing.T) {
	entry := func(n int) *raft.Log { return &raft.Log{Data: make([]byte, n)} }
	a := &raft.AppendEntriesRequest{Entries: []*raft.Log{entry(1000), entry(1000), entry(1000)}}
	if err := cut(a, 2500, 1<<20); err != nil || len(a.Entries) != 2 {
		t.Errorf("cut to %d entries, %v; want 2", len(a.Entries), err)
	}
	if err := cut(a, 10, 1<<20); err != nil || len(a.Entries) != 1 {
		t.Errorf("cut to %d entries, %v; want 1", len(a.Entries), err)
	}
	if err := cut(a, 10, 900); !errors.Is(err, ErrTooLarge) {
		t.Errorf("an entry beyond the hard limit: %v", err)
	}
}
