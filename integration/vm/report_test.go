package vm

import (
	"strings"
	"testing"
)

func TestCollect(t *testing.T) {
	const events = `{"Action":"start"}
{"Action":"run","Test":"TestA"}
{"Action":"output","Test":"TestA","Output":"=== RUN   TestA\n"}
{"Action":"run","Test":"TestA/sub"}
{"Action":"fail","Test":"TestA/sub","Elapsed":0.5}
{"Action":"fail","Test":"TestA","Elapsed":1.5}
{"Action":"run","Test":"TestB"}
{"Action":"output","Test":"TestB","Output":"panic: gone\n"}
{"Action":"output","Output":"exit status 2\n"}
not JSON`
	var top []string
	results, rest := collect(strings.NewReader(events), func(r TestResult) { top = append(top, r.Name+":"+r.Action) })
	want := []TestResult{
		{"TestA", "fail", 1.5, "=== RUN   TestA\n"},
		{"TestA/sub", "fail", 0.5, ""},
		{"TestB", "", 0, "panic: gone\n"}, // died in it
	}
	if len(results) != len(want) {
		t.Fatalf("got %v, want %v", results, want)
	}
	for i := range want {
		if results[i] != want[i] {
			t.Errorf("got %v, want %v", results[i], want[i])
		}
	}
	if got := strings.Join(top, " "); got != "TestA: TestA:fail TestB:" {
		t.Errorf("told of %s", got)
	}
	if rest != "exit status 2\nnot JSON" {
		t.Errorf("the rest is %q", rest)
	}
}

func TestTestCommand(t *testing.T) {
	got := testCommand("/root/tests/it's/package.test", []string{"-test.run", "A|B C"})
	want := `cd '/root/tests/it'\''s' && VIRTVZD_REQUIRE=1 VIRTVZD_TEST_ROOTS=/srv/roots ./package.test '-test.run' 'A|B C'`
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
