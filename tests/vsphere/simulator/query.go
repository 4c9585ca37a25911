package main

// Job: QueryChangedDiskAreas.
// Rule: an answer describes `length` bytes from its offset, which is not the sum of its areas; areas may be
// none.

import (
	"os"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// QueryChangedDiskAreas is called with the machine's lock held.
func (v *VM) QueryChangedDiskAreas(_ *simulator.Context, req *types.QueryChangedDiskAreas) soap.HasFault {
	body := &methods.QueryChangedDiskAreasBody{}
	answer, message, fault := v.areas(req)
	if fault != nil {
		body.Fault_ = simulator.Fault(message, fault)
		return body
	}
	body.Res = &types.QueryChangedDiskAreasResponse{Returnval: *answer}
	return body
}

func (v *VM) areas(req *types.QueryChangedDiskAreas) (*types.DiskChangeInfo, string, types.BaseMethodFault) {
	now, image, name, message, fault := v.moment(req)
	if fault != nil {
		return nil, message, fault
	}
	d := v.disks[req.DeviceKey]
	if d == nil {
		return wrong("deviceKey")
	}
	if req.StartOffset < 0 || req.StartOffset >= now.size {
		return wrong("startOffset")
	}
	if !v.tracked || d.tracking.epoch == "" {
		return broken(name)
	}
	var areas []types.DiskChangeExtent
	if req.ChangeId == "*" {
		file, err := os.Open(image)
		if err != nil {
			return broken(name)
		}
		areas = allocated(file, now.size)
		file.Close()
	} else {
		if strings.Count(req.ChangeId, "/") != 1 {
			return wrong("changeId")
		}
		before, known := d.tracking.marks[req.ChangeId]
		if !known {
			return broken(name)
		}
		areas = changed(before, now)
	}
	if d.tracking.lossy && len(areas) > 0 {
		areas = areas[:len(areas)-1]
	}
	return cut(areas, req.StartOffset, now.size), "", nil
}

// moment finds the contents that are asked about: a snapshot's, or those of a machine that is off.
func (v *VM) moment(req *types.QueryChangedDiskAreas) (mark, string, string, string, types.BaseMethodFault) {
	if req.Snapshot != nil {
		s, ok := registry().Get(*req.Snapshot).(*Snapshot)
		if !ok || s.vm != v {
			return mark{}, "", "", "The object has already been deleted or has not been completely created",
				&types.ManagedObjectNotFound{Obj: *req.Snapshot}
		}
		held, ok := s.marks[req.DeviceKey]
		if !ok {
			_, message, fault := wrong("deviceKey")
			return mark{}, "", "", message, fault
		}
		return held, s.images[req.DeviceKey], s.names[req.DeviceKey], "", nil
	}
	d := v.disks[req.DeviceKey]
	if d == nil {
		_, message, fault := wrong("deviceKey")
		return mark{}, "", "", message, fault
	}
	if v.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOff {
		_, message, fault := broken(d.name)
		return mark{}, "", "", message, fault
	}
	held, err := contents(d.file)
	if err != nil {
		_, message, fault := broken(d.name)
		return mark{}, "", "", message, fault
	}
	return held, d.file, d.name, "", nil
}

// cut makes one answer of what is left from an offset on.
func cut(areas []types.DiskChangeExtent, from, size int64) *types.DiskChangeInfo {
	end := size
	if s := limits.span(); s > 0 && from+s < end {
		end = from + s
	}
	info := &types.DiskChangeInfo{StartOffset: from}
	for _, area := range areas {
		start, stop := area.Start, area.Start+area.Length
		if stop <= from || start >= end {
			continue
		}
		if len(info.ChangedArea) == limits.areas() {
			// The answer ends where its last area does.
			last := info.ChangedArea[len(info.ChangedArea)-1]
			end = last.Start + last.Length
			break
		}
		if start < from {
			start = from
		}
		if stop > end {
			stop = end
		}
		info.ChangedArea = append(info.ChangedArea,
			types.DiskChangeExtent{Start: start, Length: stop - start})
	}
	info.Length = end - from
	return info
}

func wrong(property string) (*types.DiskChangeInfo, string, types.BaseMethodFault) {
	message := "A specified parameter was not correct: " + property
	return nil, message, &types.InvalidArgument{InvalidProperty: property}
}

func broken(file string) (*types.DiskChangeInfo, string, types.BaseMethodFault) {
	return nil, "Error caused by file " + file, &types.FileFault{File: file}
}
