package main

import (
	"context"
	"log/slog"
	"os"
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
		Networks: driver.NewNetworks(libvirt), Filters: driver.NewFilters(libvirt), Volumes: driver.NewVolumes(libvirt),
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
		Migration: driver.MigrationConfig{
			Address: conf.MigrationAddress, Host: conf.MigrationHost,
			Ports: [2]int{conf.MigrationPortMin, conf.MigrationPortMax}, Certificates: conf.MigrationCerts,
		},
		Sleeper: bus, Relay: libvirt,
	}, rt, log.With("component", "driver"))
	if err != nil {
		return err
	}
	defer drv.Close()
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
	sockets, err := openSockets(conf, service.Sockets())
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
	go logMemory(ctx, log)
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
