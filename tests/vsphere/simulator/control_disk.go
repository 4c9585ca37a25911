package main

// Job: the control endpoints about one disk: writes, and changes of what it is.
// Rule: a change that VMware refuses while snapshots exist is refused here.

import (
	"fmt"
	"math/rand"
	"os"

	"github.com/vmware/govmomi/vim25/types"
)

// doWrite writes as the guest does: bytes that are sent, or length bytes drawn from a seed.
func doWrite(_ *front, o *order) (interface{}, error) {
	v, d, err := diskOf(o)
	if err != nil {
		return nil, err
	}
	data := o.Data
	if len(data) == 0 {
		if o.Length <= 0 || o.Length > 1<<30 {
			return nil, fmt.Errorf("data or length is missing")
		}
		data = make([]byte, o.Length)
		if o.Seed != 0 { // seed 0 writes zeroes
			if _, err := rand.New(rand.NewSource(o.Seed)).Read(data); err != nil {
				return nil, err
			}
		}
	}
	v.quiet.RLock()
	defer v.quiet.RUnlock()
	file, err := os.OpenFile(d.file, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	stat, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if o.Offset < 0 || o.Offset+int64(len(data)) > stat.Size() {
		return nil, fmt.Errorf("the write goes beyond the disk's end")
	}
	_, err = file.WriteAt(data, o.Offset)
	return nil, err
}

func doDisk(_ *front, o *order) (interface{}, error) {
	if o.Do == "add" {
		v, err := machineNamed(o.Machine)
		if err != nil {
			return nil, err
		}
		var d *disk
		v.locked(func() { d, err = v.addDisk(o.Spec) })
		if err != nil {
			return nil, err
		}
		v.locked(func() { err = v.link() })
		return map[string]int32{"disk": d.key}, err
	}
	v, d, err := diskOf(o)
	if err != nil {
		return nil, err
	}
	var problem error
	v.locked(func() {
		if v.VirtualMachine.Snapshot != nil {
			problem = fmt.Errorf("%s has snapshots: VMware refuses that", o.Machine)
			return
		}
		if problem = v.alter(d, o); problem == nil {
			problem = v.link()
		}
	})
	return nil, problem
}

// alter changes what a disk is. The lock is held.
func (v *VM) alter(d *disk, o *order) error {
	switch o.Do {
	case "independent":
		d.spec.Mode = string(types.VirtualDiskModeIndependent_persistent)
	case "shared":
		d.spec.Sharing = string(types.VirtualDiskSharingSharingMultiWriter)
	case "rdm":
		d.spec.RDM = "physical"
	case "plain":
		mode := string(types.VirtualDiskModePersistent)
		d.spec = diskSpec{
			File: d.spec.File, Datastore: d.spec.Datastore, Controller: d.spec.Controller, Mode: mode,
		}
	case "grow":
		return v.grow(d, o.Size)
	case "remove":
		delete(v.disks, d.key)
		v.replaceDevice(d.key, nil)
		return nil
	case "replace":
		return v.swap(d, o.Spec)
	default:
		return fmt.Errorf("do is %q: add, independent, shared, rdm, plain, grow, remove or replace", o.Do)
	}
	id := *fieldsOf(v.device(d.key)).id
	v.changeDisk(d.key, func(device *types.VirtualDisk) {
		device.Backing = newBacking(d)
		*fieldsOf(device).id = id
	})
	return nil
}

func (v *VM) grow(d *disk, size int64) error {
	stat, err := os.Stat(d.file)
	if err != nil {
		return err
	}
	if size <= stat.Size() || size%1024 != 0 {
		return fmt.Errorf("size must be more than %d, and a whole number of KiB", stat.Size())
	}
	if err := os.Truncate(d.file, size); err != nil {
		return err
	}
	v.changeDisk(d.key, func(device *types.VirtualDisk) {
		device.CapacityInBytes, device.CapacityInKB = size, size>>10
	})
	return nil
}

// swap puts another disk at the same place: the same device key, another uuid and other contents.
func (v *VM) swap(d *disk, spec diskSpec) error {
	size, err := sizeOf(spec.File, spec.Size)
	if err != nil {
		return err
	}
	spec.Mode, spec.Datastore = string(types.VirtualDiskModePersistent), d.spec.Datastore
	fresh := &disk{key: d.key, file: spec.File, spec: spec, name: v.freeName(spec.Datastore)}
	v.disks[d.key] = fresh
	v.changeDisk(d.key, func(device *types.VirtualDisk) {
		device.CapacityInBytes, device.CapacityInKB = size, size>>10
		device.Backing = newBacking(fresh)
	})
	if v.tracked {
		fresh.tracking.restart()
	}
	return nil
}
