package main

// Job: makes a machine with real disks from what a test says about it.
// Rule: what a test does not say has one plain value; what it says and is not known is refused.

import (
	"fmt"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"
)

// nicSpec is what a test says about a network card.
type nicSpec struct {
	Type    string `json:"type"`
	MAC     string `json:"mac"`
	Network string `json:"network"`
}

func (w *world) addMachine(spec machineSpec, number int) error {
	if spec.Name == "" {
		return fmt.Errorf("it has no name")
	}
	if _, err := machineNamed(spec.Name); err == nil {
		return fmt.Errorf("two have this name")
	}
	host, folder, err := w.where(spec)
	if err != nil {
		return err
	}
	v := &VM{
		VirtualMachine: w.fresh(spec.Name, number), spec: spec, disks: map[int32]*disk{},
		running: map[string]int{}, latest: map[string]ref{},
	}
	w.equip(v)
	if len(spec.Networks) == 0 {
		spec.Networks = []nicSpec{{}}
	}
	for i, nic := range spec.Networks {
		mac := fmt.Sprintf("00:50:56:00:%02x:%02x", number&0xff, i)
		card := w.card(nic, i, mac, &v.VirtualMachine)
		if card == nil {
			return fmt.Errorf("card %q or network %q is not known", nic.Type, nic.Network)
		}
		v.Config.Hardware.Device = append(v.Config.Hardware.Device, card)
	}
	v.Summary.Config.NumEthernetCards = int32(len(spec.Networks))
	if spec.TPM {
		v.Config.Hardware.Device = append(v.Config.Hardware.Device, &types.VirtualTPM{
			VirtualDevice: types.VirtualDevice{
				Key: 11000, DeviceInfo: &types.Description{Label: "Virtual TPM"},
			},
		})
	}
	w.place(v, &v.VirtualMachine, host, folder)
	for _, one := range spec.Disks {
		if _, err := v.addDisk(one); err != nil {
			return err
		}
	}
	v.locked(func() { v.setPower(types.VirtualMachinePowerStatePoweredOff) })
	v.powered = 0
	if spec.Off || spec.Template {
		return nil
	}
	v.turn.Lock()
	defer v.turn.Unlock()
	if fault := v.turnOn(); fault != nil {
		return fmt.Errorf("it does not start: %+v", fault)
	}
	v.powered, v.stuns = 0, 0
	return nil
}

// where finds host and folder.
func (w *world) where(spec machineSpec) (*simulator.HostSystem, *simulator.Folder, error) {
	host, folder := w.hosts[0], w.folder
	if spec.Host != "" {
		host = nil
		for _, one := range w.hosts {
			if one.Name == spec.Host || one.Self.Value == spec.Host {
				host = one
			}
		}
		if host == nil {
			return nil, nil, fmt.Errorf("no host is called %q", spec.Host)
		}
	}
	if spec.Folder == "" {
		return host, folder, nil
	}
	for _, entity := range registry().All("Folder") {
		if f, ok := entity.(*simulator.Folder); ok && f.Name == spec.Folder {
			return host, f, nil
		}
	}
	ctx := &simulator.Context{
		Session: &simulator.Session{Registry: simulator.NewRegistry()}, Map: registry(), Caller: &folder.Self,
	}
	answer := folder.CreateFolder(ctx, &types.CreateFolder{This: folder.Self, Name: spec.Folder})
	body, ok := answer.(*methods.CreateFolderBody)
	if !ok || body.Res == nil {
		return nil, nil, fmt.Errorf("folder %q cannot be made", spec.Folder)
	}
	return host, registry().Get(body.Res.Returnval).(*simulator.Folder), nil
}

// equip sets hardware, firmware, guest and tools.
func (w *world) equip(v *VM) {
	spec := &v.spec
	if spec.CPUs == 0 {
		spec.CPUs = 2
	}
	if spec.MemoryMB == 0 {
		spec.MemoryMB = 1024
	}
	if spec.Firmware == "" {
		spec.Firmware = "bios"
	}
	if spec.GuestID == "" {
		spec.GuestID = "debian11_64Guest"
	}
	if spec.Hardware == "" {
		spec.Hardware = "vmx-19"
	}
	config := v.Config
	hardware := &config.Hardware
	hardware.NumCPU, hardware.MemoryMB, hardware.NumCoresPerSocket = spec.CPUs, spec.MemoryMB, 1
	config.Firmware, config.GuestId, config.Version = spec.Firmware, spec.GuestID, spec.Hardware
	config.GuestFullName, config.Template = spec.GuestID, spec.Template
	config.BootOptions = &types.VirtualMachineBootOptions{
		EfiSecureBootEnabled: types.NewBool(spec.SecureBoot),
	}
	summary := &v.Summary.Config
	summary.NumCpu, summary.MemorySizeMB, summary.GuestId = spec.CPUs, spec.MemoryMB, spec.GuestID
	summary.GuestFullName, summary.Template = spec.GuestID, spec.Template
	summary.TpmPresent = types.NewBool(spec.TPM)
	// Tracking came with hardware version 7.
	if spec.Hardware == "vmx-04" {
		v.Capability.ChangeTrackingSupported = types.NewBool(false)
	}
	v.Guest = &types.GuestInfo{
		GuestId: spec.GuestID, GuestFamily: string(types.VirtualMachineGuestOsFamilyLinuxGuest),
		GuestFullName: spec.GuestID, HostName: spec.HostName, IpAddress: spec.Address,
		ToolsVersion: "12352", ToolsVersionStatus2: "guestToolsUnmanaged",
	}
	if spec.NoTools {
		v.Guest.ToolsVersion, v.Guest.ToolsVersionStatus2 = "0", "guestToolsNotInstalled"
	}
}

// card makes a network card; nil for a type or a network that is not known.
func (w *world) card(
	spec nicSpec, number int, mac string, vm *simulator.VirtualMachine,
) types.BaseVirtualDevice {
	if spec.Network == "" {
		spec.Network = "VM Network"
	}
	network, known := w.networks[spec.Network]
	if !known {
		return nil
	}
	if spec.MAC != "" {
		mac = spec.MAC
	}
	unit := int32(7 + number)
	card := types.VirtualEthernetCard{
		VirtualDevice: types.VirtualDevice{
			Key: int32(4000 + number), ControllerKey: 100, UnitNumber: &unit,
			DeviceInfo: &types.Description{
				Label: fmt.Sprintf("Network adapter %d", number+1), Summary: spec.Network,
			},
			Connectable: &types.VirtualDeviceConnectInfo{
				StartConnected: true, AllowGuestControl: true, Connected: true, Status: "ok",
			},
			Backing: &types.VirtualEthernetCardNetworkBackingInfo{
				VirtualDeviceDeviceBackingInfo: types.VirtualDeviceDeviceBackingInfo{
					DeviceName: spec.Network,
				},
				Network: &network,
			},
		},
		AddressType: "assigned", MacAddress: mac, WakeOnLanEnabled: types.NewBool(true),
	}
	if group, ok := registry().Get(network).(*simulator.DistributedVirtualPortgroup); ok {
		card.Backing = &types.VirtualEthernetCardDistributedVirtualPortBackingInfo{
			Port: types.DistributedVirtualSwitchPortConnection{
				PortgroupKey: group.Key, SwitchUuid: "50 3c 0e",
			},
		}
	}
	known = false
	for _, one := range vm.Network {
		known = known || one == network
	}
	if !known {
		vm.Network = append(vm.Network, network)
	}
	switch spec.Type {
	case "", "vmxnet3":
		return &types.VirtualVmxnet3{VirtualVmxnet: types.VirtualVmxnet{VirtualEthernetCard: card}}
	case "e1000":
		return &types.VirtualE1000{VirtualEthernetCard: card}
	case "e1000e":
		return &types.VirtualE1000e{VirtualEthernetCard: card}
	}
	return nil
}

// firstCard is the kind and the address of a machine's first card. The lock is held.
func firstCard(v *VM) (kind, mac string) {
	for _, device := range v.Config.Hardware.Device {
		switch card := device.(type) {
		case *types.VirtualVmxnet3:
			return "vmxnet3", card.MacAddress
		case *types.VirtualE1000:
			return "e1000", card.MacAddress
		case *types.VirtualE1000e:
			return "e1000e", card.MacAddress
		}
	}
	return "", ""
}
