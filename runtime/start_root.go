package runtime

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"virtvzd/xml"
)

// makeLayers makes the environment's own layer when it starts for the first
// time. From then on it belongs to that digest of its template: an overlay
// whose lower layer is exchanged is corrupt.
func (s *starter) makeLayers(ctx context.Context) error {
	if a := s.options.Arrival; a != nil {
		if err := a.await(ctx, a.disk); err != nil {
			return err
		}
	}
	if err := checkDevices(s.env.Devices); err != nil {
		return err
	}
	if len(s.env.Filesystems) > 0 && s.env.Filesystems[0].Type == "host" && !s.r.config.HostRoot {
		return fmt.Errorf("%s has no root, and may not have the host's: add a <filesystem> with <target dir='/'/>, or set host_root = true in virtvzd.conf", s.env.Name)
	}
	for _, name := range []string{"lower", "layers", "rootfs", "dev"} {
		if err := os.Mkdir(filepath.Join(s.res.Dir, name), 0o711); err != nil {
			return err
		}
	}
	if err := s.openDisks(ctx); err != nil {
		return err
	}
	if len(s.env.Filesystems) == 0 {
		return nil
	}
	root := s.env.Filesystems[0]
	switch root.Type {
	case "template":
	case "file":
		if err := s.claimRoot(root, root.Source); err != nil {
			return err
		}
		err := limitImage(root, func() error { return s.r.growSource(ctx, nil, root.Source, root.Format, root.HardLimit) })
		if err != nil {
			return err
		}
		if err := s.openRoot(ctx, root); err != nil || root.HardLimit == 0 || root.ReadOnly {
			return err
		}
		if err := growMounted(int(s.tree.Fd())); err != nil {
			return fmt.Errorf("the file system of the root %s: %w", root.Source, err)
		}
		return nil
	case "block", "volume":
		if err := refuseLimit(root); err != nil {
			return err
		}
		if err := s.openRoot(ctx, root); err != nil {
			return err
		}
		return s.claimRoot(root, s.rec.Root.Source)
	case "mount":
		if err := s.claimRoot(root, root.Source); err != nil {
			return err
		}
		return s.r.limitSpace(ctx, s.env.UUID, root)
	default:
		return refuseLimit(root)
	}
	if err := s.cloneRoot(); err != nil {
		return err
	}
	template, err := s.r.Templates().pin(ctx, root.Source, s.res.Layers)
	if err != nil {
		return err
	}
	disk, chain, err := s.r.Layers().below(s.env.UUID)
	if err != nil {
		return fmt.Errorf("disk of %s: %w", s.env.Name, err)
	}
	for n := range chain {
		if err := os.MkdirAll(chainMount(s.res.Dir, n), 0o711); err != nil {
			return err
		}
	}
	s.rec.Template, s.res.Lower, s.res.Chain, s.res.Cloned = template.Digest, template.Path, chain, disk.Clone != ""
	if root.HardLimit != 0 {
		if err := s.r.Layers().separate(ctx, s.env.UUID); err != nil {
			return err
		}
	}
	if err := s.r.limitSpace(ctx, s.env.UUID, root); err != nil {
		return err
	}
	return s.rec.save(s.res.Dir)
}

func (s *starter) openRoot(ctx context.Context, root xml.Filesystem) error {
	tree, where, err := s.r.openRoot(ctx, root)
	s.tree, s.rec.Root = tree, &where
	s.res.Tree = firstExtraFD + len(s.options.Files)
	return err
}

func (s *starter) claimRoot(root xml.Filesystem, source string) (err error) {
	if !root.ReadOnly {
		s.rec.Writes, err = s.r.claimRoot(s.env.UUID, source)
	}
	return err
}

// cloneRoot makes the disk of an environment that is to start as another's
// clone. Once it has a disk, that counts.
func (s *starter) cloneRoot() error {
	if s.env.CloneOf == [16]byte{} || pinned(s.res.Layers) != "" {
		return nil
	}
	if err := s.r.Layers().clone(s.env.CloneOf, "", s.env.UUID, true); err != nil {
		return fmt.Errorf("%s cannot start as a clone: %w; shut that off, or take <disk:disk> and <ve:clone> out of the definition", s.env.Name, err)
	}
	return nil
}

func (s *starter) mountRoot(ctx context.Context) error {
	request, err := planRoot(s.env, s.res)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, s.stub.kill)()
	s.root, err = s.stub.mount(request)
	return err
}
