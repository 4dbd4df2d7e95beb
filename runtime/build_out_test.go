package runtime

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
)

// seen counts what passes a server.
type seen struct {
	mu   sync.Mutex
	list []string
	next http.Handler
}

func (s *seen) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.list = append(s.list, r.Method+" "+r.Header.Get("Proxy-Authorization"))
	s.mu.Unlock()
	s.next.ServeHTTP(w, r)
}

func hostOf(s *httptest.Server) string {
	return strings.TrimPrefix(s.URL[strings.Index(s.URL, "//"):], "//")
}

// TestOutProxy: archives are reached, by the host's proxy if it has one, and the
// host's own addresses are not.
func TestOutProxy(t *testing.T) {
	page := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "an archive") })
	plain, secret := httptest.NewServer(page), httptest.NewTLSServer(page)
	defer plain.Close()
	defer secret.Close()
	both := []string{hostOf(plain), hostOf(secret)}
	hosts := &seen{next: newOutProxy(wayOut{Named: both})} // stands for the host's proxy
	upstream := httptest.NewServer(hosts)
	defer upstream.Close()
	withUser := strings.Replace(upstream.URL, "//", "//me:secret@", 1)

	get := func(way wayOut, address string) string {
		proxy := httptest.NewServer(newOutProxy(way))
		defer proxy.Close()
		u, _ := url.Parse(proxy.URL)
		transport := secret.Client().Transport.(*http.Transport).Clone()
		transport.Proxy = func(*http.Request) (*url.URL, error) { return u, nil }
		defer transport.CloseIdleConnections()
		answer, err := (&http.Client{Transport: transport}).Get(address)
		if err != nil {
			return err.Error()
		}
		defer answer.Body.Close()
		body, _ := io.ReadAll(answer.Body)
		return string(body)
	}
	port := plain.URL[strings.LastIndex(plain.URL, ":"):]
	for _, test := range []struct {
		way           wayOut
		address, want string
		by            string // of the host's proxy
	}{
		{wayOut{Named: both}, plain.URL, "an archive", ""},
		{wayOut{Named: both}, secret.URL, "an archive", ""},
		{wayOut{}, plain.URL, "is the host's own", ""},
		{wayOut{}, secret.URL, "Bad Gateway", ""},
		{wayOut{Named: both}, "http://localhost" + port, "is the host's own", ""},
		{wayOut{Named: both}, "http://[::ffff:127.0.0.1]" + port, "is the host's own", ""},
		{wayOut{}, "http://169.254.169.254/latest", "is the host's own", ""},
		{wayOut{Named: both, Proxies: map[string]string{"http": upstream.URL}}, plain.URL, "an archive", "GET "},
		{wayOut{Named: both, Proxies: map[string]string{"http": upstream.URL}}, secret.URL, "an archive", "CONNECT "},
		{wayOut{Named: both, Proxies: map[string]string{"https": withUser}}, secret.URL, "an archive", "CONNECT Basic bWU6c2VjcmV0"},
		{wayOut{Archives: []string{"archive.test:80"}, Proxies: map[string]string{"http": plain.URL}}, "http://archive.test/", "an archive", ""},
		{wayOut{Proxies: map[string]string{"http": upstream.URL}}, plain.URL, "is the host's own", ""},
		{wayOut{Proxies: map[string]string{"http": upstream.URL}}, secret.URL, "Bad Gateway", ""},
		{wayOut{Proxies: map[string]string{"http": upstream.URL}}, upstream.URL, "is the host's own", ""},
		{wayOut{Named: both, Proxies: map[string]string{"http": upstream.URL}}, "http://127.0.0.1:9/", "is the host's own", ""},
		{wayOut{Proxies: map[string]string{"http": upstream.URL, "http::127.0.0.1": "DIRECT"}}, plain.URL, "is the host's own", ""},
		{wayOut{Proxies: map[string]string{"https": "socks5h://127.0.0.1:1"}}, secret.URL, "Bad Gateway", ""},
	} {
		hosts.list = nil
		if got := get(test.way, test.address); !strings.Contains(got, test.want) {
			t.Errorf("%s with %+v: %q", test.address, test.way, got)
		}
		if got := strings.Join(hosts.list, ","); got != test.by {
			t.Errorf("%s with %+v: by the host's proxy %q", test.address, test.way, got)
		}
	}
	hosts.list = nil
	proxy := newOutProxy(wayOut{Named: []string{"localhost:80"}, Proxies: map[string]string{"http": upstream.URL, "https::a.test": "http://Cache.test:3142"}})
	for _, test := range []struct{ method, target, want string }{
		{"GET", "/etc/passwd", "by http and https only"},
		{"GET", "http://localhost:8080/", "is the host's own"},
		{"GET", "http://LocalHost./", "is the host's own"},
		{"GET", "http://a.localhost/", "is the host's own"},
		{"GET", "http://[::1]/", "is the host's own"},
		{"GET", "http://[::]:80/", "is the host's own"},
		{"GET", "http://[fe80::1%25lo]/", "is the host's own"},
		{"GET", "http://169.254.169.254/latest", "is the host's own"},
		{"GET", "http://127.0.0.1./", "is the host's own"},
		{"GET", "http://127.1/", "is the host's own"}, // as inet_aton(3) has them
		{"GET", "http://0x7f.1/", "is the host's own"},
		{"GET", "http://2130706433/", "is the host's own"},
		{"CONNECT", "127.0.0.1:22", "is the host's own"},
		{"CONNECT", "localhost:80", "the proxy"}, // named, and its proxy is asked
		{"CONNECT", "0:22", "is the host's own"},
		{"CONNECT", "cache.test:3142", "is the host's proxy"},
		{"CONNECT", "CACHE.TEST.:3142", "is the host's proxy"},
	} {
		w := httptest.NewRecorder()
		proxy.ServeHTTP(w, httptest.NewRequest(test.method, test.target, nil))
		if w.Code != http.StatusBadGateway || !strings.Contains(w.Body.String(), test.want) {
			t.Errorf("%s %s: %d %s", test.method, test.target, w.Code, w.Body)
		}
	}
	if got := strings.Join(hosts.list, ","); got != "CONNECT " {
		t.Errorf("the host's proxy was asked %q", got)
	}
}

// fakeNames resolves names by what a list says: the answers that each gives, one
// after the other, the last again and again.
func fakeNames(t *testing.T, names map[string][]string) *net.Resolver {
	t.Helper()
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	go func() {
		buf := make([]byte, 512)
		for {
			n, from, err := server.ReadFrom(buf)
			if err != nil {
				return
			}
			server.WriteTo(answerName(buf[:n], names), from)
		}
	}()
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", server.LocalAddr().String())
	}}
}

// answerName answers a query (RFC 1035, section 4) for addresses of IPv4.
func answerName(query []byte, names map[string][]string) []byte {
	name, at := "", 12
	for query[at] != 0 {
		name += string(query[at+1:at+1+int(query[at])]) + "."
		at += 1 + int(query[at])
	}
	name, end := strings.TrimSuffix(name, "."), at+5
	answer := append([]byte{query[0], query[1], 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0}, query[12:end]...)
	said, known := names[name]
	if !known {
		answer[3] |= 3 // no such name
		return answer
	}
	if query[at+2] != 1 {
		return answer // none of that kind
	}
	for _, address := range strings.Fields(said[0]) {
		answer[7]++
		answer = append(answer, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4)
		answer = append(answer, net.ParseIP(address).To4()...)
	}
	if len(said) > 1 {
		names[name] = said[1:]
	}
	return answer
}

// TestOutResolved: whose address a name has is looked at when it is used, and a
// proxy on this host does not find another.
func TestOutResolved(t *testing.T) {
	var asked []string
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.Method+" "+r.RequestURI+" of "+r.Host)
	}))
	defer service.Close()
	_, port, _ := net.SplitHostPort(hostOf(service))
	byHost := map[string]string{"http": service.URL}
	byName := map[string]string{"http": "http://proxy.test:" + port}
	for _, test := range []struct {
		method, target string
		way            wayOut
		want           string // of the refusal
		asked          string // of the host's proxy
	}{
		{"GET", "http://evil.test:" + port + "/", wayOut{}, "is the host's own", ""},
		{"CONNECT", "evil.test:" + port, wayOut{}, "is the host's own", ""},
		{"GET", "http://mine.test/", wayOut{}, "is the host's own", ""},
		{"GET", "http://cloud.test/", wayOut{}, "is the host's own", ""},
		{"GET", "http://evil.test/", wayOut{Archives: []string{"evil.test:80"}}, "is the host's own", ""},

		{"GET", "http://evil.test:" + port + "/", wayOut{Proxies: byHost}, "is the host's own", ""},
		{"GET", "http://evil.test:" + port + "/", wayOut{Proxies: byName}, "is the host's own", ""},
		{"CONNECT", "evil.test:" + port, wayOut{Proxies: byHost}, "is the host's own", ""},
		{"GET", "http://both.test/", wayOut{Proxies: byHost}, "is the host's own", ""},
		{"GET", "http://mine.test/", wayOut{Proxies: byHost}, "is the host's own", ""},
		{"CONNECT", "mine.test:443", wayOut{Proxies: byHost}, "is the host's own", ""},
		{"GET", "http://evil.test/", wayOut{Archives: []string{"evil.test:80"}, Proxies: byHost}, "is the host's own", ""},
		{"GET", "http://none.test/", wayOut{Proxies: byHost}, "is not known here", ""},

		{"GET", "http://turns.test/a%20b?c=d", wayOut{Proxies: byHost}, "", "GET http://192.0.2.1:80/a%20b?c=d of "},
		{"GET", "http://turns.test/", wayOut{Proxies: byName}, "", "GET http://192.0.2.1:80/ of "},
		{"CONNECT", "turns.test:443", wayOut{Proxies: byHost}, "", "CONNECT 192.0.2.1:443 of "},
		{"GET", "http://mine.test/", wayOut{Archives: []string{"mine.test:80"}, Proxies: byHost}, "", "GET http://mine.test/ of mine.test"},
		{"GET", "http://none.test/", wayOut{Archives: []string{"none.test:80"}, Proxies: byHost}, "", "GET http://none.test/ of none.test"},
	} {
		proxy := newOutProxy(test.way)
		proxy.addresses = func() ([]net.Addr, error) { return []net.Addr{&net.IPNet{IP: net.IPv4(203, 0, 113, 9)}}, nil }
		proxy.resolver = fakeNames(t, map[string][]string{
			"evil.test": {"127.0.0.1"}, "mine.test": {"203.0.113.9"}, "cloud.test": {"100.100.100.200"}, "both.test": {"192.0.2.1 127.0.0.1"},
			"turns.test": {"192.0.2.1", "127.0.0.1"}, "proxy.test": {"127.0.0.1"},
		})
		asked = nil
		w := httptest.NewRecorder()
		proxy.ServeHTTP(w, httptest.NewRequest(test.method, test.target, nil))
		proxy.forward.Transport.(*http.Transport).CloseIdleConnections()
		if !strings.Contains(w.Body.String(), test.want) || test.want == "" && test.method == "GET" && w.Code != http.StatusOK {
			t.Errorf("%s %s by %+v: %d %s", test.method, test.target, test.way, w.Code, w.Body)
		}
		if got := strings.Join(asked, ", "); test.asked == "" && got != "" || !strings.HasPrefix(got, test.asked) {
			t.Errorf("%s %s by %+v: asked %q", test.method, test.target, test.way, got)
		}
	}
	proxy := newOutProxy(wayOut{Proxies: map[string]string{"http": "socks5h://127.0.0.1:1080"}})
	proxy.resolver = fakeNames(t, map[string][]string{"far.test": {"192.0.2.7"}, "evil.test": {"127.0.0.1"}, "turns.test": {"192.0.2.1"}})
	r := httptest.NewRequest("GET", "http://turns.test/", nil)
	if err := proxy.direct(r); err != nil || r.URL.String() != "http://192.0.2.1:80/" || r.Host != "turns.test" {
		t.Errorf("by socks it is %s of %s, %v", r.URL, r.Host, err)
	}
	if got, err := proxy.vet(t.Context(), &url.URL{Host: "far.test:3128"}, "evil.test:80"); err != nil || got != "evil.test:80" {
		t.Errorf("a proxy elsewhere is asked for %q, %v", got, err)
	}
}

// TestOwnNames are those that the host gives itself.
func TestOwnNames(t *testing.T) {
	names := ownNames("127.0.0.1 localhost\n# 127.0.0.1 commented\n127.0.1.1\tweb.example Web # 127.0.0.1 more\n::1 ip6-loopback\n192.0.2.1 other\nx y\n\n")
	for name, want := range map[string]bool{"localhost": true, "web.example": true, "web": true, "ip6-loopback": true,
		"commented": false, "more": false, "other": false, "y": false} {
		if names[name] != want {
			t.Errorf("%s: %t", name, names[name])
		}
	}
}

// TestBuildNetwork: what has a way to archives is in another network than the
// host, and what has none in one that is down.
func TestBuildNetwork(t *testing.T) {
	buildTest(t)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "of the host") }))
	defer server.Close()
	abstract, err := net.Listen("unix", "@socket-of-this-test")
	if err != nil {
		t.Fatal(err)
	}
	defer abstract.Close()
	script := strings.ReplaceAll(`try() { echo "$1 $("$@" 2>&1)"; }
direct() { http_proxy= busybox wget -q -O - URL; }
proxy() { busybox wget -q -O - URL; }
try proxy; try direct; echo sockets $(grep -c socket-of-this-test /proc/net/unix) links $(busybox ip -o link | busybox wc -l)
`, "URL", server.URL)
	for _, test := range []struct {
		name, how string
		way       wayOut
		want      string
	}{
		{"named", "mounts:", wayOut{Named: []string{hostOf(server)}}, "proxy of the host\ndirect wget: can't connect to remote host (127.0.0.1): Connection refused\nsockets 0 links 1\n"},
		{"not named", "api:", wayOut{}, "proxy wget: server returned error: HTTP/1.1 502 Bad Gateway\ndirect wget: can't connect to remote host (127.0.0.1): Connection refused\nsockets 0 links 1\n"},
		{"none", "outside:", wayOut{}, "proxy wget: can't connect to remote host (127.0.0.1): Network is unreachable\ndirect wget: can't connect to remote host (127.0.0.1): Network is unreachable\nsockets 0 links 1\n"},
	} {
		templates := OpenTemplates(t.TempDir())
		said, err := hooksOf(t, t.Context(), templates, 64<<20, &buildPlan{Out: test.way}, test.how+script+"true")
		if err != nil || !strings.Contains(said, test.want) {
			t.Errorf("%s: %v, want %q in\n%s", test.name, err, test.want, said)
		}
		gone(t, templates)
	}
}
