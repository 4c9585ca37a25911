package main

// Job: power operations of machines with real disks, and what happens to a machine without anyone's order.
// Rule: the power state is changed only after the guest really runs, or really has ended.

import (
	"log"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// PowerOnVMTask is called with the machine's lock held.
func (v *VM) PowerOnVMTask(_ *simulator.Context, _ *types.PowerOnVM_Task) soap.HasFault {
	const method = "PowerOnVM_Task"
	if busy := v.busy(); busy != nil {
		ref := v.refuse(method, &types.TaskInProgress{Task: *busy})
		return &methods.PowerOnVM_TaskBody{Res: &types.PowerOnVM_TaskResponse{Returnval: ref}}
	}
	ref := v.start(method, func(*Task) (types.AnyType, types.BaseMethodFault) {
		return nil, v.turnOn()
	})
	return &methods.PowerOnVM_TaskBody{Res: &types.PowerOnVM_TaskResponse{Returnval: ref}}
}

// PowerOffVMTask is called with the machine's lock held.
func (v *VM) PowerOffVMTask(_ *simulator.Context, _ *types.PowerOffVM_Task) soap.HasFault {
	ref := v.start("PowerOffVM_Task", func(*Task) (types.AnyType, types.BaseMethodFault) {
		return nil, v.turnOff()
	})
	return &methods.PowerOffVM_TaskBody{Res: &types.PowerOffVM_TaskResponse{Returnval: ref}}
}

// ResetVMTask is a hard stop and a start.
func (v *VM) ResetVMTask(_ *simulator.Context, _ *types.ResetVM_Task) soap.HasFault {
	ref := v.start("ResetVM_Task", func(*Task) (types.AnyType, types.BaseMethodFault) {
		if fault := v.turnOff(); fault != nil {
			return nil, fault
		}
		return nil, v.turnOn()
	})
	return &methods.ResetVM_TaskBody{Res: &types.ResetVM_TaskResponse{Returnval: ref}}
}

// SuspendVMTask stops a guest with its memory kept.
func (v *VM) SuspendVMTask(_ *simulator.Context, _ *types.SuspendVM_Task) soap.HasFault {
	ref := v.start("SuspendVM_Task", func(*Task) (types.AnyType, types.BaseMethodFault) {
		if was := v.power(); was != types.VirtualMachinePowerStatePoweredOn {
			return nil, invalidPower(was, types.VirtualMachinePowerStateSuspended)
		}
		if err := v.guestWord("stun"); err != nil {
			return nil, &types.SystemError{Reason: err.Error()}
		}
		v.locked(func() { v.setPower(types.VirtualMachinePowerStateSuspended) })
		return nil, nil
	})
	return &methods.SuspendVM_TaskBody{Res: &types.SuspendVM_TaskResponse{Returnval: ref}}
}

// ShutdownGuest asks the guest and does not wait. Called with the machine's lock held.
func (v *VM) ShutdownGuest(_ *simulator.Context, _ *types.ShutdownGuest) soap.HasFault {
	body := &methods.ShutdownGuestBody{}
	if v.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOn {
		body.Fault_ = simulator.Fault("The attempted operation cannot be performed in the current state.",
			invalidPower(v.Runtime.PowerState, types.VirtualMachinePowerStatePoweredOn))
		return body
	}
	if v.spec.NoTools {
		message := "Cannot complete operation because VMware Tools is not running in this virtual machine."
		body.Fault_ = simulator.Fault(message, &types.ToolsUnavailable{})
		return body
	}
	if !v.ignoresGuest {
		go v.shutdown()
	}
	body.Res = &types.ShutdownGuestResponse{}
	return body
}

// shutdown has the guest power itself off: a real one by its command, else after a while.
func (v *VM) shutdown() {
	if v.hasGuest() {
		if err := v.guestWord("shutdown"); err != nil {
			log.Printf("simulator: %s", err)
		}
		return
	}
	time.Sleep(limits.taskTime("ShutdownGuest"))
	v.turn.Lock()
	defer v.turn.Unlock()
	v.locked(func() { v.setPower(types.VirtualMachinePowerStatePoweredOff) })
}

// turnOn starts a machine. The turn is held, the lock is not.
func (v *VM) turnOn() types.BaseMethodFault {
	was := v.power()
	if was == types.VirtualMachinePowerStatePoweredOn {
		return invalidPower(was, types.VirtualMachinePowerStatePoweredOn)
	}
	if was == types.VirtualMachinePowerStateSuspended {
		if err := v.guestWord("resume"); err != nil {
			return &types.SystemError{Reason: err.Error()}
		}
	} else if err := v.startGuest(); err != nil {
		log.Printf("simulator: %s", err)
		return &types.GenericVmConfigFault{Reason: err.Error()}
	}
	v.locked(func() {
		v.stun()
		v.setPower(types.VirtualMachinePowerStatePoweredOn)
	})
	v.postStart()
	return nil
}

// postStart posts the event that a vCenter keeps of each start, for any caller.
func (v *VM) postStart() {
	event := &types.VmPoweredOnEvent{}
	v.locked(func() {
		event.Vm = &types.VmEventArgument{
			EntityEventArgument: types.EntityEventArgument{Name: v.Name}, Vm: v.Self,
		}
	})
	manager := registry().EventManager()
	if manager == nil {
		return
	}
	session := &simulator.Session{UserSession: types.UserSession{UserName: *user}}
	registry().WithLock(manager, func() {
		manager.PostEvent(&simulator.Context{Session: session}, &types.PostEvent{EventToPost: event})
	})
}

// turnOff is the hard stop. The turn is held, the lock is not.
func (v *VM) turnOff() types.BaseMethodFault {
	if was := v.power(); was == types.VirtualMachinePowerStatePoweredOff {
		return invalidPower(was, types.VirtualMachinePowerStatePoweredOff)
	}
	if err := v.endGuest(); err != nil {
		return &types.SystemError{Reason: err.Error()}
	}
	v.locked(func() { v.setPower(types.VirtualMachinePowerStatePoweredOff) })
	return nil
}

func (v *VM) power() (state types.VirtualMachinePowerState) {
	v.locked(func() { state = v.Runtime.PowerState })
	return state
}

func invalidPower(was, wanted types.VirtualMachinePowerState) types.BaseMethodFault {
	return &types.InvalidPowerState{RequestedState: wanted, ExistingState: was}
}

// setPower shows a power state. The lock is held.
func (v *VM) setPower(state types.VirtualMachinePowerState) {
	if v.Runtime.PowerState != state {
		v.powered++
	}
	v.Runtime.PowerState, v.Summary.Runtime.PowerState = state, state
	guest := *v.Guest
	if state == types.VirtualMachinePowerStatePoweredOn {
		now := time.Now()
		v.Runtime.BootTime, v.Summary.Runtime.BootTime = &now, &now
		guest.GuestState = string(types.VirtualMachineGuestStateRunning)
		if v.spec.NoTools {
			guest.ToolsRunningStatus = string(types.VirtualMachineToolsRunningStatusGuestToolsNotRunning)
		} else {
			guest.ToolsRunningStatus = string(types.VirtualMachineToolsRunningStatusGuestToolsRunning)
		}
	} else {
		v.Runtime.BootTime, v.Summary.Runtime.BootTime = nil, nil
		guest.GuestState = string(types.VirtualMachineGuestStateNotRunning)
		guest.ToolsRunningStatus = string(types.VirtualMachineToolsRunningStatusGuestToolsNotRunning)
	}
	guest.ToolsStatus = toolsStatus(guest.ToolsRunningStatus, v.spec.NoTools)
	v.Guest = &guest
	if err := v.link(); err != nil {
		log.Printf("simulator: %s", err)
	}
	touched(v.Self, "runtime.powerState", "runtime.bootTime", "summary.runtime.powerState", "guest")
}

func toolsStatus(running string, none bool) types.VirtualMachineToolsStatus {
	switch {
	case none:
		return types.VirtualMachineToolsStatusToolsNotInstalled
	case running == string(types.VirtualMachineToolsRunningStatusGuestToolsRunning):
		return types.VirtualMachineToolsStatusToolsOk
	default:
		return types.VirtualMachineToolsStatusToolsNotRunning
	}
}

// crash is a guest or a host that dies: the machine is off, and tracking begins again.
func (v *VM) crash() {
	v.turn.Lock()
	defer v.turn.Unlock()
	if err := v.endGuest(); err != nil {
		log.Printf("simulator: %s", err)
	}
	v.locked(func() {
		for _, d := range v.disks {
			if d.tracking.epoch != "" {
				d.tracking.restart()
			}
		}
		v.setPower(types.VirtualMachinePowerStatePoweredOff)
	})
}
