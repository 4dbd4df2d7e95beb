package main

import (
	"encoding/xml"
	"path"
	"regexp"
	"slices"
	"strings"

	"libvirt.org/go/libvirt"
)

// selector says which environments vzctl fleet is about.
type selector struct {
	names, tags, templates words
	all                    bool
}

func (s *selector) empty() bool {
	return !s.all && len(s.names)+len(s.tags)+len(s.templates) == 0
}

func (s *selector) check() error {
	if s.empty() {
		return failf(exitNoConfig, "no environment is selected: give names, --tag, --template, --updates-pending or --all")
	}
	for _, pattern := range slices.Concat(s.names, s.tags, s.templates) {
		if _, err := path.Match(pattern, ""); err != nil {
			return failf(exitValue, "%q is not a pattern: * ? and [ ] are understood", pattern)
		}
	}
	return nil
}

// matches tells whether one of the patterns fits one of the texts.
func matches(patterns, texts []string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		return slices.ContainsFunc(texts, func(t string) bool {
			ok, _ := path.Match(p, t)
			return ok
		})
	})
}

// wants: each kind that is given has to fit, by any one of its patterns.
func (s *selector) wants(r *row) bool {
	template, _, _ := strings.Cut(r.OSTemplate, "@") // NAME@GENERATION
	return (len(s.names) == 0 || matches(s.names, r.called())) &&
		(len(s.tags) == 0 || matches(s.tags, r.Tags)) &&
		(len(s.templates) == 0 || matches(s.templates, []string{template, r.OSTemplate}))
}

// called is what an environment can be asked for by, as with every verb.
func (r *row) called() []string {
	if r.Name == "" {
		return []string{r.CTID}
	}
	return []string{r.CTID, r.Name}
}

// choose gives those that are wanted, under names that tell them apart. A name
// that fits none is an error, for it is one that was mistyped.
func (s *selector) choose(all []*guest) ([]*guest, error) {
	for _, pattern := range s.names {
		if !slices.ContainsFunc(all, func(g *guest) bool { return matches([]string{pattern}, g.row.called()) }) {
			return nil, failf(exitNoConfig, "no environment is called %q", pattern)
		}
	}
	var chosen []*guest
	many := map[string]int{}
	for _, g := range all {
		if s.wants(g.row) {
			chosen = append(chosen, g)
			many[g.row.CTID]++
		}
	}
	if len(chosen) == 0 {
		return nil, failf(exitNoConfig, "the selection is empty: of %d environments none fits it", len(all))
	}
	for _, g := range chosen {
		if g.name = g.row.CTID; many[g.name] > 1 {
			g.name += "@" + g.uri
		}
	}
	slices.SortStableFunc(chosen, func(a, b *guest) int { return strings.Compare(a.name, b.name) })
	return chosen, nil
}

// find connects to all hosts and lists what is selected there. One host that
// cannot be reached ends it, before anything was done. The hosts are the
// caller's to close.
func (f *fleet) find() (chosen []*guest, hosts []*host, err error) {
	var all []*guest
	seen := map[string]bool{} // one host by two URIs is one host
	for _, uri := range f.uris {
		conn, err := libvirt.NewConnect(uri)
		if err != nil {
			return nil, hosts, failf(codeOf(err), "%s: %s", uri, message(err))
		}
		h := &host{uri: uri, conn: conn}
		hosts = append(hosts, h)
		name, err := conn.GetHostname()
		if err != nil {
			return nil, hosts, failf(codeOf(err), "%s: %s", uri, message(err))
		}
		domains, err := conn.ListAllDomains(0)
		if err != nil {
			return nil, hosts, failf(codeOf(err), "%s: %s", uri, message(err))
		}
		s := &session{conn: conn, uri: uri}
		for n := range domains {
			r, err := s.row(&domains[n])
			if err != nil || seen[name+"/"+r.UUID] {
				domains[n].Free() // it was undefined meanwhile, or is known
				continue
			}
			seen[name+"/"+r.UUID] = true
			g := &guest{row: r, uri: uri, host: h}
			g.on(conn, &domains[n])
			all = append(all, g)
		}
	}
	chosen, err = f.selector.choose(all)
	return chosen, hosts, err
}

const maxTags = 64

var tagPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.:-]{0,62}$`)

// tagsOf reads the values of set --tag: a,b or repeated, an empty one for none.
func tagsOf(values []string) ([]string, error) {
	var tags []string
	for _, tag := range strings.Split(strings.Join(values, ","), ",") {
		if tag != "" && !tagPattern.MatchString(tag) {
			return nil, failf(exitValue, "--tag is %q: up to 63 letters, digits, '-', '_', '.' and ':' are accepted, several between commas", tag)
		}
		if tag != "" && !slices.Contains(tags, tag) {
			tags = append(tags, tag)
		}
	}
	if len(tags) > maxTags {
		return nil, failf(exitValue, "--tag has more than %d tags", maxTags)
	}
	return tags, nil
}

// veMetadata is what is read of the daemon's element in <metadata>.
type veMetadata struct {
	Hostname string   `xml:"http://virtvzd.org/ve/1.0 ve>hostname"`
	Tags     []string `xml:"http://virtvzd.org/ve/1.0 ve>tag"`
}

func veOf(inner string) (m veMetadata) {
	if xml.Unmarshal([]byte("<metadata>"+inner+"</metadata>"), &m) != nil {
		return veMetadata{}
	}
	return m
}
