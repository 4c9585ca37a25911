package main

// Job: each host's autostart manager, and a reboot of a host, which obeys it.
// Rule: an entry names a machine once; what a request does not mention stays.

import (
	"fmt"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// AutoStart is missing in the library.
type AutoStart struct {
	mo.HostAutoStartManager

	host types.ManagedObjectReference
}

// addAutoStart gives every host its own.
func addAutoStart() {
	for i, entity := range registry().All("HostSystem") {
		host, ok := entity.(*simulator.HostSystem)
		if !ok {
			continue
		}
		manager := &AutoStart{host: host.Self}
		manager.Self = ref{Type: "HostAutoStartManager", Value: fmt.Sprintf("autoStartManager-%d", i+1)}
		if *esxi {
			manager.Self.Value = "ha-autostart-mgr"
		}
		manager.Config.Defaults = &types.AutoStartDefaults{
			Enabled: types.NewBool(false), WaitForHeartbeat: types.NewBool(false),
			StartDelay: 120, StopDelay: 120, StopAction: "PowerOff",
		}
		registry().Put(manager)
		self := manager.Self
		host.ConfigManager.AutoStartManager = &self
	}
}

// ReconfigureAutostart merges what it is given, per machine.
func (a *AutoStart) ReconfigureAutostart(
	_ *simulator.Context, req *types.ReconfigureAutostart,
) soap.HasFault {
	body := &methods.ReconfigureAutostartBody{}
	config := types.HostAutoStartManagerConfig{
		Defaults: a.Config.Defaults, PowerInfo: append([]types.AutoStartPowerInfo{}, a.Config.PowerInfo...),
	}
	if req.Spec.Defaults != nil {
		config.Defaults = req.Spec.Defaults
	}
	for _, info := range req.Spec.PowerInfo {
		if registry().Get(info.Key) == nil {
			body.Fault_ = simulator.Fault("", &types.InvalidArgument{InvalidProperty: "spec.powerInfo.key"})
			return body
		}
		found := false
		for i := range config.PowerInfo {
			if config.PowerInfo[i].Key == info.Key {
				config.PowerInfo[i], found = info, true
			}
		}
		if !found {
			config.PowerInfo = append(config.PowerInfo, info)
		}
	}
	a.Config = config
	touched(a.Self, "config")
	body.Res = &types.ReconfigureAutostartResponse{}
	return body
}

// reboot is a host that loses power: its machines are off, and those with autostart start again.
func (a *AutoStart) reboot() {
	var mine []*VM
	for _, entity := range registry().All("VirtualMachine") {
		if v, ok := entity.(*VM); ok && *v.Runtime.Host == a.host {
			mine = append(mine, v)
		}
	}
	for _, v := range mine {
		if v.power() != types.VirtualMachinePowerStatePoweredOff {
			v.crash()
		}
	}
	for _, v := range mine {
		if a.starts(v.Self) {
			v.turn.Lock()
			_ = v.turnOn()
			v.turn.Unlock()
		}
	}
}

func (a *AutoStart) starts(vm types.ManagedObjectReference) (starts bool) {
	registry().WithLock(a, func() {
		if d := a.Config.Defaults; d == nil || d.Enabled == nil || !*d.Enabled {
			return
		}
		for _, info := range a.Config.PowerInfo {
			starts = starts || info.Key == vm && info.StartAction == "powerOn"
		}
	})
	return starts
}
