package transport

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sanctuary/proto/peerpb"
)

// requestSlack is what a request may hold beside its entries, in bytes.
const requestSlack = 64 << 10

// Append serves one leader's stream to one replica here: a request at a time, in order. While Raft is busy with one, what
// follows waits in gRPC's window, so the stream holds back its sender and no other.
func (s *server) Append(stream grpc.BidiStreamingServer[peerpb.AppendFrame, peerpb.AppendReply]) error {
	m := s.mux
	if !m.appendIn.enter() {
		return stream.Send(&peerpb.AppendReply{Status: statusOf(fmt.Errorf("%w: append streams", ErrBusy), peerpb.Code_CODE_BUSY)})
	}
	defer m.appendIn.leave()
	in := inbound{mux: m, stream: stream}
	defer in.release()
	for {
		id, timeout, req, err := in.next()
		if err != nil {
			return err
		}
		reply := &peerpb.AppendReply{Id: id}
		// Looked up for every request: a replica closed and opened again meanwhile may be another incarnation.
		g, err := m.addressed(in.envelope)
		if err == nil {
			var resp any
			resp, err = g.deliver(stream.Context(), fromMillis(timeout), in.envelope, req, nil)
			switch r := resp.(type) {
			case nil:
				if err == nil {
					err = fmt.Errorf("%w: neither answer nor error", ErrInternal)
				}
			case *raft.AppendEntriesResponse:
				reply.Response = appendResponseToWire(r)
			default:
				err = fmt.Errorf("%w: answer of type %T", ErrInternal, resp)
			}
		}
		reply.Status = statusOf(err, peerpb.Code_CODE_INTERNAL)
		in.release()
		if err := stream.Send(reply); err != nil {
			return err
		}
		if reply.GetStatus() != nil {
			return nil // the sender's stream has failed with this answer; it opens another
		}
	}
}

// inbound puts a stream's frames together to requests. It holds the bytes of one request of the Mux's budget.
type inbound struct {
	mux      *Mux
	stream   grpc.BidiStreamingServer[peerpb.AppendFrame, peerpb.AppendReply]
	envelope *peerpb.Envelope // from the first frame
	held     int64
}

// next waits for a whole request. Its error is the stream's, as gRPC is to send it.
func (in *inbound) next() (id uint64, timeoutMillis uint32, req *raft.AppendEntriesRequest, err error) {
	f := new(inFrame)
	if err := in.stream.RecvMsg(f); err != nil {
		if errors.Is(err, errEOF) {
			err = status.Error(codes.Canceled, "sender has ended the stream")
		}
		return 0, 0, nil, err
	}
	buf, err := in.begin(f)
	if err != nil {
		f.release()
		return 0, 0, nil, err
	}
	id, timeoutMillis = f.id, f.timeoutMillis
	if f.total == uint64(f.chunkBytes) {
		err = in.fill(f, buf)
	} else {
		err = in.fillInTime(f, buf)
	}
	if err != nil {
		return 0, 0, nil, err
	}
	req, err = decodeAppend(buf)
	if err != nil {
		return 0, 0, nil, status.Error(codes.InvalidArgument, err.Error())
	}
	return id, timeoutMillis, req, nil
}

// begin looks at a request's first frame and makes room for the whole of it.
func (in *inbound) begin(f *inFrame) ([]byte, error) {
	switch {
	case in.envelope == nil && f.envelope == nil:
		return nil, status.Error(codes.InvalidArgument, "append stream begins without an envelope")
	case in.envelope == nil:
		in.envelope = f.envelope
		// Refused before its bytes are made room for.
		_, err := in.mux.addressed(f.envelope)
		if err == nil {
			err = in.mux.speaksFor(in.stream.Context(), f.envelope.GetFromNode())
		}
		if err != nil {
			if err := in.stream.Send(&peerpb.AppendReply{Id: f.id, Status: statusOf(err, peerpb.Code_CODE_INTERNAL)}); err != nil {
				return nil, err
			}
			return nil, status.Error(codes.FailedPrecondition, safeText(err.Error()))
		}
	}
	if f.id == 0 || f.total == 0 || f.total > uint64(in.mux.cfg.Limits.RequestBytes+requestSlack) {
		return nil, status.Errorf(codes.ResourceExhausted, "append request %d of %d bytes: this node takes 1 .. %d",
			f.id, f.total, in.mux.cfg.Limits.RequestBytes+requestSlack)
	}
	if err := in.hold(int64(f.total)); err != nil {
		return nil, status.FromContextError(err).Err()
	}
	return make([]byte, f.total), nil
}

// fill takes in the frames of a request, of which f is the first.
func (in *inbound) fill(f *inFrame, buf []byte) error {
	defer f.release()
	for id, filled := f.id, 0; ; {
		if f.id != id || f.total != uint64(len(buf)) || f.chunkBytes == 0 || f.chunkBytes > len(buf)-filled {
			return status.Errorf(codes.InvalidArgument, "append request %d: chunk of %d bytes at %d of %d does not fit request %d",
				f.id, f.chunkBytes, filled, f.total, id)
		}
		if err := f.copyChunk(buf[filled : filled+f.chunkBytes]); err != nil {
			return status.Error(codes.InvalidArgument, err.Error())
		}
		if filled += f.chunkBytes; filled == len(buf) {
			return nil
		}
		if err := in.stream.RecvMsg(f); err != nil {
			return err
		}
	}
}

// fillInTime is fill, for as long as the sender waits for the answer: if its process stands still, what it has begun must not keep the room of others. Only the return of
// the stream's handler ends a RecvMsg, so that runs beside it.
func (in *inbound) fillInTime(f *inFrame, buf []byte) error {
	timer := time.NewTimer(fromMillis(f.timeoutMillis))
	defer timer.Stop()
	ended := make(chan error, 1)
	if !in.mux.spawn(func() { ended <- in.fill(f, buf) }) {
		f.release()
		return errShutdown
	}
	select {
	case err := <-ended:
		return err
	case <-timer.C:
		return status.Error(codes.DeadlineExceeded, "the rest of an append request has not come")
	}
}

func (in *inbound) hold(n int64) error {
	ctx, cancel := context.WithCancel(in.stream.Context())
	defer cancel()
	if err := in.mux.receive.take(ctx, n); err != nil {
		return ctx.Err()
	}
	in.held = n
	return nil
}

func (in *inbound) release() {
	if in.held > 0 {
		in.mux.receive.give(in.held)
		in.held = 0
	}
}
