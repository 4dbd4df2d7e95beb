package runtime

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"virtvzd/xml"
)

// resolverPath is where programs inside look for name servers. It may be a link
// to what a daemon inside writes; then this is what holds until that does.
const resolverPath = "/etc/resolv.conf"

// resolverText is resolv.conf(5) for an environment, "" to leave alone what
// there is.
func resolverText(env *xml.Environment) string {
	if len(env.Nameservers)+len(env.SearchDomains) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString("# from the domain's metadata; virtvzd writes it at each start\n")
	if len(env.SearchDomains) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(env.SearchDomains, " "))
	}
	for _, server := range env.Nameservers {
		fmt.Fprintf(&b, "nameserver %s\n", server)
	}
	return b.String()
}

// resolvedFile tells systemd-resolved the same.
func resolvedFile(env *xml.Environment) runFile {
	return runFile{
		Path: "systemd/resolved.conf.d/50-virtvzd.conf",
		Text: fmt.Sprintf("[Resolve]\nDNS=%s\nDomains=%s\n", strings.Join(env.Nameservers, " "), strings.Join(env.SearchDomains, " ")),
	}
}

// writeResolver writes resolv.conf in the root t, where lookups stay.
func writeResolver(t *tree, text string) error {
	return writeNames(text, func(flags int, mode uint32) (int, error) { return openRegular(t.fd, resolverPath, flags, mode) },
		func() error { return makeResolverDir(t) })
}

// writeNames writes what open opens, which follows a link, also to a file that
// is yet to be made.
func writeNames(text string, open func(flags int, mode uint32) (int, error), makeDir func() error) error {
	if text == "" {
		return nil
	}
	const flags, mode = unix.O_WRONLY | unix.O_CREAT | unix.O_TRUNC, 0o644
	fd, err := open(flags, mode)
	if errors.Is(err, unix.ENOENT) {
		if err = makeDir(); err == nil {
			fd, err = open(flags, mode)
		}
	}
	if errors.Is(err, unix.EROFS) {
		return errors.New("the root is read-only, so its name servers are those of its template: remove <ve:nameserver> and <ve:searchdomain>")
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", resolverPath, err)
	}
	defer unix.Close(fd)
	_, err = unix.Write(fd, []byte(text)) // short, and to a regular file
	return err
}

// makeResolverDir makes the directory a link leads into.
func makeResolverDir(t *tree) error {
	etc, err := t.directory("/etc", 0o755)
	if err != nil {
		return err
	}
	defer unix.Close(etc)
	target := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(etc, path.Base(resolverPath), target)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	to := string(target[:n])
	if !path.IsAbs(to) {
		to = path.Join("/etc", to)
	}
	dir, err := t.directory(path.Dir(to), 0o755)
	if err == nil {
		unix.Close(dir)
	}
	return err
}

// setResolver follows a change of the metadata.
func (i *Instance) setResolver(before, after *xml.Environment) error {
	if slices.Equal(before.Nameservers, after.Nameservers) && slices.Equal(before.SearchDomains, after.SearchDomains) {
		return nil
	}
	return i.inTime(func() error {
		return writeNames(resolverText(after),
			func(flags int, mode uint32) (int, error) { return i.openAs(Owner{}, resolverPath, flags, mode) },
			func() error { return i.asUser(Owner{}, resolverPath, makeResolverDir) })
	})
}
