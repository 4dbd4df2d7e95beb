package runtime

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"virtvzd/xml"
)

// traffic lists a link's queue and filters.
func traffic(t *testing.T, h *netlink.Handle, link netlink.Link) string {
	t.Helper()
	var list []string
	classes, err := h.ClassList(link, netlink.MakeHandle(1, 0))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range classes {
		if htb, ok := c.(*netlink.HtbClass); ok {
			list = append(list, fmt.Sprintf("htb %d %d", htb.Rate, htb.Ceil))
		}
	}
	filters, err := h.FilterList(link, netlink.MakeHandle(0xffff, 0))
	if err != nil {
		t.Fatal(err)
	}
	var rules []string
	for _, f := range filters {
		a := f.Attrs()
		switch f := f.(type) {
		case *netlink.U32:
			if f.Police != nil {
				rules = append(rules, fmt.Sprintf("%d police %d", a.Priority, f.Police.Rate))
			}
		case *netlink.Flower:
			rules = append(rules, fmt.Sprintf("%d from %s/%d", a.Priority, f.SrcIP, ones(f)))
		case *netlink.MatchAll:
			rules = append(rules, fmt.Sprintf("%d %s", a.Priority, f.Actions[0].Attrs().Action))
		}
	}
	slices.Sort(rules)
	return strings.Join(append(list, rules...), "\n")
}

func ones(f *netlink.Flower) int {
	n, _ := f.SrcIPMask.Size()
	return n
}

// TestTrafficControl: from any state to any other, and what was there before
// is gone.
func TestTrafficControl(t *testing.T) {
	w := newSpace(t)
	link := addLink(t, w, cable("vnet0"))
	const m = 1 << 20
	sources := []netip.Prefix{netip.MustParsePrefix("192.0.2.2/32"), netip.MustParsePrefix("192.0.2.3/24"), netip.MustParsePrefix("2001:db8::2/64")}
	all := "2 ok\n3 from 192.0.2.2/32\n3 from 192.0.2.3/32\n4 from 2001:db8::2/128\n5 from fe80::/10\n6 from ::/128\n7 shot"
	one := "2 ok\n3 from 192.0.2.3/32\n7 shot"
	six := "4 from 2001:db8::2/128\n5 from fe80::/10\n6 from ::/128\n7 shot"
	for _, c := range []struct {
		in, out xml.Rate
		checked bool
		sources []netip.Prefix
		want    string
	}{
		{xml.Rate{}, xml.Rate{}, false, nil, ""},
		{xml.Rate{Average: m, Peak: 2 * m}, xml.Rate{}, false, nil, "htb 1048576 2097152"},
		{xml.Rate{Average: 2 * m}, xml.Rate{Average: m}, false, nil, "htb 2097152 2097152\n1 police 1048576"},
		{xml.Rate{}, xml.Rate{Average: 3 * m}, true, sources, "1 police 3145728\n" + all},
		{xml.Rate{}, xml.Rate{}, true, sources, all},
		{xml.Rate{}, xml.Rate{}, true, sources[2:], six},
		{xml.Rate{}, xml.Rate{}, true, nil, "7 shot"}, // not even ARP
		{xml.Rate{}, xml.Rate{Average: m}, true, nil, "1 police 1048576\n7 shot"},
		{xml.Rate{Average: 5 << 30}, xml.Rate{}, true, sources[1:2], "htb 5368709120 5368709120\n" + one},
		{xml.Rate{}, xml.Rate{Average: m}, true, sources, "1 police 1048576\n" + all},
		{xml.Rate{}, xml.Rate{}, false, nil, ""},
	} {
		err := setShaping(w.host, link, c.in)
		if err == nil {
			err = setIngress(w.host, link, c.out, c.checked, c.sources)
		}
		skipWithout(t, err)
		if err != nil {
			t.Fatalf("%+v: %v", c, err)
		}
		if got := traffic(t, w.host, link); got != c.want {
			t.Errorf("%+v:\n%s\nwant\n%s", c, got, c.want)
		}
	}
}

// TestRateChanges: a rate that changes is at no moment none, as the kernel tells
// of all that is removed.
func TestRateChanges(t *testing.T) {
	w := newSpace(t)
	link := addLink(t, w, cable("vnet0"))
	set := func(average uint64) {
		t.Helper()
		rate := xml.Rate{Average: average}
		err := setShaping(w.host, link, rate)
		if err == nil {
			err = setIngress(w.host, link, rate, false, nil)
		}
		skipWithout(t, err)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := traffic(t, w.host, link), fmt.Sprintf("htb %d %[1]d\n1 police %[1]d", average); average != 0 && got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	set(1 << 20)
	told, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_TC)
	if err != nil {
		t.Fatal(err)
	}
	defer told.Close()
	// removals are those that were told of until now.
	removals := func() (list []uint16) {
		t.Helper()
		told.SetReceiveTimeout(&unix.Timeval{Usec: 100000})
		for {
			messages, _, err := told.Receive()
			if err != nil {
				return list
			}
			for _, m := range messages {
				switch m.Header.Type {
				case unix.RTM_DELQDISC, unix.RTM_DELTCLASS, unix.RTM_DELTFILTER:
					list = append(list, m.Header.Type)
				}
			}
		}
	}
	set(2 << 20)
	set(1 << 19)
	if list := removals(); len(list) > 0 {
		t.Errorf("a change removed %v", list)
	}
	set(0)
	if len(removals()) < 2 {
		t.Error("the last one is not told of: nothing was seen")
	}
}
