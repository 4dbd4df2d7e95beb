// Package xml turns libvirt's domain XML into what to run and back. It is
// pure: it touches neither the host nor the network.
//
//	scan.go         bounds on a document before it is believed
//	parse.go        a document becomes a checked, complete definition
//	validate.go     what a definition may ask for, device.go for devices
//	strict.go       unknown elements, for virsh define --validate
//	format.go       a definition becomes a document, live.go what runs
//	environment.go  a definition becomes an Environment, in the kernel's terms
//	metadata.go     <metadata>, title and description
//	capabilities.go what the host offers
package xml
