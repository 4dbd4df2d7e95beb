package main

import (
	"context"
	"encoding/xml"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"

	"virtvzd/runtime"
	"virtvzd/systemd"
)

const templateUsage = `usage: virtvzd template import [--limit SIZE] NAME FILE|DIR|oci:LAYOUT[:TAG]
       virtvzd template build NAME [FILE]
       virtvzd template update --pending NAME
       virtvzd template list
       virtvzd template show NAME[@GENERATION]
       virtvzd template rm NAME[@GENERATION]
       virtvzd template prune
`

// template is the command of that name. It works on the directory the
// daemon reads at every start of an environment, so it needs no daemon.
func template(ctx context.Context, conf *config, args []string) error {
	templates := runtime.OpenTemplates(conf.DataDir)
	templates.NameOf = namesIn(conf.ConfigDir)
	commands := map[string]command{
		"import": importTemplate, "build": buildTemplate(conf), "update": updateTemplate(conf),
		"list": listTemplates, "show": showTemplate, "rm": removeTemplate, "prune": pruneTemplates,
	}
	if len(args) == 0 || commands[args[0]] == nil {
		return errors.New("unknown template command\n" + templateUsage)
	}
	return commands[args[0]](ctx, templates, args[1:])
}

type command func(context.Context, *runtime.Templates, []string) error

// parse wants as many words after the options as there are names.
func parse(flags *flag.FlagSet, args []string, names ...string) error {
	flags.Usage = func() { fmt.Fprint(flags.Output(), templateUsage) }
	flags.SetOutput(io.Discard)
	if err := flags.Parse(args); err != nil || flags.NArg() != len(names) {
		return errors.Join(err, fmt.Errorf("template %s wants %s\n%s", flags.Name(), strings.Join(append(names, "nothing else"), ", "), templateUsage))
	}
	return nil
}

func importTemplate(ctx context.Context, templates *runtime.Templates, args []string) error {
	flags := flag.NewFlagSet("import", flag.ContinueOnError)
	limit := size(runtime.DefaultLimits.Bytes)
	flags.Var(&limit, "limit", "")
	if err := parse(flags, args, "NAME", "SOURCE"); err != nil {
		return err
	}
	limits := runtime.Limits{Bytes: int64(limit), Files: runtime.DefaultLimits.Files}
	g, err := templates.Import(ctx, flags.Arg(0), flags.Arg(1), runtime.ImportOptions{Limits: limits, Progress: showProgress(flags.Arg(1))})
	if err != nil {
		return err
	}
	fmt.Printf("template %s imported (%s)\n", g.Name, g.Digest)
	return nil
}

// buildTemplate builds from a recipe; without a file, from the one of that name
// of those that are installed.
func buildTemplate(conf *config) command {
	return func(ctx context.Context, templates *runtime.Templates, args []string) error {
		if len(args) == 1 {
			args = append(args, recipeFile(conf, args[0]))
		}
		flags := flag.NewFlagSet("build", flag.ContinueOnError)
		if err := parse(flags, args, "NAME", "FILE"); err != nil {
			return err
		}
		bus, options := buildOptions(conf)
		defer bus.Close()
		g, err := templates.Build(ctx, flags.Arg(0), flags.Arg(1), options)
		if err != nil {
			return err
		}
		fmt.Printf("template %s built: %s, %d packages, %d MiB (%s)\n", g.Name, orDash(g.System), g.Packages, g.Size>>20, g.Digest)
		return nil
	}
}

// recipeFile looks where users and packagers put recipes.
func recipeFile(conf *config, name string) string {
	own := filepath.Join(conf.ConfigDir, "templates", name+".toml")
	if _, err := os.Stat(own); err == nil {
		return own
	}
	if binary, err := os.Executable(); err == nil {
		return filepath.Join(filepath.Dir(binary), "../share/virtvzd/templates", name+".toml")
	}
	return own
}

// buildOptions hold a build in a scope where systemd runs.
func buildOptions(conf *config) (io.Closer, runtime.BuildOptions) {
	o := runtime.BuildOptions{StateDir: conf.StateDir, Progress: func(line string) { fmt.Fprintln(os.Stderr, line) }}
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		return io.NopCloser(nil), o
	}
	bus := systemd.Open()
	o.Scopes = bus
	return bus, o
}

func updateTemplate(conf *config) command {
	return func(ctx context.Context, templates *runtime.Templates, args []string) error {
		flags := flag.NewFlagSet("update", flag.ContinueOnError)
		pending := flags.Bool("pending", false, "")
		if err := parse(flags, args, "NAME"); err != nil {
			return err
		}
		if !*pending {
			return errors.New("a template is updated by building it again: give --pending to learn what waits\n" + templateUsage)
		}
		bus, options := buildOptions(conf)
		defer bus.Close()
		list, err := templates.Pending(ctx, flags.Arg(0), options)
		if err != nil {
			return err
		}
		for _, line := range list {
			fmt.Println(line)
		}
		fmt.Printf("%d package updates wait for template %s\n", len(list), flags.Arg(0))
		return nil
	}
}

// listTemplates prints a line for each generation; of a name, the current one
// is first.
func listTemplates(_ context.Context, templates *runtime.Templates, args []string) error {
	if err := parse(flag.NewFlagSet("list", flag.ContinueOnError), args); err != nil {
		return err
	}
	list, damaged := templates.List()
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "NAME\tGENERATION\tCURRENT\tMADE\tSIZE\tSYSTEM\tUSED BY")
	for _, g := range list {
		current := "-"
		if g.Current {
			current = "yes"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d MiB\t%s\t%s\n", orDash(g.Name), g.ID(), current,
			g.Made.Format("2006-01-02 15:04"), g.Size>>20, orDash(g.System), orDash(strings.Join(g.Users, ", ")))
	}
	return errors.Join(w.Flush(), damaged)
}

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

// showTemplate prints the manifest of a generation.
func showTemplate(_ context.Context, templates *runtime.Templates, args []string) error {
	flags := flag.NewFlagSet("show", flag.ContinueOnError)
	if err := parse(flags, args, "NAME"); err != nil {
		return err
	}
	g, damaged := templates.Find(flags.Arg(0))
	if g.Path == "" {
		return damaged
	}
	packages, err := g.PackageList()
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "Name:\t%s\nGeneration:\t%s\nCurrent:\t%t\nSystem:\t%s\nMade:\t%s\nFrom:\t%s\nSize:\t%d bytes in %d files\nUsed by:\t%s\nPackages:\t%d\n",
		orDash(g.Name), g.Digest, g.Current, orDash(g.System), g.Made.Format("2006-01-02 15:04:05 MST"), g.Source,
		g.Size, g.Files, orDash(strings.Join(g.Users, ", ")), len(packages))
	for _, p := range packages {
		fmt.Fprintf(w, "\t%s\n", p)
	}
	return errors.Join(w.Flush(), damaged)
}

func removeTemplate(_ context.Context, templates *runtime.Templates, args []string) error {
	flags := flag.NewFlagSet("rm", flag.ContinueOnError)
	if err := parse(flags, args, "NAME"); err != nil {
		return err
	}
	if err := templates.Remove(flags.Arg(0)); err != nil {
		return err
	}
	fmt.Printf("template %s removed\n", flags.Arg(0))
	return nil
}

// pruneTemplates removes generations that are neither current nor in use.
func pruneTemplates(_ context.Context, templates *runtime.Templates, args []string) error {
	if err := parse(flag.NewFlagSet("prune", flag.ContinueOnError), args); err != nil {
		return err
	}
	gone, err := templates.Prune()
	for _, g := range gone {
		fmt.Printf("template %s@%s removed\n", g.Name, g.ID())
	}
	return err
}

// namesIn tells the name of a defined environment by its UUID. Layers stay
// when a domain is undefined: those keep the UUID.
func namesIn(configDir string) func(uuid string) string {
	names := map[string]string{}
	files, _ := filepath.Glob(filepath.Join(configDir, "*.xml"))
	for _, file := range files {
		var domain struct {
			Name string `xml:"name"`
			UUID string `xml:"uuid"`
		}
		if body, err := os.ReadFile(file); err == nil && xml.Unmarshal(body, &domain) == nil {
			names[strings.ToLower(strings.TrimSpace(domain.UUID))] = strings.TrimSpace(domain.Name)
		}
	}
	return func(uuid string) string {
		if name := names[uuid]; name != "" {
			return name
		}
		return uuid
	}
}

// size is a number of bytes with K, M, G or T for powers of 1024.
type size int64

func (s *size) String() string { return strconv.FormatInt(int64(*s), 10) }

func (s *size) Set(text string) error {
	n, err := runtime.ParseSize(text)
	*s = size(n)
	return err
}

// showProgress draws how much has been read, on a terminal only.
func showProgress(what string) func(done, total int64) {
	if info, err := os.Stderr.Stat(); err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return nil
	}
	last := ""
	return func(done, total int64) {
		now := fmt.Sprintf("%d MiB", done>>20)
		if total > 0 {
			now = fmt.Sprintf("%d %%", done*100/total)
		}
		if now == last {
			return
		}
		last = now
		fmt.Fprintf(os.Stderr, "\r%s: %s", what, now)
		if total > 0 && done >= total {
			fmt.Fprintln(os.Stderr)
		}
	}
}
