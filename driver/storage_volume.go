package driver

import (
	"context"
	"fmt"
	"time"

	"virtvzd/driver/protocol"
	"virtvzd/driver/relay"
	"virtvzd/runtime"
)

// volumes are those of libvirt's storage pools: the host's storage daemon
// tells where they are.
type volumes struct{ relay *relay.Relay }

// volumeTimeout bounds the question: an environment that starts waits for it.
const volumeTimeout = 30 * time.Second

// NewVolumes gives environments the volumes of the daemon that c leads to. It
// connects when one is wanted.
func NewVolumes(c relay.Config) runtime.Volumes { return volumes{relay.New(c)} }

// VolumePath tells where on the host a volume is.
func (v volumes) VolumePath(ctx context.Context, pool, volume string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, volumeTimeout)
	defer cancel()
	client, err := v.relay.Dial(ctx, relay.Storage)
	if err != nil {
		return "", err
	}
	defer client.Close()
	p, err := relay.Call(ctx, client, protocol.StoragePoolLookupByName, &protocol.StoragePoolLookupByNameArgs{Name: pool})
	if answers(err, protocol.ErrNoStoragePool) {
		return "", errorf(protocol.ErrNoStoragePool, "there is no storage pool '%s': virsh pool-list --all shows those there are", pool)
	}
	if err != nil {
		return "", fmt.Errorf("storage pool %s: %w", pool, err)
	}
	found, err := relay.Call(ctx, client, protocol.StorageVolLookupByName, &protocol.StorageVolLookupByNameArgs{Pool: p.Pool, Name: volume})
	switch {
	case answers(err, protocol.ErrOperationInvalid):
		return "", errorf(protocol.ErrOperationInvalid, "storage pool '%s' is not active: start it with virsh pool-start %s", pool, pool)
	case answers(err, protocol.ErrNoStorageVol):
		return "", errorf(protocol.ErrNoStorageVol, "there is no volume '%s' in the storage pool '%s': virsh vol-list %s shows those there are", volume, pool, pool)
	case err != nil:
		return "", fmt.Errorf("volume %s of the storage pool %s: %w", volume, pool, err)
	}
	path, err := relay.Call(ctx, client, protocol.StorageVolGetPath, &protocol.StorageVolGetPathArgs{Vol: found.Vol})
	if err != nil {
		return "", fmt.Errorf("volume %s of the storage pool %s: %w", volume, pool, err)
	}
	return path.Name, nil
}
