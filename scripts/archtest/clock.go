package archtest

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path"
	"strings"
)

// wallTime are methods and functions of package time that read, or leave, nothing but the wall clock.
var wallTime = map[string]bool{
	"Unix": true, "UnixMilli": true, "UnixMicro": true, "UnixNano": true, "UTC": true, "Local": true, "In": true, "AddDate": true, "Date": true,
}

// checkClock looks for the wall clock where leases, promises and time limits are kept: below folder wallClockFree, in what is not a test. A clock that is set must change nothing
// there, and does not as long as times are only compared, added to and subtracted as time.Now gives them: those are monotonic.
func checkClock(name string, text []byte, may map[string]string) ([]string, error) {
	if !strings.HasPrefix(name, wallClockFree+"/") || strings.HasSuffix(name, "_test.go") {
		return nil, nil
	}
	set := token.NewFileSet()
	parsed, err := parser.ParseFile(set, name, text, parser.SkipObjectResolution)
	if err != nil {
		return nil, fmt.Errorf("parse: %w", err)
	}
	var findings []string
	used := false
	ast.Inspect(parsed, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		sel, ok := call.Fun.(*ast.SelectorExpr)
		if !ok || !wallTime[sel.Sel.Name] && !stripped(sel.Sel.Name, call.Args) {
			return true
		}
		used = true
		if may[name] == "" {
			findings = append(findings, fmt.Sprintf("%s:%d: %s leaves the monotonic clock: what is decided by it changes when the wall clock is set (or list %s with a reason)",
				name, set.Position(call.Pos()).Line, sel.Sel.Name, path.Base(name)))
		}
		return true
	})
	if may[name] != "" && !used {
		findings = append(findings, fmt.Sprintf("%s: listed as using the wall clock, but it does not", name))
	}
	return findings, nil
}

// stripped says whether this is t.Round(0), which is how one takes the monotonic reading off.
func stripped(method string, args []ast.Expr) bool {
	if method != "Round" && method != "Truncate" || len(args) != 1 {
		return false
	}
	zero, ok := args[0].(*ast.BasicLit)
	return ok && zero.Value == "0"
}
