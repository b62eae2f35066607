package main

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestJudge(t *testing.T) {
	t.Parallel()
	summary := func(total, ran, passed, failed string) string {
		return "\nRun Summary:    Type  Total    Ran Passed Failed Inactive\n              suites      1      1    n/a      0        0\n" +
			"               tests      " + total + "      " + ran + "      " + passed + "      " + failed + "        0\n"
	}
	const (
		head = "\n     CUnit - A unit testing framework for C - Version 2.1-3\n     http://cunit.sourceforge.net/\n\n"
		noPR = "    [SKIPPED] PERSISTENT RESERVE IN is not implemented.\n"
	)
	const reset, line157 = "iSCSITMF.LUNResetSimpleAsync", "    1. test_async_lu_reset_simple.c:157  - CU_ASSERT_EQUAL(reconnect_succeeded,1)\n"
	for _, c := range []struct {
		name, out string
		want      verdict
		reason    string
	}{
		{reset, line157 + summary("1", "1", "0", "1"), faulty, toolFaults[reset].why},
		{reset, line157 + "    2. test_async_lu_reset_simple.c:55  - CU_ASSERT\n" + summary("1", "1", "0", "1"), failed, "test_async_lu_reset_simple.c:157 CU_ASSERT_EQUAL(reconnect_succeeded,1)"},
		{reset, summary("1", "1", "0", "1"), failed, "an assertion did not hold"},
		{"another test", line157 + summary("1", "1", "0", "1"), failed, "test_async_lu_reset_simple.c:157 CU_ASSERT_EQUAL(reconnect_succeeded,1)"},
		{"pass", summary("1", "1", "1", "0"), passed, ""},
		{"accepted answer", "    [FAILED] WRITESAME10 command failed\n" + summary("1", "1", "1", "0"), passed, ""},
		{"failed", "    [FAILED] READ10 wrong sense\n" + summary("1", "1", "0", "1"), failed, "READ10 wrong sense"},
		{"skipped", "    [SKIPPED] Logical unit is fully provisioned.\n" + summary("1", "1", "1", "0"), skipped, "Logical unit is fully provisioned."},
		{"failed after a skip", "[SKIPPED] part\n[FAILED] rest\n" + summary("1", "1", "0", "1"), failed, "rest"},
		{"target without reservations", noPR + head + noPR + summary("1", "1", "1", "0"), passed, ""},
		{"its test of reservations", noPR + head + noPR + noPR + summary("1", "1", "1", "0"), skipped, "PERSISTENT RESERVE IN is not implemented."},
		{"test of reservations elsewhere", head + noPR + summary("1", "1", "1", "0"), skipped, "PERSISTENT RESERVE IN is not implemented."},
		{"no such test", summary("0", "0", "0", "0"), failed, "did not run"},
		{"no login", "Failed to log in to target\n", failed, "ended without a summary: Failed to log in to target"},
		{"nothing", "", failed, "ended without a summary: "},
	} {
		if r := judge(c.name, c.out, 1); r.verdict != c.want || r.reason != c.reason {
			t.Errorf("%s: %s %q, want %s %q", c.name, r.verdict, r.reason, c.want, c.reason)
		}
	}
	if r := judge("two paths", noPR+head+noPR+noPR+summary("1", "1", "1", "0"), 2); r.verdict != passed {
		t.Errorf("two paths: %s %q, want a pass", r.verdict, r.reason)
	}
}

func TestRegressionsAreNamed(t *testing.T) {
	t.Parallel()
	results := []result{{name: "A.x", verdict: passed}, {name: "A.y", verdict: failed, reason: "why"}, {name: "B.z", verdict: skipped}, {name: "C.t", verdict: faulty}}
	if err := regressions([]string{"A.x", "C.t", "C.not-run"}, results); err != nil {
		t.Errorf("nothing got worse, but: %v", err)
	}
	err := regressions([]string{"A.x", "A.y", "B.z"}, results)
	if err == nil || !strings.Contains(err.Error(), "A.y") || !strings.Contains(err.Error(), "B.z") || strings.Contains(err.Error(), "A.x") {
		t.Errorf("error %v, want one about A.y and B.z", err)
	}
}

func TestListOnlyGrows(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "list")
	if names, err := readList(file); err != nil || names != nil {
		t.Errorf("no file: %v, %v", names, err)
	}
	if err := writeList(file, []string{"B.z"}, []result{{name: "A.x", verdict: passed}, {name: "B.z", verdict: failed}, {name: "A.y", verdict: skipped}}); err != nil {
		t.Fatal(err)
	}
	if names, err := readList(file); err != nil || !slices.Equal(names, []string{"A.x", "B.z"}) {
		t.Errorf("list is %v, %v", names, err)
	}
}

func TestTableCountsBySuite(t *testing.T) {
	t.Parallel()
	got := table([]result{{name: "A.x", verdict: passed}, {name: "A.y", verdict: failed, reason: "a|b"}, {name: "B.z", verdict: skipped, reason: "absent"}},
		options{nodes: 3, media: "ram"})
	for _, want := range []string{"3 tests: 1 pass, 1 fail, 0 fail by the tool's own fault, 1 skip", "| A | 1 | 1 | 0 | 0 |", "| B | 0 | 0 | 0 | 1 |", `- A.y: a\|b`, "- B.z: absent"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in:\n%s", want, got)
		}
	}
}

func TestSubjectFollowsTheLUN(t *testing.T) {
	t.Parallel()
	now, fail := "iscsi://a", error(nil)
	s := subject{url: "iscsi://a", serving: func(context.Context) (string, error) { return now, fail }}
	if s.follow(t.Context()) {
		t.Error("it has not moved")
	}
	now, fail = "", errors.New("served nowhere")
	if s.follow(t.Context()) || s.url != "iscsi://a" {
		t.Errorf("served nowhere, but now at %q", s.url)
	}
	now, fail = "iscsi://b", nil
	if !s.follow(t.Context()) || s.url != "iscsi://b" {
		t.Errorf("it has moved to b, but %q", s.url)
	}
	if got := s.paths("MultipathIO.Simple"); !slices.Equal(got, []string{"iscsi://b", "iscsi://b"}) || len(s.paths("Read10.Simple")) != 1 {
		t.Errorf("paths %v and %v", got, s.paths("Read10.Simple"))
	}
}
