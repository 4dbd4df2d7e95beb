package protocol

// Bool returns a boolean as libvirt sends it: 1 or 0.
func Bool(v bool) BooleanValue {
	if v {
		return 1
	}
	return 0
}
