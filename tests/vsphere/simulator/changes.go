package main

// Job: the journal of what changed in the inventory, for those who wait for updates.
// Rule: a reader that fell behind the journal's length gets an error, and reads everything again.

import (
	"sync"

	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

const kept = 200_000

// change is one object's: which properties, or that it came or went.
type change struct {
	ref    types.ManagedObjectReference
	names  []string
	member bool // it came, or went
}

// journal hears of every change: from the library as a handler of its registry, from us by touched.
type journal struct {
	mu      sync.Mutex
	first   int64 // the number of log[0]
	log     []change
	arrived chan struct{} // closed at the next change
}

var changes = &journal{first: 1, arrived: make(chan struct{})}

func touched(ref types.ManagedObjectReference, names ...string) {
	changes.note(change{ref: ref, names: names})
}

func (j *journal) note(c change) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.log = append(j.log, c)
	if len(j.log) > 2*kept {
		j.first += int64(len(j.log) - kept)
		j.log = append([]change{}, j.log[len(j.log)-kept:]...)
	}
	close(j.arrived)
	j.arrived = make(chan struct{})
}

// now is the number that the next change will have.
func (j *journal) now() int64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.first + int64(len(j.log))
}

// since gives the changes from a number on, the next number, and what to wait for when there are none.
func (j *journal) since(number int64) (list []change, next int64, whole bool, wait <-chan struct{}) {
	j.mu.Lock()
	defer j.mu.Unlock()
	next = j.first + int64(len(j.log))
	if number < j.first {
		return nil, next, false, j.arrived
	}
	return j.log[number-j.first:], next, true, j.arrived
}

// Reference makes it a handler of the registry.
func (*journal) Reference() types.ManagedObjectReference {
	return types.ManagedObjectReference{Type: "Journal", Value: "journal"}
}

// PutObject is called when an object came.
func (j *journal) PutObject(o mo.Reference) { j.note(change{ref: o.Reference(), member: true}) }

// RemoveObject is called when an object went.
func (j *journal) RemoveObject(ref types.ManagedObjectReference) {
	j.note(change{ref: ref, member: true})
}

// UpdateObject is called when the library itself changed an object.
func (j *journal) UpdateObject(o mo.Reference, list []types.PropertyChange) {
	c := change{ref: o.Reference()}
	for _, one := range list {
		c.names = append(c.names, one.Name)
	}
	j.note(c)
}
