package runtime

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"
)

// What installs packages runs their scripts, too. So a step has a network of its
// own, with nothing in it but a loopback device on which the builder listens:
//
//	step's network                 builder, host's network
//	  | apt, dnf, … ---> 127.0.0.1:3128 ---> proxy ---> archive, or the host's proxy
//
// That is a way to archives by HTTP and TLS, and none to what the host has for
// itself: its addresses, and its abstract sockets. What is reached is looked at when
// its name is resolved, for anybody may have a name for them: who connects looks at
// the address, and a proxy on this host, which resolves names itself and reaches
// what the host does, gets one that was looked at.

// wayOut is what a proxy for a build is told.
type wayOut struct {
	// Named are HOST:PORT of the host's own that the recipe or apt names.
	Named []string
	// Archives are HOST:PORT of all others that they name: their owner is trusted
	// with the name, and they may be on this host, by an address that is its
	// network's.
	Archives []string
	// Proxies are the host's: URL or DIRECT by "http", "https" or "http::HOST",
	// as in apt.conf(5). Without, the environment tells.
	Proxies map[string]string
}

// outAddress is where a step finds the proxy.
const (
	outPort    = 3128
	outAddress = "http://127.0.0.1:3128"
)

// outEnv is what programs find it by.
func outEnv() (env []string) {
	for _, name := range []string{"http_proxy", "https_proxy", "HTTPS_PROXY"} {
		env = append(env, name+"="+outAddress)
	}
	return env
}

// maxOut is how many connections a step has at once.
const maxOut = 64

type outProxy struct {
	way       wayOut
	named     map[string]bool // HOST:PORT of the host's own that a step may ask for
	archives  map[string]bool // HOST:PORT of others
	proxies   map[string]bool // HOST:PORT of the host's proxies
	names     map[string]bool // by which the host calls itself
	addresses func() ([]net.Addr, error)
	resolver  *net.Resolver
	slots     chan struct{}
	forward   *httputil.ReverseProxy
}

func newOutProxy(way wayOut) *outProxy {
	p := &outProxy{
		way: way, named: map[string]bool{}, archives: map[string]bool{}, proxies: map[string]bool{},
		addresses: net.InterfaceAddrs, resolver: net.DefaultResolver, slots: make(chan struct{}, maxOut),
	}
	hosts, _ := os.ReadFile("/etc/hosts")
	p.names = ownNames(string(hosts))
	for _, address := range way.Named {
		p.named[address] = true
	}
	for _, address := range way.Archives {
		p.archives[address] = true
	}
	proxies := slices.Collect(maps.Values(way.Proxies))
	for _, name := range buildVariables {
		proxies = append(proxies, os.Getenv(name))
	}
	for _, text := range proxies {
		if u, err := parseProxy(text); err == nil && u != nil {
			p.proxies[hostPort(u)] = true
		}
	}
	transport := &http.Transport{
		Proxy: func(r *http.Request) (*url.URL, error) { return way.proxyFor(r.URL) },
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return p.dial(ctx, network, address, p.proxies[address])
		},
		DisableCompression: true, MaxIdleConnsPerHost: maxOut, IdleConnTimeout: time.Minute,
	}
	p.forward = &httputil.ReverseProxy{
		Rewrite: func(*httputil.ProxyRequest) {}, Transport: transport, FlushInterval: -1, // the URL is the request's own
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) { refuse(w, err) },
	}
	return p
}

func refuse(w http.ResponseWriter, err error) {
	http.Error(w, "virtvzd: "+err.Error(), http.StatusBadGateway)
}

func (p *outProxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	select {
	case p.slots <- struct{}{}:
		defer func() { <-p.slots }()
	case <-r.Context().Done():
		return
	}
	switch {
	case r.Method == http.MethodConnect:
		err := p.check(r.Host)
		if err == nil {
			err = p.checkTunnel(r.Host)
		}
		if err != nil {
			refuse(w, err)
			return
		}
		p.tunnel(w, r)
	case r.URL.Scheme == "http" && r.URL.Host != "":
		if err := p.check(hostPort(r.URL)); err != nil {
			refuse(w, err)
			return
		}
		if err := p.direct(r); err != nil {
			refuse(w, err)
			return
		}
		p.forward.ServeHTTP(w, r)
	default:
		refuse(w, errors.New("a build reaches archives by http and https only"))
	}
}

// proxyFor is the host's proxy for an address; nil is none.
func (way wayOut) proxyFor(u *url.URL) (*url.URL, error) {
	keys := []string{u.Scheme + "::" + u.Hostname(), u.Scheme}
	if u.Scheme == "https" { // apt takes those of http where there are none
		keys = append(keys, "http::"+u.Hostname(), "http")
	}
	for _, key := range keys {
		if text := way.Proxies[key]; text != "" {
			return parseProxy(text)
		}
	}
	return http.ProxyFromEnvironment(&http.Request{URL: u})
}

func parseProxy(text string) (*url.URL, error) {
	if text == "" || strings.EqualFold(text, "DIRECT") {
		return nil, nil
	}
	if !strings.Contains(text, "://") {
		text = "http://" + text
	}
	return url.Parse(text)
}

func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return net.JoinHostPort(u.Hostname(), port)
}

// check refuses what names the host itself, before anybody is asked for it: a
// proxy on this host would take it for its own.
func (p *outProxy) check(address string) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		host = strings.Trim(address, "[]")
	}
	if name := canonical(host); !p.named[address] && (isOwn(name) || p.names[name] || isLocalhost(name) || isNumber(name)) {
		return errOwn(address)
	}
	return nil
}

// checkTunnel refuses one to a proxy of the host's, which could be asked for
// anything through it.
func (p *outProxy) checkTunnel(address string) error {
	if host, port, err := net.SplitHostPort(address); err == nil && !p.named[address] {
		for proxy := range p.proxies {
			if at, of, _ := net.SplitHostPort(proxy); of == port && canonical(at) == canonical(host) {
				return fmt.Errorf("%s is the host's proxy, and no archive", address)
			}
		}
	}
	return nil
}

func errOwn(address string) error {
	return fmt.Errorf("%s is the host's own: a build reaches that only where a [[repository]] has it, or localhost for what only this host reaches, in its address", printable(address, 256))
}

// canonical is a name as it is compared.
func canonical(host string) string { return strings.ToLower(strings.TrimSuffix(host, ".")) }

// isLocalhost tells whether resolvers take a name for the host itself, whatever
// else there is (RFC 6761).
func isLocalhost(name string) bool {
	return name == "localhost" || strings.HasSuffix(name, ".localhost")
}

// isNumber tells whether a name that is no address as it is written today may
// be one to inet_aton(3), as 127.1 and 0x7f000001 are. No domain is called so.
func isNumber(name string) bool {
	if _, err := netip.ParseAddr(name); err == nil {
		return false
	}
	last := name[strings.LastIndex(name, ".")+1:]
	return last != "" && strings.Trim(last, "0123456789") == "" || strings.HasPrefix(last, "0x")
}

// ownNames are those that hosts(5) gives addresses of the host's own.
func ownNames(hosts string) map[string]bool {
	names := map[string]bool{}
	for line := range strings.Lines(hosts) {
		line, _, _ = strings.Cut(line, "#")
		if fields := strings.Fields(line); len(fields) > 1 && isOwn(fields[0]) {
			for _, name := range fields[1:] {
				names[canonical(name)] = true
			}
		}
	}
	return names
}

// direct has a request be sent to an address where a proxy on this host gets it.
// The server is told the name that was asked for, if that proxy passes it on.
func (p *outProxy) direct(r *http.Request) error {
	via, err := p.way.proxyFor(r.URL)
	if err != nil || via == nil {
		return err
	}
	name := hostPort(r.URL)
	address, err := p.vet(r.Context(), via, name)
	switch {
	case err != nil || address == name:
	case via.Scheme == "http" || via.Scheme == "https":
		r.URL.Opaque = "//" + address + r.URL.EscapedPath()
	default: // that of socks is told it in another way
		r.URL.Host = address
	}
	return err
}

// vet gives what a proxy is to be asked for: where it is on this host, an address
// that was looked at, or the name could be another address to it. An archive's name
// stays what it is: proxies go by names, and may be the only ones to know it.
func (p *outProxy) vet(ctx context.Context, via *url.URL, address string) (string, error) {
	if p.named[address] || !p.isHere(ctx, via.Hostname()) {
		return address, nil
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", err
	}
	found, err := p.resolver.LookupNetIP(ctx, "ip", host)
	for _, ip := range found {
		if p.isOwn(ip, p.archives[address]) {
			return "", errOwn(address)
		}
	}
	switch {
	case p.archives[address]:
		return address, nil
	case err != nil:
		return "", fmt.Errorf("the address of %s is not known here, and the proxy is on this host, whose own it might be: name it in a [[repository]]: %w", printable(address, 256), err)
	}
	return net.JoinHostPort(found[0].Unmap().String(), port), nil
}

// isHere tells whether a proxy is on this host, or may be.
func (p *outProxy) isHere(ctx context.Context, host string) bool {
	name := canonical(host)
	if p.names[name] || isLocalhost(name) {
		return true
	}
	found, err := p.resolver.LookupNetIP(ctx, "ip", host)
	return err != nil || slices.ContainsFunc(found, func(ip netip.Addr) bool { return p.isOwn(ip, false) })
}

// isOwn tells whether an address is the host's. Those of its network are an
// archive's, too.
func (p *outProxy) isOwn(ip netip.Addr, archive bool) bool {
	if isOwn(ip.String()) {
		return true
	}
	if archive {
		return false
	}
	list, err := p.addresses()
	return err != nil || slices.ContainsFunc(list, func(a net.Addr) bool {
		own, ok := a.(*net.IPNet)
		return ok && own.IP.Equal(ip.Unmap().AsSlice())
	})
}

// dial connects to what is named or one of the host's proxies, and to all but
// the host itself.
func (p *outProxy) dial(ctx context.Context, network, address string, proxy bool) (net.Conn, error) {
	d := net.Dialer{Timeout: 30 * time.Second, Resolver: p.resolver}
	if !p.named[address] && !proxy {
		d.Control = func(_, at string, _ syscall.RawConn) error {
			to, err := netip.ParseAddrPort(at)
			if err == nil && p.isOwn(to.Addr(), p.archives[address]) {
				err = errOwn(address)
			}
			return err
		}
	}
	return d.DialContext(ctx, network, address)
}

// isOwn tells whether an address is one that every host has for itself, or one at
// which a cloud tells each of its hosts what nobody else is to know.
func isOwn(address string) bool {
	ip, err := netip.ParseAddr(address)
	ip = ip.Unmap().WithZone("")
	return err == nil && (ip.IsLoopback() || ip.IsUnspecified() || ip.IsLinkLocalUnicast() ||
		slices.ContainsFunc(cloudAddresses, func(own netip.Prefix) bool { return own.Contains(ip) }))
}

// cloudAddresses are those that are not link-local: of EC2, Google, Azure and Alibaba.
var cloudAddresses = []netip.Prefix{
	netip.MustParsePrefix("fd00:ec2::/32"), netip.MustParsePrefix("fd20:ce::254/128"),
	netip.MustParsePrefix("168.63.129.16/32"), netip.MustParsePrefix("100.100.100.200/32"),
}

// tunnel passes on what is encrypted.
func (p *outProxy) tunnel(w http.ResponseWriter, r *http.Request) {
	archive, err := p.connect(r.Context(), r.Host)
	if err != nil {
		refuse(w, err)
		return
	}
	defer archive.Close()
	step, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		refuse(w, err)
		return
	}
	defer step.Close()
	if _, err := io.WriteString(step, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		return
	}
	go func() {
		io.Copy(archive, buffered)
		archive.Close()
	}()
	io.Copy(step, archive)
}

func (p *outProxy) connect(ctx context.Context, address string) (net.Conn, error) {
	via, err := p.way.proxyFor(&url.URL{Scheme: "https", Host: address})
	if err != nil || via == nil {
		if err != nil {
			return nil, err
		}
		return p.dial(ctx, "tcp", address, false)
	}
	if via.Scheme != "http" {
		return nil, fmt.Errorf("the proxy %s cannot be used for a build: only those of http can", via.Redacted())
	}
	if address, err = p.vet(ctx, via, address); err != nil {
		return nil, err
	}
	conn, err := p.dial(ctx, "tcp", hostPort(via), true)
	if err != nil {
		return nil, err
	}
	ask := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: address}, Host: address, Header: http.Header{}}
	if user := via.User; user != nil {
		password, _ := user.Password()
		ask.Header.Set("Proxy-Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(user.Username()+":"+password)))
	}
	conn.SetDeadline(time.Now().Add(time.Minute))
	err = ask.Write(conn)
	var answer *http.Response
	if err == nil {
		answer, err = http.ReadResponse(bufio.NewReader(conn), ask)
	}
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("the proxy %s says: %s", via.Redacted(), printable(answer.Status, 100))
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, conn.SetDeadline(time.Time{})
}
