package driver

import (
	"context"
	"errors"
	"io"

	"virtvzd/driver/protocol"
	"virtvzd/driver/relay"
	"virtvzd/runtime"
)

// migrateP2P is a whole migration, in which this daemon is the destination's
// client.
func (r *request) migrateP2P(d *domain, how migration, destination string) error {
	if destination == "" {
		return errorf(protocol.ErrInvalidArg, "the URI of the destination's daemon is missing")
	}
	if r.drv.access != nil && r.client.who().UID != 0 && relay.NamesProgram(destination) { // who may do all may do that, too
		return errorf(protocol.ErrAccessDenied, "the URI '%s' names a program, which would run as root here: leave its 'command' out, or migrate without --p2p", destination)
	}
	peer, err := relay.DialRemote(r.ctx, destination, r.drv.config.Migration.Certificates)
	if err != nil {
		return err
	}
	defer peer.Close()
	for _, feature := range []int32{protocol.DrvFeatureMigrationV3, protocol.DrvFeatureMigrationParams} {
		has, err := relay.Call(r.ctx, peer, protocol.ConnectSupportsFeature, &protocol.ConnectSupportsFeatureArgs{Feature: feature})
		if err != nil {
			return err
		}
		if has.Supported == 0 {
			return errorf(protocol.ErrOperationFailed, "the daemon at %s cannot take migrations: both hosts must run virtvzd", destination)
		}
	}
	p, doc, told, err := r.depart(d, how)
	if err != nil {
		return err
	}
	move := &peerToPeer{departure: p, peer: peer, destination: destination}
	how.xml = doc
	if how.name == "" {
		how.name = d.view().name
	}
	return move.run(how, told)
}

type peerToPeer struct {
	*departure
	peer        *relay.Client
	destination string
	stream      io.ReadWriteCloser // of a tunnelled migration
}

func (m *peerToPeer) run(how migration, told []byte) error {
	flags := how.forDestination(m.view().state == Paused)
	uri, err := m.prepare(how, flags, told)
	if err != nil {
		m.leave(departureBegun)
		return errThere(err)
	}
	if !m.phase.CompareAndSwap(departureBegun, departurePerforming) {
		return errorf(protocol.ErrOperationAborted, "the migration was given up")
	}
	m.how.uri, m.address = uri, ""
	if m.stream != nil {
		m.address = m.destination
	}
	if how.has(protocol.MigrateOffline) {
		err = m.sendDisk()
	} else {
		err = m.send(m.dial)
	}
	finish := &protocol.DomainMigrateFinish3ParamsArgs{Params: migration{name: how.name}.params(), CookieIn: told, Flags: flags}
	if err != nil {
		finish.Cancelled = 1
		relay.Call(context.WithoutCancel(m.ctx), m.peer, protocol.DomainMigrateFinish3Params, finish)
		return err
	}
	m.phase.Store(departureSettling) // also if the client goes
	if !how.has(protocol.MigrateOffline) {
		if finish.CookieIn, err = (cookie{Session: m.session, Sent: newSent(m.control)}).encode(); err != nil {
			finish.CookieIn = told // the numbers are not worth a failure
		}
	}
	_, failure := relay.Call(context.WithoutCancel(m.ctx), m.peer, protocol.DomainMigrateFinish3Params, finish)
	if how.has(protocol.MigrateOffline) {
		return errors.Join(errThere(failure), m.confirmOffline(failure != nil))
	}
	if failure == nil {
		return m.gone()
	}
	finish.Cancelled = 1
	err = m.settle(func(ctx context.Context) (runtime.Outcome, error) { return m.askPeer(ctx, finish) })
	if err == nil && m.view().state == Shutoff {
		return nil // it runs there all the same
	}
	return errors.Join(errThere(failure), err)
}

// errThere is an error of the destination's daemon.
func errThere(err error) error {
	var e *relay.Error
	if errors.As(err, &e) {
		return errorf(e.Code, "%s", e.Detail)
	}
	return err
}

// prepare is Prepare at the destination.
func (m *peerToPeer) prepare(how migration, flags uint32, told []byte) (uri string, err error) {
	if how.has(protocol.MigrateTunnelled) {
		_, m.stream, err = relay.CallStream(m.ctx, m.peer, protocol.DomainMigratePrepareTunnel3Params,
			&protocol.DomainMigratePrepareTunnel3ParamsArgs{Params: how.params(), CookieIn: told, Flags: flags})
		return "", err
	}
	ret, err := relay.Call(m.ctx, m.peer, protocol.DomainMigratePrepare3Params,
		&protocol.DomainMigratePrepare3ParamsArgs{Params: how.params(), CookieIn: told, Flags: flags})
	if err != nil {
		return "", err
	}
	if uri = text(ret.UriOut); uri == "" {
		uri = how.uri
	}
	return uri, nil
}

func (m *peerToPeer) dial(ctx context.Context) (io.ReadWriteCloser, error) {
	if s := m.stream; s != nil {
		m.stream = nil // it can be used once
		return s, nil
	}
	return m.drv.dialMigration(ctx, m.address)
}

// sendDisk sends the disk of a domain that does not run.
func (m *peerToPeer) sendDisk() (err error) {
	if m.address, err = migrationAddress(m.how); err == nil {
		m.control = runtime.NewMigrationControl(m.drv.bandwidth(m.domain, m.how), 0)
		err = m.working(protocol.DomainJobOperationMigrationOut, func(ctx context.Context, w *work) error {
			w.migration.Store(m.control)
			return m.drv.rt.SendDisk(ctx, runtime.Outgoing{Session: m.session, Dial: m.dial, Root: m.offer.Root, Control: m.control, Compress: m.how.has(protocol.MigrateCompressed)})
		})
	}
	if err != nil {
		m.leave(departurePerforming)
		return errMigration("migration failed", err)
	}
	return nil
}

// askPeer asks over libvirt what became of the domain, on a connection of its
// own if that of the migration broke.
func (m *peerToPeer) askPeer(ctx context.Context, finish *protocol.DomainMigrateFinish3ParamsArgs) (runtime.Outcome, error) {
	return askOver(ctx, m.destination, m.drv.config.Migration.Certificates, finish)
}

func askOver(ctx context.Context, uri, certificates string, finish *protocol.DomainMigrateFinish3ParamsArgs) (runtime.Outcome, error) {
	peer, err := relay.DialRemote(ctx, uri, certificates)
	if err != nil {
		return runtime.Forgotten, err
	}
	defer peer.Close()
	_, err = relay.Call(ctx, peer, protocol.DomainMigrateFinish3Params, finish)
	var answered *relay.Error
	switch {
	case err == nil:
		return runtime.Committed, nil
	case errors.As(err, &answered) && answered.Code == protocol.ErrMigrateFinishOk:
		return runtime.Aborted, nil
	case errors.As(err, &answered) && answered.Code == protocol.ErrMigratePersistFailed:
		return runtime.Lost, nil
	}
	return runtime.Forgotten, err
}
