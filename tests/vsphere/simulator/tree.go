package main

// Job: the tree of a machine's snapshots.
// Rule: a tree that a client may hold is never changed; each change makes a new one.

import "github.com/vmware/govmomi/vim25/types"

type (
	ref   = types.ManagedObjectReference
	tree  = types.VirtualMachineSnapshotTree
	trees = types.VirtualMachineSnapshotInfo
)

// grown is the tree with one more snapshot below the current one.
func grown(old *trees, item tree) *trees {
	self := item.Snapshot
	fresh := &trees{CurrentSnapshot: &self}
	if old == nil {
		fresh.RootSnapshotList = []tree{item}
		return fresh
	}
	fresh.RootSnapshotList = copied(old.RootSnapshotList)
	at := find(fresh.RootSnapshotList, old.CurrentSnapshot)
	if at == nil {
		fresh.RootSnapshotList = append(fresh.RootSnapshotList, item)
	} else {
		at.ChildSnapshotList = append(at.ChildSnapshotList, item)
	}
	return fresh
}

// pruned is the tree without one snapshot, nil when none is left; children move up unless they go with it.
func pruned(old *trees, which ref, children bool) (*trees, []ref) {
	current := old.CurrentSnapshot
	var gone []ref
	var cut func([]tree, *ref) []tree
	cut = func(list []tree, parent *ref) (left []tree) {
		for _, node := range list {
			if node.Snapshot != which {
				self := node.Snapshot
				node.ChildSnapshotList = cut(node.ChildSnapshotList, &self)
				left = append(left, node)
				continue
			}
			gone = append(gone, node.Snapshot)
			if children {
				gone = append(gone, refs(node.ChildSnapshotList)...)
			} else {
				left = append(left, node.ChildSnapshotList...)
			}
			if current != nil && contains(gone, *current) {
				current = parent
			}
		}
		return left
	}
	roots := cut(copied(old.RootSnapshotList), nil)
	if len(roots) == 0 {
		return nil, gone
	}
	return &trees{CurrentSnapshot: current, RootSnapshotList: roots}, gone
}

func copied(list []tree) []tree {
	var fresh []tree
	for _, node := range list {
		node.ChildSnapshotList = copied(node.ChildSnapshotList)
		fresh = append(fresh, node)
	}
	return fresh
}

func find(list []tree, which *ref) *tree {
	if which == nil {
		return nil
	}
	for i := range list {
		if list[i].Snapshot == *which {
			return &list[i]
		}
		if below := find(list[i].ChildSnapshotList, which); below != nil {
			return below
		}
	}
	return nil
}

// refs lists all snapshots of a tree.
func refs(list []tree) (all []ref) {
	for _, node := range list {
		all = append(all, node.Snapshot)
		all = append(all, refs(node.ChildSnapshotList)...)
	}
	return all
}

func contains(list []ref, which ref) bool {
	for _, one := range list {
		if one == which {
			return true
		}
	}
	return false
}
