package main

// Job: sessions that end when a test says so.
// Rule: an ended session is as one that never was: NotAuthenticated.

import (
	"reflect"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// expireSessions ends all sessions, and says how many there were.
func expireSessions() int {
	ours := &simulator.Session{Registry: simulator.NewRegistry()}
	manager, ok := ours.Get(registry().SessionManager().Self).(*simulator.SessionManager)
	if !ok {
		return 0
	}
	ctx := &simulator.Context{Session: ours, Map: registry()}
	for _, session := range manager.SessionList {
		manager.TerminateSession(ctx, &types.TerminateSession{SessionId: []string{session.Key}})
	}
	return len(manager.SessionList)
}

func content() types.ServiceContent {
	return registry().Get(types.ManagedObjectReference{
		Type: "ServiceInstance", Value: "ServiceInstance",
	}).(*simulator.ServiceInstance).Content
}

func typeName(fault types.BaseMethodFault) string { return reflect.TypeOf(fault).Elem().Name() }
