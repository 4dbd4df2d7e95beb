package runtime

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// lookAtHost finds out what a plan needs. Package managers that are not
// installed tell nothing.
func lookAtHost(ctx context.Context) (buildHost, error) {
	h := buildHost{Has: func(file string) bool { _, err := os.Stat(file); return err == nil }}
	release, _ := os.ReadFile("/etc/os-release")
	for line := range strings.Lines(string(release)) {
		if id, ok := strings.CutPrefix(strings.TrimSpace(line), "ID="); ok {
			h.ID = strings.Trim(id, `"'`)
		}
	}
	if h.Has("/usr/bin/apt-get") {
		dump, err := output(ctx, "apt-config", "dump")
		if err != nil {
			return h, err
		}
		h.AptConf, h.Proxies = parseAPTConf(dump)
		sources, err := output(ctx, "apt-get", "indextargets", "--format", aptSourceFormat, "Created-By: Packages")
		if err != nil {
			return h, err
		}
		if h.Apt = parseAPTSources(sources); len(h.Apt) == 0 {
			uris, err := output(ctx, "apt-get", "update", "--print-uris")
			if err != nil {
				return h, err
			}
			h.Apt = parseAPTURIs(uris)
		}
	}
	files, _ := filepath.Glob("/etc/yum.repos.d/*.repo")
	more, _ := filepath.Glob("/etc/zypp/repos.d/*.repo")
	files = append(files, more...)
	if dnf, _ := os.ReadFile("/etc/dnf/dnf.conf"); len(h.Proxies) == 0 {
		h.Proxies = parseDNFProxy(string(dnf))
	}
	for _, file := range files {
		body, _ := os.ReadFile(file)
		h.DNF = append(h.DNF, parseRepoIDs(string(body))...)
	}
	return h, nil
}

func output(ctx context.Context, argv ...string) (string, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	said := &tail{limit: 400}
	cmd.Stderr = said
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", argv[0], err, said)
	}
	return string(out), nil
}

func parseDNFProxy(text string) map[string]string {
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(line, "="); ok && strings.TrimSpace(name) == "proxy" {
			return map[string]string{"http": strings.TrimSpace(value)}
		}
	}
	return nil
}

// parseRepoIDs finds the sections of a file of yum's.
func parseRepoIDs(text string) (ids []string) {
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if id, ok := strings.CutPrefix(line, "["); ok && strings.HasSuffix(id, "]") {
			ids = append(ids, strings.TrimSuffix(id, "]"))
		}
	}
	return ids
}
