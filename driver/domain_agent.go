package driver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"virtvzd/driver/agent"
	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc/xdr"
	"virtvzd/runtime"
)

// What a guest agent does in a virtual machine the daemon does itself for an
// environment, see package agent. Other calls of libvirt lead there, too. Each
// waits for programs or file systems inside, which may not want to end.
var agents = table{
	apart(query(protocol.DomainGetGuestInfo, domainGuestInfo)),
	apart(query(protocol.DomainSetUserPassword, domainSetUserPassword)),
	apart(query(protocol.DomainAuthorizedSshKeysGet, domainSSHKeys)),
	apart(query(protocol.DomainAuthorizedSshKeysSet, domainSetSSHKeys)),
	apart(query(protocol.DomainFsfreeze, domainFreeze)),
	apart(query(protocol.DomainFsthaw, domainThaw)),
	apart(query(protocol.DomainFstrim, domainTrim)),
}

// qemuProgram is QEMU's program as far as it is not about QEMU.
var qemuProgram = table{
	apart(query(protocol.QemuDomainAgentCommand, agentCommand)),
}

// agentPatience is how long a client waits that does not say.
const agentPatience = time.Minute

// agentOf keeps the agent of the environment that runs now.
type agentOf struct {
	mu       sync.Mutex
	instance *runtime.Instance
	agent    *agent.Agent
}

// runningAgent is the agent of a running environment.
func (d *domain) runningAgent() (*agent.Agent, error) {
	inst := d.view().instance
	if inst == nil {
		return nil, errNotRunning()
	}
	d.agent.mu.Lock()
	defer d.agent.mu.Unlock()
	if d.agent.instance == inst {
		return d.agent.agent, nil
	}
	a := agent.New(inst, d.shutDownByAgent)
	d.agent.instance, d.agent.agent = inst, a
	go func() {
		<-inst.Exited()
		a.Close()
		d.agent.mu.Lock()
		defer d.agent.mu.Unlock()
		if d.agent.agent == a {
			d.agent.instance, d.agent.agent = nil, nil
		}
	}()
	return a, nil
}

func (d *domain) shutDownByAgent(ctx context.Context, mode string) error {
	c, err := d.change(ctx, nil, "guest-shutdown")
	if err != nil {
		return err
	}
	defer c.done()
	return c.ask(0, mode == "reboot")
}

// agentCommand passes on what a client writes itself. Its timeout is in
// seconds, or one of virDomainQemuAgentCommandTimeoutValues.
func agentCommand(r *request, d *domain, a *protocol.QemuDomainAgentCommandArgs) (ret protocol.QemuDomainAgentCommandRet, err error) {
	if err := checkFlags(a.Flags); err != nil {
		return ret, err
	}
	if a.Timeout < protocol.DomainQemuAgentCommandMin {
		return ret, errorf(protocol.ErrInvalidArg, "guest agent timeout '%d' is less than the minimum '%d'", a.Timeout, protocol.DomainQemuAgentCommandMin)
	}
	patience := agentPatience
	if a.Timeout > 0 {
		patience = time.Duration(a.Timeout) * time.Second
	}
	ag, err := d.runningAgent()
	if err != nil {
		return ret, err
	}
	ctx, cancel := context.WithTimeout(r.ctx, patience)
	defer cancel()
	answer, err := ag.Do(agent.WithClient(ctx, r.client.conn.Context()), a.Cmd)
	return protocol.QemuDomainAgentCommandRet{Result: &answer}, agentError(err)
}

func agentError(err error) error {
	var failed *agent.Error
	if errors.As(err, &failed) {
		return errorf(protocol.ErrAgentCommandFailed, "%v", err)
	}
	return err
}

// ask has the agent carry out one command; arguments and answer are what its
// JSON is made from and read into, or nil.
func (r *request) ask(d *domain, name string, arguments, answer any) error {
	ag, err := d.runningAgent()
	if err != nil {
		return err
	}
	body, err := json.Marshal(arguments)
	if err != nil {
		return err
	}
	if arguments == nil {
		body = nil
	}
	ctx, cancel := context.WithTimeout(r.ctx, agentPatience)
	defer cancel()
	value, err := ag.Call(ctx, name, body)
	if err != nil || answer == nil {
		return agentError(err)
	}
	if body, err = json.Marshal(value); err != nil {
		return err
	}
	return json.Unmarshal(body, answer)
}

// domainFreeze freezes the file systems that are the environment's own, or
// those of them that are named; a name of another is refused, where an agent
// would leave it out and freeze less than was asked for.
func domainFreeze(r *request, d *domain, a *protocol.DomainFsfreezeArgs) (ret protocol.DomainFsfreezeRet, err error) {
	err = r.onFilesystems(d, a.Flags, func(ctx context.Context, inst *runtime.Instance) error {
		n, err := inst.FreezeFilesystems(ctx, a.Mountpoints)
		ret.Filesystems = int32(n)
		return err
	})
	return ret, err
}

func domainThaw(r *request, d *domain, a *protocol.DomainFsthawArgs) (ret protocol.DomainFsthawRet, err error) {
	err = r.onFilesystems(d, a.Flags, func(ctx context.Context, inst *runtime.Instance) error {
		n, err := inst.ThawFilesystems(ctx, a.Mountpoints)
		ret.Filesystems = int32(n)
		return err
	})
	return ret, err
}

func domainTrim(r *request, d *domain, a *protocol.DomainFstrimArgs) (v xdr.Void, err error) {
	return v, r.onFilesystems(d, a.Flags, func(ctx context.Context, inst *runtime.Instance) error {
		var points []string
		if a.MountPoint != nil {
			points = []string{*a.MountPoint}
		}
		list, err := inst.TrimFilesystems(ctx, points, a.Minimum)
		for _, t := range list {
			if t.Err != nil {
				err = errors.Join(err, errorf(protocol.ErrOperationFailed, "the file system at %s: %v", t.Point, t.Err))
			}
		}
		if err == nil && len(list) == 0 {
			err = errorf(protocol.ErrOperationUnsupported, "the environment's files lie on a file system of the host, which fstrim.timer of the host trims")
		}
		return err
	})
}

func (r *request) onFilesystems(d *domain, flags uint32, do func(context.Context, *runtime.Instance) error) error {
	if err := checkFlags(flags); err != nil {
		return err
	}
	inst := d.view().instance
	if inst == nil {
		return errNotRunning()
	}
	ctx, cancel := context.WithTimeout(r.ctx, agentPatience)
	defer cancel()
	return unsupportedMode(do(ctx, inst))
}

func domainSetUserPassword(r *request, d *domain, a *protocol.DomainSetUserPasswordArgs) (v xdr.Void, err error) {
	if err := checkFlags(a.Flags, protocol.DomainPasswordEncrypted); err != nil {
		return v, err
	}
	return v, r.ask(d, "guest-set-user-password", map[string]any{
		"username": text(a.User), "password": []byte(text(a.Password)), "crypted": a.Flags&protocol.DomainPasswordEncrypted != 0,
	}, nil)
}

func domainSSHKeys(r *request, d *domain, a *protocol.DomainAuthorizedSshKeysGetArgs) (ret protocol.DomainAuthorizedSshKeysGetRet, err error) {
	if err := checkFlags(a.Flags); err != nil {
		return ret, err
	}
	var answer struct{ Keys []string }
	err = r.ask(d, "guest-ssh-get-authorized-keys", map[string]any{"username": a.User}, &answer)
	if len(answer.Keys) > protocol.DomainAuthorizedSshKeysMax {
		return ret, errorf(protocol.ErrInternalError, "%s has %d keys, the limit is %d", a.User, len(answer.Keys), protocol.DomainAuthorizedSshKeysMax)
	}
	ret.Keys = answer.Keys
	return ret, err
}

func domainSetSSHKeys(r *request, d *domain, a *protocol.DomainAuthorizedSshKeysSetArgs) (v xdr.Void, err error) {
	if err := checkFlags(a.Flags, protocol.DomainAuthorizedSshKeysSetAppend, protocol.DomainAuthorizedSshKeysSetRemove); err != nil {
		return v, err
	}
	args := map[string]any{"username": a.User, "keys": a.Keys}
	if a.Flags&protocol.DomainAuthorizedSshKeysSetRemove != 0 {
		return v, r.ask(d, "guest-ssh-remove-authorized-keys", args, nil)
	}
	args["reset"] = a.Flags&protocol.DomainAuthorizedSshKeysSetAppend == 0
	return v, r.ask(d, "guest-ssh-add-authorized-keys", args, nil)
}

// domainGuestInfo collects what is asked for, all when nothing is named
// (virDomainGetGuestInfo).
func domainGuestInfo(r *request, d *domain, a *protocol.DomainGetGuestInfoArgs) (ret protocol.DomainGetGuestInfoRet, err error) {
	if err := checkFlags(a.Flags); err != nil {
		return ret, err
	}
	info := guestInfo{}
	known := uint32(0)
	for _, kind := range []struct {
		flag    uint32
		command string
		add     func(json.RawMessage, *guestInfo) error
	}{
		{protocol.DomainGuestInfoUsers, "guest-get-users", addUsers},
		{protocol.DomainGuestInfoOs, "guest-get-osinfo", addOS},
		{protocol.DomainGuestInfoTimezone, "guest-get-timezone", addTimezone},
		{protocol.DomainGuestInfoHostname, "guest-get-host-name", addHostname},
		{protocol.DomainGuestInfoFilesystem, "guest-get-fsinfo", addFilesystems},
		{protocol.DomainGuestInfoDisks, "guest-get-disks", addDisks},
		{protocol.DomainGuestInfoInterfaces, "guest-network-get-interfaces", addLinks},
		{protocol.DomainGuestInfoLoad, "guest-get-load", addLoad},
	} {
		known |= kind.flag
		if a.Types != 0 && a.Types&kind.flag == 0 {
			continue
		}
		var answer json.RawMessage
		err := r.ask(d, kind.command, nil, &answer)
		if err == nil {
			err = kind.add(answer, &info)
		}
		if err != nil && a.Types != 0 {
			return ret, err
		}
	}
	if rest := a.Types &^ known; rest != 0 {
		return ret, errorf(protocol.ErrInvalidArg, "unsupported guest information types '0x%x'", rest)
	}
	ret.Params = info.params
	return ret, nil
}

// guestInfo is a list of parameters on its way.
type guestInfo struct{ params []protocol.TypedParam }

func (g *guestInfo) add(name string, value protocol.TypedParamValue) {
	if len(g.params) < protocol.DomainGuestInfoParamsMax {
		g.params = append(g.params, protocol.TypedParam{Field: name, Value: value})
	}
}

// text leaves out what the environment does not tell.
func (g *guestInfo) text(name, value string) {
	if value != "" {
		g.add(name, protocol.StringValue(value))
	}
}

func addUsers(body json.RawMessage, g *guestInfo) error {
	var users []agent.User
	err := json.Unmarshal(body, &users)
	g.add(protocol.DomainGuestInfoUserCount, protocol.UintValue(len(users)))
	for n, u := range users {
		prefix := fmt.Sprint(protocol.DomainGuestInfoUserPrefix, n)
		g.text(prefix+protocol.DomainGuestInfoUserSuffixName, u.Name)
		g.add(prefix+protocol.DomainGuestInfoUserSuffixLoginTime, protocol.UllongValue(u.Time*1000))
	}
	return err
}

func addOS(body json.RawMessage, g *guestInfo) error {
	os := map[string]string{}
	err := json.Unmarshal(body, &os)
	for _, name := range []string{
		protocol.DomainGuestInfoOsID, protocol.DomainGuestInfoOsName, protocol.DomainGuestInfoOsPrettyName,
		protocol.DomainGuestInfoOsVersion, protocol.DomainGuestInfoOsVersionID, protocol.DomainGuestInfoOsMachine,
		protocol.DomainGuestInfoOsVariant, protocol.DomainGuestInfoOsVariantID,
		protocol.DomainGuestInfoOsKernelRelease, protocol.DomainGuestInfoOsKernelVersion,
	} {
		g.text(name, os[strings.TrimPrefix(name, "os.")])
	}
	return err
}

func addTimezone(body json.RawMessage, g *guestInfo) error {
	var zone struct {
		Zone   string
		Offset int32
	}
	err := json.Unmarshal(body, &zone)
	g.text(protocol.DomainGuestInfoTimezoneName, zone.Zone)
	g.add(protocol.DomainGuestInfoTimezoneOffset, protocol.IntValue(zone.Offset))
	return err
}

func addHostname(body json.RawMessage, g *guestInfo) error {
	answer := map[string]string{}
	err := json.Unmarshal(body, &answer)
	g.text(protocol.DomainGuestInfoHostnameHostname, answer["host-name"])
	return err
}

func addFilesystems(body json.RawMessage, g *guestInfo) error {
	var list []agent.Filesystem
	err := json.Unmarshal(body, &list)
	g.add(protocol.DomainGuestInfoFsCount, protocol.UintValue(len(list)))
	for n, f := range list {
		prefix := fmt.Sprint(protocol.DomainGuestInfoFsPrefix, n)
		g.text(prefix+protocol.DomainGuestInfoFsSuffixMountpoint, f.Point)
		g.text(prefix+protocol.DomainGuestInfoFsSuffixName, f.Name)
		g.text(prefix+protocol.DomainGuestInfoFsSuffixFstype, f.Type)
		if f.Total != nil && f.Used != nil {
			g.add(prefix+protocol.DomainGuestInfoFsSuffixTotalBytes, protocol.UllongValue(*f.Total))
			g.add(prefix+protocol.DomainGuestInfoFsSuffixUsedBytes, protocol.UllongValue(*f.Used))
		}
		g.add(prefix+protocol.DomainGuestInfoFsSuffixDiskCount, protocol.UintValue(0))
	}
	return err
}

func addDisks(_ json.RawMessage, g *guestInfo) error {
	g.add(protocol.DomainGuestInfoDiskCount, protocol.UintValue(0))
	return nil
}

func addLinks(body json.RawMessage, g *guestInfo) error {
	var list []agent.Interface
	err := json.Unmarshal(body, &list)
	g.add(protocol.DomainGuestInfoIfCount, protocol.UintValue(len(list)))
	for n, i := range list {
		prefix := fmt.Sprint(protocol.DomainGuestInfoIfPrefix, n)
		g.text(prefix+protocol.DomainGuestInfoIfSuffixName, i.Name)
		g.text(prefix+protocol.DomainGuestInfoIfSuffixHwaddr, i.MAC)
		g.add(prefix+protocol.DomainGuestInfoIfSuffixAddrCount, protocol.UintValue(len(i.Addresses)))
		for m, a := range i.Addresses {
			prefix := fmt.Sprint(prefix, protocol.DomainGuestInfoIfSuffixAddrPrefix, m)
			g.text(prefix+protocol.DomainGuestInfoIfSuffixAddrSuffixType, a.Type)
			g.text(prefix+protocol.DomainGuestInfoIfSuffixAddrSuffixAddr, a.Address)
			g.add(prefix+protocol.DomainGuestInfoIfSuffixAddrSuffixPrefix, protocol.UintValue(a.Prefix))
		}
	}
	return err
}

func addLoad(body json.RawMessage, g *guestInfo) error {
	load := map[string]float64{}
	err := json.Unmarshal(body, &load)
	g.add(protocol.DomainGuestInfoLoad1m, protocol.DoubleValue(load["load1m"]))
	g.add(protocol.DomainGuestInfoLoad5m, protocol.DoubleValue(load["load5m"]))
	g.add(protocol.DomainGuestInfoLoad15m, protocol.DoubleValue(load["load15m"]))
	return err
}
