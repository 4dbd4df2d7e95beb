package xml

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestMetadata(t *testing.T) {
	def, err := Parse(minimal, host, ParseOptions{})
	if err != nil {
		t.Fatal(err)
	}
	set := func(element, key, uri string) {
		t.Helper()
		if err := SetMetadata(def, element, key, uri); err != nil {
			t.Fatal(err)
		}
	}
	get := func(uri, want string) {
		t.Helper()
		got, found, err := Metadata(def, uri)
		if err != nil || found != (want != "") || got != want {
			t.Errorf("%s: got %q, %v, %v, want %q", uri, got, found, err, want)
		}
	}
	set("<app colour='red'><part/>text</app>", "a", "urn:a")
	set("<other/>", "b", "urn:b")
	get("urn:a", "<app colour='red'><part/>text</app>")
	get("urn:b", "<other/>")
	set("<app>new</app>", "a", "urn:a")
	get("urn:a", "<app>new</app>")
	doc, err := Format(def, FormatOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if def, err = Parse(doc, host, ParseOptions{}); err != nil {
		t.Fatal(err)
	}
	get("urn:a", "<app>new</app>")
	set("", "", "urn:a")
	get("urn:a", "")
	get("urn:b", "<other/>")
	set("", "", "urn:b")
	if def.Metadata != nil {
		t.Errorf("empty metadata stays: %q", def.Metadata.XML)
	}
	for _, bad := range [][3]string{{"<a>", "k", "urn:k"}, {"text", "k", "urn:k"}, {"<a/>", "", "urn:k"}, {"<a/>", "k", ""},
		{"<a/><b/>", "k", "urn:k"}, {"<a xmlns:k='urn:other'/>", "k", "urn:k"}, {"<x:a xmlns:x='urn:x'/>", "k", "urn:k"}, {"<a/>", "xmlns", "urn:k"}, {"<a/>", "k'>", "urn:k"}} {
		if err := SetMetadata(def, bad[0], bad[1], bad[2]); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

// TestMetadataEscapes: what the key's namespace contains must not break the
// document it is written into.
func TestMetadataEscapes(t *testing.T) {
	def, err := Parse(minimal, host, ParseOptions{})
	if err != nil {
		t.Fatal(err)
	}
	const uri = `urn:"ü"<&>`
	if err := SetMetadata(def, "<a/>", "k", uri); err != nil {
		t.Fatal(err)
	}
	doc, err := Format(def, FormatOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if def, err = Parse(doc, host, ParseOptions{Validate: true}); err != nil {
		t.Fatal(err)
	}
	if got, found, err := Metadata(def, uri); !found || err != nil {
		t.Errorf("got %q, %v, %v", got, found, err)
	}
}

// TestMetadataBounds: a definition that could not be loaded again is not
// formatted, so that a file of it never comes to be.
func TestMetadataBounds(t *testing.T) {
	deep := strings.Repeat("<a>", maxDepth) + strings.Repeat("</a>", maxDepth)
	for name, element := range map[string]string{"deep": deep, "many": "<a>" + strings.Repeat("<b/>", maxElements-1) + "</a>",
		"large": "<a>" + strings.Repeat("x", maxDocument-100) + "</a>"} {
		def, err := Parse(minimal, host, ParseOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := SetMetadata(def, element, "k", "urn:k"); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if doc, err := Format(def, FormatOptions{Inactive: true}); err == nil {
			t.Errorf("%s: %d bytes were formatted", name, len(doc))
		}
	}
}

func TestVE(t *testing.T) {
	def, err := Parse(minimal, host, ParseOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := SetMetadata(def, "<ve><hostname>a.example</hostname><nameserver>192.0.2.1</nameserver><searchdomain>b.example</searchdomain></ve>", "ve", VENamespace); err != nil {
		t.Fatal(err)
	}
	e, err := NewEnvironment(def)
	if err != nil || e.Hostname != "a.example" || strings.Join(append(e.Nameservers, e.SearchDomains...), " ") != "192.0.2.1 b.example" {
		t.Errorf("got %+v, %v", e, err)
	}
	if err := SetMetadata(def, "<ve><clone of='01020304-0000-4000-8000-000000000000'/></ve>", "ve", VENamespace); err != nil {
		t.Fatal(err)
	}
	if e, err := NewEnvironment(def); err != nil || e.CloneOf != [16]byte{1, 2, 3, 4, 6: 0x40, 8: 0x80} {
		t.Errorf("clone of %x, %v", e.CloneOf, err)
	}
	if err := SetMetadata(def, "<ve><clone of='web1'/></ve>", "ve", VENamespace); err == nil {
		t.Error("a clone of a name was accepted")
	}
	if err := SetMetadata(def, "<ve><tasks>0</tasks></ve>", "ve", VENamespace); err == nil {
		t.Error("no tasks were accepted")
	}
}

// TestAdopt: prefixes declared around <metadata> go with the elements that
// use them, the innermost declaration first, and with no others.
func TestAdopt(t *testing.T) {
	doc := strings.Replace(minimal, "<domain ", "<domain xmlns:a='urn:outer' xmlns:b='urn:b' xmlns:c='urn:c' ", 1)
	doc = strings.Replace(doc, "<os>", "<metadata xmlns:a='urn:a'><a:x><b:y/></a:x><plain/><a:z xmlns:a='urn:own'/></metadata><os>", 1)
	def, err := Parse(doc, host, ParseOptions{Validate: true})
	if err != nil {
		t.Fatal(err)
	}
	if want := `<a:x xmlns:a="urn:a" xmlns:b="urn:b"><b:y/></a:x><plain/><a:z xmlns:a='urn:own'/>`; def.Metadata.XML != want {
		t.Errorf("got  %s\nwant %s", def.Metadata.XML, want)
	}
	for uri, found := range map[string]bool{"urn:a": true, "urn:own": true, "urn:outer": false} {
		if _, got, err := Metadata(def, uri); got != found || err != nil {
			t.Errorf("%s: found %v, %v", uri, got, err)
		}
	}
}

// TestAdoptBounds: neither many prefixes nor long ones make much of a document.
func TestAdoptBounds(t *testing.T) {
	declared := func(n int, uri string) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, " xmlns:a%d='%s'", i, uri)
		}
		return b.String()
	}
	long := strings.Repeat("x", 100_000)
	for name, c := range map[string]struct{ outer, metadata, want string }{
		"as many as may be":        {declared(maxPrefixes, "u"), strings.Repeat("<c/>", 10_000) + "<a0:c/>", ""},
		"again and again":          {strings.Repeat(declared(1, "u"), 10_000), strings.Repeat("<c/>", 10_000), ""},
		"many":                     {declared(maxPrefixes+1, "u"), "<c/>", "more than 64 namespaces"},
		"many times many":          {declared(16_000, "u"), strings.Repeat("<c/>", 8_000), "more than 64 namespaces"},
		"many, and a long element": {declared(16_000, "u"), "<c>" + strings.Repeat("a", 1<<20) + "</c>", "more than 64 namespaces"},
		"long":                     {declared(1, long), strings.Repeat("<a0:c/>", 10_000), "the limit is"},
	} {
		doc := strings.Replace(minimal, "<domain ", "<domain "+c.outer+" ", 1)
		doc = strings.Replace(doc, "<os>", "<metadata>"+c.metadata+"</metadata><os>", 1)
		begin := time.Now()
		def, err := Parse(doc, host, ParseOptions{})
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		if err == nil && len(def.Metadata.XML) > len(c.metadata)+100 {
			t.Errorf("%s: %d bytes became %d", name, len(c.metadata), len(def.Metadata.XML))
		}
		if took := time.Since(begin); took > 10*time.Second {
			t.Errorf("%s: took %v", name, took)
		}
	}
}
