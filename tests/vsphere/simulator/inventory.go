package main

// Job: the inventory: the library's data center, hosts and datastores; our machines, and plain ones for
// scale.
// Rule: all machines come from one template, which is removed; every machine is in a folder, a pool, on a
// host.

import (
	"fmt"
	"reflect"
	"strings"

	"github.com/google/uuid"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/simulator/esx"
	"github.com/vmware/govmomi/vim25/types"
)

// world is what machines are put into.
type world struct {
	folder   *simulator.Folder
	hosts    []*simulator.HostSystem // those of the cluster first
	pools    map[types.ManagedObjectReference]*simulator.ResourcePool
	networks map[string]types.ManagedObjectReference
	template *simulator.VirtualMachine
}

func build(specs []machineSpec) (*simulator.Model, error) {
	model := simulator.VPX()
	if *esxi {
		model = simulator.ESX()
	}
	simulator.SessionIdleTimeout = *idle
	model.Autostart, model.Machine, model.Datastore = false, 1, *datastores
	if !*esxi {
		model.ClusterHost, model.Portgroup = *hosts, 2
	}
	if err := model.Create(); err != nil {
		return model, err
	}
	addCollector()
	addAuthorization()
	addSearch()
	addAutoStart()
	w, err := found()
	if err != nil {
		return model, err
	}
	nameVersion()
	if err := w.nameHosts(); err != nil {
		return model, err
	}
	for i, spec := range specs {
		if err := w.addMachine(spec, i); err != nil {
			return model, fmt.Errorf("machine %q: %w", spec.Name, err)
		}
	}
	for i := 0; i < *plain; i++ {
		w.addPlain(i)
	}
	for _, entity := range registry().All("ClusterComputeResource") {
		setCluster(entity.(*simulator.ClusterComputeResource), *ha, *drs)
	}
	return model, nil
}

// allHosts lists those of the cluster, then the others.
func allHosts() []*simulator.HostSystem {
	var clustered, single []*simulator.HostSystem
	for _, entity := range registry().All("HostSystem") {
		host := entity.(*simulator.HostSystem)
		if host.Parent.Type == "ClusterComputeResource" {
			clustered = append(clustered, host)
		} else {
			single = append(single, host)
		}
	}
	sortByName(clustered)
	sortByName(single)
	return append(clustered, single...)
}

// found finds what the library built, and takes its machines away.
func found() (*world, error) {
	w := &world{
		pools:    map[types.ManagedObjectReference]*simulator.ResourcePool{},
		networks: map[string]types.ManagedObjectReference{},
	}
	w.hosts = allHosts()
	for _, entity := range registry().All("ResourcePool") {
		pool := entity.(*simulator.ResourcePool)
		w.pools[pool.Owner] = pool
	}
	for _, kind := range []string{"Network", "DistributedVirtualPortgroup"} {
		for _, entity := range registry().All(kind) {
			w.networks[networkName(entity)] = entity.Reference()
		}
	}
	for _, entity := range registry().All("VirtualMachine") {
		vm := entity.(*simulator.VirtualMachine)
		w.template = vm
		w.folder = registry().Get(*vm.Parent).(*simulator.Folder)
		remove(vm.Self)
	}
	if w.template == nil || len(w.hosts) == 0 {
		return nil, fmt.Errorf("the library built no machine or no host")
	}
	return w, nil
}

// nameVersion says the version that a test wants; the library's is 6.5.
func nameVersion() {
	instance := registry().Get(ref{Type: "ServiceInstance", Value: "ServiceInstance"})
	about := &instance.(*simulator.ServiceInstance).Content.About
	about.FullName = strings.Replace(about.FullName, about.Version, *release, 1)
	about.Version, about.ApiVersion = *release, *release+".0"
}

// nameHosts gives the hosts other names, as those that resolve, or do not.
func (w *world) nameHosts() error {
	if *hostNames == "" {
		return nil
	}
	names := strings.Split(*hostNames, ",")
	if len(names) > len(w.hosts) {
		return fmt.Errorf("-host-names has %d names for %d hosts", len(names), len(w.hosts))
	}
	for i, name := range names {
		w.hosts[i].Name, w.hosts[i].Summary.Config.Name = name, name
	}
	return nil
}

// fresh copies the template under a new name and id, without disks and network cards.
func (w *world) fresh(name string, number int) simulator.VirtualMachine {
	vm := *w.template
	vm.Self = types.ManagedObjectReference{}
	vm.Name, vm.Summary.Config.Name = name, name
	config := *vm.Config
	path := fmt.Sprintf("[LocalDS_0] %s/%s.vmx", name, name)
	id, instance := stableID("bios", name, number), stableID("instance", name, number)
	config.Name, config.Uuid, config.InstanceUuid = name, id, instance
	config.Files.VmPathName = path
	config.Files.SnapshotDirectory, config.Files.LogDirectory = "[LocalDS_0] "+name, "[LocalDS_0] "+name
	config.ChangeTrackingEnabled = types.NewBool(false)
	config.Hardware.Device = append([]types.BaseVirtualDevice{}, esx.VirtualDevice...)
	vm.Config = &config
	vm.Summary.Config.Uuid, vm.Summary.Config.InstanceUuid, vm.Summary.Config.VmPathName = id, instance, path
	vm.Capability.ChangeTrackingSupported = types.NewBool(true)
	vm.Capability.SnapshotOperationsSupported = true
	vm.Runtime.ConsolidationNeeded = types.NewBool(false)
	vm.Runtime.ConnectionState = types.VirtualMachineConnectionStateConnected
	vm.Guest = &types.GuestInfo{}
	vm.RecentTask = nil
	vm.Datastore, vm.Network = []types.ManagedObjectReference{w.store("LocalDS_0")}, nil
	return vm
}

// stableID is the same at each start, so that a test may name a machine by it.
func stableID(kind, name string, number int) string {
	return uuid.NewSHA1(uuid.Nil, []byte(fmt.Sprintf("%s %s %d", kind, name, number))).String()
}

func (w *world) store(name string) types.ManagedObjectReference {
	store, _ := datastoreNamed(name)
	if store == nil {
		return types.ManagedObjectReference{}
	}
	return *store
}

// place puts a machine into folder, pool, host and networks. Its reference is set by Put.
func (w *world) place(
	entity reference, vm *simulator.VirtualMachine, host *simulator.HostSystem, folder *simulator.Folder,
) {
	pool := w.pools[*host.Parent]
	self, poolRef, folderRef := host.Self, pool.Self, folder.Self
	vm.Runtime.Host, vm.Summary.Runtime.Host = &self, &self
	vm.ResourcePool, vm.Parent = &poolRef, &folderRef
	vm.Self = ref{Type: "VirtualMachine", Value: fmt.Sprintf("vm-%d", 100+machines.add())}
	id := vm.Self
	vm.Summary.Vm = &id
	registry().AddReference(folder, &folder.ChildEntity, vm.Self)
	registry().AddReference(pool, &pool.Vm, vm.Self)
	registry().AddReference(host, &host.Vm, vm.Self)
	registry().Put(entity)
}

var machines counter

// addPlain adds a machine that has a disk in its description only.
func (w *world) addPlain(number int) {
	vm := w.fresh(fmt.Sprintf("plain-%04d", number), number)
	host := w.hosts[number%len(w.hosts)]
	vm.Runtime.PowerState = types.VirtualMachinePowerStatePoweredOn
	vm.Summary.Runtime.PowerState = vm.Runtime.PowerState
	hardware := &vm.Config.Hardware
	hardware.NumCPU, hardware.MemoryMB = int32(1+number%8), int32(1024*(1+number%16))
	vm.Summary.Config.NumCpu, vm.Summary.Config.MemorySizeMB = hardware.NumCPU, hardware.MemoryMB
	mac := fmt.Sprintf("00:50:56:%02x:%02x:%02x", 0x10+number>>16, number>>8&0xff, number&0xff)
	unit := int32(0)
	size := int64(10+number%90) << 30
	store := w.store("LocalDS_0")
	vm.Config.Hardware.Device = append(vm.Config.Hardware.Device,
		&types.ParaVirtualSCSIController{VirtualSCSIController: types.VirtualSCSIController{
			VirtualController: types.VirtualController{VirtualDevice: types.VirtualDevice{Key: 1000}},
			SharedBus:         types.VirtualSCSISharingNoSharing,
		}},
		&types.VirtualDisk{
			VirtualDevice: types.VirtualDevice{
				Key: 2000, ControllerKey: 1000, UnitNumber: &unit,
				DeviceInfo: &types.Description{Label: "Hard disk 1"},
				Backing: &types.VirtualDiskFlatVer2BackingInfo{
					VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{
						FileName: fmt.Sprintf("[LocalDS_0] %s/%s.vmdk", vm.Name, vm.Name), Datastore: &store,
					},
					DiskMode: "persistent", Uuid: strings.ToUpper(stableID("disk", vm.Name, number)),
					ThinProvisioned: types.NewBool(true),
				},
			},
			CapacityInKB: size >> 10, CapacityInBytes: size,
		},
		w.card(nicSpec{}, 0, mac, &vm),
	)
	vm.Summary.Config.NumVirtualDisks, vm.Summary.Config.NumEthernetCards = 1, 1
	w.place(&vm, &vm, host, w.folder)
}

// reference is what the registry takes.
type reference interface {
	Reference() types.ManagedObjectReference
}

func datastoreNamed(name string) (*types.ManagedObjectReference, error) {
	for _, entity := range registry().All("Datastore") {
		if entity.(*simulator.Datastore).Name == name {
			found := entity.Reference()
			return &found, nil
		}
	}
	return nil, fmt.Errorf("no datastore is called %q", name)
}

func networkName(entity interface{}) string {
	// The kinds of networks have a field of their own for it.
	value := reflect.ValueOf(entity).Elem()
	if name := value.FieldByName("Name"); name.IsValid() {
		return name.String()
	}
	return ""
}

func sortByName(hosts []*simulator.HostSystem) {
	for i := range hosts {
		for j := i; j > 0 && less(hosts[j].Name, hosts[j-1].Name); j-- {
			hosts[j], hosts[j-1] = hosts[j-1], hosts[j]
		}
	}
}

func less(a, b string) bool { return len(a) < len(b) || len(a) == len(b) && a < b }

// remove takes a machine out of everything that names it.
func remove(id types.ManagedObjectReference) {
	for _, kind := range []string{"Folder", "ResourcePool", "HostSystem", "Datastore"} {
		for _, entity := range registry().All(kind) {
			switch e := entity.(type) {
			case *simulator.Folder:
				registry().RemoveReference(e, &e.ChildEntity, id)
			case *simulator.ResourcePool:
				registry().RemoveReference(e, &e.Vm, id)
			case *simulator.HostSystem:
				registry().RemoveReference(e, &e.Vm, id)
			case *simulator.Datastore:
				registry().RemoveReference(e, &e.Vm, id)
			}
		}
	}
	registry().Remove(id)
}

// setCluster sets high availability and DRS.
func setCluster(cluster *simulator.ClusterComputeResource, ha, drs bool) {
	registry().WithLock(cluster, func() {
		old, ok := cluster.ConfigurationEx.(*types.ClusterConfigInfoEx)
		if !ok {
			return
		}
		config := *old
		config.DasConfig.Enabled = types.NewBool(ha)
		config.DasConfig.DefaultVmSettings = &types.ClusterDasVmSettings{RestartPriority: "medium"}
		config.DrsConfig.Enabled = types.NewBool(drs)
		config.DrsConfig.DefaultVmBehavior = types.DrsBehaviorFullyAutomated
		cluster.ConfigurationEx = &config
		cluster.Configuration.DasConfig, cluster.Configuration.DrsConfig = config.DasConfig, config.DrsConfig
	})
	touched(cluster.Self, "configurationEx", "configuration")
}
