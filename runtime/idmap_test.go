package runtime

import (
	"strings"
	"testing"
)

func TestPickRange(t *testing.T) {
	first, err := pickRange(testUUID, nil)
	if err != nil {
		t.Fatal(err)
	}
	if first%rangeSize != 0 || first < firstRange || uint64(first)+rangeSize-1 > lastRange {
		t.Fatalf("base %d", first)
	}
	if again, _ := pickRange(testUUID, nil); again != first {
		t.Errorf("not stable: %d and %d", first, again)
	}
	// One id of it in use is enough to go elsewhere.
	next, err := pickRange(testUUID, []span{{first + 70, 1}})
	if err != nil || next == first || next%rangeSize != 0 {
		t.Errorf("got %d, %v", next, err)
	}
	if _, err := pickRange(testUUID, []span{{0, 1 << 31}}); err == nil {
		t.Error("found a range where none is free")
	}
	// The last slot is reachable, and there is nothing behind it.
	last := uint32(lastRange + 1 - rangeSize)
	if got, err := pickRange(testUUID, []span{{0, last}}); err != nil || got != last {
		t.Errorf("got %d, %v, want %d", got, err, last)
	}
}

func TestParseSpans(t *testing.T) {
	got := parseSpans(strings.NewReader("user:100000:65536\nbad\nx:y:z\nnone:5:0\n"), false)
	if len(got) != 1 || got[0] != (span{100000, 65536}) {
		t.Errorf("subuid: %v", got)
	}
	got = parseSpans(strings.NewReader("root:x:0:0:root:/root:/bin/sh\nvz:x:600000:600000::/:/x\n"), true)
	if len(got) != 2 || got[1] != (span{600000, 1}) {
		t.Errorf("passwd: %v", got)
	}
}

func TestUUIDText(t *testing.T) {
	text := "12345678-9abc-4def-8001-020304050607"
	if u, ok := parseUUID(text); !ok || u != testUUID || formatUUID(u) != text {
		t.Errorf("%x, %v", u, ok)
	}
	for _, bad := range []string{"", "crun", text[1:], text + "0", strings.ToUpper(text), "12345678-9abc-4def-8001-02030405060g", "../../../../../../../../etc/passwd/x"} {
		if _, ok := parseUUID(bad); ok {
			t.Errorf("%q is accepted", bad)
		}
	}
}
