// Package runtime runs one environment on this kernel.
//
// The way of a start, file by file:
//
//	start.go     Start: the order of the steps, and their undo; start_root.go what its root is made of
//	stub.go      our own binary again, in a private mount namespace
//	stubroot.go  mounts the root there (roots.go reads what init it has)
//	plan.go      from XML, host and root to an OCI spec and unit properties (pure)
//	record.go    what is written down before each step, so that a crash leaves nothing unknown
//	filesystem.go its filesystems below the root; filesystem_grow.go a root in an image grows (qcow2: filesystem_qcow2_grow.go)
//	filesystem_freeze.go those that nobody else has are frozen, filesystem_trim.go and trimmed
//	device.go    device nodes; disk.go disks that are images (disk_grow.go, filesystem_qcow2.go)
//	quota.go     how much its own layer may hold; quota_btrfs.go on btrfs
//	network.go   its network interfaces
//	instance.go  the running environment: init's pid and pidfd, its scope, its console
//	exit.go      how the end of init is noticed and what it means
//	recover.go   after a restart of the daemon: adopt what runs, remove what was half made
//	cleanup.go   one idempotent removal, by UUID
//
// The way of a checkpoint, which is CRIU's through the OCI runtime:
//
//	checkpoint.go           Checkpoint: the order of its steps, and AbandonCheckpoint
//	checkpoint_entered.go   what was started from outside, which no checkpoint has
//	checkpoint_mounts.go    which mounts are the host's; checkpoint_network.go its interfaces' ends
//	cgroups.go              what cgroups there are inside, and that they are there again
//	criu.go                 how CRIU is called, and what it says
//	restore.go              what of a start is different from a checkpoint; restore_lead.go init goes on first
//
// The way to another host, which is told in migrate.go:
//
//	migrate_check.go        what keeps an environment here, and what another host keeps out
//	migrate_out.go          Migrate: the order of its steps; migrate_rounds.go while it runs, migrate_send.go what goes
//	migrate_in.go           PrepareMigration: what comes is held; migrate_receive.go, migrate_disk.go
//	migrate_commit.go       until it is decided: Commit or Abort
//	migrate_session.go      the decision, kept; migrate_settle.go a source asks for it, and ends or goes on
//	migrate_offline.go      only the disk
//	channel.go              messages and data on one connection; mirror.go a tree and its copy, pass by pass
//	postcopy.go             memory that follows
//
// The way of a disk, for snapshots and clones:
//
//	layers.go               what a disk consists of; layers_disk.go how that is kept and finished after a crash
//	layers_push.go          a layer is made, and gone back to; layers_copy.go that of a running environment
//	layers_collect.go       a layer that nobody needs goes; layers_join.go two become one, and layers_claim.go who
//	                        waits for that
//	layers_subvolume.go     a disk that is a btrfs subvolume
//	layers_roots.go         disks are listed, cloned, adopted and removed; identity.go a clone becomes itself
//
// The way of a template:
//
//	templates.go            names and what environments stand on; template_generation.go the manifest and how one is
//	                        made, template_remove.go how it goes, volume.go those that are uploaded to a pool
//	import.go               of a tar (untar.go), a directory (importdir.go) or an OCI image (importoci.go, unlayer.go)
//	build.go                of packages: recipe.go what is asked for, build_plan.go what is run for it (pure)
//	builder.go              the command's side of a build, build_stub.go and build_step.go the confined side
//	build_out.go            its way to archives, and to nothing of the host's own
//
// The package imports xml (what to run) and systemd (scopes). It returns
// errors as sentences for the user and logs nothing.
package runtime
