package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// A function is one of libvirt's public functions and what it does on a
// read-only connection. libvirt enforces that there, not in its protocol: a
// server that calls none of them must do the same by itself.
type function struct {
	name      string
	access    string // Allowed, Refused, Conditional
	condition string // in C, when Conditional
}

var (
	funcs = regexp.MustCompile(`(?ms)^(?:[a-z]\w*[ *]+)*(vir\w+)\([^;{}]*?\)\n\{\n(.*?)^\}`)
	guard = regexp.MustCompile(`(?ms)^(?: +if \(([^{};]*?)\)(?: \{)?\n)? +virCheckReadOnlyGoto|^    if \(\(conn->flags & VIR_CONNECT_RO\) &&\s+\((.*?)\)\) \{$`)
)

// publicFunctions reads them all, by name in lower case: how C capitalises a
// procedure's name follows no rule.
func publicFunctions(src string) (map[string]function, error) {
	files, err := filepath.Glob(filepath.Join(src, "src/libvirt*.c"))
	if err != nil || len(files) == 0 {
		return nil, fmt.Errorf("no src/libvirt*.c below %s: is it libvirt's source?", src)
	}
	found := map[string]function{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		for _, m := range funcs.FindAllStringSubmatch(string(text), -1) {
			f := function{name: m[1], access: "Allowed"}
			if g := guard.FindStringSubmatch(m[2]); g != nil {
				f.access, f.condition = "Refused", g[1]+g[2]
				if f.condition != "" {
					f.access = "Conditional"
				}
			} else if strings.Contains(m[2], "virCheckReadOnly") || strings.Contains(m[2], "& VIR_CONNECT_RO)") && m[1] != "virConnectOpenInternal" {
				return nil, fmt.Errorf("%s: the read-only check of %s is new: teach access.go its form", file, m[1])
			}
			if refused[f.name] != "" {
				f.access = "Refused"
			}
			found[strings.ToLower(m[1])] = f
		}
	}
	return found, nil
}

var cNames = regexp.MustCompile(`\bVIR_\w+|\b[a-z]\w*\b`)

// goCondition rewrites a C condition over a call's arguments into Go.
func goCondition(c string) string {
	cond := cNames.ReplaceAllStringFunc(strings.Join(strings.Fields(c), " "), func(n string) string {
		if strings.HasPrefix(n, "VIR_") {
			return constName(nil, n)
		}
		return "a." + camel(n)
	})
	if !strings.Contains(cond, "==") {
		cond = "(" + cond + ") != 0"
	}
	return cond
}
