//go:build !vm

package runtime

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// standInAPK says of an update $SAID, and ends with $STATUS, which are those of
// apk 2.14.10 and 3.0.6. As 2 it is silent if told to be quiet, and takes the
// lists that it has for new if it is not forced.
const standInAPK = `#!/bin/sh
case "$*" in
*"-q update") exit $STATUS ;;
*"--force-refresh update") echo >new; printf %s "$SAID"; exit $STATUS ;;
*" update" | update) printf %s "$SAID" ;;
*"version -l <")
	echo 'Installed:                                Available:'
	[ ! -e new ] || echo 'tiny-tool-1.0-r0                        < 1.1-r0 ' ;;
*) exit 99 ;;
esac
`

// TestPendingAPK: what apk would update is told, whether the host's is asked or
// the root's own, and that it could not find out is not taken for nothing.
func TestPendingAPK(t *testing.T) {
	recipe, err := os.ReadFile("testdata/recipe/alpine-own.toml")
	if err != nil {
		t.Fatal(err)
	}
	r, err := ParseRecipe(recipe)
	if err != nil {
		t.Fatal(err)
	}
	outside, err := planAPKUpdate(r, buildHost{})
	if err != nil {
		t.Fatal(err)
	}
	inside := planUpdateInside(updateAPK, buildHost{})
	const http, file = "http://localhost:8080", "file:///srv/repo"
	for _, test := range []struct {
		name, said, status string
		outside, inside    string // what is said when it fails
	}{
		{"2, http", "fetch " + http + "/x86_64/APKINDEX.tar.gz\ntest v3.22 [" + http + "]\nOK: 8 distinct packages available\n", "0", "", ""},
		{"3, http", "test v3.22 [" + http + "]\nOK: 8 distinct packages available\n", "0", "", ""},
		{"2 and 3, file", "test v3.22 [" + file + "]\nOK: 8 distinct packages available\n", "0", "", ""},
		{"2, http, wrong key", "WARNING: updating and opening " + http + ": BAD signature\n2 unavailable, 0 stale; 7 distinct packages available\n", "2", "BAD signature", "BAD signature"},
		{"3, http, gone", "WARNING: updating " + http + "/x86_64/APKINDEX.tar.gz: HTTP 502: Bad Gateway\ntest v3.22 [" + http + "]\n0 unavailable, 1 stale; 7 distinct packages available\n", "1", "Bad Gateway", "Bad Gateway"},
		{"2, file, wrong key", "WARNING: opening " + file + ": BAD signature\ntest v3.22 [" + file + "]\nOK: 7 distinct packages available\n", "0", "BAD signature", ""},
		{"3, file, cut off", "WARNING: opening " + file + "/x86_64/APKINDEX.tar.gz: unexpected end of file\nOK: 7 distinct packages available\n", "0", "unexpected end", ""},
	} {
		for where, plan := range map[string]*buildPlan{"outside": outside, "inside": inside} {
			dir := t.TempDir()
			if err := os.WriteFile(dir+"/apk", []byte(standInAPK), 0o755); err != nil {
				t.Fatal(err)
			}
			argv := plan.Steps[len(plan.Steps)-1].Argv
			var said strings.Builder
			cmd := exec.Command(argv[0], argv[1:]...)
			cmd.Dir, cmd.Stderr = dir, &said
			cmd.Env = []string{"PATH=" + dir + ":/usr/bin:/bin", "SAID=" + test.said, "STATUS=" + test.status}
			out, err := cmd.Output()
			fails := map[string]string{"outside": test.outside, "inside": test.inside}[where]
			want := "tiny-tool-1.0-r0                        < 1.1-r0 \n"
			if fails != "" {
				want = ""
			}
			if string(out) != want || (err != nil) != (fails != "") || !strings.Contains(said.String(), fails) {
				t.Errorf("apk %s, asked from %s: %q, %v, said %q", test.name, where, out, err, said.String())
			}
		}
	}
}
