// Package xml turns libvirt's domain XML into what to run and back. It is
// pure: it touches neither the host nor the network.
//
//	scan.go         bounds on a document before it is believed
//	decode.go       a scanned document becomes libvirtxml's model
//	parse.go        Parse: decode, complete, check; adopt.go what metadata needs
//	strict.go       unknown elements, for virsh define --validate
//	defaults.go     libvirt's defaults, and what is dropped
//	validate.go     what a definition may ask for: filesystem.go, interface.go,
//	                device.go, tune.go for their elements
//	format.go       a definition becomes a document, write.go in libvirt's layout
//	live.go         the definition of what runs
//	environment.go  a definition becomes an Environment, in the kernel's terms
//	metadata.go     <metadata>; ve.go our own element in it
//	native.go       configurations of OpenVZ, LXC and OCI become definitions:
//	                native_openvz.go, native_lxc.go, native_oci.go
//	capabilities.go what the host offers
//
// The path of a definition is scan, decode, complete, validate; of a start
// NewEnvironment, then Live; of dumpxml Format.
package xml
