package main

// A program is one protocol description and how its names become Go names.
type program struct {
	file   string  // below the source's top
	family string  // the file its types go to; empty: by families
	strip  string  // prefix of type names that is dropped
	limits string  // prefix of constant names that is dropped
	add    string  // Go prefix of types and procedures
	fn     *string // what the names of its public functions have after Domain; nil: no read-only connections
	procs  string  // prefix of procedure numbers
	list   string  // Go function that lists its procedures; empty: has none
}

var programs = []program{
	{file: "src/rpc/virnetprotocol.x", family: "message", strip: "virNet", limits: "VIR_NET_"},
	{file: "src/rpc/virkeepaliveprotocol.x", family: "message"},
	{file: "src/remote/remote_protocol.x", strip: "remote_", limits: "REMOTE_", fn: new(""), procs: "REMOTE_PROC_", list: "Remote"},
	{file: "src/remote/qemu_protocol.x", family: "qemu", strip: "qemu_", limits: "QEMU_", add: "Qemu", fn: new("Qemu"), procs: "QEMU_PROC_", list: "Qemu"},
	{file: "src/remote/lxc_protocol.x", family: "lxc", strip: "lxc_", limits: "LXC_", add: "Lxc", fn: new("Lxc"), procs: "LXC_PROC_", list: "Lxc"},
	{file: "src/admin/admin_protocol.x", family: "admin", strip: "admin_", limits: "ADMIN_", add: "Admin", procs: "ADMIN_PROC_", list: "Admin"},
}

// headers are read for constants, one generated file each.
var headers = []struct{ file, family string }{
	{"include/libvirt/libvirt-common.h.in", "const_common"},
	{"include/libvirt/libvirt-host.h", "const_host"},
	{"include/libvirt/libvirt-domain.h", "const_domain"},
	{"include/libvirt/libvirt-domain-snapshot.h", "const_snapshot"},
	{"include/libvirt/libvirt-domain-checkpoint.h", "const_checkpoint"},
	{"include/libvirt/libvirt-event.h", "const_event"},
	{"include/libvirt/libvirt-stream.h", "const_stream"},
	{"include/libvirt/libvirt-admin.h", "const_admin"},
	{"include/libvirt/libvirt-qemu.h", "const_qemu"},
	{"include/libvirt/virterror.h", "const_error"},
	{"src/libvirt_internal.h", "const_feature"}, // virDrvFeature: CONNECT_SUPPORTS_FEATURE asks by it
}

// families decides by name which file a type or procedure of the remote
// program goes to; the first match wins.
var families = []struct{ pattern, family string }{
	{`^(nonnull_\w+|typed_param\w*|uuid|u?string)$`, "types"},
	{`^(storage|connect_\w*storage)`, "storage"},
	{`^(nwfilter|connect_\w*nwfilter)`, "nwfilter"},
	{`^(network|connect_\w*network)`, "network"},
	{`^(secret|connect_\w*secret)`, "secret"},
	{`^(node_(device|num_of_devices|list_devices)|connect_(\w*node_device|list_all_node))`, "nodedev"},
	{`^(interface|connect_\w*interface)`, "interface"},
	{`^(domain|connect)_\w*event`, "domain_event"},
	{`^domain_\w*snapshot|^domain_revert`, "domain_snapshot"},
	{`^domain_\w*checkpoint`, "domain_checkpoint"},
	{`^domain_migrate`, "domain_migrate"},
	{`^domain_\w*(block|blkio|disk)`, "domain_block"},
	{`^(domain_\w*(cpu|memory|numa|scheduler|iothread|emulator|perf|hugepage))|^vcpu`, "domain_tune"},
	{`^connect_\w*domain|^domain_lookup`, "domain_list"},
	{`^domain_(\w*save|restore|core_dump)`, "domain_save"},
	{`^domain_(fs|get_fsinfo|\w*guest|agent|authorized|set_user|[gs]et_time|get_hostname|interface_addr|ip_addr|send_|inject|pm_|open_|screenshot)`, "domain_guest"},
	{`^domain_(\w+_device|\w*interface|graphics|\w*throttle)`, "domain_device"},
	{`^domain`, "domain"},
	{`^node`, "node"},
	{`^auth`, "auth"},
	{``, "connect"},
}

// initialisms are the words written in capitals.
var initialisms = map[string]bool{"xml": true, "uuid": true, "cpu": true, "id": true}

// names holds the Go names that the rules would get wrong, or give twice.
var names = map[string]string{
	// A type and a procedure of one name: the type is an element of its result.
	"remote_node_get_cpu_stats":    "NodeCPUStat",
	"remote_node_get_memory_stats": "NodeMemoryStat",
	// A state and a procedure; virsh calls the state "in shutdown".
	"VIR_DOMAIN_SHUTDOWN": "DomainInShutdown",
	// A way to authenticate and a procedure.
	"REMOTE_AUTH_NONE":   "AuthTypeNone",
	"REMOTE_AUTH_SASL":   "AuthTypeSasl",
	"REMOTE_AUTH_POLKIT": "AuthTypePolkit",
	// A type and a message type of one name.
	"virNetStreamHole": "StreamHoleBody",
	// Too bare to be understood without their C prefix.
	"virNetMessageError":         "Error",
	"VIR_NET_OK":                 "StatusOK",
	"VIR_NET_ERROR":              "StatusError",
	"VIR_NET_CONTINUE":           "StatusContinue",
	"KEEPALIVE_PROTOCOL_VERSION": "KeepaliveVersion",
	"REMOTE_PROTOCOL_VERSION":    "RemoteVersion",
	"REMOTE_PROGRAM":             "RemoteProgram",
	"QEMU_PROTOCOL_VERSION":      "QemuVersion",
	"LXC_PROTOCOL_VERSION":       "LxcVersion",
	"ADMIN_PROTOCOL_VERSION":     "AdminVersion",
}

// same lists types that are another one again under a second name, or, with no
// other, that nothing uses.
var same = map[string]string{
	"virNetMessageUUID":           "remote_uuid",
	"virNetMessageNonnullString":  "remote_nonnull_string",
	"virNetMessageString":         "remote_string",
	"virNetMessageNonnullDomain":  "remote_nonnull_domain",
	"virNetMessageNonnullNetwork": "remote_nonnull_network",
	"virNetMessageDomain":         "remote_domain",
	"virNetMessageNetwork":        "remote_network",
	"admin_nonnull_string":        "remote_nonnull_string",
	"admin_string":                "remote_string",
	"admin_typed_param":           "remote_typed_param",
	"admin_typed_param_value":     "remote_typed_param_value",
	"remote_error":                "",
}

// arm names the Go type of a union's case: IntValue for VIR_TYPED_PARAM_INT.
var arm = struct{ strip, add string }{"VIR_TYPED_PARAM_", "Value"}

// functions names the public function behind a procedure, where it is not the
// procedure's own name; with none, the call is part of the handshake and every
// client may make it.
var functions = map[string]string{
	"REMOTE_PROC_AUTH_LIST":                                    "",
	"REMOTE_PROC_AUTH_SASL_INIT":                               "",
	"REMOTE_PROC_AUTH_SASL_START":                              "",
	"REMOTE_PROC_AUTH_SASL_STEP":                               "",
	"REMOTE_PROC_AUTH_POLKIT":                                  "",
	"REMOTE_PROC_CONNECT_DOMAIN_EVENT_CALLBACK_REGISTER_ANY":   "virConnectDomainEventRegisterAny",
	"REMOTE_PROC_CONNECT_DOMAIN_EVENT_CALLBACK_DEREGISTER_ANY": "virConnectDomainEventDeregisterAny",
}

// refused adds to the calls that a read-only connection may not make.
var refused = map[string]string{
	"virDomainDelThrottleGroup": "changes the domain; libvirt 11.3 checks this for its counterpart virDomainSetThrottleGroup only",
}
