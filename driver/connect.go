package driver

import (
	"net/url"

	"golang.org/x/sys/unix"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc/xdr"
	"virtvzd/xml"
)

var connection = table{
	call(protocol.ConnectOpen, connectOpen),
	inline(protocol.ConnectClose, connectClose),
	inline(protocol.ConnectGetType, connectType),
	inline(protocol.ConnectGetVersion, connectVersion),
	inline(protocol.ConnectGetLibVersion, connectLibVersion),
	inline(protocol.ConnectGetHostname, connectHostname),
	inline(protocol.ConnectGetUri, connectURI),
	inline(protocol.ConnectGetMaxVcpus, connectMaxVCPUs),
	inline(protocol.ConnectIsSecure, connectIsSecure),
	inline(protocol.ConnectSupportsFeature, connectSupportsFeature),
	inline(protocol.ConnectRegisterCloseCallback, registerCloseCallback),
	inline(protocol.ConnectUnregisterCloseCallback, unregisterCloseCallback),
	call(protocol.ConnectGetCapabilities, connectCapabilities),
	call(protocol.ConnectGetDomainCapabilities, connectDomainCapabilities),
	call(protocol.ConnectGetSysinfo, connectSysinfo),
}

// driverName is virConnectGetType's answer. Stock proxies know it, and
// polkit rules match it as connect_driver.
const driverName = "vz"

// libVersion is the libvirt release whose protocol is spoken, as
// major*1,000,000 + minor*1,000 + release.
const libVersion = 11_003_000

// schemes are the URIs that lead here; openvz and lxc for those whose tools
// still use them.
var schemes = map[string]bool{"vz": true, "openvz": true, "lxc": true, "parallels": true}

// connectOpen checks the URI. A client that asks for a read-only connection
// gets one, also on the socket for all.
func connectOpen(r *request, a *protocol.ConnectOpenArgs) (v xdr.Void, err error) {
	if err := checkFlags(a.Flags, protocol.ConnectRo, protocol.ConnectNoAliases); err != nil {
		return v, err
	}
	name := "vz:///system"
	if a.Name != nil && *a.Name != "" {
		name = *a.Name
	}
	if err := checkURI(name); err != nil {
		return v, err
	}
	c := r.client
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.opened.Load() {
		return v, errorf(protocol.ErrInternalError, "connection already open")
	}
	c.uri = name
	if a.Flags&protocol.ConnectRo != 0 {
		c.readOnly.Store(true)
	}
	c.opened.Store(true)
	return v, nil
}

func checkURI(name string) error {
	uri, err := url.Parse(name)
	if err != nil || !schemes[uri.Scheme] {
		return errorf(protocol.ErrNoConnect, "no connection driver available for %s: use vz:///system", name)
	}
	if uri.Path != "/system" && uri.Path != "/" && uri.Path != "" {
		return errorf(protocol.ErrInternalError, "unexpected path '%s' in the URI, try %s:///system", uri.Path, uri.Scheme)
	}
	return nil
}

func connectClose(r *request, _ *xdr.Void) (v xdr.Void, err error) {
	r.call.Conn.CloseAfterReply()
	return v, nil
}

func connectType(*request, *xdr.Void) (protocol.ConnectGetTypeRet, error) {
	return protocol.ConnectGetTypeRet{Type: driverName}, nil
}

// connectVersion is the kernel's version, as with libvirt's lxc driver: the
// kernel is what runs the environments.
func connectVersion(r *request, _ *xdr.Void) (protocol.ConnectGetVersionRet, error) {
	return protocol.ConnectGetVersionRet{HvVer: r.drv.host.kernelVersion}, nil
}

func connectLibVersion(*request, *xdr.Void) (protocol.ConnectGetLibVersionRet, error) {
	return protocol.ConnectGetLibVersionRet{LibVer: libVersion}, nil
}

func connectHostname(*request, *xdr.Void) (protocol.ConnectGetHostnameRet, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return protocol.ConnectGetHostnameRet{}, err
	}
	return protocol.ConnectGetHostnameRet{Hostname: unix.ByteSliceToString(uts.Nodename[:])}, nil
}

func connectURI(r *request, _ *xdr.Void) (protocol.ConnectGetUriRet, error) {
	return protocol.ConnectGetUriRet{Uri: r.client.uri}, nil
}

// connectMaxVCPUs is what can be seen inside at most: the host's CPUs.
func connectMaxVCPUs(r *request, a *protocol.ConnectGetMaxVcpusArgs) (protocol.ConnectGetMaxVcpusRet, error) {
	if a.Type != nil && !schemes[*a.Type] {
		return protocol.ConnectGetMaxVcpusRet{}, errorf(protocol.ErrInvalidArg, "unknown domain type '%s': vz is supported", *a.Type)
	}
	return protocol.ConnectGetMaxVcpusRet{MaxVcpus: int32(r.drv.host.cpus())}, nil
}

// connectIsSecure is true because a unix socket never leaves the host.
func connectIsSecure(*request, *xdr.Void) (protocol.ConnectIsSecureRet, error) {
	return protocol.ConnectIsSecureRet{Secure: 1}, nil
}

// features are those of virDrvFeature (src/libvirt_internal.h) that this
// daemon has. Clients ask for keepalive before they open the connection.
var features = map[int32]bool{
	4:  true, // MIGRATION_P2P
	6:  true, // MIGRATION_V3
	7:  true, // MIGRATE_CHANGE_PROTECTION
	8:  true, // FD_PASSING
	9:  true, // TYPED_PARAM_STRING
	10: true, // PROGRAM_KEEPALIVE
	11: true, // XML_MIGRATABLE
	12: true, // MIGRATION_OFFLINE
	13: true, // MIGRATION_PARAMS
	14: true, // REMOTE_EVENT_CALLBACK
	15: true, // REMOTE_CLOSE_CALLBACK
	16: true, // NETWORK_UPDATE_HAS_CORRECT_ORDER: since 7.2 the daemons behind the relay want it
}

const featureKeepalive = 10

func connectSupportsFeature(r *request, a *protocol.ConnectSupportsFeatureArgs) (ret protocol.ConnectSupportsFeatureRet, err error) {
	if a.Feature == featureKeepalive {
		r.call.Conn.EnableKeepalive()
	}
	if features[a.Feature] {
		ret.Supported = 1
	}
	return ret, nil
}

// A client is told that its connection closed by the end of the connection:
// there is no hypervisor behind the daemon that could go away before it.

func registerCloseCallback(*request, *xdr.Void) (v xdr.Void, err error)   { return v, nil }
func unregisterCloseCallback(*request, *xdr.Void) (v xdr.Void, err error) { return v, nil }

func connectCapabilities(r *request, _ *xdr.Void) (ret protocol.ConnectGetCapabilitiesRet, err error) {
	facts := r.drv.facts()
	if err := r.drv.host.countPages(facts.Cells); err != nil {
		return ret, err
	}
	ret.Capabilities, err = xml.Capabilities(facts)
	return ret, err
}

func connectDomainCapabilities(r *request, a *protocol.ConnectGetDomainCapabilitiesArgs) (ret protocol.ConnectGetDomainCapabilitiesRet, err error) {
	if err := checkFlags(a.Flags, protocol.ConnectGetDomainCapabilitiesDisableDeprecatedFeatures); err != nil {
		return ret, err
	}
	ret.Capabilities, err = xml.DomainCapabilities(r.drv.facts(),
		text(a.Emulatorbin), text(a.Arch), text(a.Machine), text(a.Virttype))
	return ret, err
}

func connectSysinfo(r *request, a *protocol.ConnectGetSysinfoArgs) (ret protocol.ConnectGetSysinfoRet, err error) {
	if err := checkFlags(a.Flags); err != nil {
		return ret, err
	}
	ret.Sysinfo, err = sysinfo()
	return ret, err
}

// text is an optional string, empty when it was not given.
func text(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
