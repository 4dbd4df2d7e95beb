package xml

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// TestCopy: nothing of a copy is shared, checked on everything the golden
// documents use.
func TestCopy(t *testing.T) {
	files, _ := filepath.Glob("testdata/*.in.xml")
	for _, file := range files {
		doc, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		def, err := Parse(string(doc), host, ParseOptions{})
		if err != nil {
			t.Fatal(err)
		}
		next := Copy(def)
		if !reflect.DeepEqual(def, next) {
			t.Errorf("%s: the copy differs", file)
		}
		if path := shared(reflect.ValueOf(def), reflect.ValueOf(next), "def"); path != "" {
			t.Errorf("%s: %s is shared", file, path)
		}
	}
}

// shared finds memory two equal values have in common.
func shared(a, b reflect.Value, path string) string {
	switch a.Kind() {
	case reflect.Pointer:
		if a.IsNil() || a.Type().Elem().Size() == 0 {
			return ""
		}
		if a.Pointer() == b.Pointer() {
			return path
		}
		return shared(a.Elem(), b.Elem(), path)
	case reflect.Slice:
		if a.Len() > 0 && a.Pointer() == b.Pointer() {
			return path
		}
		for i := range a.Len() {
			if p := shared(a.Index(i), b.Index(i), path+"[]"); p != "" {
				return p
			}
		}
	case reflect.Struct:
		for i := range a.NumField() {
			if p := shared(a.Field(i), b.Field(i), path+"."+a.Type().Field(i).Name); p != "" {
				return p
			}
		}
	}
	return ""
}

func TestLive(t *testing.T) {
	def, err := Parse(minimal, host, ParseOptions{})
	if err != nil {
		t.Fatal(err)
	}
	before, _ := Format(def, FormatOptions{})
	live := Live(def, LiveFacts{ID: 7, Consoles: map[string]string{"lxc 0": "/dev/console"}, SecModel: "apparmor", SecLabel: "virtvzd-web1",
		IDMap: IDMap{Mode: Explicit, UIDs: []IDRange{{0, 500000, 65536}}, GIDs: []IDRange{{0, 500000, 65536}}}})
	doc, err := Format(live, FormatOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{" id='7'", "<uid start='0' target='500000' count='65536'/>", "<alias name='fs0'/>", "tty='/dev/console'",
		"<seclabel type='dynamic' model='apparmor' relabel='yes'>", "<label>virtvzd-web1</label>"} {
		if !strings.Contains(doc, want) {
			t.Errorf("%s is missing in\n%s", want, doc)
		}
	}
	schemaCheck(t)("domain", doc)
	if after, _ := Format(def, FormatOptions{}); after != before {
		t.Errorf("Live changed the definition:\n%s", after)
	}
	// A daemon that starts again reads the live document and adds what it finds.
	again, err := Parse(doc, host, ParseOptions{Stored: true, Live: true})
	if err != nil {
		t.Fatal(err)
	}
	if twice, _ := Format(again, FormatOptions{}); twice != doc {
		t.Errorf("a live document changes when it is read:\n%s", twice)
	}
	dump, err := Format(live, FormatOptions{Migratable: true})
	if err != nil || strings.Contains(dump, " id=") || strings.Contains(dump, "<alias") || strings.Contains(dump, "<label>") {
		t.Errorf("migratable XML has what only runs here: %v\n%s", err, dump)
	}
}

// TestDecodePanic: a reader that panics ends in an error.
func TestDecodePanic(t *testing.T) {
	var into struct {
		Name trap `xml:"name"`
	}
	err := decode("<domain><name>x</name></domain>", &into)
	if err == nil || !strings.Contains(err.Error(), "<domain><name>") {
		t.Errorf("got %v", err)
	}
}

type trap struct{}

func (*trap) UnmarshalText([]byte) error { panic("trap") }
