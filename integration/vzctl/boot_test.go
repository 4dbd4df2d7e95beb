package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestBootedScript: what start --wait waits for, by what there is inside.
func TestBootedScript(t *testing.T) {
	for name, c := range map[string]struct {
		inittab, runlevel, systemd string
		want                       string // how often it looks, and the end
	}{
		"busybox":  {"::sysinit:/bin/true\n", "echo unknown", "", "0 looks, ends with 0"},
		"sysvinit": {"id:2:initdefault:\n", `[ $(wc -l <looks) -lt 3 ] && echo unknown || echo N 2`, "", "3 looks, ends with 0"},
		"endless":  {"id:2:initdefault:\n", "echo unknown", "", "300 looks, ends with 1"},
		"systemd":  {"", "", `[ $(wc -l <looks) -lt 3 ] && echo starting || { echo degraded; exit 1; }`, "3 looks, ends with 0"},
	} {
		root := t.TempDir()
		for file, body := range map[string]string{
			"inittab": c.inittab, "looks": "", "runlevel": "#!/bin/sh\necho >>looks\n" + c.runlevel,
			"systemctl": "#!/bin/sh\necho >>looks\n" + c.systemd, "sleep": "#!/bin/sh\n",
		} {
			if err := os.WriteFile(filepath.Join(root, file), []byte(body), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		system := "systemd"
		if c.systemd != "" {
			if err := os.Mkdir(filepath.Join(root, system), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		script := strings.NewReplacer("/etc/inittab", "inittab", "/run/systemd/system", system).Replace(bootedScript)
		cmd := exec.Command("sh", "-c", "("+script+"); end=$?; echo $(wc -l <looks) looks, ends with $end")
		cmd.Dir, cmd.Env = root, []string{"PATH=" + root + ":" + os.Getenv("PATH")}
		if out, err := cmd.Output(); err != nil || strings.TrimSpace(string(out)) != c.want {
			t.Errorf("%s: %q, %v, want %s", name, out, err, c.want)
		}
	}
}
