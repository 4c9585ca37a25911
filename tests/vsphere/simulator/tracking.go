package main

// Job: changed-block tracking of a machine: when it starts and stops, change ids, what a disk held at each.
// Rule: as with the real one, a change of the setting takes effect at a stun only, and tracking that is
// switched on while snapshots exist loses changes without a word.

import (
	"fmt"
	"strings"

	"github.com/google/uuid"
)

// tracking is what is known of one disk.
type tracking struct {
	epoch string          // a changeId's first part; empty: not tracked
	count int             // its last part, so far
	marks map[string]mark // what the disk held at each changeId
	lossy bool            // answers lack an area
}

// restart forgets everything: as after a power failure, or after tracking was off and on.
func (t *tracking) restart() {
	id := uuid.New()
	hex := make([]string, len(id))
	for i, b := range id {
		hex[i] = fmt.Sprintf("%02x", b)
	}
	*t = tracking{
		epoch: strings.Join(hex[:8], " ") + "-" + strings.Join(hex[8:], " "),
		marks: map[string]mark{},
	}
}

// note gives the present moment an id. Empty for a disk that is not tracked.
func (t *tracking) note(held mark) string {
	if t.epoch == "" {
		return ""
	}
	t.count++
	id := fmt.Sprintf("%s/%d", t.epoch, t.count)
	t.marks[id] = held
	return id
}

// current is the id that the running disk shows: that of the last moment that has one.
func (t *tracking) current() string {
	if t.epoch == "" || t.count == 0 {
		return ""
	}
	return fmt.Sprintf("%s/%d", t.epoch, t.count)
}

// stun is the moment at which the tracking's setting takes effect: power-on, snapshot made or removed,
// vMotion. The machine's lock is held.
func (v *VM) stun() {
	v.stuns++
	want := v.Config.ChangeTrackingEnabled != nil && *v.Config.ChangeTrackingEnabled
	if want == v.tracked {
		return
	}
	v.tracked = want
	snapshots := v.VirtualMachine.Snapshot != nil
	for _, d := range v.disks {
		if !want || !d.inSnapshots() {
			d.tracking = tracking{}
			continue
		}
		d.tracking.restart()
		d.tracking.lossy = snapshots
	}
}
