# virtvzd. The two targets to begin with: make demo, make test.

PREFIX  ?= /usr
DESTDIR ?=
SBINDIR  = $(PREFIX)/sbin
BINDIR   = $(PREFIX)/bin
UNITDIR  = $(PREFIX)/lib/systemd/system
RULESDIR = $(PREFIX)/lib/udev/rules.d
# Where what is built goes to, and with which build tags: a daemon of the tests
# can be told to fail (runtime/faults.go), one that is shipped cannot.
BIN      = bin
TAGS     =
VERSION ?= $(shell git describe --always --dirty 2>/dev/null || echo dev)

GO      ?= go
# Where a Go may be that PATH does not name: one that make deps brought, go.dev's.
export PATH := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/virtvzd/go/bin:$(PATH):/usr/local/go/bin
LDFLAGS  = -s -w -X main.version=$(VERSION)
FUZZTIME ?= 3s

.PHONY: build install test test-quick test-vm test-migrate test-gui test-ansible fuzz bench demo generate go deps clean

build: $(BIN)/virtvzd $(BIN)/vzctl

# vzctl needs cgo and libvirt-dev; without them there is the daemon alone.
$(BIN)/vzctl: FORCE
	if pkg-config --exists libvirt 2>/dev/null && command -v $(CC) >/dev/null && command -v $(GO) >/dev/null; then \
		CGO_ENABLED=1 $(GO) build -trimpath -ldflags '-s -w' -o $@ ./integration/vzctl; \
	fi

# The daemon is one static binary. One that is built already can be installed
# where there is no Go, as root's PATH under sudo may be.
$(BIN)/virtvzd: FORCE
	if command -v $(GO) >/dev/null; then \
		CGO_ENABLED=0 $(GO) build -trimpath -tags '$(TAGS)' -ldflags '$(LDFLAGS)' -o $@ ./driver/virtvzd; \
	elif [ ! -x $@ ]; then \
		echo "$(GO) is not in PATH, and there is no $@ to install: make go brings one to Debian" >&2; exit 1; \
	fi

FORCE:

install: build
	install -D -m 755 $(BIN)/virtvzd $(DESTDIR)$(SBINDIR)/virtvzd
	if [ -x $(BIN)/vzctl ]; then \
		install -D -m 755 $(BIN)/vzctl $(DESTDIR)$(BINDIR)/vzctl && ln -sf vzctl $(DESTDIR)$(BINDIR)/vzlist; \
	fi
	for unit in virtvzd.service virtvzd.socket virtvzd-ro.socket virtvzd-admin.socket; do \
		sed 's|@SBINDIR@|$(SBINDIR)|' integration/packaging/$$unit > $(BIN)/$$unit && \
		install -D -m 644 $(BIN)/$$unit $(DESTDIR)$(UNITDIR)/$$unit || exit 1; \
	done
	install -D -m 644 integration/packaging/59-virtvzd.rules $(DESTDIR)$(RULESDIR)/59-virtvzd.rules
	install -d $(DESTDIR)$(PREFIX)/share/virtvzd/templates
	install -m 644 driver/virtvzd/templates/*.toml $(DESTDIR)$(PREFIX)/share/virtvzd/templates
	[ -e $(DESTDIR)/etc/libvirt/virtvzd.conf ] || \
		install -D -m 644 driver/virtvzd/virtvzd.conf $(DESTDIR)/etc/libvirt/virtvzd.conf

# A Go, where there is none that builds this.
go:
	integration/go.sh

# That, packages of the host that the tests need, and modules; nothing when all
# are there.
deps:
	integration/vm/install.sh
	integration/go.sh
	integration/again.sh $(GO) mod download

# Everything, from a machine that may have nothing but make.
test: deps test-quick fuzz test-vm

# What needs no VM, with all that is compiled at all. The client's side needs
# cgo and libvirt (see deps).
test-quick:
	driver/protocol/gen/fetch.sh >/dev/null
	$(GO) vet ./...
	$(GO) vet -tags vm,faults ./...
	VIRTVZD_REQUIRE=1 $(GO) test -race -timeout 30m ./...

# Briefly what strangers send: frames, XDR, domain XML.
fuzz:
	integration/fuzz.sh $(FUZZTIME)

# On a real kernel with a real systemd, in a throw-away VM. The image is made
# first, because go test would hide how far that has got.
test-vm: build
	$(GO) run ./integration/vm/cmd build
	VIRTVZD_REQUIRE=1 $(GO) test -tags vm -p 2 -timeout 80m -count=1 -short ./integration/vm/... ./integration/migrate ./integration/virsh

# Migration whole: make test has the scripts and failures that differ most.
test-migrate: build
	$(GO) run ./integration/vm/cmd build
	VIRTVZD_REQUIRE=1 $(GO) test -tags vm -timeout 80m -count=1 -v ./integration/migrate

# virt-manager, by mouse and keyboard, with the daemon in such a VM: minutes,
# and a root with a desktop, which is made once. Makes the pictures of README;
# all others and the logs are in $(BIN)/gui.
test-gui: deps build
	$(GO) run ./integration/vm/cmd build
	VIRTVZD_GUI_OUT=$(abspath $(BIN))/gui VIRTVZD_REQUIRE=1 $(GO) test -tags vm -timeout 40m -count=1 -v ./integration/gui
	for picture in integration/gui/pictures/*.png; do cp $(BIN)/gui/$${picture##*/} $$picture || exit 1; done

# Ansible, as Debian has it, in such a VM, which gets it by its own apt.
test-ansible: deps build
	$(GO) run ./integration/vm/cmd build
	VIRTVZD_REQUIRE=1 $(GO) test -tags vm -timeout 30m -count=1 -v ./integration/ansible

# Ratios of one run, see README.
bench: deps build
	$(GO) run ./integration/vm/cmd build
	$(GO) test -tags vm -timeout 60m -count=1 ./integration/bench -v -run TestFigures
	$(GO) test -tags vm -timeout 60m -count=1 ./integration/migrate -run '^$$' -bench Migration -benchtime 1x

# A throw-away VM with an environment in it, driven by stock virsh; HOST=1
# uses this machine's own systemd.
demo: $(if $(HOST),go,deps) build
	integration/demo.sh $(if $(HOST),host,vm)

# Types of the wire from the libvirt source package.
generate:
	$(GO) run ./driver/protocol/gen -src "$$(driver/protocol/gen/fetch.sh)"

clean:
	rm -rf $(BIN)
