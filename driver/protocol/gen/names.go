package main

import (
	"fmt"
	"strings"
	"unicode"
)

// camel turns a C name, snake_case, SNAKE_CASE or camelCase, into a Go name.
func camel(name string) string {
	var b strings.Builder
	for part := range strings.SplitSeq(name, "_") {
		if part == strings.ToUpper(part) {
			part = strings.ToLower(part)
		}
		for _, w := range humps(part) {
			if initialisms[strings.ToLower(w)] {
				b.WriteString(strings.ToUpper(w))
			} else if w != "" {
				b.WriteString(strings.ToUpper(w[:1]) + w[1:])
			}
		}
	}
	return b.String()
}

// humps splits where a lower-case letter meets a capital: xmlCPUs is xml CPUs.
func humps(s string) []string {
	var words []string
	start := 0
	for i := 1; i < len(s); i++ {
		if unicode.IsUpper(rune(s[i])) && unicode.IsLower(rune(s[i-1])) {
			words = append(words, s[start:i])
			start = i
		}
	}
	return append(words, s[start:])
}

// typeName is the Go name of a type of a protocol description.
func typeName(p *program, name string) string {
	if n, ok := names[name]; ok {
		return n
	}
	return p.add + camel(strings.TrimPrefix(name, p.strip))
}

// procName is the Go name of a procedure, given as REMOTE_PROC_….
func procName(p *program, name string) string {
	if n, ok := names[name]; ok {
		return n
	}
	return p.add + camel(strings.TrimPrefix(name, p.procs))
}

// constName is the Go name of a constant: a limit of a protocol description
// loses its program's prefix, everything else VIR_.
func constName(p *program, name string) string {
	if n, ok := names[name]; ok {
		return n
	}
	if p != nil && p.limits != "" && strings.HasPrefix(name, p.limits) {
		return p.add + camel(strings.TrimPrefix(name, p.limits))
	}
	return camel(strings.TrimPrefix(name, "VIR_"))
}

// A register refuses to give one Go name to two C names.
type register map[string]string

func (r register) add(goName, cName string) error {
	if old, taken := r[goName]; taken && old != cName {
		return fmt.Errorf("%s and %s would both be %s in Go: give one another name in tables.go", old, cName, goName)
	}
	r[goName] = cName
	return nil
}
