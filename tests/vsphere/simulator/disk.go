package main

// Job: one disk of a machine: its file, its device, its controller.
// Rule: the file is the test's; only a file that is absent is made.

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/uuid"

	"github.com/vmware/govmomi/vim25/types"
)

// diskSpec is what a test says about a disk.
type diskSpec struct {
	File       string `json:"file"`
	Size       int64  `json:"size"`
	Controller string `json:"controller"`
	Mode       string `json:"mode"`
	Sharing    string `json:"sharing"`
	RDM        string `json:"rdm"`
	Datastore  string `json:"datastore"`
}

// disk is what the simulator knows of a disk, beside the device that clients see.
type disk struct {
	key      int32
	file     string // its contents, here
	name     string // its name on the datastore, without snapshots
	spec     diskSpec
	tracking tracking
}

// inSnapshots says whether a snapshot has this disk: independent ones and physical mappings are left out.
func (d *disk) inSnapshots() bool {
	return !strings.HasPrefix(d.spec.Mode, "independent") && d.spec.RDM != "physical"
}

// places are the key ranges that VMware uses, per kind of controller.
var places = map[string]struct{ controller, disk, skip int32 }{
	"pvscsi":       {1000, 2000, 7},
	"lsilogic":     {1000, 2000, 7},
	"lsilogic-sas": {1000, 2000, 7},
	"sata":         {15000, 16000, -1},
	"nvme":         {31000, 32000, -1},
	"ide":          {200, 3000, -1},
}

// addDisk makes a disk and its device. The lock is held.
func (v *VM) addDisk(spec diskSpec) (*disk, error) {
	if spec.Controller == "" {
		spec.Controller = "pvscsi"
	}
	if spec.Mode == "" {
		spec.Mode = string(types.VirtualDiskModePersistent)
	}
	if spec.Datastore == "" {
		spec.Datastore = "LocalDS_0"
	}
	place, known := places[spec.Controller]
	if !known {
		return nil, fmt.Errorf("controller %q is none of pvscsi, lsilogic, lsilogic-sas, sata, nvme, ide",
			spec.Controller)
	}
	if _, err := datastoreNamed(spec.Datastore); err != nil {
		return nil, err
	}
	file, err := filepath.Abs(spec.File)
	if err != nil {
		return nil, err
	}
	size, err := sizeOf(file, spec.Size)
	if err != nil {
		return nil, err
	}
	unit := int32(0)
	for v.device(place.disk+unit) != nil || unit == place.skip {
		unit++
	}
	v.addController(spec.Controller, place.controller)
	key := place.disk + unit
	label := len(v.disks)
	d := &disk{key: key, file: file, spec: spec, name: v.freeName(spec.Datastore)}
	device := &types.VirtualDisk{
		VirtualDevice: types.VirtualDevice{
			Key: key, UnitNumber: &unit, ControllerKey: place.controller,
			DeviceInfo: &types.Description{
				Label: fmt.Sprintf("Hard disk %d", label+1), Summary: fmt.Sprintf("%d KB", size>>10),
			},
		},
		CapacityInKB: size >> 10, CapacityInBytes: size,
		DiskObjectId: fmt.Sprintf("%s-%d", strings.TrimPrefix(v.Self.Value, "vm-"), key),
	}
	device.Backing = newBacking(d)
	v.disks[key] = d
	v.setDevices(append(append([]types.BaseVirtualDevice{}, v.Config.Hardware.Device...), device))
	return d, nil
}

// freeName is a disk's name on the datastore that no other disk of the machine has or had.
func (v *VM) freeName(datastore string) string {
	v.named++
	suffix := ""
	if v.named > 1 {
		suffix = fmt.Sprintf("_%d", v.named-1)
	}
	return fmt.Sprintf("[%s] %s/%s%s.vmdk", datastore, v.spec.Name, v.spec.Name, suffix)
}

func newBacking(d *disk) types.BaseVirtualDeviceBackingInfo {
	store, _ := datastoreNamed(d.spec.Datastore)
	file := types.VirtualDeviceFileBackingInfo{FileName: d.name, Datastore: store}
	id := strings.ToUpper(uuid.New().String())
	if d.spec.RDM != "" {
		return &types.VirtualDiskRawDiskMappingVer1BackingInfo{
			VirtualDeviceFileBackingInfo: file, Uuid: id, Sharing: sharing(d.spec), DiskMode: d.spec.Mode,
			CompatibilityMode: d.spec.RDM + "Mode", LunUuid: "02000000006000", DeviceName: "naa.6000",
		}
	}
	return &types.VirtualDiskFlatVer2BackingInfo{
		VirtualDeviceFileBackingInfo: file, Uuid: id, Sharing: sharing(d.spec), DiskMode: d.spec.Mode,
		ThinProvisioned: types.NewBool(true), WriteThrough: types.NewBool(false), Split: types.NewBool(false),
	}
}

func sharing(spec diskSpec) string {
	if spec.Sharing == "" {
		return string(types.VirtualDiskSharingSharingNone)
	}
	return spec.Sharing
}

// sizeOf makes the file where it is absent. VMware counts a disk in KiB.
func sizeOf(file string, wanted int64) (int64, error) {
	stat, err := os.Stat(file)
	if os.IsNotExist(err) && wanted > 0 {
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			return 0, err
		}
		if err := os.Truncate(file, wanted); err != nil {
			return 0, err
		}
		stat, err = os.Stat(file)
	}
	if err != nil {
		return 0, err
	}
	if wanted > 0 && stat.Size() != wanted {
		return 0, fmt.Errorf("%s has %d bytes, not the %d that its size says", file, stat.Size(), wanted)
	}
	if stat.Size() == 0 || stat.Size()%1024 != 0 {
		return 0, fmt.Errorf("%s has %d bytes: a disk needs a whole number of KiB", file, stat.Size())
	}
	return stat.Size(), nil
}

// addController adds the controller of a kind, once.
func (v *VM) addController(kind string, key int32) {
	for _, device := range v.Config.Hardware.Device {
		if device.GetVirtualDevice().Key == key {
			return
		}
	}
	base := types.VirtualController{VirtualDevice: types.VirtualDevice{
		Key: key, ControllerKey: 100,
		DeviceInfo: &types.Description{Label: kind + " controller 0", Summary: kind},
	}}
	scsi := types.VirtualSCSIController{
		VirtualController: base, SharedBus: types.VirtualSCSISharingNoSharing, ScsiCtlrUnitNumber: 7,
	}
	var device types.BaseVirtualDevice
	switch kind {
	case "pvscsi":
		device = &types.ParaVirtualSCSIController{VirtualSCSIController: scsi}
	case "lsilogic":
		device = &types.VirtualLsiLogicController{VirtualSCSIController: scsi}
	case "lsilogic-sas":
		device = &types.VirtualLsiLogicSASController{VirtualSCSIController: scsi}
	case "sata":
		device = &types.VirtualAHCIController{
			VirtualSATAController: types.VirtualSATAController{VirtualController: base},
		}
	case "nvme":
		device = &types.VirtualNVMEController{VirtualController: base}
	default:
		device = &types.VirtualIDEController{VirtualController: base}
	}
	v.setDevices(append(append([]types.BaseVirtualDevice{}, v.Config.Hardware.Device...), device))
}

// changeDisk replaces a disk's device by a copy that change may alter. The lock is held.
func (v *VM) changeDisk(key int32, change func(*types.VirtualDisk)) {
	old := v.device(key)
	if old == nil {
		return
	}
	device := *old
	switch b := old.Backing.(type) {
	case *types.VirtualDiskFlatVer2BackingInfo:
		backing := *b
		device.Backing = &backing
	case *types.VirtualDiskRawDiskMappingVer1BackingInfo:
		backing := *b
		device.Backing = &backing
	}
	change(&device)
	v.replaceDevice(key, &device)
}

// backingFields are those that every kind of backing has.
type backingFields struct{ id, file, changeID *string }

// fieldsOf gives the fields of a disk's backing, to read and to set.
func fieldsOf(device *types.VirtualDisk) backingFields {
	switch b := device.Backing.(type) {
	case *types.VirtualDiskFlatVer2BackingInfo:
		return backingFields{&b.Uuid, &b.FileName, &b.ChangeId}
	case *types.VirtualDiskRawDiskMappingVer1BackingInfo:
		return backingFields{&b.Uuid, &b.FileName, &b.ChangeId}
	}
	panic(fmt.Sprintf("a disk's backing is a %T", device.Backing))
}

// backingName is the file that a disk writes to now: a child's while snapshots exist.
func backingName(device *types.VirtualDisk) string { return *fieldsOf(device).file }

// parentage says what a backing's parent becomes when the backing gets another file.
type parentage int

const (
	asIs  parentage = iota // the same parent
	child                  // what the backing was until now
	base                   // none
)

// setBacking gives a backing another file, change id and parent.
func setBacking(device *types.VirtualDisk, file, changeID string, parent parentage) {
	switch b := device.Backing.(type) {
	case *types.VirtualDiskFlatVer2BackingInfo:
		was := *b
		if parent == child {
			b.Parent = &was
		} else if parent == base {
			b.Parent = nil
		}
	case *types.VirtualDiskRawDiskMappingVer1BackingInfo:
		was := *b
		if parent == child {
			b.Parent = &was
		} else if parent == base {
			b.Parent = nil
		}
	}
	fields := fieldsOf(device)
	*fields.file, *fields.changeID = file, changeID
}
