package main

// Job: what the user may do: answers about privileges, and refusals.
// Rule: everything is allowed but for what a test has denied; what is denied is refused, too.

import (
	"sync"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// Authorization takes the place of the library's one, which grants everything.
type Authorization struct {
	simulator.AuthorizationManager
}

// denials maps a privilege to the objects on which it lacks; "*" is all of them.
var denials struct {
	sync.Mutex
	by map[string]map[string]bool
}

// needs maps a method to the privilege that a real server asks for.
var needs = map[string]string{
	"CreateSnapshot_Task":             "VirtualMachine.State.CreateSnapshot",
	"RemoveSnapshot_Task":             "VirtualMachine.State.RemoveSnapshot",
	"RemoveAllSnapshots_Task":         "VirtualMachine.State.RemoveSnapshot",
	"ConsolidateVMDisks_Task":         "VirtualMachine.State.RemoveSnapshot",
	"PowerOnVM_Task":                  "VirtualMachine.Interact.PowerOn",
	"PowerOffVM_Task":                 "VirtualMachine.Interact.PowerOff",
	"ShutdownGuest":                   "VirtualMachine.Interact.PowerOff",
	"ResetVM_Task":                    "VirtualMachine.Interact.Reset",
	"QueryChangedDiskAreas":           "VirtualMachine.Provisioning.DiskRandomRead",
	"ReconfigVM_Task":                 "VirtualMachine.Config.ChangeTracking",
	"ReconfigureAutostart":            "Host.Config.AutoStart",
	"SessionIsActive":                 "Sessions.ValidateSession",
	"ReconfigureComputeResource_Task": "Host.Inventory.EditCluster",
}

func addAuthorization() {
	ref := content().AuthorizationManager
	if ref == nil {
		return
	}
	if old, ok := registry().Get(*ref).(*simulator.AuthorizationManager); ok {
		registry().Put(&Authorization{*old})
	}
}

func deny(privilege, object string, denied bool) {
	denials.Lock()
	defer denials.Unlock()
	if denials.by == nil {
		denials.by = map[string]map[string]bool{}
	}
	if object == "" {
		object = "*"
	}
	if !denied {
		delete(denials.by[privilege], object)
		return
	}
	if denials.by[privilege] == nil {
		denials.by[privilege] = map[string]bool{}
	}
	denials.by[privilege][object] = true
}

func granted(privilege, object string) bool {
	denials.Lock()
	defer denials.Unlock()
	return !denials.by[privilege]["*"] && !denials.by[privilege][object]
}

// refused is the answer to a method whose privilege lacks.
func refused(method string, this types.ManagedObjectReference) types.BaseMethodFault {
	privilege, asked := needs[method]
	if !asked {
		return nil
	}
	object := this
	if s, ok := registry().Get(this).(*Snapshot); ok {
		object = s.Vm
	}
	if granted(privilege, object.Value) {
		return nil
	}
	return &types.NoPermission{Object: object, PrivilegeId: privilege}
}

func availability(object types.ManagedObjectReference, privileges []string) types.EntityPrivilege {
	answer := types.EntityPrivilege{Entity: object}
	for _, privilege := range privileges {
		answer.PrivAvailability = append(answer.PrivAvailability, types.PrivilegeAvailability{
			PrivId: privilege, IsGranted: granted(privilege, object.Value),
		})
	}
	return answer
}

// HasPrivilegeOnEntities answers for a session.
func (a *Authorization) HasPrivilegeOnEntities(
	ctx *simulator.Context, req *types.HasPrivilegeOnEntities,
) soap.HasFault {
	body := &methods.HasPrivilegeOnEntitiesBody{}
	// A real server refuses an unknown session; a client that sends a wrong key shall notice.
	if ctx.Session == nil || req.SessionId != ctx.Session.Key {
		body.Fault_ = simulator.Fault("", &types.InvalidArgument{InvalidProperty: "sessionId"})
		return body
	}
	body.Res = &types.HasPrivilegeOnEntitiesResponse{}
	for _, object := range req.Entity {
		if registry().Get(object) == nil {
			body.Res = nil
			body.Fault_ = simulator.Fault("", &types.ManagedObjectNotFound{Obj: object})
			return body
		}
		body.Res.Returnval = append(body.Res.Returnval, availability(object, req.PrivId))
	}
	return body
}

// HasUserPrivilegeOnEntities answers for a user.
func (a *Authorization) HasUserPrivilegeOnEntities(req *types.HasUserPrivilegeOnEntities) soap.HasFault {
	res := &types.HasUserPrivilegeOnEntitiesResponse{}
	for _, object := range req.Entities {
		res.Returnval = append(res.Returnval, availability(object, req.PrivId))
	}
	return &methods.HasUserPrivilegeOnEntitiesBody{Res: res}
}

// HasPrivilegeOnEntity is the older form.
func (a *Authorization) HasPrivilegeOnEntity(req *types.HasPrivilegeOnEntity) soap.HasFault {
	res := &types.HasPrivilegeOnEntityResponse{}
	for _, privilege := range req.PrivId {
		res.Returnval = append(res.Returnval, granted(privilege, req.Entity.Value))
	}
	return &methods.HasPrivilegeOnEntityBody{Res: res}
}

// FetchUserPrivilegeOnEntities lists what a user may do.
func (a *Authorization) FetchUserPrivilegeOnEntities(req *types.FetchUserPrivilegeOnEntities) soap.HasFault {
	res := &types.FetchUserPrivilegeOnEntitiesResponse{}
	for _, object := range req.Entities {
		one := types.UserPrivilegeResult{Entity: object}
		for _, role := range a.RoleList {
			if role.Name != "Admin" {
				continue
			}
			for _, privilege := range role.Privilege {
				if granted(privilege, object.Value) {
					one.Privileges = append(one.Privileges, privilege)
				}
			}
		}
		res.Returnval = append(res.Returnval, one)
	}
	return &methods.FetchUserPrivilegeOnEntitiesBody{Res: res}
}
