package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sanctuary/target/initiator"
)

const (
	before = "    Send PRIN/READ_KEYS\n    [SKIPPED] PERSISTENT RESERVE IN is not implemented.\n\n\n     CUnit - A unit testing framework for C - Version 2.1-3\n\n\n"
	after  = "    Send PRIN/READ_KEYS\n    [SKIPPED] PERSISTENT RESERVE IN is not implemented.\n"
)

func summary(ran, good, bad string) string {
	return "\nRun Summary:    Type  Total    Ran Passed Failed Inactive\n              suites      1      1    n/a      0        0\n" +
		"               tests      " + ran + "      " + ran + "      " + good + "      " + bad + "        0\n"
}

func TestWhatASuiteSaid(t *testing.T) {
	t.Parallel()
	out := before + "Suite: A\n" +
		"  Test: quiet ...passed\n" +
		"  Test: talks ...    Send READ10\n    [FAILED] an answer that it then accepts\n    [OK] READ10\npassed\n" +
		"  Test: skips ...    [SKIPPED] READ12 is not implemented.\n    [SKIPPED] again\npassed\n" +
		"  Test: fails ...\n    [FAILED] READ16 wrong sense\nFAILED\n    1. a.c:12  - CU_ASSERT_EQUAL(_r,0)\n    2. a.c:13  - CU_FAIL\n" +
		"  Test: last ...passed" + after + summary("5", "4", "1")
	outcomes, err := parse(out)
	if err != nil {
		t.Fatal(err)
	}
	got := judgeAll(suite{name: "A", tests: []string{"A.quiet", "A.talks", "A.skips", "A.fails", "A.last", "A.missing"}}, outcomes)
	want := []result{
		{"A.quiet", passed, ""},
		{"A.talks", passed, ""},
		{"A.skips", skipped, "READ12 is not implemented."},
		{"A.fails", failed, "a.c:12 CU_ASSERT_EQUAL(_r,0); READ16 wrong sense"},
		{"A.last", passed, ""},
		{"A.missing", failed, "did not run"},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

func TestOutputThatIsNoVerdict(t *testing.T) {
	t.Parallel()
	for name, out := range map[string]string{
		"nothing":                 "",
		"no login":                before + "Suite: A\nerror: Failed to login to target for test set-up\n",
		"ended within a test":     before + "Suite: A\n  Test: x ...    Send READ10\n",
		"more counted than seen":  before + "Suite: A\n  Test: x ...passed\n" + summary("2", "2", "0"),
		"a pass that CUnit fails": before + "Suite: A\n  Test: x ...passed\n" + summary("1", "0", "1"),
	} {
		if outcomes, err := parse(out); err == nil {
			t.Errorf("%s: %v, want an error", name, outcomes)
		}
	}
}

func TestOnlyTheToolsOwnFaultIsTheTools(t *testing.T) {
	t.Parallel()
	const test = "GetLBAStatus.UnmapSingle"
	at := func(places ...string) (o outcome) {
		o.name = test
		for _, p := range places {
			o.asserts = append(o.asserts, assertion{place: p, text: "CU_FAIL"})
		}
		return o
	}
	place := toolFaults[test].assertion
	for _, c := range []struct {
		o    outcome
		want verdict
	}{
		{at(place), faulty},
		{at(place, place), faulty},
		{at(place, "elsewhere.c:1"), failed},
		{at(), failed},
		{outcome{name: "Another.Test", asserts: at(place).asserts}, failed},
		{outcome{name: test, passed: true}, passed},
	} {
		if r := judge(c.o); r.verdict != c.want {
			t.Errorf("%v: %s, want %s", c.o, r.verdict, c.want)
		}
	}
}

func TestResetCountsTheSecondTime(t *testing.T) {
	t.Parallel()
	bug := []assertion{{place: resetBug, text: "CU_ASSERT_EQUAL(reconnect_succeeded,1)"}}
	first := outcome{name: resetTest, asserts: bug}
	good := outcome{name: resetTest, passed: true}
	for _, c := range []struct {
		name string
		all  []outcome
		want verdict
	}{
		{"as the tool is", []outcome{first, good}, passed},
		{"the tool mended", []outcome{good, good}, passed},
		{"the reset itself fails", []outcome{first, {name: resetTest, asserts: []assertion{{place: "x.c:1"}}}}, failed},
		{"the same fault again", []outcome{first, first}, faulty},
		{"the first fails elsewhere", []outcome{{name: resetTest, asserts: append(bug, assertion{place: "x.c:1"})}, good}, failed},
		{"once only", []outcome{good}, failed},
		{"nothing was reset", []outcome{first, {name: resetTest, passed: true, skips: []string{"Non-iSCSI"}}}, skipped},
	} {
		if r := judgeReset(c.all); r.verdict != c.want || r.name != resetTest {
			t.Errorf("%s: %v, want %s", c.name, r, c.want)
		}
	}
}

func TestGate(t *testing.T) {
	t.Parallel()
	expected := map[string]string{"A.skips": "why", "B.gone": "why"}
	good := []result{{"A.x", passed, ""}, {"A.skips", skipped, "not there"}, {"A.tool", faulty, "theirs"}}
	if err := gate(good, expected, false); err != nil {
		t.Errorf("nothing is wrong, but: %v", err)
	}
	for name, c := range map[string]struct {
		results []result
		whole   bool
		want    string
	}{
		"failed":                     {[]result{{"A.x", failed, "because"}}, false, "A.x failed: because"},
		"skip not on the list":       {[]result{{"A.y", skipped, "because"}}, false, "A.y skipped and is not on the list"},
		"listed, passes":             {[]result{{"A.skips", passed, ""}}, false, "A.skips is on the list of " + expectedSkips + ", but: pass"},
		"listed, fails":              {[]result{{"A.skips", failed, "because"}}, false, "A.skips failed"},
		"listed, there is no such":   {good, true, "B.gone is on the list of " + expectedSkips + ", but there is no such test"},
		"the second wrong one shown": {[]result{{"A.x", failed, "a"}, {"A.y", failed, "b"}}, false, "A.y failed: b"},
	} {
		if err := gate(c.results, expected, c.whole); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func TestNotesSayWhy(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "notes")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("# why\n\nA.x: not: here\n  A.y :  nor here \n")
	notes, err := readNotes(file)
	if err != nil || len(notes) != 2 || notes["A.x"] != "not: here" || notes["A.y"] != "" && notes["A.y "] == "" {
		t.Errorf("notes %q, %v", notes, err)
	}
	for _, bad := range []string{"A.x\n", "A.x:\n", "A.x: a\nA.x: b\n"} {
		write(bad)
		if notes, err := readNotes(file); err == nil {
			t.Errorf("%q: %v, want an error", bad, notes)
		}
	}
	suites := []suite{{name: "A"}, {name: "B"}}
	write("A: yes\nB: no, it must not\n")
	if chosen, err := readSuites(file, suites); err != nil || len(chosen) != 1 || chosen[0].name != "A" {
		t.Errorf("chosen %v, %v", chosen, err)
	}
	for _, bad := range []string{"A: yes\n", "A: yes\nB: no\n", "A: yes\nB: yes\nC: yes\n"} {
		write(bad)
		if chosen, err := readSuites(file, suites); err == nil {
			t.Errorf("%q: %v, want an error", bad, chosen)
		}
	}
}

// TestCommittedListsMatchTheTool needs the tool, not a target.
func TestCommittedListsMatchTheTool(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("iscsi-test-cu"); err != nil {
		t.Skip("iscsi-test-cu is not installed: scripts/setup test")
	}
	suites, err := listSuites(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	tests := 0
	known := map[string]bool{}
	for _, s := range suites {
		tests += len(s.tests)
		for _, name := range s.tests {
			known[name] = true
		}
	}
	if len(suites) != 51 || tests != 230 || len(known) != 230 {
		t.Errorf("%d suites, %d tests, %d different: want the 51 and 230 of version 1.19.0", len(suites), tests, len(known))
	}
	if _, err := readSuites(filepath.Base(movedSuites), suites); err != nil {
		t.Error(err)
	}
	expected, err := readNotes(filepath.Base(expectedSkips))
	if err != nil {
		t.Fatal(err)
	}
	for name := range expected {
		if !known[name] {
			t.Errorf("%s: no such test", name)
		}
	}
	for name := range toolFaults {
		if !known[name] {
			t.Errorf("%s: no such test", name)
		}
	}
	if !known[resetTest] {
		t.Errorf("%s: no such test", resetTest)
	}
	if one, err := listSuites(t.Context(), "Read10.S"); err != nil || len(one) != 1 || !slices.Equal(one[0].tests, []string{"Read10.Simple"}) {
		t.Errorf("Read10.S: %v, %v", one, err)
	}
	if _, err := listSuites(t.Context(), "nothing"); err == nil {
		t.Error("tests that are not there were found")
	}
}

// TestSuiteThatHangsIsTakenApart uses a script in place of the tool: it hangs on a suite and on one of its tests.
func TestSuiteThatHangsIsTakenApart(t *testing.T) {
	dir := t.TempDir()
	script := "#!/bin/sh\nfor a; do case $a in\n--test=ALL.A|--test=ALL.A.hangs) exec sleep 60 ;;\n--test=ALL.A.*)\n  n=${a##*.}; printf 'Suite: A\\n  Test: %s ...passed\\n tests 1 1 1 0\\n' $n ;;\nesac; done\n"
	if err := os.WriteFile(filepath.Join(dir, "iscsi-test-cu"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	short := tool{timeout: 500 * time.Millisecond}
	got := short.suite(t.Context(), []string{"iscsi://x"}, suite{name: "A", tests: []string{"A.fine", "A.hangs"}})
	if len(got) != 2 || got[0].verdict != passed || got[1].verdict != failed || !strings.Contains(got[1].reason, "no end after") {
		t.Errorf("got %v", got)
	}
	got = short.suite(t.Context(), []string{"iscsi://x"}, suite{name: "A", tests: []string{"A.fine"}})
	if len(got) != 1 || got[0].verdict != failed || !strings.Contains(got[0].reason, "passes alone; in one process: no end after") {
		t.Errorf("a suite that hangs as a whole only: %v", got)
	}
}

func TestReportNamesWhatDidNotPass(t *testing.T) {
	t.Parallel()
	r := report{
		subject:   "ours",
		results:   []result{{"A.x", passed, ""}, {"A.y", failed, "a|b"}, {"B.z", skipped, "absent"}},
		protected: []result{{"R.o", passed, ""}}, aligned: []result{{"L.a", passed, ""}},
		moved:     &campaign{suites: 7, tests: 9, moves: 3, every: 10 * time.Second},
		reference: []result{{"A.x", failed, "odd"}, {"A.y", passed, ""}, {"B.z", skipped, ""}}, referenceProtected: []result{{"R.o", failed, ""}},
	}
	got := r.table()
	for _, want := range []string{
		"ours: 3 tests: 1 pass, 1 fail, 0 fail by the tool's own fault, 1 skip", "| A | 1 | 1 |  |  | 1 | 1 |  |", "| B |  |  |  | 1 |  |  | 1 |",
		`- A.y: a\|b`, "- B.z: absent", "- A.x: odd", "moved 3 times, every 10s: 0 told to repeat a command, 0 wrong", "L on a LUN with logical blocks", "R on the same LUN, write-protected",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in:\n%s", want, got)
		}
	}
	if strings.Contains(got, "own fault:") {
		t.Errorf("a list of nothing:\n%s", got)
	}
}

func TestSubjectFollowsTheLUN(t *testing.T) {
	t.Parallel()
	now, term, fail := "iscsi://a", uint64(4), error(nil)
	s := subject{
		url: "iscsi://a", term: 4, all: []string{"iscsi://a", "iscsi://b"},
		serving: func(context.Context) (string, uint64, error) { return now, term, fail },
	}
	forwarded := s.other()
	if forwarded.url != "iscsi://b" || s.forwarded {
		t.Errorf("forwarded through %q", forwarded.url)
	}
	if s.follow(t.Context()) {
		t.Error("it has not moved")
	}
	now, fail = "", errors.New("served nowhere")
	if s.follow(t.Context()) || s.url != "iscsi://a" {
		t.Errorf("served nowhere, but now at %q", s.url)
	}
	now, term, fail = "iscsi://b", 5, nil
	if !s.follow(t.Context()) || s.url != "iscsi://b" || s.follow(t.Context()) {
		t.Errorf("it has moved to b once, but %q", s.url)
	}
	if !forwarded.follow(t.Context()) || forwarded.url != "iscsi://a" {
		t.Errorf("it has moved to b, but forwarded through %q", forwarded.url)
	}
	now, term = "iscsi://b", 7 // there and back
	if !s.follow(t.Context()) {
		t.Error("it has moved there and back, unnoticed")
	}
	if got := s.paths(multipathSuite); !slices.Equal(got, []string{"iscsi://b", "iscsi://a"}) || len(s.paths("Read10")) != 1 {
		t.Errorf("paths %v and %v", got, s.paths("Read10"))
	}
	one := subject{url: "iscsi://a", all: []string{"iscsi://a"}}
	if got := one.paths(multipathSuite); !slices.Equal(got, []string{"iscsi://a", "iscsi://a"}) || one.follow(t.Context()) {
		t.Errorf("one portal: %v", got)
	}
}

func TestWriteProtectionChangesOneBit(t *testing.T) {
	t.Parallel()
	page := []byte{0x80 | controlPage, 0x0A, 0x04, 0x10, 0x40, 0, 0, 0, 0xFF, 0xFF, 0, 0}
	for _, descriptors := range []int{0, 8} {
		sensed := slices.Concat([]byte{byte(3 + descriptors + len(page)), 0, 0x10, byte(descriptors)}, make([]byte, descriptors), page)
		on, err := swpList(sensed, true)
		want := slices.Concat(make([]byte, modeHeader), page)
		want[4], want[8] = controlPage, 0x48
		if err != nil || !slices.Equal(on, want) {
			t.Errorf("on: % X, %v; want % X", on, err, want)
		}
		want[8] = 0x40
		sensed[modeHeader+descriptors+4] |= swp
		if off, err := swpList(sensed, false); err != nil || !slices.Equal(off, want) {
			t.Errorf("off: % X, %v; want % X", off, err, want)
		}
		for n := range sensed {
			if got, err := swpList(sensed[:n], true); err == nil {
				t.Errorf("%d bytes of %d made % X", n, len(sensed), got)
			}
		}
	}
}

func TestShapeNamesWhatIsMissing(t *testing.T) {
	t.Parallel()
	standard, limits, thin := make([]byte, 36), make([]byte, 64), []byte{0, 0xB2, 0, 4, 0, 0xE4, 2, 0}
	limits[5] = 255
	c := initiator.Capacity{Blocks: 1 << 21, BlockBytes: 512, PhysicalPerUnit: 8, Thin: true, ReadsZero: true}
	if err := shapeErrors(standard, c, limits, thin); err != nil {
		t.Errorf("nothing is wrong, but: %v", err)
	}
	thin[5] = 0xC4
	c.PhysicalPerUnit = 1
	err := shapeErrors(standard, c, limits, thin)
	if err == nil || !strings.Contains(err.Error(), "LBPWS10") || !strings.Contains(err.Error(), "512e") || strings.Contains(err.Error(), "LBPME") {
		t.Errorf("error %v, want LBPWS10 and 512e named", err)
	}
	if err := shapeErrors(standard[:5], c, limits, thin); err == nil {
		t.Error("5 bytes of INQUIRY data were enough")
	}
}

func TestOnlyWhatAsksForTheCommandAgainIsRepeated(t *testing.T) {
	for reason, want := range map[string]bool{
		"test_writesame16_unmap.c:43 CU_ASSERT_EQUAL(_r,0); WRITE16 command failed with status 8 / sense key NO SENSE(0x00) / ASCQ (null)(0x0000)":              true,
		"VERIFY12 failed with wrong sense. Should have failed with ILLEGAL_REQUEST(0x05)/LBA_OUT_OF_RANGE(0x2100) but failed with Sense: (null)(0x06)/(0x2a06)": true,
		"READ10 command failed with status 2 / sense key MEDIUM_ERROR(0x03) / ASCQ READ_ERROR(0x1100)":                                                          false,
		"READ10 command failed with status 2 / sense key NOT_READY(0x02) / ASCQ (null)(0x040b)":                                                                 false,
		"test_compareandwrite.c:45 CU_ASSERT_EQUAL(sense.key,SCSI_SENSE_MISCOMPARE)":                                                                            false,
		"COMPAREANDWRITE command failed with status 24 / sense key NO SENSE(0x00)":                                                                              false,
	} {
		if got := toRepeat(reason); got != want {
			t.Errorf("%q is repeated: %t", reason, got)
		}
	}
}
