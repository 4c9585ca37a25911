package main

// Job: what a test may know: machines, snapshots, power, tracking, calls so far.
// Rule: it is the simulator's own knowledge, not what the API shows.

import (
	"sort"

	"github.com/vmware/govmomi/vim25/types"
)

type diskState struct {
	Key     int32  `json:"key"`
	File    string `json:"file"`
	Name    string `json:"name"` // on the datastore
	UUID    string `json:"uuid"`
	Size    int64  `json:"size"`
	Tracked bool   `json:"tracked"`
}

type snapshotState struct {
	ID          string `json:"id"`
	Name        string `json:"name"`
	Description string `json:"description"`
}

type machineState struct {
	Name         string          `json:"name"`
	ID           string          `json:"id"`
	UUID         string          `json:"uuid"`
	InstanceUUID string          `json:"instance_uuid"`
	Host         string          `json:"host"`
	Power        string          `json:"power"`
	Disks        []diskState     `json:"disks"`
	Snapshots    []snapshotState `json:"snapshots"`
	// Figures since the start.
	SnapshotsMade  int  `json:"snapshots_made"`
	MostSnapshots  int  `json:"most_snapshots"`
	PowerChanges   int  `json:"power_changes"`
	Stuns          int  `json:"stuns"`
	Tracked        bool `json:"tracked"`
	TrackingWanted bool `json:"tracking_wanted"`
}

type state struct {
	Machines []machineState `json:"machines"`
	Calls    map[string]int `json:"calls"`
	Overlaps int            `json:"overlaps"` // snapshots asked for while one was being removed
	Refused  []string       `json:"refused"`  // requests that a real server would not take
}

func (f *front) state() state {
	f.mu.Lock()
	calls := map[string]int{}
	for method, n := range f.calls {
		calls[method] = n
	}
	refused := append([]string{}, f.refused...)
	f.mu.Unlock()
	return state{Machines: states(), Calls: calls, Overlaps: overlaps.value(), Refused: refused}
}

func states() []machineState {
	list := []machineState{}
	for _, entity := range registry().All("VirtualMachine") {
		if v, ok := entity.(*VM); ok {
			v.locked(func() { list = append(list, v.state()) })
		}
	}
	sort.Slice(list, func(i, j int) bool { return less(list[i].ID, list[j].ID) })
	return list
}

// state is called with the lock held.
func (v *VM) state() machineState {
	s := machineState{
		Name: v.Name, ID: v.Self.Value, UUID: v.Config.Uuid, InstanceUUID: v.Config.InstanceUuid,
		Host: v.Runtime.Host.Value, Power: string(v.Runtime.PowerState), Disks: []diskState{},
		Snapshots: []snapshotState{}, SnapshotsMade: v.snapshots, MostSnapshots: v.mostAtOnce,
		PowerChanges: v.powered, Stuns: v.stuns, Tracked: v.tracked,
		TrackingWanted: v.Config.ChangeTrackingEnabled != nil && *v.Config.ChangeTrackingEnabled,
	}
	for _, device := range v.Config.Hardware.Device {
		vd, ok := device.(*types.VirtualDisk)
		if !ok || v.disks[vd.Key] == nil {
			continue
		}
		d := v.disks[vd.Key]
		s.Disks = append(s.Disks, diskState{
			Key: d.key, File: d.file, Name: d.name, UUID: *fieldsOf(vd).id, Size: vd.CapacityInBytes,
			Tracked: d.tracking.epoch != "",
		})
	}
	if info := v.VirtualMachine.Snapshot; info != nil {
		var add func([]types.VirtualMachineSnapshotTree)
		add = func(list []types.VirtualMachineSnapshotTree) {
			for _, node := range list {
				s.Snapshots = append(s.Snapshots,
					snapshotState{node.Snapshot.Value, node.Name, node.Description})
				add(node.ChildSnapshotList)
			}
		}
		add(info.RootSnapshotList)
	}
	return s
}
