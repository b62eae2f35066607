package transport

import (
	"fmt"
	"io"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sanctuary/proto/peerpb"
)

// errEOF is what gRPC's Send gives when the other end has ended the stream; Recv then has the reason.
var errEOF = io.EOF

// fromGRPC turns an error of gRPC itself into one of ours. What another node wants to say travels as peerpb.Status inside
// messages, so all that is left here is about the connection.
func fromGRPC(node string, err error) error {
	if err == nil {
		return nil
	}
	st, ok := status.FromError(err)
	if !ok {
		return unreachable(node, err)
	}
	switch st.Code() {
	case codes.ResourceExhausted:
		return fmt.Errorf("%s: %w: %s", node, ErrTooLarge, safeText(st.Message()))
	case codes.DeadlineExceeded:
		return fmt.Errorf("%s: %w", node, ErrTimeout)
	case codes.InvalidArgument:
		return &RemoteError{Node: node, Code: peerpb.Code_CODE_BAD_REQUEST, Text: safeText(st.Message())}
	}
	return fmt.Errorf("%s: %w: %s", node, ErrUnreachable, safeText(st.Message()))
}
