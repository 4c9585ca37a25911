package main

// Job: the control endpoints: a POST of JSON to /NAME does what NAME says; GET /state tells all.
// Rule: loopback only, unknown names and fields are refused, and an order is done when it is answered.

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// order is what a test sends; each endpoint uses some of it.
type order struct {
	Machine string `json:"machine"`
	Disk    int32  `json:"disk"` // a device key, or a number from 0 on
	Do      string `json:"do"`

	Offset int64  `json:"offset"`
	Length int64  `json:"length"`
	Seed   int64  `json:"seed"`
	Data   []byte `json:"data"` // base64

	Spec diskSpec `json:"spec"`
	Size int64    `json:"size"`

	Name        string `json:"name"`
	Description string `json:"description"`
	Snapshot    string `json:"snapshot"`
	Host        string `json:"host"`

	Seconds   float64            `json:"seconds"`
	Areas     int                `json:"areas"`
	Span      int64              `json:"span"`
	TaskTimes map[string]float64 `json:"task_times"` // seconds by method

	Privilege string `json:"privilege"`
	Object    string `json:"object"`
	HA        bool   `json:"ha"`
	DRS       bool   `json:"drs"`
	On        bool   `json:"on"`
}

type handler func(*front, *order) (interface{}, error)

var handlers = map[string]handler{
	"write":         doWrite,
	"disk":          doDisk,
	"tracking":      onMachine(doTracking),
	"power":         onMachine(doPower),
	"guest":         onMachine(doGuest),
	"snapshot":      onMachine(doSnapshot),
	"remove":        onMachine(doRemove),
	"consolidation": onMachine(doConsolidation),
	"rename":        onMachine(doRename),
	"move":          onMachine(doMove),
	"unregister":    onMachine(doUnregister),
	"twin":          onMachine(doTwin),
	"reboot":        doReboot,
	"cluster":       doCluster,
	"deny":          doDeny,
	"limits":        doLimits,
	"clear":         doClear,
	"unavailable":   doUnavailable,
	"expire":        doExpire,
	"restart":       doRestart,
	"clock":         doClock,
}

// onMachine is the handler of an order about one machine.
func onMachine(act func(*VM, *order) (interface{}, error)) handler {
	return func(_ *front, o *order) (interface{}, error) {
		v, err := machineNamed(o.Machine)
		if err != nil {
			return nil, err
		}
		return act(v, o)
	}
}

func seconds(n float64) time.Duration { return time.Duration(n * float64(time.Second)) }

func serveControl(address string, f *front) (string, error) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return "", err
	}
	server := &http.Server{
		ReadHeaderTimeout: 10 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			answer, err := f.control(r)
			w.Header().Set("Content-Type", "application/json")
			if err != nil {
				w.WriteHeader(http.StatusBadRequest)
				answer = map[string]string{"error": err.Error()}
			} else if answer == nil {
				answer = map[string]bool{"done": true}
			}
			_ = json.NewEncoder(w).Encode(answer)
		}),
	}
	go func() { _ = server.Serve(listener) }()
	return listener.Addr().String(), nil
}

func (f *front) control(r *http.Request) (interface{}, error) {
	name := strings.Trim(r.URL.Path, "/")
	if name == "state" {
		return f.state(), nil
	}
	const most = 256 << 20
	text, err := io.ReadAll(io.LimitReader(r.Body, most))
	if err != nil {
		return nil, err
	}
	if len(text) == 0 {
		text = []byte("{}")
	}
	if r.Method != http.MethodPost {
		return nil, fmt.Errorf("POST it")
	}
	if name == "fail" {
		var one failure
		if err := strictJSON(text, &one); err != nil {
			return nil, err
		}
		return nil, faults.order(one)
	}
	do, known := handlers[name]
	if !known {
		return nil, fmt.Errorf("%q is none of the endpoints", name)
	}
	var o order
	if err := strictJSON(text, &o); err != nil {
		return nil, err
	}
	return do(f, &o)
}

func doUnavailable(f *front, o *order) (interface{}, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.unavailable = time.Now().Add(seconds(o.Seconds))
	return nil, nil
}

func doRestart(f *front, o *order) (interface{}, error) { return nil, f.restart(seconds(o.Seconds)) }

func doClock(_ *front, o *order) (interface{}, error) {
	limits.mu.Lock()
	defer limits.mu.Unlock()
	limits.skew = seconds(o.Seconds)
	return nil, nil
}

func doExpire(*front, *order) (interface{}, error) {
	return map[string]int{"ended": expireSessions()}, nil
}

func doClear(*front, *order) (interface{}, error) { return map[string]int{"left": faults.clear()}, nil }

func doDeny(_ *front, o *order) (interface{}, error) {
	if o.Privilege == "" {
		return nil, fmt.Errorf("privilege is missing")
	}
	deny(o.Privilege, o.Object, o.On)
	return nil, nil
}

func doLimits(_ *front, o *order) (interface{}, error) {
	for method, lasts := range o.TaskTimes {
		limits.setTaskTime(method, seconds(lasts))
	}
	limits.mu.Lock()
	defer limits.mu.Unlock()
	limits.most, limits.bytes = o.Areas, o.Span
	return nil, nil
}

func doCluster(_ *front, o *order) (interface{}, error) {
	for _, entity := range registry().All("ClusterComputeResource") {
		setCluster(entity.(*simulator.ClusterComputeResource), o.HA, o.DRS)
	}
	return nil, nil
}

func doReboot(_ *front, o *order) (interface{}, error) {
	host, err := hostNamed(o.Host)
	if err != nil {
		return nil, err
	}
	if manager, ok := registry().Get(*host.ConfigManager.AutoStartManager).(*AutoStart); ok {
		manager.reboot()
	}
	return nil, nil
}

func hostNamed(name string) (*simulator.HostSystem, error) {
	for _, entity := range registry().All("HostSystem") {
		if host, ok := entity.(*simulator.HostSystem); ok && (host.Name == name || host.Self.Value == name) {
			return host, nil
		}
	}
	return nil, fmt.Errorf("no host is called %q", name)
}

// diskOf finds machine and disk of an order.
func diskOf(o *order) (*VM, *disk, error) {
	v, err := machineNamed(o.Machine)
	if err != nil {
		return nil, nil, err
	}
	var found *disk
	v.locked(func() {
		number := int32(0)
		for _, device := range v.Config.Hardware.Device {
			d, ok := device.(*types.VirtualDisk)
			if !ok {
				continue
			}
			if d.Key == o.Disk || number == o.Disk {
				found = v.disks[d.Key]
			}
			number++
		}
	})
	if found == nil {
		return nil, nil, fmt.Errorf("%s has no disk %d", o.Machine, o.Disk)
	}
	return v, found, nil
}
