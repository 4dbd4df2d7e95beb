package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// TestShipped holds that the installed file is complete and its own
// documentation: each setting stands in it and is preceded by a comment.
func TestShipped(t *testing.T) {
	c := &config{}
	if err := c.read("virtvzd.conf", shipped); err != nil {
		t.Fatal(err)
	}
	if err := c.check("virtvzd.conf"); err != nil {
		t.Fatal(err)
	}
	if c.MaxClients != 5000 || c.AuthUnixRW != "polkit" || c.OCIRuntime != "crun" || c.UnixSockAdminPerms != "0600" {
		t.Errorf("the shipped file gives %+v", c)
	}
	explained := map[string]bool{}
	for paragraph := range strings.SplitSeq(shipped, "\n\n") {
		commented := false
		for line := range strings.Lines(paragraph) {
			name, _, set := strings.Cut(line, " = ")
			commented = commented || strings.HasPrefix(line, "# ") && !strings.HasPrefix(line, "# ---")
			if set && !strings.HasPrefix(line, "#") {
				explained[name] = commented
			}
		}
	}
	for field := range reflect.TypeFor[config]().Fields() {
		if name := field.Tag.Get("toml"); !explained[name] {
			t.Errorf("%s does not stand in the shipped file below a comment", name)
		}
	}
}

func TestConfig(t *testing.T) {
	for text, want := range map[string]string{
		"max_clients = 10":                   "",
		"access_drivers = [ \"polkit\" ]":    "",
		"max_client = 10":                    `unknown setting "max_client"`,
		"max_clients = 0":                    "max_clients is 0: it must be at least 1",
		"max_clients = \"many\"":             "max_clients",
		"auth_unix_rw = \"sasl\"":            `auth_unix_rw is "sasl": use "polkit" or "none"`,
		"access_drivers = [ \"selinux\" ]":   `only "polkit" exists`,
		"unix_sock_rw_perms = \"rw-rw-rw-\"": `use an octal mode`,
		"this is no configuration":           "virtvzd.conf",
	} {
		path := filepath.Join(t.TempDir(), "virtvzd.conf")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := loadConfig(path)
		if (want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", text, err, want)
		}
	}
	if _, err := loadConfig(filepath.Join(t.TempDir(), "nosuch")); err == nil {
		t.Error("a file that was named and is missing is no error")
	}
}

func TestLogSettings(t *testing.T) {
	l := &logger{usual: "2:stderr"}
	file := filepath.Join(t.TempDir(), "log")
	if err := l.SetOutputs("3:stderr 1:file:" + file); err != nil {
		t.Fatal(err)
	}
	if err := l.SetFilters("1:driver 4:rpc"); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"9:stderr", "1:syslog", "1:file:relative", "stderr"} {
		if err := l.SetOutputs(bad); err == nil {
			t.Errorf("output %q was accepted", bad)
		}
	}
	for _, bad := range []string{"driver", "0:driver", "1:"} {
		if err := l.SetFilters(bad); err == nil {
			t.Errorf("filter %q was accepted", bad)
		}
	}
	if l.Outputs() != "3:stderr 1:file:"+file || l.Filters() != "1:driver 4:rpc" {
		t.Errorf("a refused change took effect: %q, %q", l.Outputs(), l.Filters())
	}
	log := slog.New(&logHandler{logger: l})
	log.Debug("of nobody")
	log.With("component", "driver").Debug("of the driver")
	log.With("component", "rpc").Warn("of rpc")
	log.With("component", "rpc").Error("an error of rpc")
	if err := l.SetOutputs(""); err != nil || l.Outputs() != "2:stderr" {
		t.Errorf("no outputs are %q, %v", l.Outputs(), err)
	}
	log.Error("too late")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for message, want := range map[string]bool{"of nobody": true, "of the driver": true, "of rpc": false, "an error of rpc": true, "too late": false} {
		if strings.Contains(string(text), `msg="`+message+`"`) != want {
			t.Errorf("%q logged: %v\n%s", message, !want, text)
		}
	}
}

func TestRoles(t *testing.T) {
	for path, want := range map[string]role{
		"/run/libvirt/virtvzd-sock": readWrite, "/run/libvirt/virtvzd-sock-ro": readOnly,
		"/run/libvirt/virtvzd-admin-sock": admin, "/run/libvirt/virtopenvzd-sock-ro": readOnly,
	} {
		if got := roleOf(path); got != want {
			t.Errorf("%s: role %d, want %d", path, got, want)
		}
	}
}
