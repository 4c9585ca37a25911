package main

// Job: a machine with real disks: what a test says about it, and the VM that clients see.
// Rule: what clients may hold is never changed in place; it is replaced under the machine's lock.

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path"
	"path/filepath"
	"strings"
	"sync"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// machineSpec is what a test says about a machine; README.md explains the fields.
type machineSpec struct {
	Name       string     `json:"name"`
	Disks      []diskSpec `json:"disks"`
	Networks   []nicSpec  `json:"networks"`
	Folder     string     `json:"folder"`
	Host       string     `json:"host"`
	CPUs       int32      `json:"cpus"`
	MemoryMB   int32      `json:"memory_mb"`
	Firmware   string     `json:"firmware"`
	SecureBoot bool       `json:"secure_boot"`
	TPM        bool       `json:"tpm"`
	GuestID    string     `json:"guest_id"`
	Hardware   string     `json:"hardware"`
	Off        bool       `json:"off"`
	NoTools    bool       `json:"no_tools"`
	NoGuest    bool       `json:"no_guest"`
	Template   bool       `json:"template"`
	HostName   string     `json:"host_name"`
	Address    string     `json:"address"`
}

// VM takes the place of the library's machine. It embeds that one by value: the property collector looks for
// the managed object in first fields that are structs, and panics at a pointer.
type VM struct {
	simulator.VirtualMachine

	spec    machineSpec
	disks   map[int32]*disk
	tracked bool // tracking in force, not merely configured
	stuns   int
	powered int // changes of the power state

	named        int // disks so far
	snapshots    int // made so far
	mostAtOnce   int
	snapshotID   int32
	running      map[string]int // tasks by method
	latest       map[string]ref // the last task of a method
	ignoresGuest bool           // ShutdownGuest is heard and not obeyed
	guest        *guest

	// One task at a time changes a machine.
	turn sync.Mutex
	// Held for writing while the machine is stunned, for reading while something writes to a disk.
	// Never taken while the machine's lock is held.
	quiet sync.RWMutex
}

// locked runs f with the machine's lock.
func (v *VM) locked(f func()) { registry().WithLock(v, f) }

// vms finds machines by name or id.
func machineNamed(name string) (*VM, error) {
	for _, entity := range registry().All("VirtualMachine") {
		v, ok := entity.(*VM)
		if !ok {
			continue
		}
		found := false
		v.locked(func() { found = v.Name == name || v.Self.Value == name })
		if found {
			return v, nil
		}
	}
	return nil, fmt.Errorf("no machine with disks is called %q", name)
}

// replaceDevice puts a changed copy of one device in its place; nil removes it. The lock is held.
func (v *VM) replaceDevice(key int32, by types.BaseVirtualDevice) {
	var list []types.BaseVirtualDevice
	for _, device := range v.Config.Hardware.Device {
		if device.GetVirtualDevice().Key != key {
			list = append(list, device)
		} else if by != nil {
			list = append(list, by)
		}
	}
	v.setDevices(list)
}

// setDevices replaces the list of devices, and says so.
func (v *VM) setDevices(list []types.BaseVirtualDevice) {
	config := *v.Config
	config.Hardware.Device = list
	count := int32(0)
	for _, device := range list {
		if _, ok := device.(*types.VirtualDisk); ok {
			count++
		}
	}
	v.Config = &config
	v.Summary.Config.NumVirtualDisks = count
	touched(v.Self, "config.hardware.device", "summary.config.numVirtualDisks")
}

// device finds a disk's entry in the list.
func (v *VM) device(key int32) *types.VirtualDisk {
	for _, device := range v.Config.Hardware.Device {
		if d, ok := device.(*types.VirtualDisk); ok && d.Key == key {
			return d
		}
	}
	return nil
}

// link says to VDDK's stand-in what a machine's disks are outside of snapshots, and whether it is on: then
// VMware locks them. The lock is held.
func (v *VM) link() error {
	folder := filepath.Join(exports(), "running", v.Self.Value)
	locked := v.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOff
	files := map[string]string{}
	for _, d := range v.disks {
		if b := v.device(d.key); b != nil {
			files[path.Base(backingName(b))] = d.file
		}
	}
	return writeLinks(folder, v.Self.Value, locked, files)
}

// extraConfig is the setting that VMware writes beside the flag.
func (v *VM) noteTracking(on bool) {
	config := *v.Config
	config.ChangeTrackingEnabled = types.NewBool(on)
	var extra []types.BaseOptionValue
	for _, option := range config.ExtraConfig {
		if !strings.HasPrefix(option.GetOptionValue().Key, "ctkEnabled") {
			extra = append(extra, option)
		}
	}
	value := strings.ToUpper(fmt.Sprint(on))
	config.ExtraConfig = append(extra, &types.OptionValue{Key: "ctkEnabled", Value: value})
	v.Config = &config
	touched(v.Self, "config.changeTrackingEnabled", "config.extraConfig")
}

// strictJSON refuses unknown fields: a test's typing error must not pass for a setting.
func strictJSON(text []byte, into interface{}) error {
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	return decoder.Decode(into)
}
