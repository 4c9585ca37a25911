package main

// Job: the search for machines by UUID, which the library has for one answer only.
// Rule: clones that were made beside a vCenter share their UUID, and all of them are answered.

import (
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// Search takes the place of the library's one.
type Search struct {
	simulator.SearchIndex
}

func addSearch() {
	ref := content().SearchIndex
	if ref == nil {
		return
	}
	if old, ok := registry().Get(*ref).(*simulator.SearchIndex); ok {
		registry().Put(&Search{*old})
	}
}

// FindAllByUuid answers every machine that has it.
func (s *Search) FindAllByUuid(req *types.FindAllByUuid) soap.HasFault {
	body := &methods.FindAllByUuidBody{Res: &types.FindAllByUuidResponse{}}
	if !req.VmSearch {
		body.Res = nil
		body.Fault_ = simulator.Fault("not simulated", &types.NotSupported{})
		return body
	}
	byInstance := req.InstanceUuid != nil && *req.InstanceUuid
	has := func(config *types.VirtualMachineConfigInfo) bool {
		if config == nil {
			return false
		}
		if byInstance {
			return config.InstanceUuid == req.Uuid
		}
		return config.Uuid == req.Uuid
	}
	for _, entity := range registry().All("VirtualMachine") {
		found := false
		switch v := entity.(type) {
		case *VM:
			v.locked(func() { found = has(v.Config) })
		case *simulator.VirtualMachine:
			registry().WithLock(v, func() { found = has(v.Config) })
		}
		if found {
			body.Res.Returnval = append(body.Res.Returnval, entity.Reference())
		}
	}
	return body
}

// doTwin is a machine that was copied file by file: it has another one's instance UUID.
func doTwin(v *VM, o *order) (interface{}, error) {
	other, err := machineNamed(o.Name)
	if err != nil {
		return nil, err
	}
	uuid := ""
	other.locked(func() { uuid = other.Config.InstanceUuid })
	v.locked(func() {
		config := *v.Config
		config.InstanceUuid = uuid
		v.Config, v.Summary.Config.InstanceUuid = &config, uuid
		touched(v.Self, "config.instanceUuid", "summary.config.instanceUuid")
	})
	return nil, nil
}
