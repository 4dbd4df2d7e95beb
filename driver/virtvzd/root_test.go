package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const testUUID = "abcdef00-0000-4000-8000-000000000001"

func TestRootCommand(t *testing.T) {
	conf := &config{ConfigDir: t.TempDir(), DataDir: t.TempDir(), StateDir: t.TempDir()}
	os.WriteFile(filepath.Join(conf.ConfigDir, "web1.xml"), []byte("<domain type='vz'><name>web1</name><uuid>"+strings.ToUpper(testUUID)+"</uuid></domain>"), 0o600)
	for args, want := range map[string]string{
		"":                      "usage: virtvzd root list",
		"nosuch":                "usage: virtvzd root list",
		"list x":                "usage: virtvzd root list",
		"list":                  "",
		"rm web1":               "web1 is defined: undefine it first",
		"rm " + testUUID:        "is defined: undefine it first",
		"rm web2":               "'web2' is no UUID",
		"rm " + testUUID[1:]:    "is no UUID",
		"rm " + testUUID + "00": "is no UUID",
		"rm 1" + testUUID[1:]:   "there is no root 1",
		"clone web1 web2":       "'web2': no domain of that name or UUID is defined",
		"clone web1@x web1":     "snapshot 'x'",
		"clone web1@../x web1":  "no name of a snapshot",
		"clone web1 web1":       "never started",
		"adopt web1 web1":       "web1 is defined",
		"adopt 1bc web1":        "is no UUID",
	} {
		err := root(t.Context(), conf, strings.Fields(args))
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("root %s: %v, want %q", args, err, want)
		}
	}
	// A definition that cannot be read may be of the domain whose disk that is.
	os.WriteFile(filepath.Join(conf.ConfigDir, "web3.xml"), []byte("<domain"), 0o600)
	if err := root(t.Context(), conf, []string{"rm", testUUID[:35] + "2"}); err == nil || !strings.Contains(err.Error(), "web3.xml cannot be read") {
		t.Error(err)
	}
}
