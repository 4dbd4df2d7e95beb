package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"virtvzd/driver"
	"virtvzd/driver/relay"
	"virtvzd/driver/rpc"
	"virtvzd/runtime"
	"virtvzd/systemd"
)

// serve is the daemon. It returns when it is asked to stop; environments go
// on without it.
func serve(ctx context.Context, conf *config, debug bool) error {
	service, err := systemd.Inherit()
	if err != nil {
		return err
	}
	log, control, err := newLog(conf, debug)
	if err != nil {
		return err
	}
	bus := systemd.Open()
	defer bus.Close()
	if err := ping(ctx, bus); err != nil {
		log.Warn("environments that run go on, but none can be started now", "error", err)
	}
	libvirt := relay.Config{Dir: conf.UnixSockDir, Log: log.With("component", "relay")}
	rt, err := runtime.New(runtime.Config{
		StateDir: conf.StateDir, DataDir: conf.DataDir, OCI: conf.OCIRuntime, HostRoot: conf.HostRoot, Scopes: bus, FDs: service,
		Networks: driver.NewNetworks(libvirt), Filters: driver.NewFilters(libvirt),
	})
	if err != nil {
		return err
	}
	defer rt.Close()
	for _, warning := range rt.Host().Warnings {
		log.Warn(warning)
	}
	drv, err := driver.New(driver.Config{
		ConfigDir: conf.ConfigDir, StateDir: conf.StateDir,
		HostRoot:   conf.HostRoot,
		AuthUnixRO: conf.AuthUnixRO, AuthUnixRW: conf.AuthUnixRW, AccessPolkit: len(conf.AccessDrivers) > 0,
		Relay: libvirt,
	}, rt, log.With("component", "driver"))
	if err != nil {
		return err
	}
	if err := drv.Recover(ctx, storedFiles(service)); err != nil {
		return err
	}
	return listen(ctx, conf, service, drv, log, control)
}

// ping tells what is wrong with D-Bus. The daemon does without as long as it
// must: clients can look and define, and environments are not left alone.
func ping(ctx context.Context, bus *systemd.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return bus.Ping(ctx)
}

// storedFiles are what an earlier daemon left with systemd: consoles and
// pidfds of running environments.
func storedFiles(service *systemd.Service) map[string]*os.File {
	files := map[string]*os.File{}
	for _, f := range service.Stored() {
		files[f.Name] = f.File
	}
	return files
}

// listen serves clients until ctx ends.
func listen(ctx context.Context, conf *config, service *systemd.Service, drv *driver.Driver, log *slog.Logger, control *logger) error {
	management := rpc.NewServer("virtvzd", rpc.Limits{
		MaxClients: conf.MaxClients, MaxAnonymousClients: conf.MaxAnonymousClients, MaxClientRequests: conf.MaxClientRequests,
		MinWorkers: conf.MinWorkers, MaxWorkers: conf.MaxWorkers, PrioWorkers: conf.PrioWorkers,
		KeepaliveInterval: time.Duration(conf.KeepaliveInterval) * time.Second, KeepaliveCount: conf.KeepaliveCount,
	}, driver.EncodeError)
	drv.Register(management)
	administration := rpc.NewServer("admin", rpc.Limits{
		MaxClients: conf.AdminMaxClients, MaxAnonymousClients: conf.AdminMaxClients, MaxClientRequests: conf.AdminMaxClientRequests,
		MinWorkers: 1, MaxWorkers: 5, PrioWorkers: 1,
		KeepaliveInterval: time.Duration(conf.KeepaliveInterval) * time.Second, KeepaliveCount: conf.KeepaliveCount,
	}, driver.EncodeError)
	drv.RegisterAdmin(administration, control, management)
	sockets, err := openSockets(conf, service)
	if err != nil {
		return err
	}
	failed := make(chan error, len(sockets))
	for _, s := range sockets {
		server := management
		if s.role == admin {
			server = administration
		}
		go func() { failed <- server.Serve(s.listener, rpc.ListenerOptions{ReadOnly: s.role == readOnly}) }()
	}
	if err := service.Ready(); err != nil {
		log.Warn("cannot tell systemd that the daemon is ready", "error", err)
	}
	log.Info("virtvzd serves", "version", version, "sockets", len(sockets))
	go func() {
		if err := drv.Autostart(); err != nil {
			log.Error("cannot autostart", "error", err)
		}
	}()
	select {
	case err = <-failed:
	case <-ctx.Done():
	}
	service.Stopping()
	end, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	administration.Shutdown(end)
	management.Shutdown(end)
	return err
}

// role is what a socket is for, told by its name as libvirt's clients know
// it.
type role int

const (
	readWrite role = iota
	readOnly
	admin
)

func roleOf(path string) role {
	switch {
	case strings.HasSuffix(path, "-admin-sock"):
		return admin
	case strings.HasSuffix(path, "-sock-ro"):
		return readOnly
	}
	return readWrite
}

// socket is one listening socket.
type socket struct {
	listener *net.UnixListener
	role     role
}

// openSockets takes those systemd made, or makes them.
func openSockets(conf *config, service *systemd.Service) ([]socket, error) {
	var list []socket
	for _, f := range service.Sockets() {
		l, err := net.FileListener(f.File)
		f.File.Close()
		unix, ok := l.(*net.UnixListener)
		if err != nil || !ok {
			return nil, fmt.Errorf("the socket %s that systemd passed is not a unix stream socket", f.Name)
		}
		unix.SetUnlinkOnClose(false)
		list = append(list, socket{unix, roleOf(unix.Addr().String())})
	}
	if len(list) > 0 {
		return list, nil
	}
	for _, path := range socketPaths(conf) {
		l, err := makeSocket(conf, path)
		if err != nil {
			return nil, err
		}
		list = append(list, socket{l, roleOf(path)})
	}
	return list, nil
}

// socketPaths are the names under which clients look for this daemon.
func socketPaths(conf *config) []string {
	names := []string{"virtvzd-sock", "virtvzd-sock-ro", "virtvzd-admin-sock", "virtopenvzd-sock", "virtopenvzd-sock-ro"}
	if conf.LXCSocket {
		names = append(names, "virtlxcd-sock", "virtlxcd-sock-ro")
	}
	for i, name := range names {
		names[i] = filepath.Join(conf.UnixSockDir, name)
	}
	return names
}

func makeSocket(conf *config, path string) (*net.UnixListener, error) {
	perms := map[role]string{readWrite: conf.UnixSockRWPerms, readOnly: conf.UnixSockROPerms, admin: conf.UnixSockAdminPerms}
	mode, err := permissions(perms[roleOf(path)])
	if err != nil {
		return nil, err
	}
	group, err := user.LookupGroup(conf.UnixSockGroup)
	if err != nil {
		return nil, fmt.Errorf("unix_sock_group: %w", err)
	}
	gid, err := strconv.Atoi(group.Gid)
	if err != nil {
		return nil, err
	}
	return rpc.Listen(path, mode, gid)
}
