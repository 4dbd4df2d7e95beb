package main

import (
	"context"
	_ "embed"
	"encoding/xml"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"libvirt.org/go/libvirt"
)

//go:embed update.sh
var updateScript string

// noManager is update.sh's exit status where there is no package manager.
const noManager = 69

func (e *ended) none() bool { return e.Exited && e.ExitCode == noManager }

// packages runs update.sh: list, pending or update.
func (g *guest) packages(ctx context.Context, what string, env []string) (*ended, error) {
	return g.shell(ctx, updateScript, []string{what}, env, nil)
}

// packageChange is a package that was installed (Before is empty), removed
// (After is) or updated.
type packageChange struct {
	Package string `json:"package"`
	Before  string `json:"before"`
	After   string `json:"after"`
}

// maxChanges of an environment are told.
const maxChanges = 5000

// installed reads lines of a package and its version, or its versions: several
// kernels may be installed at once.
func installed(lines []string) map[string]string {
	have := map[string]string{}
	for _, line := range lines {
		name, version, ok := strings.Cut(line, " ")
		if !ok || len(line) > 512 {
			continue
		}
		name, version = printable(name), printable(version)
		if other := have[name]; other != "" {
			version = other + ", " + version
		}
		have[name] = version
	}
	return have
}

func changed(before, after map[string]string) (list []packageChange) {
	names := maps.Clone(before)
	maps.Copy(names, after)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if before[name] != after[name] {
			list = append(list, packageChange{name, before[name], after[name]})
		}
	}
	return list
}

// update runs the package manager and compares what is installed before and
// after, for that is the same with all of them.
func (f *fleet) update(ctx context.Context, g *guest, r *result) error {
	list, err := g.packages(ctx, "list", f.env)
	if err != nil {
		return err
	}
	if list.none() {
		return skip("it has no package manager that is known")
	}
	if !list.ok() {
		r.ended(list)
		return nil
	}
	before := installed(list.lines())
	if f.snapshot {
		name := time.Now().UTC().Format("fleet-20060102T150405Z")
		if err := g.snapshot(ctx, name); err != nil {
			return fmt.Errorf("no snapshot, and no update without it: %w", err)
		}
		r.Snapshot = name
	}
	e, failed := g.packages(ctx, "update", f.env)
	r.ended(e)
	// Also what an update that failed has done.
	late, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	if list, err = g.packages(late, "list", f.env); err != nil || !list.ok() || list.OutTruncated {
		return errors.Join(failed, errors.New("what has changed cannot be told"))
	}
	r.Changes = changed(before, installed(list.lines()))
	if len(r.Changes) > maxChanges {
		r.Changes, r.Truncated = r.Changes[:maxChanges], true
	}
	return failed
}

// snapshot is of the disk. When the time is over it is given up.
func (g *guest) snapshot(ctx context.Context, name string) error {
	doc, err := xml.Marshal(struct {
		XMLName     xml.Name `xml:"domainsnapshot"`
		Name        string   `xml:"name"`
		Description string   `xml:"description"`
	}{Name: name, Description: "before vzctl fleet update"})
	if err != nil {
		return err
	}
	abort := context.AfterFunc(ctx, func() { g.dom.AbortJob() })
	defer abort()
	snap, err := g.dom.CreateSnapshotXML(string(doc), libvirt.DOMAIN_SNAPSHOT_CREATE_DISK_ONLY)
	if err != nil {
		return err
	}
	return snap.Free()
}

// revert goes back to a snapshot and starts from there.
func (g *guest) revert(name string) error {
	snap, err := g.dom.SnapshotLookupByName(name, 0)
	if err != nil {
		return err
	}
	defer snap.Free()
	return snap.RevertToSnapshot(libvirt.DOMAIN_SNAPSHOT_REVERT_RUNNING | libvirt.DOMAIN_SNAPSHOT_REVERT_FORCE)
}
