package agent

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"virtvzd/runtime"
)

// maxFilesystems bounds those that are told of, as libvirt does.
const maxFilesystems = 256

// osInfo tells the environment's own system and the host's kernel.
func (a *Agent) osInfo(ctx context.Context, _ none) (any, error) {
	answer := map[string]string{}
	for field, name := range map[string]string{"kernel-release": "osrelease", "kernel-version": "version", "machine": "arch"} {
		if text, err := os.ReadFile("/proc/sys/kernel/" + name); err == nil {
			answer[field] = strings.TrimSpace(string(text))
		}
	}
	body, err := a.guest.ReadFile(ctx, runtime.Owner{}, "/etc/os-release", 64<<10)
	if errors.Is(err, fs.ErrNotExist) {
		body, err = a.guest.ReadFile(ctx, runtime.Owner{}, "/usr/lib/os-release", 64<<10)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return answer, nil // os-release(5) is not everywhere
	}
	for key, field := range map[string]string{
		"ID": "id", "NAME": "name", "PRETTY_NAME": "pretty-name", "VERSION": "version", "VERSION_ID": "version-id",
		"VARIANT": "variant", "VARIANT_ID": "variant-id",
	} {
		if value, ok := assigned(body, key); ok {
			answer[field] = value
		}
	}
	return answer, err
}

// assigned reads a value of os-release(5), which may stand in quotes.
func assigned(body []byte, key string) (string, bool) {
	for line := range bytes.Lines(body) {
		value, ok := bytes.CutPrefix(bytes.TrimSpace(line), []byte(key+"="))
		if !ok {
			continue
		}
		if n := len(value); n > 1 && (value[0] == '"' || value[0] == '\'') && value[n-1] == value[0] {
			value = value[1 : n-1]
		}
		text := strings.NewReplacer(`\"`, `"`, `\\`, `\`, `\$`, "$", "\\`", "`").Replace(string(value))
		return strings.ToValidUTF8(text, "\uFFFD"), true
	}
	return "", false
}

func (a *Agent) hostName(context.Context, none) (any, error) {
	name, err := a.guest.Hostname()
	return map[string]string{"host-name": name}, err
}

// User is somebody who is logged in.
type User struct {
	Name string  `json:"user"`
	Time float64 `json:"login-time"` // seconds since 1970, of the first login
}

// Sessions of logind that are read, and of what size.
const (
	maxSessions = 256
	maxSession  = 16 << 10
)

// users reads utmp(5), where there still is one, and the sessions of logind,
// where there is that.
func (a *Agent) users(ctx context.Context, _ none) (any, error) {
	body, err := a.guest.ReadFile(ctx, runtime.Owner{}, "/run/utmp", 1<<20)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	sessions, err := a.guest.ReadFiles(ctx, runtime.Owner{}, "/run/systemd/sessions", maxSessions, maxSession)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	list := parseUtmp(body)
	for _, session := range sessions {
		list = parseSession(list, session)
	}
	return list, nil
}

// loggedIn adds a login; the first of each user counts.
func loggedIn(list []User, name string, at float64) []User {
	name = runtime.PlainText(name)
	n := slices.IndexFunc(list, func(u User) bool { return u.Name == name })
	if n < 0 {
		return append(list, User{name, at})
	}
	list[n].Time = min(list[n].Time, at)
	return list
}

// parseSession reads a file below /run/systemd/sessions. Users' classes all
// begin so; greeters, managers and what runs in the background are no logins.
func parseSession(list []User, body []byte) []User {
	class, _ := assigned(body, "CLASS")
	name, ok := assigned(body, "USER")
	since, _ := assigned(body, "REALTIME")
	at, err := strconv.ParseUint(since, 10, 63)
	if !ok || name == "" || err != nil || !strings.HasPrefix(class, "user") {
		return list
	}
	return loggedIn(list, name, float64(at)/1e6)
}

func parseUtmp(body []byte) []User {
	const (
		size        = 384
		userProcess = 7
	)
	list := []User{}
	for ; len(body) >= size; body = body[size:] {
		text, _, _ := bytes.Cut(body[44:76], []byte{0})
		if binary.NativeEndian.Uint16(body) != userProcess || len(text) == 0 {
			continue
		}
		at := float64(binary.NativeEndian.Uint32(body[340:])) + float64(binary.NativeEndian.Uint32(body[344:]))/1e6
		list = loggedIn(list, strings.ToValidUTF8(string(text), "\uFFFD"), at)
	}
	return list
}

// timezone is that of the environment's /etc/localtime, else UTC.
func (a *Agent) timezone(ctx context.Context, _ none) (any, error) {
	body, err := a.guest.ReadFile(ctx, runtime.Owner{}, "/etc/localtime", 1<<20)
	if errors.Is(err, fs.ErrNotExist) {
		return map[string]any{"zone": "UTC", "offset": 0}, nil
	}
	if err != nil {
		return nil, err
	}
	where, err := time.LoadLocationFromTZData("local", body)
	if err != nil {
		return nil, fmt.Errorf("/etc/localtime: %w", err)
	}
	name, offset := time.Now().In(where).Zone()
	return map[string]any{"zone": name, "offset": offset}, nil
}

func (a *Agent) time(context.Context, none) (any, error) { return time.Now().UnixNano(), nil }

// Filesystem is one that is mounted and keeps data.
type Filesystem struct {
	Name  string  `json:"name"`
	Point string  `json:"mountpoint"`
	Type  string  `json:"type"`
	Total *uint64 `json:"total-bytes,omitempty"`
	Used  *uint64 `json:"used-bytes,omitempty"`
	Disks []any   `json:"disk"`
}

func (a *Agent) fsInfo(ctx context.Context, _ none) (any, error) {
	mounts, err := a.guest.Mounts(maxFilesystems)
	list := []Filesystem{}
	for _, m := range mounts {
		f := Filesystem{Name: m.Source, Point: m.Point, Type: m.Type, Disks: []any{}}
		if total, used, err := a.guest.FilesystemSpace(ctx, m.Point); err == nil {
			f.Total, f.Used = &total, &used
		}
		list = append(list, f)
	}
	return list, err
}

func (a *Agent) vcpus(context.Context, none) (any, error) {
	type cpu struct {
		Number     int  `json:"logical-id"`
		Online     bool `json:"online"`
		CanOffline bool `json:"can-offline"`
	}
	list := []cpu{}
	for n := range a.guest.CPUs() {
		list = append(list, cpu{n, true, false})
	}
	return list, nil
}

// loadPatience is for the program that reads it, and that may be any inside.
const loadPatience = 10 * time.Second

// load is read by a program inside: lxcfs tells each reader its own.
func (a *Agent) load(ctx context.Context, _ none) (any, error) {
	ctx, cancel := context.WithTimeout(ctx, loadPatience)
	defer cancel()
	said := &output{}
	status, err := a.guest.Exec(ctx, runtime.Command{Args: []string{"cat", "/proc/loadavg"}, Stdout: said})
	if err != nil {
		return nil, err
	}
	var one, five, fifteen float64
	if n, _ := fmt.Sscan(said.buf.String(), &one, &five, &fifteen); n != 3 || status != 0 {
		return nil, errors.New("/proc/loadavg cannot be read inside")
	}
	return map[string]float64{"load1m": one, "load5m": five, "load15m": fifteen}, nil
}

// An environment's memory is one block of the size of its limit.
func (a *Agent) memoryBlocks(context.Context, none) (any, error) {
	return []map[string]any{{"phys-index": 0, "online": true, "can-offline": false}}, nil
}

func (a *Agent) memoryBlockInfo(context.Context, none) (any, error) {
	_, limit, err := a.guest.Memory()
	if limit == math.MaxUint64 {
		return nil, errors.New("the environment's memory has no limit")
	}
	return map[string]uint64{"size": limit}, err
}

// Interface is a network interface inside.
type Interface struct {
	Name      string           `json:"name"`
	MAC       string           `json:"hardware-address,omitempty"`
	Addresses []Address        `json:"ip-addresses,omitempty"`
	Stats     map[string]int64 `json:"statistics"`
}

// Address is one of an interface; Type is "ipv4" or "ipv6".
type Address struct {
	Type    string `json:"ip-address-type"`
	Address string `json:"ip-address"`
	Prefix  int    `json:"prefix"`
}

func (a *Agent) interfaces(context.Context, none) (any, error) {
	links, err := a.guest.InsideLinks()
	list := []Interface{}
	for _, l := range links {
		in, out := l.Stats.Received, l.Stats.Sent
		one := Interface{Name: strings.ToValidUTF8(l.Name, "\uFFFD"), MAC: l.MAC, Stats: map[string]int64{
			"rx-bytes": int64(in.Bytes), "rx-packets": int64(in.Packets), "rx-errs": int64(in.Errors), "rx-dropped": int64(in.Dropped),
			"tx-bytes": int64(out.Bytes), "tx-packets": int64(out.Packets), "tx-errs": int64(out.Errors), "tx-dropped": int64(out.Dropped),
		}}
		for _, p := range l.Addresses {
			kind := "ipv4"
			if p.Addr().Is6() {
				kind = "ipv6"
			}
			one.Addresses = append(one.Addresses, Address{kind, p.Addr().String(), p.Bits()})
		}
		list = append(list, one)
	}
	return list, err
}
