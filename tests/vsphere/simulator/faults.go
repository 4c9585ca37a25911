package main

// Job: failures on demand: a method's fault so many times, before or after it took effect, or no answer at
// all.
// Rule: a fault is one that VMware has; a name that is none is refused when it is asked for.

import (
	"encoding/json"
	"fmt"
	"reflect"
	"sync"

	"github.com/vmware/govmomi/vim25/types"
)

// failure is what a test orders.
type failure struct {
	Method  string          `json:"method"`
	Fault   string          `json:"fault"`   // a type's name: FileFault, TaskInProgress, …
	Fields  json.RawMessage `json:"fields"`  // its fields, by the names that Go gives them
	Message string          `json:"message"` // the fault's text
	Times   int             `json:"times"`   // how often; 0 is once
	Skip    int             `json:"skip"`    // so many calls are served before
	At      string          `json:"at"`      // "call" (as an answer) or "task" (as the task's end)
	After   bool            `json:"after"`   // the method takes effect, and fails then
	Drop    bool            `json:"drop"`    // at a call: no answer, the connection is closed
	Twice   bool            `json:"twice"`   // the task does it twice, and answers the second
}

type failures struct {
	mu   sync.Mutex
	list []*failure
}

var faults failures

var typeByName = types.TypeFunc()

// order checks a failure and keeps it.
func (f *failures) order(one failure) error {
	if one.Method == "" {
		return fmt.Errorf("method is missing")
	}
	if one.At == "" {
		one.At = "call"
		if len(one.Method) > 5 && one.Method[len(one.Method)-5:] == "_Task" && !one.Drop {
			one.At = "task"
		}
	}
	if one.Twice && (one.At != "task" || one.Fault != "") {
		return fmt.Errorf("only a task is done twice, and it does not fail")
	}
	if one.At != "call" && one.At != "task" {
		return fmt.Errorf("at is %q: call or task", one.At)
	}
	if one.Drop && one.At != "call" {
		return fmt.Errorf("only the answer to a call can be dropped")
	}
	if !one.Drop && !one.Twice && one.fault() == nil {
		return fmt.Errorf("%q is not the name of a fault, or its fields are wrong", one.Fault)
	}
	if one.Times <= 0 {
		one.Times = 1
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.list = append(f.list, &one)
	return nil
}

// take gives the failure that is due, and counts it.
func (f *failures) take(method, at string) *failure {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, one := range f.list {
		if one.Method != method || one.At != at {
			continue
		}
		if one.Skip > 0 {
			one.Skip--
			continue
		}
		one.Times--
		if one.Times <= 0 {
			f.list = append(f.list[:i:i], f.list[i+1:]...)
		}
		due := *one
		return &due
	}
	return nil
}

// clear forgets what is ordered, and says how many were left.
func (f *failures) clear() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	left := len(f.list)
	f.list = nil
	return left
}

func (one *failure) fault() types.BaseMethodFault {
	kind, ok := typeByName(one.Fault)
	if !ok {
		return nil
	}
	value := reflect.New(kind).Interface()
	fault, ok := value.(types.BaseMethodFault)
	if !ok {
		return nil
	}
	if len(one.Fields) > 0 && json.Unmarshal(one.Fields, value) != nil {
		return nil
	}
	return fault
}
