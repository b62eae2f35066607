package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"
)

// Code tells problems apart. It is the last part of Problem.Type, and clients choose by it, never by text.
type Code string

// Codes.
const (
	CodeNotFound    Code = "not-found"
	CodeInvalid     Code = "invalid"
	CodeConflict    Code = "conflict"
	CodeInUse       Code = "in-use"
	CodeNoLeader    Code = "no-leader"       // nothing was changed; try again
	CodeNoOwner     Code = "no-owner"        // nothing was changed; try again
	CodeUnavailable Code = "unavailable"     // nothing was changed; try again
	CodeUnknown     Code = "outcome-unknown" // may or may not have been done
	CodeForbidden   Code = "forbidden"
	CodeTooLarge    Code = "too-large"
	CodeInternal    Code = "internal"
)

// Problem is an error as RFC 9457 describes it (application/problem+json), with two members of ours: what it means for
// the data, and what to do next.
type Problem struct {
	Type   string              `json:"type,omitempty" doc:"/problems/<code>" example:"/problems/no-leader"`
	Title  string              `json:"title,omitempty" doc:"HTTP status in words"`
	Status int                 `json:"status,omitempty" doc:"HTTP status code"`
	Code   Code                `json:"code,omitempty" doc:"Tells problems apart"`
	Detail string              `json:"detail,omitempty" doc:"What happened"`
	Data   string              `json:"data_impact,omitempty" doc:"What it means for the data"`
	Next   string              `json:"next,omitempty" doc:"What to do next"`
	Errors []*huma.ErrorDetail `json:"errors,omitempty" doc:"The fields at fault"`
	// RetryAfterSeconds, if not 0, says that nothing was changed and the same request may be repeated after that time.
	RetryAfterSeconds int `json:"retry_after_seconds,omitempty" doc:"Nothing was changed; repeat the request after this time"`
}

// huma builds its own validation errors through this variable, and reads the schema of errors in the OpenAPI document
// from it: replacing it is the library's documented way to one error format.
func init() { huma.NewError = newError }

func newError(status int, message string, errs ...error) huma.StatusError {
	p := &Problem{Status: status, Detail: message, Code: codeOf(status)}
	if status >= 400 && status < 500 {
		p.Data = "Nothing was changed."
		p.Next = "Correct the request; /openapi.json describes it."
	}
	for _, err := range errs {
		var d huma.ErrorDetailer
		switch {
		case err == nil:
		case errors.As(err, &d):
			p.Errors = append(p.Errors, withoutSecrets(d.ErrorDetail()))
		default:
			p.Errors = append(p.Errors, &huma.ErrorDetail{Message: err.Error()})
		}
	}
	return p.complete()
}

// withoutSecrets drops the value of a detail that may hold a secret: the whole body when it is no JSON or has an unknown
// field, and whatever stands where credentials belong. An answer ends up in terminals and logs.
func withoutSecrets(d *huma.ErrorDetail) *huma.ErrorDetail {
	switch d.Value.(type) {
	case nil, bool, int, int64, uint64, float64, json.Number:
		if !strings.Contains(d.Location, "chap") {
			return d
		}
	case string:
		if d.Location != "body" && !strings.Contains(d.Location, "chap") {
			return d
		}
	}
	return &huma.ErrorDetail{Message: d.Message, Location: d.Location}
}

func codeOf(status int) Code {
	switch status {
	case http.StatusNotFound:
		return CodeNotFound
	case http.StatusConflict:
		return CodeConflict
	case http.StatusForbidden, http.StatusUnauthorized:
		return CodeForbidden
	case http.StatusRequestEntityTooLarge:
		return CodeTooLarge
	case http.StatusServiceUnavailable:
		return CodeUnavailable
	case http.StatusBadGateway, http.StatusGatewayTimeout:
		return CodeUnknown
	}
	if status >= 400 && status < 500 {
		return CodeInvalid
	}
	return CodeInternal
}

func (p *Problem) complete() *Problem {
	p.Type = "/problems/" + string(p.Code)
	p.Title = http.StatusText(p.Status)
	return p
}

// Error returns what happened, with the fields at fault.
func (p *Problem) Error() string {
	s := p.Detail
	for _, d := range p.Errors {
		s += "; " + d.Error()
	}
	return s
}

// GetStatus returns the HTTP status (huma.StatusError).
func (p *Problem) GetStatus() int { return p.Status }

// GetHeaders returns Retry-After when the request may be repeated (huma.HeadersError).
func (p *Problem) GetHeaders() http.Header {
	h := http.Header{}
	if p.RetryAfterSeconds > 0 {
		h.Set("Retry-After", strconv.Itoa(p.RetryAfterSeconds))
	}
	return h
}

// ContentType turns application/json into application/problem+json (huma.ContentTypeFilter).
func (p *Problem) ContentType(string) string { return "application/problem+json" }

// NotFound says that nothing has that name.
func NotFound(format string, args ...any) *Problem {
	return (&Problem{
		Status: http.StatusNotFound, Code: CodeNotFound, Detail: fmt.Sprintf(format, args...),
		Next: "List what there is: sanctuary lun list, sanctuary host list, sanctuary node list.",
	}).complete()
}

// Invalid says that the request cannot be granted as it is; next says which one could.
func Invalid(next, format string, args ...any) *Problem {
	return (&Problem{
		Status: http.StatusUnprocessableEntity, Code: CodeInvalid, Detail: fmt.Sprintf(format, args...),
		Data: "Nothing was changed.", Next: next,
	}).complete()
}

// Conflict says that the request contradicts what there is; next says how to resolve that.
func Conflict(next, format string, args ...any) *Problem {
	return (&Problem{
		Status: http.StatusConflict, Code: CodeConflict, Detail: fmt.Sprintf(format, args...),
		Data: "Nothing was changed.", Next: next,
	}).complete()
}

// NoLeader says that no catalog leader could be found or reached. Nothing was changed.
func NoLeader(format string, args ...any) *Problem {
	return (&Problem{
		Status: http.StatusServiceUnavailable, Code: CodeNoLeader, Detail: fmt.Sprintf(format, args...),
		Data:              "Nothing was changed. LUNs that are served go on being served; only changes to the cluster wait.",
		Next:              "Repeat in a moment. If it stays so, more than half of the nodes are down or cannot reach each other: see sanctuary status.",
		RetryAfterSeconds: 1,
	}).complete()
}

// NoOwner says that a LUN has no owner that could be found or reached. Nothing was changed.
func NoOwner(format string, args ...any) *Problem {
	return (&Problem{
		Status: http.StatusServiceUnavailable, Code: CodeNoOwner, Detail: fmt.Sprintf(format, args...),
		Data: "Nothing was changed. I/O to the LUN waits until a replica with every acknowledged write takes over.",
		Next: "Repeat in a moment. If it stays so, see sanctuary lun show for the replicas that are missing.", RetryAfterSeconds: 1,
	}).complete()
}

// Unavailable says that this node cannot do it now. Nothing was changed.
func Unavailable(format string, args ...any) *Problem {
	return (&Problem{
		Status: http.StatusServiceUnavailable, Code: CodeUnavailable, Detail: fmt.Sprintf(format, args...),
		Data: "Nothing was changed.", Next: "Repeat in a moment, or ask another node with --api.", RetryAfterSeconds: 1,
	}).complete()
}

// OutcomeUnknown says that a change may or may not have been made.
func OutcomeUnknown(format string, args ...any) *Problem {
	return (&Problem{
		Status: http.StatusGatewayTimeout, Code: CodeUnknown, Detail: fmt.Sprintf(format, args...),
		Data: "The change may or may not have been made. Data of other LUNs is not touched.",
		Next: "Look before you repeat it: sanctuary status.",
	}).complete()
}

// asProblem returns err as it goes to the client.
func asProblem(err error) *Problem {
	var p *Problem
	if errors.As(err, &p) {
		return p
	}
	return (&Problem{
		Status: http.StatusInternalServerError, Code: CodeInternal, Detail: err.Error(),
		Data: "Whether something was changed is not known.", Next: "See this node's log, then sanctuary status.",
	}).complete()
}

// writeProblem answers a request that has not reached huma.
func writeProblem(w http.ResponseWriter, p *Problem) {
	for k, v := range p.GetHeaders() {
		w.Header()[k] = v
	}
	w.Header().Set("Content-Type", p.ContentType(""))
	w.WriteHeader(p.Status)
	// The client is gone if this fails: there is nobody to tell.
	_ = json.NewEncoder(w).Encode(p)
}
