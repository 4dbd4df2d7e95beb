package main

import (
	"fmt"
	"regexp"
	"strings"
)

var annotation = regexp.MustCompile(`@(\w+): *(\S+)`)

// emitProcedures writes a variable for each procedure, into its family's file,
// and the list of them all.
func (g *generator) emitProcedures(d *decl) error {
	var all []string
	for _, it := range d.items {
		goName, err := g.emitProcedure(d.prog, it)
		if err != nil {
			return fmt.Errorf("%s: %w", d.prog.file, err)
		}
		all = append(all, goName+".Info,")
	}
	fmt.Fprintf(g.file("procedures"), `
// %[1]s returns the procedures and events of %[2]s, by number.
func %[1]s() []*Info { return %[3]sInfos }

var %[3]sInfos = []*Info{
%[4]s
}
`, d.prog.list, d.name, strings.ToLower(d.prog.list), lines(all...))
	return nil
}

func (g *generator) emitProcedure(p *program, it item) (string, error) {
	short := strings.TrimPrefix(it.name, p.procs)
	goName := procName(p, it.name)
	message := func(suffix string) string {
		if d := g.decls[p.strip+strings.ToLower(short)+suffix]; d != nil {
			return typeName(p, d.name)
		}
		return "xdr.Void"
	}
	var f function
	args, ret := message("_args"), message("_ret")
	what, kind := "procedure", fmt.Sprintf("Procedure[%s, %s]", args, ret)
	makers := fmt.Sprintf("args: fresh[%s], ret: fresh[%s],", args, ret)
	if msg := message("_msg"); msg != "xdr.Void" {
		what, kind = "event", fmt.Sprintf("Event[%s]", msg)
		makers = fmt.Sprintf("msg: fresh[%s],", msg)
	} else {
		var err error
		if f, err = g.function(p, it.name); err != nil {
			return "", err
		}
	}
	info := []string{
		fmt.Sprintf("Program: %[1]sProgram, Version: %[1]sVersion, Number: %[2]s, Name: %[3]q,", p.list, it.value, short),
	}
	if f.name != "" {
		info = append(info, fmt.Sprintf("Function: %q,", f.name))
	}
	info = append(info, annotations(it.comment)...)
	if f.access == "Refused" || f.access == "Conditional" {
		info = append(info, "Access: "+f.access+",")
	}
	info = append(info, makers)
	if f.access == "Conditional" {
		info = append(info, fmt.Sprintf("refused: func(args any) bool {\na := args.(*%s)\nreturn %s\n},", args, goCondition(f.condition)))
	}
	fmt.Fprintf(g.file(family(p, short)), "\n// %s is %s %s of the %s program.\nvar %s = %s{&Info{\n%s\n}}\n",
		goName, what, it.value, strings.ToLower(p.list), goName, kind, lines(info...))
	return goName, g.taken.add(goName, it.name)
}

// function finds the public function behind a procedure.
func (g *generator) function(p *program, name string) (function, error) {
	open := function{access: "Allowed"}
	if p.fn == nil {
		return open, nil
	}
	fn, listed := functions[name]
	if !listed {
		fn = "vir" + strings.Replace(strings.TrimPrefix(name, p.procs), "DOMAIN", "DOMAIN"+*p.fn, 1)
	} else if fn == "" {
		return open, nil
	}
	f, ok := g.functions[strings.ToLower(strings.ReplaceAll(fn, "_", ""))]
	if !ok {
		return f, fmt.Errorf("%s: libvirt has no function %s: name it in tables.go", name, fn)
	}
	return f, nil
}

// annotations turns the comment before a procedure into fields of Info.
func annotations(comment string) []string {
	var fields, acl, filter []string
	for _, m := range annotation.FindAllStringSubmatch(comment, -1) {
		switch m[1] {
		case "priority":
			if m[2] == "high" {
				fields = append(fields, "Priority: true,")
			}
		case "readstream":
			fields = append(fields, "Stream: ReadStream,")
		case "writestream":
			fields = append(fields, "Stream: WriteStream,")
		case "acl":
			if m[2] != "none" {
				acl = append(acl, fmt.Sprintf("%q", m[2]))
			}
		case "aclfilter":
			filter = append(filter, fmt.Sprintf("%q", m[2]))
		}
	}
	if acl != nil {
		fields = append(fields, "ACL: []string{"+strings.Join(acl, ", ")+"},")
	}
	if filter != nil {
		fields = append(fields, "ACLFilter: []string{"+strings.Join(filter, ", ")+"},")
	}
	return fields
}
