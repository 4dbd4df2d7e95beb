package driver

import (
	"cmp"
	"context"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"libvirt.org/go/libvirtxml"

	"virtvzd/driver/protocol"
	"virtvzd/driver/relay"
	"virtvzd/runtime"
)

// packetFilters are libvirt's network filters. The host's filter daemon makes the
// rules for the interfaces of environments (virsh nwfilter-binding-list),
// changes them when a filter is changed, and keeps them over its own restart.
type packetFilters struct{ *peer }

// filterTimeout bounds what is asked for one interface: libvirt runs dozens of
// programs for one filter, one after the other for the whole host.
const filterTimeout = 3 * time.Minute

// NewFilters gives environments the filters of the daemon that c leads to. It
// connects when the first is wanted.
func NewFilters(c relay.Config) runtime.Filters {
	return &packetFilters{newPeer(c, relay.NWFilter)}
}

// find looks up what a device has.
func (f *packetFilters) find(ctx context.Context, device string) (client *relay.Client, b protocol.NonnullNwfilterBinding, err error) {
	client, found, err := askFirst(ctx, f.peer, protocol.NwfilterBindingLookupByPortDev, &protocol.NwfilterBindingLookupByPortDevArgs{Name: device})
	return client, found.Nwfilter, err
}

// Bind leaves alone what is as it is to be already.
func (f *packetFilters) Bind(ctx context.Context, b runtime.Binding) error {
	ctx, cancel := context.WithTimeout(ctx, filterTimeout)
	defer cancel()
	client, have, err := f.find(ctx, b.Device)
	if err == nil {
		same, err := f.same(ctx, client, have, b)
		if err != nil || same {
			return err
		}
		if err := f.delete(ctx, client, have); err != nil {
			return &runtime.UnboundError{Err: err}
		}
	} else if !answers(err, protocol.ErrNoNwfilterBinding) {
		return err
	}
	if err := f.create(ctx, client, b); err != nil {
		return &runtime.UnboundError{Err: err}
	}
	return nil
}

func (f *packetFilters) create(ctx context.Context, client *relay.Client, b runtime.Binding) error {
	doc, err := bindingOf(b).Marshal()
	if err != nil {
		return err
	}
	_, err = relay.Call(ctx, client, protocol.NwfilterBindingCreateXML, &protocol.NwfilterBindingCreateXMLArgs{XML: doc})
	if answers(err, protocol.ErrNoNwfilter) || err != nil && strings.Contains(err.Error(), "referenced filter") {
		return errorf(protocol.ErrNoNwfilter, "there is no network filter '%s', or one that it refers to: virsh nwfilter-list shows those there are, virsh nwfilter-define makes one", b.Filter.Name)
	}
	if err != nil {
		return fmt.Errorf("network filter %s: %w", b.Filter.Name, err)
	}
	return nil
}

func (f *packetFilters) same(ctx context.Context, client *relay.Client, have protocol.NonnullNwfilterBinding, b runtime.Binding) (bool, error) {
	got, err := relay.Call(ctx, client, protocol.NwfilterBindingGetXMLDesc, &protocol.NwfilterBindingGetXMLDescArgs{Nwfilter: have})
	if err != nil {
		return false, err
	}
	var def libvirtxml.NWFilterBinding
	if err := def.Unmarshal(got.XML); err != nil {
		return false, nil // then it is not what we made
	}
	return sameBinding(def, *bindingOf(b)), nil
}

// sameBinding leaves out what libvirt adds to a binding in force: the MAC, and
// the address that it was given or has seen (virNWFilterVarHashmapAddStdValues).
// Parameters are in no order, but for the values of one name.
func sameBinding(have, want libvirtxml.NWFilterBinding) bool {
	if have.FilterRef == nil {
		return false
	}
	given := func(name string) bool {
		return slices.ContainsFunc(want.FilterRef.Parameters, func(p libvirtxml.NWFilterBindingFilterParam) bool { return p.Name == name })
	}
	parameters := slices.DeleteFunc(slices.Clone(have.FilterRef.Parameters), func(p libvirtxml.NWFilterBindingFilterParam) bool {
		return (p.Name == "MAC" || p.Name == "IP") && !given(p.Name)
	})
	byName := func(a, b libvirtxml.NWFilterBindingFilterParam) int { return cmp.Compare(a.Name, b.Name) }
	slices.SortStableFunc(parameters, byName)
	return have.FilterRef.Filter == want.FilterRef.Filter &&
		slices.Equal(parameters, slices.SortedStableFunc(slices.Values(want.FilterRef.Parameters), byName)) &&
		reflect.DeepEqual(have.Owner, want.Owner) && reflect.DeepEqual(have.PortDev, want.PortDev) && reflect.DeepEqual(have.MAC, want.MAC)
}

func (f *packetFilters) delete(ctx context.Context, client *relay.Client, b protocol.NonnullNwfilterBinding) error {
	_, err := relay.Call(ctx, client, protocol.NwfilterBindingDelete, &protocol.NwfilterBindingDeleteArgs{Nwfilter: b})
	if answers(err, protocol.ErrNoNwfilterBinding) {
		return nil
	}
	return err
}

// Unbind removes what a device has.
func (f *packetFilters) Unbind(ctx context.Context, device string) error {
	ctx, cancel := context.WithTimeout(ctx, filterTimeout)
	defer cancel()
	client, b, err := f.find(ctx, device)
	if answers(err, protocol.ErrNoNwfilterBinding) {
		return nil
	}
	if err != nil {
		return err
	}
	return f.delete(ctx, client, b)
}

// Keep holds the connection for another while, or makes one.
func (f *packetFilters) Keep(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, networkTimeout)
	defer cancel()
	f.connect(ctx) // tried again soon
}

// bindingOf asks for a binding (conf/virnwfilterbindingdef.c reads it).
func bindingOf(b runtime.Binding) *libvirtxml.NWFilterBinding {
	ref := &libvirtxml.NWFilterBindingFilterRef{Filter: b.Filter.Name}
	for _, p := range b.Filter.Parameters {
		ref.Parameters = append(ref.Parameters, libvirtxml.NWFilterBindingFilterParam(p))
	}
	return &libvirtxml.NWFilterBinding{
		Owner:   &libvirtxml.NWFilterBindingOwner{Name: b.Owner, UUID: b.OwnerUUID},
		PortDev: &libvirtxml.NWFilterBindingPortDev{Name: b.Device},
		MAC:     &libvirtxml.NWFilterBindingMAC{Address: b.MAC}, FilterRef: ref,
	}
}
