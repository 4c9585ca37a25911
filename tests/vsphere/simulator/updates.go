package main

// Job: the property collector's second way to read: waiting for updates of filters.
// Rule: an update names only what changed, and a version is refused when it is not the last one.

import (
	"fmt"
	"strings"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// WaitForUpdatesEx answers at once with what is new, else when something is, else with nothing at its
// deadline.
func (c *Collector) WaitForUpdatesEx(ctx *simulator.Context, r *types.WaitForUpdatesEx) soap.HasFault {
	body := &methods.WaitForUpdatesExBody{}
	options := types.WaitOptions{}
	if r.Options != nil {
		options = *r.Options
	}
	patience := 10 * time.Minute
	if options.MaxWaitSeconds != nil {
		patience = time.Duration(*options.MaxWaitSeconds) * time.Second
	}
	deadline := time.NewTimer(patience)
	defer deadline.Stop()

	c.mu.Lock()
	cancel := make(chan struct{})
	c.cancel = cancel
	isFirst := r.Version == ""
	if !isFirst && r.Version != fmt.Sprint(c.version) {
		c.mu.Unlock()
		body.Fault_ = simulator.Fault("", &types.InvalidCollectorVersion{})
		return body
	}
	if isFirst {
		c.known, c.queue, c.next = map[ref]map[ref]bool{}, nil, 0
	}
	c.mu.Unlock()

	for {
		set, wait := c.news(ctx, options.MaxObjectUpdates)
		if set != nil {
			body.Res = &types.WaitForUpdatesExResponse{Returnval: set}
			return body
		}
		select {
		case <-wait:
			// What changes together is told together.
			time.Sleep(20 * time.Millisecond)
		case <-deadline.C:
			body.Res = &types.WaitForUpdatesExResponse{}
			return body
		case <-cancel:
			body.Fault_ = simulator.Fault("", &types.RequestCanceled{})
			return body
		case <-stopping():
			body.Fault_ = simulator.Fault("", &types.RequestCanceled{})
			return body
		}
	}
}

// WaitForUpdates is the older form.
func (c *Collector) WaitForUpdates(ctx *simulator.Context, r *types.WaitForUpdates) soap.HasFault {
	res := c.WaitForUpdatesEx(ctx, &types.WaitForUpdatesEx{This: r.This, Version: r.Version})
	body := &methods.WaitForUpdatesBody{}
	if fault := res.Fault(); fault != nil {
		body.Fault_ = fault
		return body
	}
	body.Res = &types.WaitForUpdatesResponse{}
	if ex, ok := res.(*methods.WaitForUpdatesExBody); ok && ex.Res.Returnval != nil {
		body.Res.Returnval = *ex.Res.Returnval
	}
	return body
}

// news collects what the client does not know. Nil: nothing.
func (c *Collector) news(ctx *simulator.Context, asked int32) (*types.UpdateSet, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	list, next, whole, wait := changes.since(c.next)
	if len(c.queue) == 0 {
		names, members := merged(list)
		for _, filter := range c.Filter {
			f, ok := ctx.Session.Get(filter).(*simulator.PropertyFilter)
			if !ok {
				continue
			}
			fresh := c.known[filter] == nil
			if fresh {
				c.known[filter] = map[ref]bool{}
			}
			update := types.PropertyFilterUpdate{Filter: filter}
			if fresh || members || !whole {
				update.ObjectSet = c.membership(ctx, f, c.known[filter], !whole)
			}
			if whole {
				more := c.modified(ctx, f, c.known[filter], names, update.ObjectSet)
				update.ObjectSet = append(update.ObjectSet, more...)
			}
			if len(update.ObjectSet) > 0 {
				c.queue = append(c.queue, update)
			}
		}
		c.next = next
	}
	if len(c.queue) == 0 {
		return nil, wait
	}
	set := &types.UpdateSet{}
	set.FilterSet, c.queue = first(c.queue, atMost(asked))
	c.version++
	set.Version = fmt.Sprint(c.version)
	set.Truncated = types.NewBool(len(c.queue) > 0)
	return set, wait
}

// merged puts the changes of one object together, and says whether objects came, went, or may have moved in a
// view.
func merged(list []change) (map[ref][]string, bool) {
	names, members := map[ref][]string{}, false
	for _, one := range list {
		members = members || one.member
		for _, name := range one.names {
			switch name {
			case "view", "childEntity", "vm", "host", "datastore", "network", "recentTask":
				members = true
			}
		}
		names[one.ref] = append(names[one.ref], one.names...)
	}
	return names, members
}

// read collects without failing for objects that are gone.
func (c *Collector) read(ctx *simulator.Context, spec types.PropertyFilterSpec) []types.ObjectContent {
	spec.ReportMissingObjectsInResults = types.NewBool(true)
	res := c.PropertyCollector.RetrievePropertiesEx(ctx, &types.RetrievePropertiesEx{
		This: c.Self, SpecSet: []types.PropertyFilterSpec{spec},
	})
	body, ok := res.(*methods.RetrievePropertiesExBody)
	if !ok || body.Res == nil || body.Res.Returnval == nil {
		return nil
	}
	return body.Res.Returnval.Objects
}

// membership tells of objects that came, with all that was asked for, and of those that went.
func (c *Collector) membership(
	ctx *simulator.Context, f *simulator.PropertyFilter, known map[ref]bool, all bool,
) (out []types.ObjectUpdate) {
	bare := f.Spec
	bare.PropSet = nil
	for _, set := range f.Spec.PropSet {
		bare.PropSet = append(bare.PropSet, types.PropertySpec{Type: set.Type})
	}
	here := map[ref]bool{}
	var fresh []types.ObjectSpec
	for _, object := range c.read(ctx, bare) {
		here[object.Obj] = true
		if !known[object.Obj] || all {
			fresh = append(fresh, types.ObjectSpec{Obj: object.Obj})
		}
	}
	for gone := range known {
		if !here[gone] {
			delete(known, gone)
			out = append(out, types.ObjectUpdate{Kind: types.ObjectUpdateKindLeave, Obj: gone})
		}
	}
	if len(fresh) == 0 {
		return out
	}
	for _, object := range c.read(ctx, types.PropertyFilterSpec{PropSet: f.Spec.PropSet, ObjectSet: fresh}) {
		kind := types.ObjectUpdateKindEnter
		if known[object.Obj] {
			kind = types.ObjectUpdateKindModify
		}
		known[object.Obj] = true
		out = append(out, updated(kind, object, nil))
	}
	return out
}

// modified tells of properties that changed in objects that the client knows.
func (c *Collector) modified(
	ctx *simulator.Context, f *simulator.PropertyFilter, known map[ref]bool, names map[ref][]string,
	told []types.ObjectUpdate,
) (out []types.ObjectUpdate) {
	var asked []types.ObjectSpec
	just := map[ref]bool{}
	for _, update := range told {
		just[update.Obj] = true
	}
	for object, list := range names {
		if known[object] && !just[object] && len(list) > 0 {
			asked = append(asked, types.ObjectSpec{Obj: object})
		}
	}
	if len(asked) == 0 {
		return nil
	}
	for _, object := range c.read(ctx, types.PropertyFilterSpec{PropSet: f.Spec.PropSet, ObjectSet: asked}) {
		update := updated(types.ObjectUpdateKindModify, object, names[object.Obj])
		// A property that is unset now is none of those that were read, and is told as one without a value.
		for _, set := range f.Spec.PropSet {
			for _, path := range set.PathSet {
				asked := set.Type == object.Obj.Type && touches(path, names[object.Obj])
				if asked && !has(update.ChangeSet, path) {
					update.ChangeSet = append(update.ChangeSet, types.PropertyChange{
						Op: types.PropertyChangeOpAssign, Name: path,
					})
				}
			}
		}
		if len(update.ChangeSet) > 0 {
			out = append(out, update)
		}
	}
	return out
}

// updated makes an update of an object's properties: of all, or of those that overlap names.
func updated(kind types.ObjectUpdateKind, object types.ObjectContent, names []string) types.ObjectUpdate {
	update := types.ObjectUpdate{Kind: kind, Obj: object.Obj, MissingSet: object.MissingSet}
	for _, property := range object.PropSet {
		if names == nil || touches(property.Name, names) {
			update.ChangeSet = append(update.ChangeSet, types.PropertyChange{
				Op: types.PropertyChangeOpAssign, Name: property.Name, Val: property.Val,
			})
		}
	}
	return update
}

func has(list []types.PropertyChange, name string) bool {
	for _, one := range list {
		if one.Name == name {
			return true
		}
	}
	return false
}

// touches says whether a path is, holds or lies in one of the names.
func touches(path string, names []string) bool {
	for _, name := range names {
		if path == name || strings.HasPrefix(path, name+".") || strings.HasPrefix(name, path+".") {
			return true
		}
	}
	return false
}

// first cuts a list of updates after so many objects.
func first(queue []types.PropertyFilterUpdate, most int) (head, rest []types.PropertyFilterUpdate) {
	for i, update := range queue {
		if most == 0 {
			return head, append(rest, queue[i:]...)
		}
		if len(update.ObjectSet) > most {
			left := update
			left.ObjectSet = update.ObjectSet[most:]
			update.ObjectSet = update.ObjectSet[:most]
			return append(head, update), append(append(rest, left), queue[i+1:]...)
		}
		most -= len(update.ObjectSet)
		head = append(head, update)
	}
	return head, rest
}
