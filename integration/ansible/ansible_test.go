//go:build vm

// Package ansible drives environments by an unmodified Ansible: the inventory
// and the connection of its collection community.libvirt, both of which know
// nothing of virtvzd.
package ansible

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"virtvzd/integration/vm"
)

func TestMain(m *testing.M) { os.Exit(vm.Main(m)) }

// install gets Debian's packages by the machine's own apt. Of the package
// ansible, which has every collection there is, only one is unpacked.
const install = `set -e
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -qq --no-install-recommends -o DPkg::Options::=--force-unsafe-io ansible-core
cd /tmp
apt-get download -qq -o APT::Sandbox::User=root ansible
dpkg-deb --fsys-tarfile ansible_*.deb | tar -x -C / --wildcards './usr/lib/python3/dist-packages/ansible_collections/community/libvirt/*'
rm ansible_*.deb`

// environments: two of a template, of which one is stopped, and one on the
// root of the host, which has Python.
const environments = `set -e
sed -i 's/^host_root.*/host_root = true/' /etc/libvirt/virtvzd.conf
systemctl restart virtvzd
virtvzd template import busybox ` + vm.Roots + `/busybox.tar.zst
for name in web1 web2 db1; do
	vzctl create $name --ostemplate busybox --hostname $name --ram 64M
done
vzctl set web1 --tag prod,web --save
vzctl set web2 --tag web --save
vzctl start web1; vzctl start db1
export LIBVIRT_DEFAULT_URI=vz:///system
virt-install --name app1 --memory 256 --container --init /bin/sh --network none --noautoconsole`

func TestAnsible(t *testing.T) {
	m := vm.Own(t)
	m.Sh(t, install)
	m.Sh(t, environments)
	if err := m.Push(t.Context(), "testdata", "/root/ansible"); err != nil {
		t.Fatal(err)
	}
	in := func(command string) string {
		t.Helper()
		return m.Sh(t, "cd /root/ansible; export LC_ALL=C.UTF-8 ANSIBLE_NOCOLOR=1; "+command)
	}

	graph := in("ansible-inventory -i vz.yml --graph")
	for group, want := range map[string]string{"web": "web1 web2", "running": "app1 db1 web1"} {
		if got := members(graph, group); got != want {
			t.Errorf("%s has %q, want %q:\n%s", group, got, want, graph)
		}
	}
	if out := in("ansible -i vz.yml 'web:&running' -m raw -a 'cat /proc/1/comm'"); !regexp.MustCompile(`(?m)^web1 \| CHANGED \| rc=0 >>\s*^init$`).MatchString(out) || strings.Contains(out, "web2") {
		t.Error(out)
	}
	if out := in("ansible -i vz.yml web1 -m raw -a 'executable=/bin/sh echo oops; exit 3' || echo ended with $?"); !strings.Contains(out, "rc=3") || !strings.Contains(out, "ended with 2") {
		t.Error(out)
	}

	in("head -c 300000 /dev/urandom >big; ansible-playbook -i vz.yml site.yml >&2 && cmp big fetched")
	m.Sh(t, "for name in app1 web1 db1; do virsh -c vz:///system destroy $name; done")
}

// members are the hosts of a group in what ansible-inventory --graph prints.
func members(graph, group string) string {
	_, rest, _ := strings.Cut(graph, "|--@"+group+":\n")
	var names []string
	for line := range strings.Lines(rest) {
		name, ok := strings.CutPrefix(strings.TrimSpace(line), "|  |--")
		if !ok {
			break
		}
		names = append(names, name)
	}
	return strings.Join(names, " ")
}
