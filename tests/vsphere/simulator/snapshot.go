package main

// Job: snapshots of machines with real disks: made, removed, consolidated.
// Rule: a snapshot has the contents, the backing names and the change ids of its own moment, whatever comes
// later.

import (
	"fmt"
	"log"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// Snapshot takes the place of the library's one, whose methods want its own type of machine.
type Snapshot struct {
	mo.VirtualMachineSnapshot

	vm     *VM
	marks  map[int32]mark
	images map[int32]string
	names  map[int32]string
}

// consolidating are the methods whose tasks have a machine's disks.
var consolidating = []string{"RemoveSnapshot_Task", "RemoveAllSnapshots_Task", "ConsolidateVMDisks_Task"}

// busy is the task that has the machine's disks, if one has. A real server answers with it to what needs them
// too. The machine's lock is held.
func (v *VM) busy() (task *ref) {
	for _, method := range consolidating {
		if v.running[method] > 0 {
			latest := v.latest[method]
			task = &latest
		}
	}
	return task
}

// CreateSnapshotTask is called with the machine's lock held.
func (v *VM) CreateSnapshotTask(_ *simulator.Context, req *types.CreateSnapshot_Task) soap.HasFault {
	const method = "CreateSnapshot_Task"
	busy := v.busy()
	ref := v.start(method, func(*Task) (types.AnyType, types.BaseMethodFault) {
		if busy != nil {
			overlaps.add()
			return nil, &types.TaskInProgress{Task: *busy}
		}
		if was := v.power(); req.Memory && was == types.VirtualMachinePowerStatePoweredOff {
			return nil, invalidPower(was, types.VirtualMachinePowerStatePoweredOn)
		}
		if v.crowded() {
			return nil, &types.TooManySnapshotLevels{}
		}
		s, err := v.snap(req.Name, req.Description, req.Quiesce)
		if err != nil {
			log.Printf("simulator: snapshot of %s: %s", v.Name, err)
			return nil, &types.FileFault{File: v.Config.Files.VmPathName}
		}
		return s.Self, nil
	})
	return &methods.CreateSnapshot_TaskBody{Res: &types.CreateSnapshot_TaskResponse{Returnval: ref}}
}

// crowded says whether the machine has as many snapshots in a chain as VMware allows.
func (v *VM) crowded() (full bool) {
	const most = 32
	v.locked(func() {
		info := v.VirtualMachine.Snapshot
		full = info != nil && len(refs(info.RootSnapshotList)) >= most
	})
	return full
}

// snap makes a snapshot. The turn is held, the lock is not.
func (v *VM) snap(name, description string, quiesced bool) (*Snapshot, error) {
	s := &Snapshot{vm: v, marks: map[int32]mark{}, images: map[int32]string{}, names: map[int32]string{}}
	s.Vm = v.Self
	v.locked(func() {
		v.snapshots++
		s.Self = types.ManagedObjectReference{
			Type: "VirtualMachineSnapshot", Value: fmt.Sprintf("snapshot-%d", nextSnapshot.add()),
		}
	})
	folder := filepath.Join(exports(), s.Self.Value)

	v.quiet.Lock()
	defer v.quiet.Unlock()
	if err := v.guestWord("stun"); err != nil {
		return nil, err
	}
	defer func() {
		if err := v.guestWord("resume"); err != nil {
			log.Printf("simulator: %s", err)
		}
	}()
	var disks []*disk
	v.locked(func() {
		v.stun()
		for _, d := range v.disks {
			if d.inSnapshots() {
				disks = append(disks, d)
				s.names[d.key] = backingName(v.device(d.key))
			}
		}
	})
	files := map[string]string{}
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, err
	}
	for _, d := range disks {
		image := filepath.Join(folder, fmt.Sprintf("image-%d", d.key))
		held, err := freeze(d.file, image)
		if err != nil {
			return nil, err
		}
		s.marks[d.key], s.images[d.key] = held, image
		files[path.Base(s.names[d.key])] = image
	}
	if err := writeLinks(folder, v.Self.Value, false, files); err != nil {
		return nil, err
	}
	v.locked(func() { v.publish(s, name, description, quiesced, disks) })
	return s, nil
}

// publish puts a snapshot into the tree, and the machine on child disks. The lock is held.
func (v *VM) publish(s *Snapshot, name, description string, quiesced bool, disks []*disk) {
	s.Config = *v.Config
	s.Config.Hardware.Device = nil
	ids := map[int32]string{}
	for _, d := range disks {
		ids[d.key] = d.tracking.note(s.marks[d.key])
	}
	for _, device := range v.Config.Hardware.Device {
		d, isDisk := device.(*types.VirtualDisk)
		if !isDisk {
			s.Config.Hardware.Device = append(s.Config.Hardware.Device, device)
			continue
		}
		if _, frozen := s.marks[d.Key]; !frozen {
			continue
		}
		key := d.Key
		v.changeDisk(key, func(copied *types.VirtualDisk) {
			setBacking(copied, s.names[key], ids[key], asIs)
			s.Config.Hardware.Device = append(s.Config.Hardware.Device, copied)
		})
		stem := strings.TrimSuffix(v.disks[key].name, ".vmdk")
		v.changeDisk(key, func(next *types.VirtualDisk) {
			setBacking(next, fmt.Sprintf("%s-%06d.vmdk", stem, v.snapshots), ids[key], child)
		})
	}
	registry().Put(s)
	v.snapshotID++
	v.VirtualMachine.Snapshot = grown(v.VirtualMachine.Snapshot, types.VirtualMachineSnapshotTree{
		Snapshot: s.Self, Vm: v.Self, Name: name, Description: description, Id: v.snapshotID,
		CreateTime: time.Now(), State: v.Runtime.PowerState, Quiesced: quiesced,
		ReplaySupported: types.NewBool(false),
	})
	v.treeChanged()
}

// treeChanged says that the tree of snapshots is another one. The lock is held.
func (v *VM) treeChanged() {
	v.RootSnapshot = nil
	count := 0
	if info := v.VirtualMachine.Snapshot; info != nil {
		for _, root := range info.RootSnapshotList {
			v.RootSnapshot = append(v.RootSnapshot, root.Snapshot)
		}
		count = len(refs(info.RootSnapshotList))
	}
	if count > v.mostAtOnce {
		v.mostAtOnce = count
	}
	if err := v.link(); err != nil {
		log.Printf("simulator: %s", err)
	}
	touched(v.Self, "snapshot", "rootSnapshot")
}

// RemoveSnapshotTask is called with the snapshot's lock held, not with the machine's.
func (s *Snapshot) RemoveSnapshotTask(_ *simulator.Context, req *types.RemoveSnapshot_Task) soap.HasFault {
	var ref types.ManagedObjectReference
	s.vm.locked(func() {
		ref = s.vm.start("RemoveSnapshot_Task", func(*Task) (types.AnyType, types.BaseMethodFault) {
			return nil, s.vm.drop(s.Self, req.RemoveChildren)
		})
	})
	return &methods.RemoveSnapshot_TaskBody{Res: &types.RemoveSnapshot_TaskResponse{Returnval: ref}}
}

// RevertToSnapshotTask is nothing that a migration may do.
func (s *Snapshot) RevertToSnapshotTask(*simulator.Context, *types.RevertToSnapshot_Task) soap.HasFault {
	return &methods.RevertToSnapshot_TaskBody{Fault_: simulator.Fault("not simulated", &types.NotSupported{})}
}

// drop removes a snapshot. The turn is held, the lock is not.
func (v *VM) drop(ref types.ManagedObjectReference, children bool) (fault types.BaseMethodFault) {
	var gone []types.ManagedObjectReference
	if err := v.guestWord("stun"); err != nil {
		log.Printf("simulator: %s", err)
	}
	v.locked(func() {
		info := v.VirtualMachine.Snapshot
		if info == nil || !contains(refs(info.RootSnapshotList), ref) {
			fault = &types.ManagedObjectNotFound{Obj: ref}
			return
		}
		v.VirtualMachine.Snapshot, gone = pruned(info, ref, children)
		if v.VirtualMachine.Snapshot == nil {
			for _, d := range v.disks {
				v.changeDisk(d.key, func(device *types.VirtualDisk) {
					setBacking(device, d.name, d.tracking.current(), base)
				})
			}
		}
		v.stun()
		v.treeChanged()
	})
	if err := v.guestWord("resume"); err != nil {
		log.Printf("simulator: %s", err)
	}
	for _, one := range gone {
		registry().Remove(one)
		if err := os.RemoveAll(filepath.Join(exports(), one.Value)); err != nil {
			log.Printf("simulator: %s", err)
		}
	}
	return fault
}

// RemoveAllSnapshotsTask is called with the machine's lock held.
func (v *VM) RemoveAllSnapshotsTask(_ *simulator.Context, _ *types.RemoveAllSnapshots_Task) soap.HasFault {
	ref := v.start("RemoveAllSnapshots_Task", func(*Task) (types.AnyType, types.BaseMethodFault) {
		var roots []types.ManagedObjectReference
		v.locked(func() { roots = v.RootSnapshot })
		for _, root := range roots {
			if fault := v.drop(root, true); fault != nil {
				return nil, fault
			}
		}
		return nil, nil
	})
	return &methods.RemoveAllSnapshots_TaskBody{Res: &types.RemoveAllSnapshots_TaskResponse{Returnval: ref}}
}

// ConsolidateVMDisksTask is called with the machine's lock held.
func (v *VM) ConsolidateVMDisksTask(_ *simulator.Context, _ *types.ConsolidateVMDisks_Task) soap.HasFault {
	ref := v.start("ConsolidateVMDisks_Task", func(*Task) (types.AnyType, types.BaseMethodFault) {
		v.locked(func() {
			v.Runtime.ConsolidationNeeded = types.NewBool(false)
			touched(v.Self, "runtime.consolidationNeeded")
		})
		return nil, nil
	})
	return &methods.ConsolidateVMDisks_TaskBody{Res: &types.ConsolidateVMDisks_TaskResponse{Returnval: ref}}
}
