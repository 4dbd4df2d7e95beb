package vm

import (
	"testing"
	"testing/fstest"
)

func TestRecipeKey(t *testing.T) {
	key := func(files map[string]string) string {
		recipe := fstest.MapFS{}
		for name, text := range files {
			recipe[name] = &fstest.MapFile{Data: []byte(text)}
		}
		k, err := recipeKey(recipe)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	base := map[string]string{"a": "one", "d/b": "two"}
	if len(key(base)) != 12 || key(base) != key(map[string]string{"d/b": "two", "a": "one"}) {
		t.Errorf("key %q is not 12 digits that depend on the content only", key(base))
	}
	seen := map[string]string{key(base): "base"}
	for what, files := range map[string]map[string]string{
		"text changed":      {"a": "onE", "d/b": "two"},
		"file renamed":      {"a": "one", "d/c": "two"},
		"file removed":      {"a": "one"},
		"text moved to b":   {"a": "on", "d/b": "etwo"},
		"text became name":  {"a": "", "oned/b": "two"},
		"empty file joined": {"a": "one", "d/b": "two", "e": ""},
	} {
		k := key(files)
		if other, ok := seen[k]; ok {
			t.Errorf("%s: the same key as %s", what, other)
		}
		seen[k] = what
	}
}

func TestRecipeIsEmbedded(t *testing.T) {
	for _, name := range []string{
		"recipe/build.sh", "recipe/guest.sh", "recipe/guest.packages", "recipe/guest/etc/fstab",
		"recipe/guest/etc/ssh/sshd_config.d/virtvzd.conf", "recipe/busybox/etc/inittab",
	} {
		if _, err := recipe.Open(name); err != nil {
			t.Error(err)
		}
	}
}
