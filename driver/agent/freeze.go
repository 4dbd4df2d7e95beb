package agent

import (
	"context"
	"errors"
	"math"
	"slices"
)

// whileFrozen are the commands that touch no file inside. Shutting down thaws.
var whileFrozen = []string{
	"guest-ping", "guest-sync", "guest-sync-delimited", "guest-info",
	"guest-fsfreeze-status", "guest-fsfreeze-thaw", "guest-shutdown",
}

// refuseFrozen keeps the others from waiting until somebody thaws.
func (a *Agent) refuseFrozen(ctx context.Context, name string) error {
	if slices.Contains(whileFrozen, name) {
		return nil
	}
	points, err := a.guest.FrozenFilesystems(ctx)
	if err == nil && len(points) > 0 {
		err = errors.New("Command " + name + " has been disabled: the agent is in frozen state") // as QEMU's says
	}
	return err
}

func (a *Agent) freezeStatus(ctx context.Context, _ none) (any, error) {
	points, err := a.guest.FrozenFilesystems(ctx)
	if len(points) > 0 {
		return "frozen", err
	}
	return "thawed", err
}

func (a *Agent) freeze(ctx context.Context, args struct {
	Mountpoints []string `json:"mountpoints"`
}) (any, error) {
	return a.guest.FreezeFilesystems(ctx, args.Mountpoints)
}

func (a *Agent) thaw(ctx context.Context, _ none) (any, error) {
	return a.guest.ThawFilesystems(ctx, nil)
}

// trim tells of each file system how much was trimmed, or why it was not:
// those that others use as well are not the environment's to trim.
func (a *Agent) trim(ctx context.Context, args struct {
	Minimum int64 `json:"minimum"`
}) (any, error) {
	if args.Minimum < 0 {
		return nil, errors.New("minimum must not be negative")
	}
	list, err := a.guest.TrimFilesystems(ctx, nil, uint64(args.Minimum))
	if err != nil {
		return nil, err
	}
	paths, own := []map[string]any{}, map[string]bool{}
	for _, t := range list {
		own[t.Point] = true
		if t.Err != nil {
			paths = append(paths, map[string]any{"path": t.Point, "error": t.Err.Error()})
			continue
		}
		paths = append(paths, map[string]any{"path": t.Point, "trimmed": min(t.Bytes, math.MaxInt64), "minimum": min(t.Minimum, math.MaxInt64)})
	}
	mounts, err := a.guest.Mounts(maxFilesystems)
	for _, m := range mounts {
		if !own[m.Point] {
			paths = append(paths, map[string]any{"path": m.Point, "error": "it lies on a file system of the host, which fstrim.timer of the host trims"})
		}
	}
	return map[string]any{"paths": paths}, err
}
