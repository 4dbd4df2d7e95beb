package driver

import (
	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc/xdr"
)

var subscriptions = table{
	inline(protocol.ConnectDomainEventCallbackRegisterAny, registerCallback),
	inline(protocol.ConnectDomainEventCallbackDeregisterAny, deregisterCallback),
	inline(protocol.ConnectDomainEventRegister, registerLifecycle),
	inline(protocol.ConnectDomainEventDeregister, deregisterLifecycle),
	inline(protocol.ConnectDomainEventRegisterAny, registerAny),
	inline(protocol.ConnectDomainEventDeregisterAny, deregisterAny),
}

func registerCallback(r *request, a *protocol.ConnectDomainEventCallbackRegisterAnyArgs) (ret protocol.ConnectDomainEventCallbackRegisterAnyRet, err error) {
	s := subscription{id: a.EventID}
	if a.Dom != nil {
		if r.drv.domains.lookup(a.Dom.UUID) == nil {
			return ret, noDomain(a.Dom.UUID, a.Dom.Name)
		}
		s.dom = &a.Dom.UUID
	}
	ret.CallbackID, err = r.drv.events.subscribe(r.client, s)
	return ret, err
}

func deregisterCallback(r *request, a *protocol.ConnectDomainEventCallbackDeregisterAnyArgs) (v xdr.Void, err error) {
	return v, r.drv.events.unsubscribe(r.client, a.CallbackID)
}

// Clients older than libvirt 1.2.1 register without a callback id.

func registerLifecycle(r *request, _ *xdr.Void) (ret protocol.ConnectDomainEventRegisterRet, err error) {
	_, err = r.drv.events.subscribe(r.client, subscription{id: protocol.DomainEventIDLifecycle, legacy: true})
	return protocol.ConnectDomainEventRegisterRet{CbRegistered: 1}, err
}

func deregisterLifecycle(r *request, _ *xdr.Void) (ret protocol.ConnectDomainEventDeregisterRet, err error) {
	return ret, r.drv.events.unsubscribeLegacy(r.client, protocol.DomainEventIDLifecycle)
}

func registerAny(r *request, a *protocol.ConnectDomainEventRegisterAnyArgs) (v xdr.Void, err error) {
	_, err = r.drv.events.subscribe(r.client, subscription{id: a.EventID, legacy: true})
	return v, err
}

func deregisterAny(r *request, a *protocol.ConnectDomainEventDeregisterAnyArgs) (v xdr.Void, err error) {
	return v, r.drv.events.unsubscribeLegacy(r.client, a.EventID)
}
