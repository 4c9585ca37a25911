package main

// Job: the control endpoints about one machine: power, snapshots of others, names, hosts.
// Rule: they act as other people and other programs do, beside what the API shows.

import (
	"fmt"

	"github.com/vmware/govmomi/vim25/types"
)

func doPower(v *VM, o *order) (interface{}, error) {
	if o.Do == "crash" {
		v.crash()
		return nil, nil
	}
	v.turn.Lock()
	defer v.turn.Unlock()
	var fault types.BaseMethodFault
	switch o.Do {
	case "on":
		fault = v.turnOn()
	case "off":
		fault = v.turnOff()
	default:
		return nil, fmt.Errorf("do is %q: on, off or crash", o.Do)
	}
	if fault != nil {
		return nil, fmt.Errorf("%T", fault)
	}
	return nil, nil
}

func doGuest(v *VM, o *order) (interface{}, error) {
	var problem error
	v.locked(func() {
		switch o.Do {
		case "ignores_shutdown":
			v.ignoresGuest = o.On
		case "no_tools":
			v.spec.NoTools = o.On
			v.setPower(v.Runtime.PowerState)
		default:
			problem = fmt.Errorf("do is %q: ignores_shutdown or no_tools", o.Do)
		}
	})
	return nil, problem
}

// doSnapshot is another program's snapshot.
func doSnapshot(v *VM, o *order) (interface{}, error) {
	v.turn.Lock()
	defer v.turn.Unlock()
	name := o.Name
	if name == "" {
		name = "made by others"
	}
	s, err := v.snap(name, o.Description, false)
	if err != nil {
		return nil, err
	}
	return map[string]string{"snapshot": s.Self.Value}, nil
}

// doRemove removes a snapshot behind everyone's back.
func doRemove(v *VM, o *order) (interface{}, error) {
	v.turn.Lock()
	defer v.turn.Unlock()
	ref := types.ManagedObjectReference{Type: "VirtualMachineSnapshot", Value: o.Snapshot}
	if fault := v.drop(ref, false); fault != nil {
		return nil, fmt.Errorf("%s has no snapshot %q", o.Machine, o.Snapshot)
	}
	return nil, nil
}

func doConsolidation(v *VM, o *order) (interface{}, error) {
	v.locked(func() {
		v.Runtime.ConsolidationNeeded = types.NewBool(o.On)
		touched(v.Self, "runtime.consolidationNeeded")
	})
	return nil, nil
}

func doRename(v *VM, o *order) (interface{}, error) {
	if o.Name == "" {
		return nil, fmt.Errorf("name is missing")
	}
	v.locked(func() { v.rename(o.Name) })
	return nil, nil
}

func doMove(v *VM, o *order) (interface{}, error) {
	host, err := hostNamed(o.Host)
	if err != nil {
		return nil, err
	}
	v.turn.Lock()
	defer v.turn.Unlock()
	if fault := v.move(host.Self); fault != nil {
		return nil, fmt.Errorf("%T", fault)
	}
	return nil, nil
}

func doUnregister(v *VM, _ *order) (interface{}, error) {
	v.turn.Lock()
	defer v.turn.Unlock()
	if err := v.endGuest(); err != nil {
		return nil, err
	}
	remove(v.Self)
	return nil, nil
}

func doTracking(v *VM, o *order) (interface{}, error) {
	var problem error
	v.locked(func() {
		for _, d := range v.disks {
			switch o.Do {
			case "reset":
				if d.tracking.epoch != "" {
					lossy := d.tracking.lossy
					d.tracking.restart()
					d.tracking.lossy = lossy
				}
			case "lossy":
				d.tracking.lossy = o.On
			case "set":
			default:
				problem = fmt.Errorf("do is %q: reset, lossy or set", o.Do)
			}
		}
		if o.Do == "set" {
			// As another product does it: the setting, and a stun.
			v.noteTracking(o.On)
			v.stun()
		}
	})
	return nil, problem
}
