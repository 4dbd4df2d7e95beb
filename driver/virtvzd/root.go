package main

import (
	"context"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"virtvzd/driver"
	"virtvzd/runtime"
)

const rootUsage = `usage: virtvzd root list
       virtvzd root clone DOMAIN[@SNAPSHOT] DOMAIN
       virtvzd root adopt UUID DOMAIN
       virtvzd root rm UUID
`

// root is the command of that name: the disks of environments whose root is a
// template, those that undefine left as well. It needs no daemon, and works
// beside one.
func root(_ context.Context, conf *config, args []string) error {
	layers := runtime.OpenLayers(conf.DataDir, conf.StateDir)
	commands := map[string]struct {
		words int
		do    func(*config, *runtime.Layers, []string) error
	}{
		"list": {0, listRoots}, "clone": {2, cloneRoot}, "adopt": {2, adoptRoot}, "rm": {1, removeRoot},
	}
	if len(args) == 0 {
		return errors.New("a command is missing\n" + rootUsage)
	}
	command, ok := commands[args[0]]
	if !ok || len(args)-1 != command.words {
		return fmt.Errorf("root %s with %d words is not known\n%s", args[0], len(args)-1, rootUsage)
	}
	return command.do(conf, layers, args[1:])
}

func listRoots(conf *config, layers *runtime.Layers, _ []string) error {
	list, damaged := layers.Roots()
	name := namesIn(conf.ConfigDir)
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "UUID\tDOMAIN\tTEMPLATE\tLAYERS\tSNAPSHOTS\tWRITTEN\tRUNNING")
	for _, r := range list {
		domain, running, written := name(r.UUID), "-", "-"
		if domain == r.UUID {
			domain = "-"
		}
		if r.Running {
			running = "yes"
		}
		if !r.Written.IsZero() {
			written = r.Written.UTC().Format("2006-01-02 15:04")
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t%s\t%s\n", r.UUID, domain, orDash(runtime.Generation{Digest: r.Template}.ID()), r.Layers, r.Snapshots, written, running)
	}
	return errors.Join(w.Flush(), damaged)
}

// cloneRoot is for a domain that was just defined, as by virt-clone.
func cloneRoot(conf *config, layers *runtime.Layers, args []string) error {
	name, snapshot, ofSnapshot := strings.Cut(args[0], "@")
	from, err := definedUUID(conf, name)
	if err != nil {
		return err
	}
	to, err := definedUUID(conf, args[1])
	if err != nil {
		return err
	}
	layer := ""
	if ofSnapshot {
		if layer, err = snapshotLayer(conf, from, snapshot); err != nil {
			return err
		}
	}
	if err := layers.Clone(from, layer, to); errors.Is(err, runtime.ErrTargetRunning) {
		return fmt.Errorf("%w: shut %s off", err, args[1])
	} else if errors.Is(err, runtime.ErrRunning) {
		return fmt.Errorf("%w: shut %s off, or make a snapshot with --disk-only and clone %s@SNAPSHOT", err, name, name)
	} else if err != nil {
		return err
	}
	fmt.Printf("root of %s cloned to %s\n", args[0], args[1])
	return nil
}

func adoptRoot(conf *config, layers *runtime.Layers, args []string) error {
	old, err := undefinedUUID(conf, args[0])
	if err != nil {
		return err
	}
	now, err := definedUUID(conf, args[1])
	if err != nil {
		return err
	}
	if err := layers.Adopt(old, now); err != nil {
		return err
	}
	fmt.Printf("root %s adopted by %s\n", args[0], args[1])
	return nil
}

func removeRoot(conf *config, layers *runtime.Layers, args []string) error {
	uuid, err := undefinedUUID(conf, args[0])
	if err != nil {
		return err
	}
	if err := layers.Remove(uuid); err != nil {
		return err
	}
	if err := os.RemoveAll(snapshotDir(conf, uuid)); err != nil {
		return err
	}
	fmt.Printf("root %s removed\n", args[0])
	return nil
}

// errNotDefined is returned for a domain without a definition.
var errNotDefined = errors.New("no domain of that name or UUID is defined")

// definedUUID finds the domain of a name or UUID. A definition that cannot be read
// may be its.
func definedUUID(conf *config, which string) (uuid [16]byte, err error) {
	files, _ := filepath.Glob(filepath.Join(conf.ConfigDir, "*.xml"))
	var unread []error
	for _, file := range files {
		var domain struct {
			Name string `xml:"name"`
			UUID string `xml:"uuid"`
		}
		body, err := os.ReadFile(file)
		if err == nil {
			err = xml.Unmarshal(driver.Definition(body), &domain)
		}
		id, e := parseUUID(domain.UUID)
		if err = errors.Join(err, e); err != nil {
			unread = append(unread, fmt.Errorf("the definition %s cannot be read: mend it, or move it away: %w", file, err))
			continue
		}
		if strings.TrimSpace(domain.Name) == which || strings.EqualFold(strings.TrimSpace(domain.UUID), which) {
			return id, nil
		}
	}
	if len(unread) > 0 {
		return uuid, errors.Join(unread...)
	}
	return uuid, fmt.Errorf("'%s': %w", which, errNotDefined)
}

// undefinedUUID is for what must not be done with the disk of a domain.
func undefinedUUID(conf *config, which string) (uuid [16]byte, err error) {
	switch _, err := definedUUID(conf, which); {
	case err == nil:
		return uuid, fmt.Errorf("%s is defined: undefine it first", which)
	case !errors.Is(err, errNotDefined):
		return uuid, err
	}
	return parseUUID(which)
}

func parseUUID(text string) (uuid [16]byte, err error) {
	digits := strings.ReplaceAll(strings.TrimSpace(text), "-", "")
	if n, err := hex.Decode(uuid[:], []byte(digits[:min(len(digits), 2*len(uuid))])); err != nil || n != len(uuid) || len(digits) != 2*len(uuid) {
		return uuid, fmt.Errorf("'%s' is no UUID: 'virtvzd root list' shows those there are", text)
	}
	return uuid, nil
}

// snapshotDir is where the daemon keeps what is known of a domain's snapshots.
func snapshotDir(conf *config, of [16]byte) string {
	return filepath.Join(conf.ConfigDir, "snapshot", fmt.Sprintf("%x-%x-%x-%x-%x", of[:4], of[4:6], of[6:8], of[8:10], of[10:]))
}

// snapshotLayer reads which layer a snapshot is from what the daemon keeps of it.
func snapshotLayer(conf *config, of [16]byte, name string) (string, error) {
	if strings.Contains(name, "/") || strings.HasPrefix(name, ".") {
		return "", fmt.Errorf("'%s' is no name of a snapshot", name)
	}
	var snapshot struct {
		Layer struct {
			ID string `xml:"id,attr"`
		} `xml:"cookie>layer"`
	}
	body, err := os.ReadFile(filepath.Join(snapshotDir(conf, of), name+".xml"))
	if err == nil {
		err = xml.Unmarshal(body, &snapshot)
	}
	if err != nil {
		return "", fmt.Errorf("snapshot '%s': %w", name, err)
	}
	return snapshot.Layer.ID, nil
}
