package runtime

import (
	"bytes"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A root is asked for what it is with bounds: it may be anybody's.
const (
	maxPackageList = 64 << 20
	maxPackages    = 100_000
)

// systemName is PRETTY_NAME of os-release(5), "" if the root does not tell.
func systemName(root *tree) string {
	body, err := root.read("/etc/os-release", 64<<10)
	if err != nil {
		body, _ = root.read("/usr/lib/os-release", 64<<10)
	}
	for line := range strings.Lines(string(body)) {
		value, ok := strings.CutPrefix(strings.TrimSpace(line), "PRETTY_NAME=")
		if !ok {
			continue
		}
		if plain, err := strconv.Unquote(value); err == nil {
			value = plain
		}
		return printable(value, 128)
	}
	return ""
}

// printable is text of strangers as it can be shown on a terminal.
func printable(text string, limit int) string {
	text = strings.Map(func(r rune) rune {
		if strconv.IsPrint(r) {
			return r
		}
		return -1
	}, text)
	return text[:min(len(text), limit)]
}

// installedPackages reads the databases of package managers that are text:
// dpkg's, apk's and pacman's. Each entry is "NAME VERSION". rpm's is not; what
// dnf built tells by itself, see buildDNF.
func installedPackages(root *tree) []string {
	var list []string
	dpkg, _ := root.read("/var/lib/dpkg/status", maxPackageList)
	for entry := range bytes.SplitSeq(dpkg, []byte("\n\n")) {
		if bytes.Contains(entry, []byte("\nStatus: install ok installed\n")) {
			list = appendPackage(list, field(entry, "Package: "), field(entry, "Version: "))
		}
	}
	apk, err := root.read("/lib/apk/db/installed", maxPackageList)
	if err != nil {
		apk, _ = root.read("/usr/lib/apk/db/installed", maxPackageList)
	}
	for entry := range bytes.SplitSeq(apk, []byte("\n\n")) {
		list = appendPackage(list, field(entry, "P:"), field(entry, "V:"))
	}
	list = append(list, pacmanPackages(root)...)
	slices.Sort(list)
	return list
}

// pacmanPackages: there is a directory NAME-VERSION-RELEASE for each package.
func pacmanPackages(root *tree) (list []string) {
	fd, err := root.open("/var/lib/pacman/local", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	names, err := readNames(fd)
	if err != nil {
		return nil
	}
	for _, name := range names {
		parts := strings.Split(name, "-")
		if n := len(parts); n >= 3 {
			list = appendPackage(list, strings.Join(parts[:n-2], "-"), strings.Join(parts[n-2:], "-"))
		}
	}
	return list
}

func appendPackage(list []string, name, version string) []string {
	if name == "" || version == "" || len(list) >= maxPackages {
		return list
	}
	return append(list, printable(path.Base(name), 256)+" "+printable(version, 256))
}

// field finds the value of a line that begins with key.
func field(entry []byte, key string) string {
	for line := range bytes.Lines(entry) {
		if value, ok := bytes.CutPrefix(line, []byte(key)); ok {
			return strings.TrimSpace(string(value))
		}
	}
	return ""
}
