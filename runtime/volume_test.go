package runtime

import (
	"os"
	"strings"
	"testing"
)

// A file in the pool's directory is a template, made when it is needed.
func TestVolume(t *testing.T) {
	templates := OpenTemplates(t.TempDir())
	if err := templates.makeDirs(); err != nil {
		t.Fatal(err)
	}
	volume := templates.Dir() + "/web.tar"
	os.WriteFile(volume, tarOf(t, file("text", "1")), 0o600)
	if names := templates.Names(); len(names) != 1 || names[0] != "web.tar" {
		t.Errorf("names %v", names)
	}
	if _, err := templates.Lookup("web.tar"); err == nil {
		t.Error("it is a generation before anybody needs it")
	}
	use(t, templates, "a", "web.tar")
	use(t, templates, "b", "web.tar")
	if got, want := listing(t, templates), "web.tar:1:true:a,b"; got != want {
		t.Errorf("list %s, want %s", got, want)
	}
	// Written anew it is a new generation.
	os.WriteFile(volume, tarOf(t, file("text", "2")), 0o600)
	use(t, templates, "c", "web.tar")
	use(t, templates, "a", "web.tar")
	if got, want := listing(t, templates), "web.tar:2:true:c web.tar:1:false:a,b"; got != want {
		t.Errorf("list %s, want %s", got, want)
	}
	if _, err := templates.Import(t.Context(), "web.tar", volume, ImportOptions{}); err == nil || !strings.Contains(err.Error(), "is a volume") {
		t.Errorf("import over a volume: %v", err)
	}
	if err := templates.Remove("web.tar"); err == nil || !strings.Contains(err.Error(), "by a, b") {
		t.Errorf("in use: %v", err)
	}
	// The volume deleted, by whomever, its generations are still what they are.
	os.Remove(volume)
	if got, want := listing(t, templates), "web.tar:2:false:c web.tar:1:false:a,b"; got != want {
		t.Errorf("list %s, want %s", got, want)
	}
	os.RemoveAll(templates.private)
	if err := templates.Remove("web.tar"); err != nil {
		t.Error(err)
	}
	if left, _ := os.ReadDir(templates.digestDir("")); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}

func TestVolumeRefused(t *testing.T) {
	templates := OpenTemplates(t.TempDir())
	templates.makeDirs()
	outside := t.TempDir() + "/x.tar"
	os.WriteFile(outside, tarOf(t, file("text", "1")), 0o600)
	os.Symlink(outside, templates.Dir()+"/link")
	os.WriteFile(templates.Dir()+"/half.tar", tarOf(t, file("text", strings.Repeat("x", 4096)))[:1024], 0o600)
	for _, name := range []string{"link", "half.tar", "none", ".lock"} {
		if _, err := templates.pin(t.Context(), name, templates.private+"/a"); err == nil {
			t.Errorf("%s is a template", name)
		}
	}
	if err := templates.Remove("half.tar"); err != nil || exists(templates.Dir()+"/half.tar") {
		t.Errorf("a volume nobody uses: %v", err)
	}
}
