package driver

import (
	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc/xdr"
)

// Jobs are asked about and ended while another call holds the domain.
var jobs = table{
	get(protocol.DomainGetJobInfo, jobInfo),
	get(protocol.DomainGetJobStats, jobStats),
	get(protocol.DomainAbortJob, func(d *domain, _ *protocol.DomainAbortJobArgs) (xdr.Void, error) { return abortJob(d, 0) }),
	get(protocol.DomainAbortJobFlags, func(d *domain, a *protocol.DomainAbortJobFlagsArgs) (xdr.Void, error) { return abortJob(d, a.Flags) }),
}

func jobInfo(d *domain, _ *protocol.DomainGetJobInfoArgs) (ret protocol.DomainGetJobInfoRet, err error) {
	i := d.job.info()
	ret.Type, ret.TimeElapsed = i.kind, uint64(i.elapsed.Milliseconds())
	ret.DataTotal, ret.DataProcessed, ret.DataRemaining = i.total, i.done, i.total-min(i.done, i.total)
	ret.MemTotal, ret.MemProcessed, ret.MemRemaining = ret.DataTotal, ret.DataProcessed, ret.DataRemaining
	return ret, nil
}

func jobStats(d *domain, a *protocol.DomainGetJobStatsArgs) (ret protocol.DomainGetJobStatsRet, err error) {
	if err := checkFlags(a.Flags, protocol.DomainJobStatsCompleted, protocol.DomainJobStatsKeepCompleted); err != nil {
		return ret, err
	}
	i := d.job.info()
	if a.Flags&protocol.DomainJobStatsCompleted != 0 {
		if i.kind != protocol.DomainJobNone {
			return ret, errorf(protocol.ErrOperationInvalid, "a job is still running on the domain")
		}
		i = d.job.lastInfo(a.Flags&protocol.DomainJobStatsKeepCompleted != 0)
	}
	if ret.Type = i.kind; i.kind != protocol.DomainJobNone {
		ret.Params = i.params()
	}
	return ret, nil
}

// abortJob ends what takes long; what it did already is undone.
func abortJob(d *domain, flags uint32) (v xdr.Void, err error) {
	if err := checkFlags(flags); err != nil {
		return v, err
	}
	if !d.view().state.active() {
		return v, errNotRunning()
	}
	if !d.job.abort() {
		return v, errorf(protocol.ErrOperationInvalid, "no job is active on the domain")
	}
	return v, nil
}
