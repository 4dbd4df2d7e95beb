package runtime

import (
	"testing"
	"unsafe"
)

// TestBtrfsStructs: the kernel reads and writes them.
func TestBtrfsStructs(t *testing.T) {
	for request, size := range map[uintptr]uintptr{ // which has the size in it
		btrfsSnapshotCreate: unsafe.Sizeof(volumeArgs{}), btrfsSubvolumeCreate: unsafe.Sizeof(volumeArgs{}),
		btrfsLookup: unsafe.Sizeof(treeName{}), btrfsFSInfo: unsafe.Sizeof(btrfsInfo{}), btrfsQgroupLimit: unsafe.Sizeof(qgroupLimit{}),
	} {
		if size != request>>16&0x3fff {
			t.Errorf("%#x has %d bytes", request, size)
		}
	}
}
