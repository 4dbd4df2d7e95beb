package main

import (
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"

	"github.com/BurntSushi/toml"
)

// config is virtvzd.conf. The names and meanings are those of libvirt's own
// daemons where they have the same setting.
type config struct {
	UnixSockGroup      string `toml:"unix_sock_group"`
	UnixSockRWPerms    string `toml:"unix_sock_rw_perms"`
	UnixSockROPerms    string `toml:"unix_sock_ro_perms"`
	UnixSockAdminPerms string `toml:"unix_sock_admin_perms"`
	UnixSockDir        string `toml:"unix_sock_dir"`
	LXCSocket          bool   `toml:"lxc_socket"`

	AuthUnixRO    string   `toml:"auth_unix_ro"`
	AuthUnixRW    string   `toml:"auth_unix_rw"`
	AccessDrivers []string `toml:"access_drivers"`

	MaxClients          int `toml:"max_clients"`
	MaxAnonymousClients int `toml:"max_anonymous_clients"`
	MinWorkers          int `toml:"min_workers"`
	MaxWorkers          int `toml:"max_workers"`
	PrioWorkers         int `toml:"prio_workers"`
	MaxClientRequests   int `toml:"max_client_requests"`
	KeepaliveInterval   int `toml:"keepalive_interval"`
	KeepaliveCount      int `toml:"keepalive_count"`

	AdminMaxClients        int `toml:"admin_max_clients"`
	AdminMaxClientRequests int `toml:"admin_max_client_requests"`

	OCIRuntime string `toml:"oci_runtime"`
	HostRoot   bool   `toml:"host_root"`
	ConfigDir  string `toml:"config_dir"`
	StateDir   string `toml:"state_dir"`
	DataDir    string `toml:"data_dir"`

	MigrationAddress string `toml:"migration_address"`
	MigrationHost    string `toml:"migration_host"`
	MigrationPortMin int    `toml:"migration_port_min"`
	MigrationPortMax int    `toml:"migration_port_max"`
	MigrationCerts   string `toml:"migrate_tls_x509_cert_dir"`

	LogFilters string `toml:"log_filters"`
	LogOutputs string `toml:"log_outputs"`
}

// shipped is the configuration file as installed: it documents itself and
// its values are the defaults.
//
//go:embed virtvzd.conf
var shipped string

// loadConfig reads a file over the defaults. The usual file may be missing.
func loadConfig(path string) (*config, error) {
	c := &config{}
	if err := c.read("built-in virtvzd.conf", shipped); err != nil {
		return nil, err
	}
	name := path
	if name == "" {
		name = defaultConfig
	}
	text, err := os.ReadFile(name)
	if path == "" && errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the configuration: %w", err)
	}
	if err := c.read(name, string(text)); err != nil {
		return nil, err
	}
	return c, c.check(name)
}

func (c *config) read(name, text string) error {
	meta, err := toml.Decode(text, c)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if unknown := meta.Undecoded(); len(unknown) > 0 {
		return fmt.Errorf("%s: unknown setting %q: the installed virtvzd.conf lists all there are", name, unknown[0])
	}
	return nil
}

func (c *config) check(name string) error {
	for key, value := range map[string]string{"auth_unix_ro": c.AuthUnixRO, "auth_unix_rw": c.AuthUnixRW} {
		if !slices.Contains([]string{"polkit", "none"}, value) {
			return fmt.Errorf("%s: %s is %q: use \"polkit\" or \"none\"", name, key, value)
		}
	}
	for _, driver := range c.AccessDrivers {
		if driver != "polkit" {
			return fmt.Errorf("%s: access_drivers names %q: only \"polkit\" exists", name, driver)
		}
	}
	for key, value := range map[string]int{
		"max_clients": c.MaxClients, "max_anonymous_clients": c.MaxAnonymousClients, "min_workers": c.MinWorkers,
		"max_workers": c.MaxWorkers, "prio_workers": c.PrioWorkers, "max_client_requests": c.MaxClientRequests,
		"keepalive_count": c.KeepaliveCount, "admin_max_clients": c.AdminMaxClients,
		"admin_max_client_requests": c.AdminMaxClientRequests,
	} {
		if value < 1 {
			return fmt.Errorf("%s: %s is %d: it must be at least 1", name, key, value)
		}
	}
	if c.MigrationPortMin < 1 || c.MigrationPortMax > 65535 || c.MigrationPortMin > c.MigrationPortMax {
		return fmt.Errorf("%s: migration_port_min and migration_port_max are %d and %d: they must be ports, the first not above the second", name, c.MigrationPortMin, c.MigrationPortMax)
	}
	for key, value := range map[string]string{
		"unix_sock_rw_perms": c.UnixSockRWPerms, "unix_sock_ro_perms": c.UnixSockROPerms, "unix_sock_admin_perms": c.UnixSockAdminPerms,
	} {
		if _, err := permissions(value); err != nil {
			return fmt.Errorf("%s: %s is %q: use an octal mode such as \"0666\"", name, key, value)
		}
	}
	return nil
}

func permissions(text string) (os.FileMode, error) {
	mode, err := strconv.ParseUint(text, 8, 12)
	return os.FileMode(mode), err
}
