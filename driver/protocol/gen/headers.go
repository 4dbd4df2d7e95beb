package main

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// An enum is a group of C constants that belong together.
type enum struct {
	name  string
	names []string
}

var (
	cComment  = regexp.MustCompile(`(?s)/\*.*?\*/`)
	sentinels = regexp.MustCompile(`(?s)# *ifdef VIR_ENUM_SENTINELS.*?# *endif`)
	inner     = regexp.MustCompile(`(?m)^ *#.*$`)
	enumOrDef = regexp.MustCompile(`(?s)(?:typedef )?enum (\w+ )?\{(.*?)\} *(\w*);|\n *# *define (VIR_\w+) +([^\n]+)`)
)

// constants reads the enums and the plain #defines of one header into
// g.values. Macros with arguments and those whose value is no constant are
// not for us.
func (g *generator) constants(text string) ([]enum, error) {
	text = sentinels.ReplaceAllString(cComment.ReplaceAllString(text, ""), "")
	var groups []enum
	defines := enum{}
	for _, m := range enumOrDef.FindAllStringSubmatch(text, -1) {
		if name := m[4]; name != "" {
			if v, err := eval(m[5], g.values); err == nil {
				g.values[name] = v
				defines.names = append(defines.names, name)
			}
			continue
		}
		e := enum{name: strings.TrimSpace(m[1] + m[3])}
		next := "0"
		for member := range strings.SplitSeq(inner.ReplaceAllString(m[2], ""), ",") {
			name, expr, given := strings.Cut(member, "=")
			words := strings.Fields(name)
			if len(words) == 0 {
				continue // after the last comma
			}
			name = words[0] // an attribute may follow
			if !given {
				expr = next
			}
			v, err := eval(expr, g.values)
			if err != nil {
				return nil, fmt.Errorf("%s in %s: %w", name, e.name, err)
			}
			g.values[name] = v
			next = strconv.FormatInt(v.num()+1, 10)
			e.names = append(e.names, name)
		}
		groups = append(groups, e)
	}
	return append(groups, defines), nil
}
