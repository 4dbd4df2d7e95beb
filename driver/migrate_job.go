package driver

import (
	"time"

	"virtvzd/driver/protocol"
	"virtvzd/runtime"
	"virtvzd/xml"
)

// parts tell of what the work moves: memory, and for a migration the disk, too.
func (i workInfo) parts() (params []protocol.TypedParam) {
	add := func(name string, value uint64) {
		params = append(params, protocol.TypedParam{Field: name, Value: protocol.UllongValue(value)})
	}
	s := i.migration
	if s == nil {
		s = &runtime.MigrationStats{MemoryTotal: i.total, MemorySent: i.done}
	}
	add(protocol.DomainJobMemoryTotal, s.MemoryTotal)
	add(protocol.DomainJobMemoryProcessed, s.MemorySent)
	add(protocol.DomainJobMemoryRemaining, s.MemoryTotal-min(s.MemorySent, s.MemoryTotal))
	if i.migration == nil {
		return params
	}
	add(protocol.DomainJobMemoryBps, s.Rate)
	add(protocol.DomainJobMemoryDirtyRate, s.DirtyRate/pageSize)
	add(protocol.DomainJobMemoryPageSize, pageSize)
	add(protocol.DomainJobMemoryIteration, uint64(s.Round))
	add(protocol.DomainJobDiskTotal, s.DiskTotal)
	add(protocol.DomainJobDiskProcessed, s.DiskSent)
	add(protocol.DomainJobDiskRemaining, s.DiskTotal-min(s.DiskSent, s.DiskTotal))
	add(protocol.DomainJobSetupTime, uint64(s.Setup.Milliseconds()))
	if s.Down > 0 {
		add(protocol.DomainJobDowntime, uint64(s.Down.Milliseconds()))
	}
	return params
}

// pageSize is that of the memory CRIU reads.
const pageSize = 4096

// forsaken ends the migrations of a client that has gone.
func (drv *Driver) forsaken(c *client) {
	for _, d := range drv.domains.every() {
		if p := d.leaving.Load(); p != nil && p.owner == c {
			p.forsake()
		}
		if a := d.arriving.Load(); a != nil && a.owner == c {
			go a.forsake()
		}
	}
}

// stay is for a domain of which it is not known whether it runs elsewhere: who
// resumes it says that it does not.
func (c *change) stay() error {
	v := c.view()
	if v.instance.Leaving() == nil {
		return nil
	}
	env, err := xml.NewEnvironment(v.live)
	if err != nil {
		return err
	}
	c.drv.log.Warn("a domain that was sent to another host is said not to run there", "domain", v.name, "by", c.procedure)
	return v.instance.EndMigration(c.ctx, runtime.Aborted, env.Interfaces)
}

// forgetLeft is for a domain that was sent to another host, and of which nothing
// runs here: it was said what became of it. It tells whether there was such a
// thing.
func (c *change) forgetLeft(said string) (bool, error) {
	if c.drv.rt == nil {
		return false, nil
	}
	left, err := c.drv.rt.ForgetLeft(c.uuid)
	if left && err == nil {
		c.drv.log.Warn("a domain was sent to another host, and "+said, "domain", c.view().name, "by", c.procedure)
	}
	return left, err
}

// hastenMigration has a domain that is about to move stand still: suspending it
// means that the rest comes in one go.
func hastenMigration(d *domain) {
	c := d.moving()
	if c == nil {
		return
	}
	c.Switch()
	for end := time.Now().Add(jobWait); d.moving() == c && c.Stats().Frozen.IsZero() && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
}

// abandonWork ends what takes long with a domain that is to be destroyed.
func abandonWork(d *domain) { d.job.abort() }
