package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestCurrent generates everything anew and finds the committed files.
func TestCurrent(t *testing.T) {
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	src := filepath.Join(cache, "virtvzd", "libvirt-11.3.0")
	if _, err := os.Stat(filepath.Join(src, ".complete")); err != nil {
		if os.Getenv("VIRTVZD_REQUIRE") != "" {
			t.Fatal("libvirt's source is missing: run driver/protocol/gen/fetch.sh")
		}
		t.Skip("libvirt's source is not here (driver/protocol/gen/fetch.sh brings it)")
	}
	files, err := generate(src)
	if err != nil {
		t.Fatal(err)
	}
	old, err := filepath.Glob("../*.gen.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range old {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(text, files[filepath.Base(name)]) {
			t.Errorf("%s is not what the generator makes: run make generate", name)
		}
		delete(files, filepath.Base(name))
	}
	for name := range files {
		t.Errorf("%s is missing: run make generate", name)
	}
}

func TestCamel(t *testing.T) {
	for in, want := range map[string]string{
		"domain_get_xml_desc_args":    "DomainGetXMLDescArgs",
		"DOMAIN_LOOKUP_BY_UUID":       "DomainLookupByUUID",
		"NODE_GET_CPU_STATS":          "NodeGetCPUStats",
		"callbackID":                  "CallbackID",
		"xmlCPUs":                     "XMLCPUs",
		"nrVirtCpu":                   "NrVirtCPU",
		"MessageHeader":               "MessageHeader",
		"DOMAIN_SCHEDULER_CPU_SHARES": "DomainSchedulerCPUShares",
		"rd_req":                      "RdReq",
	} {
		if got := camel(in); got != want {
			t.Errorf("%s becomes %s, want %s", in, got, want)
		}
	}
}

func TestParse(t *testing.T) {
	p := &program{file: "test.x"}
	decls, err := parse(p, `
%#include "x.h"
/* a comment */
const A = 16;
typedef string s<A>; typedef s *os;
struct v { unsigned n; unsigned hyper h; os name; char c[32]; opaque o<A>; }; /* after */
enum e { /* first */ E_1 = 1, /* second
 */ E_2 = 2 };
union u switch (int type) { case E_1: int i; case E_2: s t; };`)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, d := range decls {
		line := d.kind + " " + d.name + d.value
		for _, f := range d.fields {
			line += " " + f.label + ":" + f.typ + "/" + f.name + "/" + f.size
		}
		for _, it := range d.items {
			line += " " + it.comment + it.name + it.value
		}
		got = append(got, line)
	}
	want := `const A16
typedef s :string/s/A
typedef os :s/os/
struct v :unsigned/n/ :unsigned hyper/h/ :os/name/ :char/c/32 :opaque/o/A
enum e /* first */E_11 /* second
 */E_22
union u E_1:int/i/ E_2:s/t/`
	if strings.Join(got, "\n") != want {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), want)
	}
	for _, bad := range []string{"struct s { int a }", "program P { };", "enum e { A };", "union u switch (int k) {};", "const A 1;", "struct s { int"} {
		if _, err := parse(p, bad); err == nil || !strings.Contains(err.Error(), "test.x") {
			t.Errorf("%q is accepted: %v", bad, err)
		}
	}
}

func TestHeaders(t *testing.T) {
	g := &generator{values: map[string]value{}}
	groups, err := g.constants(`
/* # define VIR_NO 1 */
typedef enum {
    VIR_A = 0, /* a, with = and { */
    VIR_B,
    VIR_C VIR_DEPRECATED_ENUMERATOR = (1 << 4),
    VIR_D = VIR_C | 0x2,
    VIR_E = -1,

# ifdef VIR_ENUM_SENTINELS
    VIR_LAST /* the end */
# endif
} virX;
# define VIR_TEXT "a.b"
# define VIR_LEN (36+1)
# define VIR_BIG 9007199254740991LL
# define VIR_USE(x) (x)
# define VIR_TYPE struct x
`)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range groups {
		for _, n := range e.names {
			got = append(got, n+"="+g.values[n].literal())
		}
	}
	want := `VIR_A=0 VIR_B=1 VIR_C=1 << 4 VIR_D=18 VIR_E=-1 VIR_TEXT="a.b" VIR_LEN=37 VIR_BIG=9007199254740991`
	if strings.Join(got, " ") != want {
		t.Errorf("got  %s\nwant %s", strings.Join(got, " "), want)
	}
}

func TestAccess(t *testing.T) {
	dir := t.TempDir()
	write := func(text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(dir, "src"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "src/libvirt-test.c"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(`
int
virOpen(int a)
{
    return 0;
}

int virSet(int a,
           int b)
{
    virCheckReadOnlyGoto(a->flags, error);
}

char *
virGet(int flags)
{
    if (flags & VIR_X)
        virCheckReadOnlyGoto(a->flags, error);
}

char *
virRead(int flags)
{
    if ((conn->flags & VIR_CONNECT_RO) &&
        (flags & (VIR_X | VIR_Y))) {
    }
}
`)
	found, err := publicFunctions(dir)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"viropen": "Allowed", "virset": "Refused",
		"virget": "Conditional (a.Flags & X) != 0", "virread": "Conditional (a.Flags & (X | Y)) != 0",
	} {
		got := found[name].access
		if c := found[name].condition; c != "" {
			got += " " + goCondition(c)
		}
		if got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	if got := goCondition("source == VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT"); got != "a.Source == DomainInterfaceAddressesSrcAgent" {
		t.Error(got)
	}
	write("int\nvirOdd(int a)\n{\n    while (b)\n        if (c) {\n            virCheckReadOnly(a);\n        }\n}\n")
	if _, err := publicFunctions(dir); err == nil || !strings.Contains(err.Error(), "virOdd") {
		t.Errorf("a check of an unknown form goes unnoticed: %v", err)
	}
}

func TestNamesAreGivenOnce(t *testing.T) {
	r := register{}
	if r.add("X", "VIR_X") != nil || r.add("X", "VIR_X") != nil {
		t.Error("the same name again is refused")
	}
	if err := r.add("X", "REMOTE_X"); err == nil || !strings.Contains(err.Error(), "tables.go") {
		t.Errorf("two C names get one Go name: %v", err)
	}
}
