package main

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

// Exit codes, those of OpenVZ's vzctl(8).
const (
	exitNotFound  = 1 // of vzlist: there is none of the named
	exitSystem    = 3
	exitCommand   = 8 // the command of vzctl exec failed
	exitDenied    = 12
	exitNoConfig  = 14 // there is no such container
	exitSuspend   = 16
	exitResume    = 17
	exitParameter = 20 // an option that is not known
	exitValue     = 21 // its value cannot be
	exitStopped   = 31
	exitRunning   = 32
	exitStop      = 33
	exitExists    = 44
	exitWait      = 60 // start --wait has waited long enough
)

// failure is an error with an exit code.
type failure struct {
	code int
	text string
}

func (f *failure) Error() string { return f.text }

func failf(code int, format string, args ...any) error {
	return &failure{code, fmt.Sprintf(format, args...)}
}

// parameter is an option of create and set, and the key of a CTID.conf that
// it stands for.
type parameter struct {
	option, key string
	many        bool // repeated options are one list
}

// parameters in the order in which they are written and set.
var parameters = append([]parameter{
	{"ostemplate", "OSTEMPLATE", false}, {"private", "VE_PRIVATE", false}, {"hostname", "HOSTNAME", false},
	{"ipadd", "IP_ADDRESS", true}, {"netif", "NETIF", false}, {"nameserver", "NAMESERVER", true}, {"searchdomain", "SEARCHDOMAIN", true},
	{"ram", "PHYSPAGES", false}, {"physpages", "PHYSPAGES", false}, {"swap", "SWAPPAGES", false}, {"swappages", "SWAPPAGES", false},
	{"diskspace", "DISKSPACE", false}, {"cpus", "CPUS", false}, {"cpuunits", "CPUUNITS", false}, {"cpulimit", "CPULIMIT", false},
	{"cpumask", "CPUMASK", false}, {"nodemask", "NODEMASK", false}, {"ioprio", "IOPRIO", false}, {"capability", "CAPABILITY", true},
	{"devnodes", "DEVNODES", true}, {"description", "DESCRIPTION", false},
}, beancounters()...)

// beancounters are options by their own names.
func beancounters() (list []parameter) {
	for _, name := range []string{"numproc", "numpty", "shmpages", "numfile", "lockedpages", "numsiginfo", "oomguarpages", "privvmpages", "vmguarpages"} {
		list = append(list, parameter{name, strings.ToUpper(name), false})
	}
	return list
}

// options are what stands behind the CTID, values by the option's name.
type options map[string][]string

// parseOptions reads --name value and --name=value of the options known, and
// the flags, which have no value.
func parseOptions(args, known, flags []string) (options, error) {
	o := options{}
	for len(args) > 0 {
		name, value, given := strings.Cut(args[0], "=")
		name, ok := strings.CutPrefix(name, "--")
		switch {
		case !ok:
			return nil, failf(exitParameter, "%q is not an option", args[0])
		case slices.Contains(flags, name) && !given:
			o[name], args = append(o[name], ""), args[1:]
			continue
		case !slices.Contains(known, name):
			return nil, failf(exitParameter, "the option --%s is not known here: %s are", name, strings.Join(append(slices.Clone(known), flags...), ", "))
		case !given && len(args) < 2:
			return nil, failf(exitValue, "the option --%s needs a value", name)
		case !given:
			value, args = args[1], args[1:]
		}
		if strings.ContainsAny(value, "\"\n\r\x00") {
			return nil, failf(exitValue, "the value of --%s has a quote or a line end", name)
		}
		o[name], args = append(o[name], value), args[1:]
	}
	return o, nil
}

func (o options) has(name string) bool { return len(o[name]) > 0 }

// last of an option that was given more than once holds.
func (o options) last(name string) string {
	if !o.has(name) {
		return ""
	}
	return o[name][len(o[name])-1]
}

func parameterNames() (names []string) {
	for _, p := range parameters {
		names = append(names, p.option)
	}
	return names
}

// configuration is the CTID.conf of what create was asked for: the sample, and
// behind it, so that they hold, the options.
func configuration(ctid string, o options, sample string) (string, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "VEID=\"%s\"\n", ctid)
	if sample != "" {
		b.WriteString(strings.TrimSuffix(sample, "\n") + "\n")
		if o.has("ostemplate") && !o.has("private") {
			b.WriteString("VE_PRIVATE=\"\"\n") // an environment's own layer lies where the daemon has it
		}
	}
	for _, p := range parameters {
		if !o.has(p.option) {
			continue
		}
		value := o.last(p.option)
		if p.many {
			value = strings.Join(o[p.option], " ")
		}
		if p.option == "ram" || p.option == "swap" {
			kib, err := kibibytes(value)
			if err != nil {
				return "", failf(exitValue, "--%s is %q: a size such as 512M is accepted", p.option, value)
			}
			value = "0:" + strconv.FormatUint(kib, 10) + "K"
		}
		fmt.Fprintf(&b, "%s=\"%s\"\n", p.key, value)
	}
	return b.String(), nil
}

// kibibytes reads a size in bytes, or with a suffix K, M, G or T.
func kibibytes(s string) (uint64, error) {
	s = strings.TrimSuffix(strings.ToUpper(s), "B")
	for n, suffix := range []string{"K", "M", "G", "T"} {
		if digits, ok := strings.CutSuffix(s, suffix); ok {
			size, err := strconv.ParseUint(digits, 10, 32)
			return size << (10 * n), err
		}
	}
	size, err := strconv.ParseUint(s, 10, 63)
	return (size + 1023) / 1024, err
}

// sampleFile is where OpenVZ keeps a sample for --config. Its name is no path.
func sampleFile(name string) (string, error) {
	if name == "" || strings.ContainsAny(name, "/\x00") {
		return "", failf(exitValue, "--config is %q: the name of a sample is accepted", name)
	}
	return "/etc/vz/conf/ve-" + name + ".conf-sample", nil
}

// readSample of --config, none without.
func readSample(o options) (string, error) {
	if !o.has("config") {
		return "", nil
	}
	path, err := sampleFile(o.last("config"))
	if err != nil {
		return "", err
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return "", failf(exitNoConfig, "the sample cannot be read: %v", err)
	}
	return string(text), nil
}
