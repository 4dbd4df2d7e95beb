//go:build vm

package runtime

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// onTestBtrfs has what TempDir makes lie on a btrfs with quotas.
func onTestBtrfs(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "btrfs") // TempDir goes on with the directory it had first
	if err != nil {
		t.Fatal(err)
	}
	image, at := filepath.Join(dir, "image"), filepath.Join(dir, "at")
	t.Cleanup(func() {
		unix.Unmount(at, unix.MNT_DETACH)
		os.RemoveAll(dir)
	})
	out, err := exec.Command("sh", "-ec", `truncate -s 400M "$1"; mkfs.btrfs -q "$1"; mkdir "$2"; mount -o loop "$1" "$2"; btrfs quota enable "$2"`, "sh", image, at).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Setenv("TMPDIR", at)
	return at
}

// TestLayersOnBtrfs: all that holds of layers holds where the disk is a subvolume.
func TestLayersOnBtrfs(t *testing.T) {
	onTestBtrfs(t)
	for name, test := range map[string]func(*testing.T){
		"PushRevertRelease": TestPushRevertRelease, "ReleaseWhileRunning": TestReleaseWhileRunning,
		"KilledAtEveryStep": TestLayersKilledAtEveryStep, "Copy": TestCopyLayer, "Damaged": TestDamagedLayer,
		"Clone": TestCloneRoot, "Adopt": TestAdoptRoot, "KeepsTemplate": TestLayerKeepsTemplate, "JoinAlone": TestJoinAlone,
	} {
		t.Run(name, func(t *testing.T) {
			test(t)
		})
	}
	t.Run("is a subvolume", func(t *testing.T) {
		l := newTestLayers(t)
		if _, subvolume := onBtrfs(l.privateDir(formatUUID(layersUUID))); !subvolume {
			t.Error("it is none")
		}
	})
}

// TestJoinAcross: hard links stay, and one that was killed is gone on with.
func TestJoinAcross(t *testing.T) {
	at := onTestBtrfs(t)
	upper, lower := filepath.Join(at, "sub/upper"), filepath.Join(at, "lower")
	if err := makeSubvolume(filepath.Join(at, "sub")); err != nil {
		t.Fatal(err)
	}
	write(t, upper, "b=upper", "-gone", "!opaque/")
	write(t, lower, "a=lower", "b=lower", "d/c=lower", "gone=lower", "opaque/hidden=lower")
	if err := os.Link(filepath.Join(lower, "a"), filepath.Join(lower, "d/z")); err != nil {
		t.Fatal(err)
	}
	before := view(t, upper, lower)
	for n := 0; ; n++ {
		var err error
		steps := dying(n, func() { err = joinAcross("1", lower, upper) })
		if err != nil {
			t.Fatal(err)
		}
		if now := view(t, upper, lower); now != before {
			t.Fatalf("killed at %v: %q became %q", steps, before, now)
		}
		if len(steps) <= n {
			break
		}
	}
	// What is below another layer is hidden by a whiteout that stays.
	if now := view(t, upper); !strings.HasPrefix(now, "a=lower b=upper d/ d/c=lower d/z=lower") {
		t.Errorf("%q became %q without the joined layer", before, now)
	}
	var a, z unix.Stat_t
	unix.Stat(filepath.Join(upper, "a"), &a)
	unix.Stat(filepath.Join(upper, "d/z"), &z)
	if a.Ino != z.Ino || a.Nlink != 2 {
		t.Errorf("the hard link is none any more: %d, %d of %d", a.Ino, z.Ino, a.Nlink)
	}
	if entries, _ := os.ReadDir(filepath.Dir(upper)); len(entries) != 1 {
		t.Errorf("left: %v", entries)
	}
}

// TestSeparateKilled: a disk is a directory or a subvolume, never nothing.
func TestSeparateKilled(t *testing.T) {
	onTestBtrfs(t)
	l := newTestLayers(t)
	other := [16]byte{9}
	dir := use(t, l.templates, formatUUID(other), "web")
	write(t, l.upper(other), "a=1", "-text")
	before := l.shows(t, other)
	steps := dying(0, func() { l.separate(t.Context(), other) })
	if now := l.shows(t, other); now != before {
		t.Errorf("killed at %v: %q became %q", steps, before, now)
	}
	if err := l.separate(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	if now := l.shows(t, other); now != before {
		t.Errorf("%q became %q", before, now)
	}
	if _, subvolume := onBtrfs(dir); !subvolume {
		t.Error("it is no subvolume")
	}
}
