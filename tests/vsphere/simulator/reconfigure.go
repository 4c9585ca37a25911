package main

// Job: ReconfigVM_Task, Rename_Task and moves between hosts.
// Rule: only what a migration may change is simulated; all else is refused, and never taken for done.

import (
	"reflect"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// ReconfigVMTask is called with the machine's lock held.
func (v *VM) ReconfigVMTask(_ *simulator.Context, req *types.ReconfigVM_Task) soap.HasFault {
	ref := v.start("ReconfigVM_Task", func(*Task) (types.AnyType, types.BaseMethodFault) {
		rest := req.Spec
		rest.ChangeTrackingEnabled, rest.ExtraConfig = nil, nil
		rest.Name, rest.Annotation, rest.ChangeVersion = "", "", ""
		if !reflect.DeepEqual(rest, types.VirtualMachineConfigSpec{}) {
			return nil, &types.NotSupported{}
		}
		var fault types.BaseMethodFault
		v.locked(func() { fault = v.apply(req.Spec) })
		return nil, fault
	})
	return &methods.ReconfigVM_TaskBody{Res: &types.ReconfigVM_TaskResponse{Returnval: ref}}
}

func (v *VM) apply(spec types.VirtualMachineConfigSpec) types.BaseMethodFault {
	if spec.ChangeTrackingEnabled != nil {
		if *spec.ChangeTrackingEnabled && !*v.Capability.ChangeTrackingSupported {
			return &types.NotSupported{}
		}
		v.noteTracking(*spec.ChangeTrackingEnabled)
	}
	if spec.Name != "" {
		v.rename(spec.Name)
	}
	if spec.Annotation != "" {
		config := *v.Config
		config.Annotation = spec.Annotation
		v.Config, v.Summary.Config.Annotation = &config, spec.Annotation
		touched(v.Self, "config.annotation", "summary.config.annotation")
	}
	if len(spec.ExtraConfig) > 0 {
		config := *v.Config
		old := append([]types.BaseOptionValue{}, config.ExtraConfig...)
		config.ExtraConfig = append(old, spec.ExtraConfig...)
		v.Config = &config
		touched(v.Self, "config.extraConfig")
	}
	return nil
}

// rename gives the machine another name; its files keep theirs, as with a real one. The lock is held.
func (v *VM) rename(name string) {
	config := *v.Config
	config.Name = name
	v.Config, v.Name, v.Summary.Config.Name = &config, name, name
	touched(v.Self, "name", "config.name", "summary.config.name")
}

// RenameTask is called with the machine's lock held.
func (v *VM) RenameTask(req *types.Rename_Task) soap.HasFault {
	ref := v.start("Rename_Task", func(*Task) (types.AnyType, types.BaseMethodFault) {
		v.locked(func() { v.rename(req.NewName) })
		return nil, nil
	})
	return &methods.Rename_TaskBody{Res: &types.Rename_TaskResponse{Returnval: ref}}
}

// MigrateVMTask moves a machine to another host.
func (v *VM) MigrateVMTask(_ *simulator.Context, req *types.MigrateVM_Task) soap.HasFault {
	ref := v.start("MigrateVM_Task", func(*Task) (types.AnyType, types.BaseMethodFault) {
		if req.Host == nil {
			return nil, &types.InvalidArgument{InvalidProperty: "host"}
		}
		return nil, v.move(*req.Host)
	})
	return &methods.MigrateVM_TaskBody{Res: &types.MigrateVM_TaskResponse{Returnval: ref}}
}

// RelocateVMTask moves a machine to another host; its disks stay where they are.
func (v *VM) RelocateVMTask(_ *simulator.Context, req *types.RelocateVM_Task) soap.HasFault {
	ref := v.start("RelocateVM_Task", func(*Task) (types.AnyType, types.BaseMethodFault) {
		if req.Spec.Host == nil || req.Spec.Datastore != nil {
			return nil, &types.NotSupported{}
		}
		return nil, v.move(*req.Spec.Host)
	})
	return &methods.RelocateVM_TaskBody{Res: &types.RelocateVM_TaskResponse{Returnval: ref}}
}

// move is vMotion. The turn is held, the lock is not.
func (v *VM) move(to types.ManagedObjectReference) types.BaseMethodFault {
	target, ok := registry().Get(to).(*simulator.HostSystem)
	if !ok {
		return &types.ManagedObjectNotFound{Obj: to}
	}
	var from types.ManagedObjectReference
	v.locked(func() { from = *v.Runtime.Host })
	if from == to {
		return nil
	}
	if source, ok := registry().Get(from).(*simulator.HostSystem); ok {
		registry().RemoveReference(source, &source.Vm, v.Self)
		touched(from, "vm")
	}
	registry().AddReference(target, &target.Vm, v.Self)
	touched(to, "vm")
	v.locked(func() {
		host := to
		v.Runtime.Host, v.Summary.Runtime.Host = &host, &host
		v.stun()
		touched(v.Self, "runtime.host", "summary.runtime.host")
	})
	return nil
}
