package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// BuildOptions say how a build is watched and held.
type BuildOptions struct {
	// Progress is told what is done and every line of what is said about it;
	// it may be nil.
	Progress func(line string)
	// Scopes, where systemd runs, holds the build in a scope with limits; nil
	// where it does not. Namespaces confine it in either case.
	Scopes Scopes
	// StateDir is the daemon's: the ids of what runs are left alone.
	StateDir string
}

// updateDiskSize is for lists of packages and the layer over the root.
const updateDiskSize = 4 << 30

// Build makes a generation of name from a recipe. Everything that is not ours
// runs confined: it sees of the host what makeView shows, writes nothing but
// the root, and cannot make that larger than the recipe says. When ctx ends, or
// this process does, nothing is left.
func (t *Templates) Build(ctx context.Context, name, recipeFile string, o BuildOptions) (Generation, error) {
	text, err := os.ReadFile(recipeFile)
	if err != nil {
		return Generation{}, err
	}
	recipe, err := ParseRecipe(text)
	if err != nil {
		return Generation{}, fmt.Errorf("%s: %w", recipeFile, err)
	}
	host, err := lookAtHost(ctx)
	if err != nil {
		return Generation{}, err
	}
	plan, err := planBuild(recipe, host)
	if err != nil {
		return Generation{}, fmt.Errorf("%s: %w", recipeFile, err)
	}
	made, err := t.makeGeneration(ctx, name, func(dir string) (Generation, error) {
		b, err := startBuilder(ctx, dir, name, recipe.bytes, nil, plan, o)
		if err != nil {
			return Generation{}, err
		}
		defer b.close()
		for _, step := range plan.Steps {
			answer, err := b.do(step)
			if err != nil {
				return Generation{}, err
			}
			if step.Capture {
				if err := writePackages(dir, answer); err != nil {
					return Generation{}, err
				}
			}
		}
		b.say("==> keeping the root")
		root, err := unix.Openat(b.disk.plain, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return Generation{}, err
		}
		made, err := copyTree(ctx, root, dir, ImportOptions{Limits: Limits{recipe.bytes, DefaultLimits.Files}})
		if err != nil {
			return made, err
		}
		made.Source = absolute(recipeFile)
		return made, os.WriteFile(filepath.Join(dir, "recipe.toml"), text, 0o600)
	})
	if err != nil {
		return made, fmt.Errorf("build %s: %w", name, stopped(ctx, err))
	}
	return made, nil
}

// Pending returns what the package manager in the current generation of name
// would update, a line for each package. It runs confined, on a layer that is
// thrown away.
func (t *Templates) Pending(ctx context.Context, name string, o BuildOptions) ([]string, error) {
	g, err := t.Lookup(name)
	if err != nil {
		return nil, err
	}
	host, err := lookAtHost(ctx)
	if err != nil {
		return nil, err
	}
	plan, err := planUpdate(g, host)
	if err != nil {
		return nil, err
	}
	t.sweep()
	dir, done, err := t.workDir()
	if err != nil {
		return nil, err
	}
	defer done()
	b, err := startBuilder(ctx, dir, name, updateDiskSize, &g, plan, o)
	if err != nil {
		return nil, err
	}
	defer b.close()
	var answer string
	for _, step := range plan.Steps { // the last one tells
		if answer, err = b.do(step); err != nil {
			return nil, fmt.Errorf("updates of %s: %w", name, stopped(ctx, err))
		}
	}
	var list []string
	for line := range strings.Lines(answer) {
		if line = printable(strings.TrimSpace(line), 256); line != "" {
			list = append(list, line)
		}
	}
	return list, nil
}

// planUpdate goes by the recipe, or else by the package manager that is in the
// root.
func planUpdate(g Generation, h buildHost) (*buildPlan, error) {
	text, err := g.Recipe()
	if err != nil {
		script, err := updateScript(g)
		return planUpdateInside(script, h), err
	}
	recipe, err := ParseRecipe(text)
	if err != nil {
		return nil, err
	}
	f := distros[recipe.Distribution]
	p := planUpdateInside(f.update, h)
	if f.planUpdate != nil {
		if p, err = f.planUpdate(recipe, h); err != nil {
			return nil, err
		}
	}
	p.Binds = append(p.Binds, append(recipe.keys(), recipe.localDirs()...)...)
	p.Steps[len(p.Steps)-1].Title = "looking for updates"
	p.Out = h.wayOut(recipe)
	return p, nil
}

func planUpdateInside(script string, h buildHost) *buildPlan {
	return &buildPlan{
		Files: []viewFile{{"/run/build/apt.conf", strings.Join(h.AptConf, "\n") + "\n"}},
		Steps: []buildStep{{Title: "looking for updates", Inside: true, Network: true, Capture: true, Argv: []string{"/bin/sh", "-e", "-c", script}}},
		Out:   h.wayOut(&Recipe{}),
	}
}

func updateScript(g Generation) (string, error) {
	root, err := openTreeRoot(g.Path)
	if err != nil {
		return "", err
	}
	defer root.Close()
	for _, by := range []struct{ program, script string }{
		{"/usr/bin/apt-get", updateAPT}, {"/usr/bin/dnf", updateDNF}, {"/usr/bin/zypper", updateZypper}, {"/sbin/apk", updateAPK}, {"/usr/bin/apk", updateAPK}, {"/usr/bin/pacman", updatePacman},
	} {
		if fd, err := root.open(by.program, unix.O_PATH); err == nil {
			unix.Close(fd)
			return by.script, nil
		}
	}
	return "", fmt.Errorf("template %s has no package manager that is known (apt, dnf, zypper, apk, pacman)", g.Name)
}

// stopped tells an interruption from what it makes fail.
func stopped(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return errors.New("interrupted, nothing is left of it")
	}
	return err
}

func writePackages(dir, answer string) error {
	var list []string
	for line := range strings.Lines(answer) {
		name, version, _ := strings.Cut(strings.TrimSpace(line), " ")
		list = appendPackage(list, name, version)
	}
	slices.Sort(list)
	return os.WriteFile(filepath.Join(dir, "packages"), []byte(strings.Join(list, "\n")+"\n"), 0o600)
}
