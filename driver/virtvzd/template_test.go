package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"virtvzd/runtime"
)

// TestShippedRecipes holds that what is installed can be read, and that no
// address of somebody's archive is in it: hosts know theirs.
func TestShippedRecipes(t *testing.T) {
	files, err := filepath.Glob("templates/*.toml")
	if err != nil || len(files) < 8 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		r, err := runtime.ParseRecipe(text)
		if err != nil {
			t.Errorf("%s: %v", file, err)
		} else if !strings.HasPrefix(filepath.Base(file), r.Distribution) || len(r.Packages) == 0 {
			t.Errorf("%s is for %s, with %v", file, r.Distribution, r.Packages)
		}
		if strings.Contains(string(text), "://") && !strings.Contains(string(text), "file:// works") || strings.Contains(string(text), "http") {
			t.Errorf("%s has an address", file)
		}
	}
}

func TestRecipeFile(t *testing.T) {
	conf := &config{ConfigDir: t.TempDir()}
	if got := recipeFile(conf, "x"); !strings.HasSuffix(got, "/share/virtvzd/templates/x.toml") {
		t.Errorf("installed: %s", got)
	}
	own := filepath.Join(conf.ConfigDir, "templates/x.toml")
	os.MkdirAll(filepath.Dir(own), 0o755)
	os.WriteFile(own, nil, 0o644)
	if got := recipeFile(conf, "x"); got != own {
		t.Errorf("own: %s", got)
	}
}

func TestNamesIn(t *testing.T) {
	dir := t.TempDir()
	os.WriteFile(dir+"/web1.xml", []byte("<!-- x --><domain type='vz'><name>web1</name><uuid>ABCDEF00-0000-4000-8000-000000000001</uuid></domain>"), 0o600)
	os.WriteFile(dir+"/bad.xml", []byte("<domain"), 0o600)
	name := namesIn(dir)
	if got := name("abcdef00-0000-4000-8000-000000000001"); got != "web1" {
		t.Errorf("defined: %s", got)
	}
	if got := name("00000000-0000-4000-8000-000000000002"); got != "00000000-0000-4000-8000-000000000002" {
		t.Errorf("undefined: %s", got)
	}
}

func TestTemplateCommand(t *testing.T) {
	conf := &config{DataDir: t.TempDir(), ConfigDir: t.TempDir(), StateDir: t.TempDir()}
	for line, want := range map[string]string{
		"":                      "unknown template command",
		"bake x":                "unknown template command",
		"import x":              "template import wants NAME, SOURCE",
		"import --limit 4X x y": "is no size",
		"import x /nonexistent": "no such file",
		"rm none":               "there is no such template",
		"show none@12345678":    "there is no such template",
		"update x":              "give --pending",
		"update --pending x":    "there is no such template",
		"build x /nonexistent":  "no such file",
		"build x a b":           "template build wants NAME, FILE",
		"list all":              "template list wants nothing else",
	} {
		err := template(t.Context(), conf, strings.Fields(line))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", line, err, want)
		}
	}
}
