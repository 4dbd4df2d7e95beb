package driver

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc/xdr"
	"virtvzd/runtime"
)

// Migration is libvirt's, of version 3: the client, or with --p2p the source's
// daemon in its place, calls
//
//	Begin    source       is it possible; what the other host has to know
//	Prepare  destination  room is made, and what is to come waited for
//	Perform  source       runtime.Migrate: all is sent, and held there
//	Finish   destination  it is let go there, and only from then on runs there
//	Confirm  source       it is ended here, or goes on
//
// and passes what each returns on to the next. migrate_source.go has the
// source's, migrate_destination.go the destination's, migrate_p2p.go what a
// client does; migrate_listen.go the connections between both hosts.
var migrating = table{
	query(protocol.DomainMigrateBegin3Params, func(r *request, d *domain, a *protocol.DomainMigrateBegin3ParamsArgs) (ret protocol.DomainMigrateBegin3ParamsRet, err error) {
		o, err := readMigration(a.Params, a.Flags)
		if err != nil {
			return ret, err
		}
		ret.XML, ret.CookieOut, err = r.beginMigration(d, o)
		return ret, err
	}),
	call(protocol.DomainMigratePrepare3Params, func(r *request, a *protocol.DomainMigratePrepare3ParamsArgs) (ret protocol.DomainMigratePrepare3ParamsRet, err error) {
		o, err := readMigration(a.Params, a.Flags)
		if err != nil {
			return ret, err
		}
		uri, cookie, err := r.prepareMigration(o, a.CookieIn, false)
		ret.CookieOut, ret.UriOut = cookie, &uri
		return ret, err
	}),
	call(protocol.DomainMigratePrepareTunnel3Params, func(r *request, a *protocol.DomainMigratePrepareTunnel3ParamsArgs) (ret protocol.DomainMigratePrepareTunnel3ParamsRet, err error) {
		o, err := readMigration(a.Params, a.Flags)
		if err != nil {
			return ret, err
		}
		_, ret.CookieOut, err = r.prepareMigration(o, a.CookieIn, true)
		return ret, err
	}),
	query(protocol.DomainMigratePerform3Params, func(r *request, d *domain, a *protocol.DomainMigratePerform3ParamsArgs) (ret protocol.DomainMigratePerform3ParamsRet, err error) {
		o, err := readMigration(a.Params, a.Flags)
		if err != nil {
			return ret, err
		}
		ret.CookieOut, err = r.performMigration(d, o, text(a.Dconnuri), a.CookieIn)
		return ret, err
	}),
	call(protocol.DomainMigrateFinish3Params, func(r *request, a *protocol.DomainMigrateFinish3ParamsArgs) (ret protocol.DomainMigrateFinish3ParamsRet, err error) {
		o, err := readMigration(a.Params, a.Flags)
		if err != nil {
			return ret, err
		}
		ret.Dom, err = r.finishMigration(o.name, a.CookieIn, a.Cancelled != 0)
		return ret, err
	}),
	query(protocol.DomainMigrateConfirm3Params, func(r *request, d *domain, a *protocol.DomainMigrateConfirm3ParamsArgs) (v xdr.Void, err error) {
		o, err := readMigration(a.Params, a.Flags)
		if err != nil {
			return v, err
		}
		return v, r.confirmMigration(d, o, a.Cancelled != 0)
	}),

	// The same without typed parameters, for clients that pass none.
	query(protocol.DomainMigrateBegin3, func(r *request, d *domain, a *protocol.DomainMigrateBegin3Args) (ret protocol.DomainMigrateBegin3Ret, err error) {
		o, err := plainMigration(a.Flags, a.Dname, a.Xmlin, nil, a.Resource)
		if err != nil {
			return ret, err
		}
		ret.XML, ret.CookieOut, err = r.beginMigration(d, o)
		return ret, err
	}),
	call(protocol.DomainMigratePrepare3, func(r *request, a *protocol.DomainMigratePrepare3Args) (ret protocol.DomainMigratePrepare3Ret, err error) {
		o, err := plainMigration(a.Flags, a.Dname, &a.DomXML, a.UriIn, a.Resource)
		if err != nil {
			return ret, err
		}
		uri, cookie, err := r.prepareMigration(o, a.CookieIn, false)
		ret.CookieOut, ret.UriOut = cookie, &uri
		return ret, err
	}),
	call(protocol.DomainMigratePrepareTunnel3, func(r *request, a *protocol.DomainMigratePrepareTunnel3Args) (ret protocol.DomainMigratePrepareTunnel3Ret, err error) {
		o, err := plainMigration(a.Flags, a.Dname, &a.DomXML, nil, a.Resource)
		if err != nil {
			return ret, err
		}
		_, ret.CookieOut, err = r.prepareMigration(o, a.CookieIn, true)
		return ret, err
	}),
	query(protocol.DomainMigratePerform3, func(r *request, d *domain, a *protocol.DomainMigratePerform3Args) (ret protocol.DomainMigratePerform3Ret, err error) {
		o, err := plainMigration(a.Flags, a.Dname, a.Xmlin, a.Uri, a.Resource)
		if err != nil {
			return ret, err
		}
		ret.CookieOut, err = r.performMigration(d, o, text(a.Dconnuri), a.CookieIn)
		return ret, err
	}),
	call(protocol.DomainMigrateFinish3, func(r *request, a *protocol.DomainMigrateFinish3Args) (ret protocol.DomainMigrateFinish3Ret, err error) {
		ret.Dom, err = r.finishMigration(a.Dname, a.CookieIn, a.Cancelled != 0)
		return ret, err
	}),
	query(protocol.DomainMigrateConfirm3, func(r *request, d *domain, a *protocol.DomainMigrateConfirm3Args) (v xdr.Void, err error) {
		o, err := plainMigration(a.Flags, nil, nil, nil, 0)
		if err != nil {
			return v, err
		}
		return v, r.confirmMigration(d, o, a.Cancelled != 0)
	}),

	query(protocol.DomainMigrateSetMaxDowntime, setMaxDowntime),
	get(protocol.DomainMigrateGetMaxDowntime, maxDowntime),
	query(protocol.DomainMigrateSetMaxSpeed, setMaxSpeed),
	get(protocol.DomainMigrateGetMaxSpeed, maxSpeed),
	query(protocol.DomainMigrateStartPostCopy, startPostCopy),
}

// migration says how a domain is to move.
type migration struct {
	flags      uint32
	uri        string // where the destination waits for what is sent
	name       string // at the destination; "": the same
	xml        string // to run there; "": as it is here
	persistent string // definition there; "": as it is here
	listen     string // address to wait at
	bandwidth  uint64 // MiB a second; 0: no limit
	following  uint64 // the same of memory that follows
	tlsHost    string // name in the destination's certificate
	method     string // of compression
}

func (m migration) has(flag uint32) bool { return m.flags&flag != 0 }

// migrateRefused are flags of virDomainMigrateFlags that an environment cannot
// honour, and why.
var migrateRefused = []struct {
	flag   uint32
	reason string
}{
	{protocol.MigrateAutoConverge, "--auto-converge has no meaning for an environment: it stands still after some rounds, whatever it writes; migrate-setmaxdowntime says how soon"},
	{protocol.MigrateRdmaPinAll, "--rdma-pin-all has no meaning without RDMA, which environments are not sent by"},
	{protocol.MigrateParallel, "--parallel cannot be used: an environment is sent by one connection"},
	{protocol.MigrateZerocopy, "--zerocopy cannot be used: what is sent was compressed or is read from files"},
	{protocol.MigrateNonSharedSynchronousWrites, "--copy-storage-synchronous-writes has no meaning: what is written last is sent while nothing writes"},
	{protocol.MigratePostcopyResume, "--postcopy-resume cannot be used: what was still at the source when the connection was lost is lost"},
}

const migrateFlags = protocol.MigrateLive | protocol.MigratePeer2peer | protocol.MigrateTunnelled | protocol.MigratePersistDest |
	protocol.MigrateUndefineSource | protocol.MigratePaused | protocol.MigrateNonSharedDisk | protocol.MigrateNonSharedInc |
	protocol.MigrateChangeProtection | protocol.MigrateUnsafe | protocol.MigrateOffline | protocol.MigrateCompressed |
	protocol.MigrateAbortOnError | protocol.MigratePostcopy | protocol.MigrateTls

func checkMigration(m migration) error {
	for _, r := range migrateRefused {
		if m.has(r.flag) {
			return errorf(protocol.ErrArgumentUnsupported, "%s", r.reason)
		}
	}
	if err := checkFlags(m.flags, migrateFlags); err != nil {
		return err
	}
	switch {
	case m.has(protocol.MigrateTunnelled) && !m.has(protocol.MigratePeer2peer):
		return errorf(protocol.ErrInvalidArg, "cannot perform tunnelled migration without using peer2peer flag")
	case m.has(protocol.MigrateTunnelled) && m.has(protocol.MigrateTls):
		return errorf(protocol.ErrArgumentUnsupported, "tunnelled migration is as safe as the connection it is tunnelled through: --tls has no meaning for it")
	case m.has(protocol.MigrateOffline) && !m.has(protocol.MigratePersistDest): // qemuMigrationSrcBeginPhase
		return errorf(protocol.ErrOperationInvalid, "offline migration must be specified with the persistent flag set")
	case m.has(protocol.MigrateOffline) && m.has(protocol.MigrateTunnelled):
		return errorf(protocol.ErrOperationInvalid, "tunnelled offline migration does not make sense")
	case m.method != "" && m.method != "zstd":
		return errorf(protocol.ErrArgumentUnsupported, "what is sent can be compressed with zstd, not with '%s'", m.method)
	}
	return errors.Join(checkBandwidth(m.bandwidth), checkBandwidth(m.following))
}

// readMigration reads VIR_MIGRATE_PARAM_*.
func readMigration(params []protocol.TypedParam, flags uint32) (m migration, err error) {
	m.flags = flags
	_, err = readParams(params, map[string]any{
		protocol.MigrateParamUri: &m.uri, protocol.MigrateParamDestName: &m.name, protocol.MigrateParamDestXML: &m.xml,
		protocol.MigrateParamPersistXML: &m.persistent, protocol.MigrateParamBandwidth: &m.bandwidth, protocol.MigrateParamBandwidthPostcopy: &m.following,
		protocol.MigrateParamListenAddress: &m.listen, protocol.MigrateParamTlsDestination: &m.tlsHost,
		protocol.MigrateParamCompression: &m.method,
	})
	if err == nil {
		err = checkMigration(m)
	}
	return m, err
}

func plainMigration(flags uint64, name, doc, uri *string, bandwidth uint64) (migration, error) {
	m := migration{flags: uint32(flags), name: text(name), xml: text(doc), uri: text(uri), bandwidth: bandwidth}
	if flags>>32 != 0 {
		return m, errorf(protocol.ErrInvalidArg, "unsupported flags (0x%x)", flags)
	}
	return m, checkMigration(m)
}

// params are those of a call to another daemon.
func (m migration) params() (list []protocol.TypedParam) {
	for _, p := range []struct{ name, value string }{
		{protocol.MigrateParamUri, m.uri}, {protocol.MigrateParamDestName, m.name}, {protocol.MigrateParamDestXML, m.xml},
		{protocol.MigrateParamListenAddress, m.listen}, {protocol.MigrateParamCompression, m.method},
	} {
		if p.value != "" {
			list = append(list, protocol.TypedParam{Field: p.name, Value: protocol.StringValue(p.value)})
		}
	}
	return list
}

// forDestination are the flags that the other daemon is told.
func (m migration) forDestination(paused bool) uint32 {
	flags := m.flags &^ (protocol.MigrateChangeProtection | protocol.MigrateAbortOnError)
	if paused {
		flags |= protocol.MigratePaused
	}
	return flags
}

// cookie is what one side tells the other, by way of the client.
type cookie struct {
	Session    runtime.Session
	Offer      *runtime.MigrationOffer `json:",omitempty"`
	Persistent string                  `json:",omitempty"` // definition for the destination
	Pull       string                  `json:",omitempty"` // address where the source waits to send a disk
	Sent       *sent                   `json:",omitempty"` // of the source, when all is there
}

// sent is what the source tells of its job, so that domjobinfo --completed says
// it at the destination, too. Hosts' clocks differ, so times are durations.
type sent struct {
	runtime.MigrationStats
	Elapsed, Still time.Duration // until now
}

func newSent(c *runtime.MigrationControl) *sent {
	s := c.Stats()
	return &sent{MigrationStats: s, Elapsed: time.Since(s.Started), Still: time.Since(s.Frozen)}
}

// arrived is the job as the destination sees it, that was told of it at a time.
func (s *sent) arrived(told time.Time) workInfo {
	stats, more := s.MigrationStats, time.Since(told)
	stats.Down = s.Still + more
	return workInfo{
		kind: protocol.DomainJobCompleted, operation: protocol.DomainJobOperationMigrationIn, elapsed: s.Elapsed + more,
		migration: &stats, done: stats.MemorySent + stats.DiskSent, total: stats.MemoryTotal + stats.DiskTotal,
	}
}

// maxCookie is REMOTE_MIGRATE_COOKIE_MAX.
const maxCookie = 4 << 20

func (c cookie) encode() ([]byte, error) {
	body, err := json.Marshal(c)
	if err == nil && len(body) > maxCookie {
		err = errors.New("what is to be said of the domain is too long")
	}
	return body, err
}

func decodeCookie(body []byte) (c cookie, err error) {
	if len(body) == 0 {
		return c, errorf(protocol.ErrInvalidArg, "the migration cookie is missing: both hosts must run virtvzd")
	}
	if err := json.Unmarshal(body, &c); err != nil {
		return c, errorf(protocol.ErrInvalidArg, "the migration cookie is not understood: %v", err)
	}
	if !c.Session.Valid() {
		return c, errorf(protocol.ErrInvalidArg, "the migration cookie names no migration")
	}
	return c, nil
}

// errMigration is how a migration failed.
func errMigration(what string, err error) error {
	var own *Error
	if errors.As(err, &own) {
		return err
	}
	if errors.Is(err, runtime.ErrUnsupported) {
		return unsupportedMode(err)
	}
	return errorf(protocol.ErrOperationFailed, "%s", fmt.Sprintf("%s: %v", what, err))
}
