package main

// Job: tasks that are really asynchronous: they take time, show progress, can be cancelled, fail on demand.
// Rule: what a task does is done even when the server forgets the task, as hosts do while vCenter restarts.

import (
	"fmt"
	"reflect"
	"strings"
	"sync/atomic"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// Task takes the place of the library's one, which runs within the call.
type Task struct {
	mo.Task

	cancelled int32
}

// work is what a task does, with the machine's turn and without its lock.
type work func(*Task) (types.AnyType, types.BaseMethodFault)

// start begins a task of a machine. The machine's lock is held.
func (v *VM) start(method string, do work) types.ManagedObjectReference {
	t := newTask(v.Self, v.Name, method)
	v.running[method]++
	v.latest[method] = t.Self
	v.RecentTask = append(recent(v.RecentTask), t.Self)
	touched(v.Self, "recentTask")
	go func() {
		v.turn.Lock()
		defer v.turn.Unlock()
		t.run(method, do)
		v.locked(func() { v.running[method]-- })
	}()
	return t.Self
}

// refuse begins a task that fails at once, without the machine's turn. The machine's lock is held.
func (v *VM) refuse(method string, fault types.BaseMethodFault) types.ManagedObjectReference {
	t := newTask(v.Self, v.Name, method)
	v.RecentTask = append(recent(v.RecentTask), t.Self)
	touched(v.Self, "recentTask")
	go t.run(method, func(*Task) (types.AnyType, types.BaseMethodFault) { return nil, fault })
	return t.Self
}

// recent keeps the tasks that still exist, as many as VMware shows.
func recent(tasks []types.ManagedObjectReference) []types.ManagedObjectReference {
	var left []types.ManagedObjectReference
	for _, ref := range tasks {
		if registry().Get(ref) != nil {
			left = append(left, ref)
		}
	}
	if len(left) > 9 {
		left = left[len(left)-9:]
	}
	return left
}

func newTask(entity types.ManagedObjectReference, name, method string) *Task {
	t := &Task{}
	t.Self = ref{Type: "Task", Value: fmt.Sprintf("task-%d", atomic.AddInt64(&tasks, 1))}
	// "CreateSnapshot_Task" is described as "VirtualMachine.createSnapshot".
	id := strings.TrimSuffix(method, "_Task")
	t.Info = types.TaskInfo{
		Key: t.Self.Value, Task: t.Self, Name: method, Entity: &entity, EntityName: name,
		DescriptionId: entity.Type + "." + strings.ToLower(id[:1]) + id[1:],
		State:         types.TaskInfoStateQueued, QueueTime: time.Now(), Cancelable: true,
		Reason: &types.TaskReasonUser{UserName: *user}, EventChainId: int32(tasks),
	}
	registry().Put(t)
	return t
}

var tasks int64

// update changes what clients see of a task.
func (t *Task) update(change func(*types.TaskInfo)) {
	registry().WithLock(t, func() {
		info := t.Info
		change(&info)
		t.Info = info
	})
	if registry().Get(t.Self) != nil {
		touched(t.Self, "info")
	}
}

func (t *Task) run(method string, do work) {
	now := time.Now()
	t.update(func(info *types.TaskInfo) { info.State, info.StartTime = types.TaskInfoStateRunning, &now })
	const steps = 5
	for step := 1; step <= steps; step++ {
		time.Sleep(limits.taskTime(method) / steps)
		if atomic.LoadInt32(&t.cancelled) != 0 {
			t.end(nil, &types.RequestCanceled{}, "The task was canceled by a user.")
			return
		}
		if step < steps {
			t.update(func(info *types.TaskInfo) { info.Progress = int32(100 * step / steps) })
		}
	}
	before := faults.take(method, "task")
	if before != nil && before.Twice {
		if _, fault := do(t); fault != nil {
			t.end(nil, fault, "")
			return
		}
		before = nil
	}
	if before != nil && !before.After {
		t.end(nil, before.fault(), before.Message)
		return
	}
	result, fault := do(t)
	if before != nil {
		t.end(nil, before.fault(), before.Message)
		return
	}
	t.end(result, fault, "")
}

func (t *Task) end(result types.AnyType, fault types.BaseMethodFault, message string) {
	now := time.Now()
	t.update(func(info *types.TaskInfo) {
		info.CompleteTime, info.Result, info.Progress = &now, result, 100
		info.State, info.Cancelable = types.TaskInfoStateSuccess, false
		if fault != nil {
			if message == "" {
				message = "The operation failed: " + reflect.TypeOf(fault).Elem().Name() + "."
			}
			info.State = types.TaskInfoStateError
			info.Error = &types.LocalizedMethodFault{Fault: fault, LocalizedMessage: message}
		}
	})
	// vCenter forgets tasks, too; ten minutes are enough for any test.
	time.AfterFunc(10*time.Minute, func() { registry().Remove(t.Self) })
}

// CancelTask is heard while a task waits or sleeps; what is under way is finished.
func (t *Task) CancelTask(_ *simulator.Context, _ *types.CancelTask) soap.HasFault {
	body := &methods.CancelTaskBody{}
	if t.Info.State != types.TaskInfoStateRunning && t.Info.State != types.TaskInfoStateQueued {
		body.Fault_ = simulator.Fault("The task is not running.", &types.InvalidState{})
		return body
	}
	atomic.StoreInt32(&t.cancelled, 1)
	t.Info.Cancelled = true
	body.Res = &types.CancelTaskResponse{}
	return body
}

// forgetTasks is what a restart of vCenter does to tasks that run on hosts.
func forgetTasks() {
	for _, ref := range taskRefs() {
		registry().Remove(ref)
	}
}

func taskRefs() []types.ManagedObjectReference {
	manager := registry().Get(content().TaskManager.Reference())
	if m, ok := manager.(*simulator.TaskManager); ok {
		return append([]types.ManagedObjectReference{}, m.RecentTask...)
	}
	return nil
}
