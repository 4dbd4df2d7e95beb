package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"
)

// row is one container, by the names of vzlist's fields.
type row struct {
	CTID        string   `json:"ctid"`
	NProc       *uint64  `json:"numproc"` // null where it is not known
	Status      string   `json:"status"`
	IP          []string `json:"ip"`
	Hostname    string   `json:"hostname"`
	Name        string   `json:"name"`
	Description string   `json:"description"`
	OSTemplate  string   `json:"ostemplate"`
	Private     string   `json:"private"`
	UUID        string   `json:"uuid"`
	PhysPages   uint64   `json:"physpages"` // of 4 KiB
	CPUs        uint     `json:"cpus"`
	OnBoot      bool     `json:"onboot"`
	Tags        []string `json:"tags"`
}

// field is a column of vzlist.
type field struct {
	names  []string
	header string
	width  int // negative: to the right
	text   func(*row) string
}

var fields = []field{
	{[]string{"ctid", "veid"}, "CTID", -10, func(r *row) string { return r.CTID }},
	{[]string{"numproc", "nproc"}, "NPROC", -10, func(r *row) string {
		if r.NProc == nil {
			return "-"
		}
		return strconv.FormatUint(*r.NProc, 10)
	}},
	{[]string{"status"}, "STATUS", 9, func(r *row) string { return r.Status }},
	{[]string{"ip"}, "IP_ADDR", 15, func(r *row) string { return cmp.Or(strings.Join(r.IP, " "), "-") }},
	{[]string{"hostname"}, "HOSTNAME", 32, func(r *row) string { return cmp.Or(r.Hostname, "-") }},
	{[]string{"name"}, "NAME", 20, func(r *row) string { return cmp.Or(r.Name, "-") }},
	{[]string{"description"}, "DESCRIPTION", 32, func(r *row) string { return cmp.Or(r.Description, "-") }},
	{[]string{"ostemplate"}, "OSTEMPLATE", 24, func(r *row) string { return cmp.Or(r.OSTemplate, "-") }},
	{[]string{"private"}, "PRIVATE", 32, func(r *row) string { return cmp.Or(r.Private, "-") }},
	{[]string{"uuid"}, "UUID", 36, func(r *row) string { return r.UUID }},
	{[]string{"physpages"}, "PHYSP", -10, func(r *row) string { return strconv.FormatUint(r.PhysPages, 10) }},
	{[]string{"cpus"}, "CPUS", -5, func(r *row) string { return strconv.FormatUint(uint64(r.CPUs), 10) }},
	{[]string{"onboot"}, "ONBOOT", 6, func(r *row) string { return map[bool]string{true: "yes", false: "no"}[r.OnBoot] }},
	{[]string{"tags", "tag"}, "TAGS", 24, func(r *row) string { return cmp.Or(strings.Join(r.Tags, ","), "-") }},
}

func fieldOf(name string) *field {
	for n := range fields {
		if slices.Contains(fields[n].names, name) {
			return &fields[n]
		}
	}
	return nil
}

// listing is what vzlist was asked for.
type listing struct {
	all, stopped, json, noHeader, ids, names bool
	columns                                  []*field
	chosen                                   bool // columns, not those there are without a word
	sort                                     *field
	reverse                                  bool
	namePattern, hostPattern, textPattern    string
	only                                     []string
}

func parseListing(args []string) (*listing, error) {
	l := &listing{}
	columns, order, noTrim := "", "ctid", false
	var err error
	l.only, err = getopt(args, map[string]*bool{
		"-a": &l.all, "--all": &l.all, "-S": &l.stopped, "--stopped": &l.stopped, "-j": &l.json, "--json": &l.json,
		"-H": &l.noHeader, "--no-header": &l.noHeader, "-n": &l.names, "--name": &l.names, "-1": &l.ids,
		"-t": &noTrim, "--no-trim": &noTrim, // as it is here
	}, map[string]*string{
		"-o": &columns, "--output": &columns, "-s": &order, "--sort": &order, "-N": &l.namePattern, "--name_filter": &l.namePattern,
		"-h": &l.hostPattern, "--hostname": &l.hostPattern, "-d": &l.textPattern, "--description": &l.textPattern,
	})
	if err != nil {
		return nil, err
	}
	if l.ids {
		columns, l.noHeader = "ctid", true
	}
	l.chosen = columns != "" || l.names
	columns = cmp.Or(columns, "ctid,numproc,status,ip,hostname")
	if l.names {
		columns = strings.Replace(columns, "hostname", "name", 1)
	}
	for name := range strings.SplitSeq(columns, ",") {
		f := fieldOf(name)
		if f == nil {
			return nil, failf(exitParameter, "the field %q is not known: %s are", name, fieldNames())
		}
		l.columns = append(l.columns, f)
	}
	order, l.reverse = strings.CutPrefix(order, "-")
	if l.sort = fieldOf(order); l.sort == nil {
		return nil, failf(exitParameter, "the field %q is not known: %s are", order, fieldNames())
	}
	return l, nil
}

// getopt reads options as getopt_long(3) does, -Hoctid for -H -o ctid, and
// --output=ctid for --output ctid. What is left are no options.
func getopt(args []string, flags map[string]*bool, values map[string]*string) (rest []string, err error) {
	args = slices.Clone(args)
	for len(args) > 0 {
		word := args[0]
		args = args[1:]
		if word == "--" {
			return append(rest, args...), nil
		}
		if len(word) < 2 || word[0] != '-' {
			rest = append(rest, word)
			continue
		}
		name, value, given := strings.Cut(word, "=")
		if word[1] != '-' {
			name, value, given = word[:2], word[2:], len(word) > 2
		}
		switch flag, to := flags[name], values[name]; {
		case flag != nil && given && word[1] == '-':
			return nil, failf(exitParameter, "the option %s has no value", name)
		case flag != nil && given:
			args = append([]string{"-" + value}, args...)
			fallthrough
		case flag != nil:
			*flag = true
		case to == nil:
			return nil, failf(exitParameter, "the option %s is not known: %s are", name,
				strings.Join(slices.Sorted(maps.Keys(flags)), " ")+" "+strings.Join(slices.Sorted(maps.Keys(values)), " "))
		case !given && len(args) == 0:
			return nil, failf(exitValue, "the option %s needs a value", name)
		case !given:
			value, args = args[0], args[1:]
			fallthrough
		default:
			*to = value
		}
	}
	return rest, nil
}

func fieldNames() string {
	var names []string
	for _, f := range fields {
		names = append(names, f.names[0])
	}
	return strings.Join(names, ", ")
}

// addresses tells whether a container is among those that are asked about: the
// named ones, or without names by what they do.
func (l *listing) addresses(r *row) bool {
	if len(l.only) > 0 {
		return slices.Contains(l.only, r.CTID) || slices.Contains(l.only, r.Name)
	}
	return l.all || l.stopped || !r.down()
}

// wants tells which of these are to be shown.
func (l *listing) wants(r *row) bool {
	for _, p := range [][2]string{{l.namePattern, r.Name}, {l.hostPattern, r.Hostname}, {l.textPattern, r.Description}} {
		if ok, _ := path.Match(p[0], p[1]); p[0] != "" && !ok {
			return false
		}
	}
	return !l.stopped || r.down()
}

func (r *row) down() bool { return r.Status == "stopped" || r.Status == "suspended" }

// show prints what is asked for of all there are. That named ones are not there
// is a failure, but not that there are none.
func (l *listing) show(out, errs io.Writer, all []*row) error {
	found := slices.DeleteFunc(all, func(r *row) bool { return !l.addresses(r) })
	if len(found) > 0 {
		return l.print(out, slices.DeleteFunc(found, func(r *row) bool { return !l.wants(r) }))
	}
	if l.json {
		fmt.Fprintln(out, "[]")
	} else {
		fmt.Fprintln(errs, "Container(s) not found")
	}
	if len(l.only) > 0 {
		return exitCode(exitNotFound)
	}
	return nil
}

// compare orders numbers as numbers.
func (l *listing) compare(a, b *row) int {
	x, y := l.sort.text(a), l.sort.text(b)
	n, err1 := strconv.ParseUint(x, 10, 64)
	m, err2 := strconv.ParseUint(y, 10, 64)
	order := cmp.Compare(x, y)
	if err1 == nil && err2 == nil {
		order = cmp.Compare(n, m)
	}
	if l.reverse {
		return -order
	}
	return order
}

func (l *listing) print(w io.Writer, rows []*row) error {
	slices.SortStableFunc(rows, l.compare)
	if l.json {
		objects := make([]any, len(rows))
		for n, r := range rows {
			if objects[n] = r; l.chosen {
				objects[n] = object{r, l.columns}
			}
		}
		out, err := json.MarshalIndent(objects, "", "  ")
		fmt.Fprintln(w, string(out))
		return err
	}
	line := func(text func(*field) string) {
		var cells []string
		for _, f := range l.columns {
			cells = append(cells, fmt.Sprintf("%*s", -f.width, text(f)))
		}
		fmt.Fprintln(w, strings.TrimRight(strings.Join(cells, " "), " "))
	}
	if l.ids {
		for _, r := range rows {
			fmt.Fprintln(w, r.CTID)
		}
		return nil
	}
	if !l.noHeader {
		line(func(f *field) string { return f.header })
	}
	for _, r := range rows {
		line(func(f *field) string { return f.text(r) })
	}
	return nil
}

// object has some fields of a row, in their order.
type object struct {
	row    *row
	fields []*field
}

func (o object) MarshalJSON() ([]byte, error) {
	text, err := json.Marshal(o.row)
	if err != nil {
		return nil, err
	}
	var all map[string]json.RawMessage
	if err := json.Unmarshal(text, &all); err != nil {
		return nil, err
	}
	var members []string
	for _, f := range o.fields {
		members = append(members, fmt.Sprintf("%q:%s", f.names[0], all[f.names[0]]))
	}
	return []byte("{" + strings.Join(members, ",") + "}"), nil
}

func runVzlist(args []string) error {
	s, args, err := common(args)
	if err != nil {
		return err
	}
	l, err := parseListing(args)
	if err != nil {
		return err
	}
	if s.conn, err = libvirt.NewConnectReadOnly(s.uri); err != nil {
		return err
	}
	defer s.conn.Close()
	domains, err := s.conn.ListAllDomains(0)
	if err != nil {
		return err
	}
	var rows []*row
	for n := range domains {
		r, err := s.row(&domains[n])
		domains[n].Free()
		if err != nil {
			continue // it was undefined meanwhile
		}
		rows = append(rows, r)
	}
	return l.show(os.Stdout, os.Stderr, rows)
}

func (s *session) row(dom *libvirt.Domain) (*row, error) {
	def, err := definition(dom, 0)
	if err != nil {
		return nil, err
	}
	state, _, err := dom.GetState()
	if err != nil {
		return nil, err
	}
	r := rowOf(def)
	r.Status = statusWord(state, dom)
	r.OnBoot, _ = dom.GetAutostart()
	if id, err := dom.GetID(); err == nil && s.local() {
		r.NProc = tasks(id)
	}
	return r, nil
}

// statusWord is vzlist's. Suspended is what vzctl suspend makes of one: it is
// down, and goes on from a file.
func statusWord(state libvirt.DomainState, dom interface {
	HasManagedSaveImage(uint32) (bool, error)
}) string {
	switch state {
	case libvirt.DOMAIN_RUNNING, libvirt.DOMAIN_SHUTDOWN:
		return "running"
	case libvirt.DOMAIN_PAUSED:
		return "paused"
	}
	if saved, err := dom.HasManagedSaveImage(0); err == nil && saved {
		return "suspended"
	}
	return "stopped"
}

// rowOf is what a definition tells.
func rowOf(def *libvirtxml.Domain) *row {
	r := &row{CTID: def.Name, Name: def.Title, Description: def.Description, UUID: def.UUID, IP: []string{}, Tags: []string{}}
	if def.CurrentMemory != nil {
		r.PhysPages = uint64(def.CurrentMemory.Value) / 4
	}
	if def.VCPU != nil {
		if r.CPUs = def.VCPU.Current; r.CPUs == 0 {
			r.CPUs = def.VCPU.Value
		}
	}
	if def.Devices != nil {
		for _, f := range def.Devices.Filesystems {
			if f.Target == nil || f.Target.Dir != "/" || f.Source == nil {
				continue
			}
			if f.Source.Template != nil {
				r.OSTemplate = f.Source.Template.Name
			}
			if f.Source.Mount != nil {
				r.Private = f.Source.Mount.Dir
			}
		}
		for _, n := range def.Devices.Interfaces {
			for _, ip := range n.IP {
				r.IP = append(r.IP, ip.Address)
			}
		}
	}
	if def.Metadata != nil {
		m := veOf(def.Metadata.XML)
		r.Hostname, r.Tags = m.Hostname, append(r.Tags, m.Tags...)
	}
	return r
}

// tasks counts processes and threads of the scope that a domain's init is in.
func tasks(id uint) *uint64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", id))
	if err != nil {
		return nil
	}
	scope, _, ok := strings.Cut(strings.TrimPrefix(strings.TrimSpace(string(text)), "0::"), ".scope")
	if !ok {
		return nil
	}
	if text, err = os.ReadFile(path.Join("/sys/fs/cgroup", scope+".scope", "pids.current")); err != nil {
		return nil
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return nil
	}
	return &n
}
