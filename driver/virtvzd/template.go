package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"text/tabwriter"

	"virtvzd/runtime"
)

// template is the command of that name. It works on the directory the
// daemon reads at every start of an environment, so it needs no daemon.
func template(ctx context.Context, conf *config, args []string) error {
	templates := runtime.OpenTemplates(conf.DataDir)
	switch {
	case len(args) == 3 && args[0] == "import":
		t, err := templates.Import(ctx, args[1], args[2], showProgress(args[2]))
		if err != nil {
			return err
		}
		fmt.Printf("template %s imported (%s)\n", t.Name, t.Digest)
		return nil
	case len(args) == 1 && args[0] == "list":
		return listTemplates(templates)
	case len(args) == 2 && args[0] == "rm":
		if err := templates.Remove(args[1]); err != nil {
			return err
		}
		fmt.Printf("template %s removed\n", args[1])
		return nil
	}
	return errors.New("unknown template command\n" + usage)
}

func listTemplates(templates *runtime.Templates) error {
	list, err := templates.List()
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "NAME\tSIZE\tIMPORTED\tDIGEST")
	for _, t := range list {
		fmt.Fprintf(w, "%s\t%d MiB\t%s\t%.19s\n", t.Name, t.Size>>20, t.Imported.Format("2006-01-02 15:04"), t.Digest)
	}
	return w.Flush()
}

// showProgress draws how much of the file has been read, on a terminal only.
func showProgress(file string) func(done, total int64) {
	if info, err := os.Stderr.Stat(); err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return func(int64, int64) {}
	}
	last := int64(-1)
	return func(done, total int64) {
		if total <= 0 || done*100/total == last {
			return
		}
		last = done * 100 / total
		fmt.Fprintf(os.Stderr, "\r%s: %d %%", file, last)
		if done >= total {
			fmt.Fprintln(os.Stderr)
		}
	}
}
