package runtime

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestRecipeRefused(t *testing.T) {
	const head = "distribution = 'debian'\nrelease = 'trixie'\n"
	const repository = head + "[[repository]]\nname = 'x'\n"
	for text, want := range map[string]string{
		"distribution = 'none'\nrelease = '1'":                             "there are almalinux, alpine, arch",
		"distribution = 'debian'":                                          "no name of a release",
		"distribution = 'debian'\nrelease = '--help'":                      "no name of a release",
		head + "colour = 'red'":                                            `unknown setting "colour"`,
		head + "packages = ['--option']":                                   "no name of a package",
		head + "packages = ['a b']":                                        "no name of a package",
		head + "packages = ['/../../x']":                                   "no name of a package",
		head + "architecture = '-x'":                                       "is none",
		head + "repositories = ['a,b']":                                    "no name of one",
		head + "size = '1K'":                                               "not between 64M and 1T",
		head + "size = 'big'":                                              "is no size",
		head + "[[hook]]\nname = 'x'":                                      "needs a script",
		repository:                                                         "needs an address: this recipe leaves it to you, and the sources of apt",
		repository + "address = 'x'":                                       "is no address",
		repository + "address = 'http://h/ trusted=yes'":                   "is no address",
		repository + "address = \"http://h/\\n[x]\"":                       "is no address",
		repository + "address = 'file:///srv/../../etc'":                   "is no address",
		repository + "address = 'http://h/'\nmetalink='http:/'":            "is no address",
		repository + "address = 'http://h/'\nmetalink='http://h/'":         "needs an address",
		repository + "address = 'http://h/'":                               "needs the key",
		repository + "address = 'http://h/'\nkey = 'relative'":             "no absolute path",
		repository + "address = 'http://h/'\nkey = '/a/../b'":              "no absolute path",
		repository + "address = 'http://h/'\nkey = '/k'\nunsigned = true":  "has a key and unsigned",
		repository + "address = 'http://h/'\nunsigned = true\nsuite = ']'": "are words",
		"this is no recipe":                                                "cannot be read",
	} {
		_, err := ParseRecipe([]byte(text))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\n%v, want %q", text, err, want)
		}
	}
}

// planText is a plan as a person would check it.
func planText(r *Recipe, h buildHost) string {
	p, err := planBuild(r, h)
	if err != nil {
		return "refused: " + err.Error() + "\n"
	}
	var b strings.Builder
	for _, f := range p.Files {
		fmt.Fprintf(&b, "file %s\n", f.Name)
		for line := range strings.Lines(f.Text) {
			fmt.Fprintf(&b, "\t%s", line)
		}
	}
	for _, address := range p.Out.Named {
		fmt.Fprintf(&b, "reaches %s\n", address)
	}
	for _, name := range p.Binds {
		fmt.Fprintf(&b, "sees %s\n", name)
	}
	for _, s := range p.Steps {
		fmt.Fprintf(&b, "step %s: inside %t, network %t, mounts %t, api %t\n\t%s\n", s.Title, s.Inside, s.Network, s.Mounts, s.API, strings.Join(s.Argv, "\n\t"))
	}
	return b.String()
}

// planHosts are those that plans are shown for.
func planHosts() []planHost {
	none := func(string) bool { return false }
	all := func(string) bool { return true }
	debian := buildHost{ID: "debian", Has: all, AptConf: []string{`Acquire::Check-Valid-Until "0";`}, Apt: []aptSource{
		{"http://archive/debian/", "bookworm", "main", "Debian"}, {"http://archive/debian/", "bookworm", "contrib", "Debian"},
		{"http://archive/debian/", "bookworm-updates", "main", "Debian"}, {"http://security/", "bookworm-security", "main", "Debian-Security"},
		{"http://other/", "stable", "main", "Other"}}}
	foreign := debian
	foreign.Has = func(file string) bool {
		return !strings.HasPrefix(file, "/etc/") && !strings.HasPrefix(file, "/usr/share/keyrings/ubuntu")
	}
	return []planHost{
		{"a bare host", buildHost{ID: "debian", Has: none}},
		{"Debian", foreign},
		{"Fedora", buildHost{ID: "fedora", Has: all, DNF: []string{"fedora", "updates"}}},
		{"Alpine", buildHost{ID: "alpine", Has: all}},
	}
}

type planHost struct {
	name string
	host buildHost
}

func planGolden(t *testing.T, name string, text []byte) {
	t.Helper()
	r, err := ParseRecipe(text)
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	var b strings.Builder
	for _, h := range planHosts() {
		fmt.Fprintf(&b, "# on %s\n%s\n", h.name, planText(r, h.host))
	}
	golden(t, "recipe/"+name+".golden", b.String())
}

// TestBuildPlans shows what is run for recipes on hosts: testdata/recipe has
// the recipes, and beside each what comes of it.
func TestBuildPlans(t *testing.T) {
	files, err := filepath.Glob("testdata/recipe/*.toml")
	if err != nil || len(files) == 0 {
		t.Fatal("there are no recipes", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		planGolden(t, strings.TrimSuffix(filepath.Base(file), ".toml"), text)
	}
}

// TestInstalledPlans: so of the recipes that are installed, as they are and with
// the repositories that they leave to the user, which NAME.repositories has.
func TestInstalledPlans(t *testing.T) {
	for _, name := range []string{"almalinux10", "opensuse-tumbleweed"} {
		text, err := os.ReadFile("../driver/virtvzd/templates/" + name + ".toml")
		own, missing := os.ReadFile("testdata/recipe/" + name + ".repositories")
		if err := errors.Join(err, missing); err != nil {
			t.Fatal(err)
		}
		planGolden(t, name+"-installed", text)
		planGolden(t, name+"-completed", append(text, own...))
	}
}

func TestParseAPT(t *testing.T) {
	list := parseAPTSources("http://a/debian/\ttrixie\tmain\tDebian\nhttp://a b/\tx\ty\tz\nnonsense\nhttp://b/\t-x\tmain\tDebian\nhttp://c/\tnew\tmain\t\n")
	if !slices.Equal(list, []aptSource{{"http://a/debian/", "trixie", "main", "Debian"}, {"http://c/", "new", "main", ""}}) {
		t.Errorf("%+v", list)
	}
	list = parseAPTURIs("'http://a/debian/dists/trixie/InRelease' a_InRelease 0 \n'http://a/debian/pool/x' x 1\nnonsense\n")
	if !slices.Equal(list, []aptSource{{"http://a/debian/", "trixie", "main", ""}}) {
		t.Errorf("%+v", list)
	}
	conf, proxies := parseAPTConf("APT::Architecture \"amd64\";\nAcquire::http::Proxy \"http://p/\";\nAcquire::https::proxy::H \"DIRECT\";\nAcquire::Check-Valid-Until \"0\";\nDPkg::Pre-Invoke:: \"rm\";\nAcquire::http::Proxy-Auto-Detect \"/bin/x\";\n")
	if got := strings.Join(conf, "|"); got != `Acquire::Check-Valid-Until "0";` {
		t.Errorf("%s", got)
	}
	if want := map[string]string{"http": "http://p/", "https::h": "DIRECT"}; !maps.Equal(proxies, want) {
		t.Errorf("%v", proxies)
	}
	if p := parseDNFProxy("[main]\n#proxy=x\nproxy = http://p:8080\n"); p["http"] != "http://p:8080" {
		t.Errorf("%v", p)
	}
	if ids := parseRepoIDs("# x\n[a]\nname=[b]\n [c] \n"); !slices.Equal(ids, []string{"a", "c"}) {
		t.Errorf("%v", ids)
	}
}

func TestUpdateScript(t *testing.T) {
	templates, made, err := importBody(t, tarOf(t, file("usr/bin/apt-get", "x")), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if p, err := planUpdate(made, buildHost{}); err != nil || !strings.Contains(p.Steps[0].Argv[3], "dist-upgrade") {
		t.Errorf("%+v, %v", p, err)
	}
	other := again(t, templates, "y", "1")
	if _, err := planUpdate(other, buildHost{}); err == nil || !strings.Contains(err.Error(), "no package manager that is known") {
		t.Errorf("%v", err)
	}
	if _, err := templates.Pending(t.Context(), "none", BuildOptions{}); !errors.Is(err, ErrNoTemplate) {
		t.Errorf("%v", err)
	}
}
