package main

// Job: the tree of a machine's snapshots.
// Rule: a tree that a client may hold is never changed; each change makes a new one.

import "github.com/vmware/govmomi/vim25/types"

// grown is the tree with one more snapshot below the current one.
func grown(old *types.VirtualMachineSnapshotInfo, item types.VirtualMachineSnapshotTree) *types.VirtualMachineSnapshotInfo {
	self := item.Snapshot
	fresh := &types.VirtualMachineSnapshotInfo{CurrentSnapshot: &self}
	if old == nil {
		fresh.RootSnapshotList = []types.VirtualMachineSnapshotTree{item}
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
func pruned(old *types.VirtualMachineSnapshotInfo, ref types.ManagedObjectReference, children bool) (
	*types.VirtualMachineSnapshotInfo, []types.ManagedObjectReference,
) {
	current := old.CurrentSnapshot
	var gone []types.ManagedObjectReference
	var cut func([]types.VirtualMachineSnapshotTree, *types.ManagedObjectReference) []types.VirtualMachineSnapshotTree
	cut = func(list []types.VirtualMachineSnapshotTree, parent *types.ManagedObjectReference) (left []types.VirtualMachineSnapshotTree) {
		for _, node := range list {
			if node.Snapshot != ref {
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
	return &types.VirtualMachineSnapshotInfo{CurrentSnapshot: current, RootSnapshotList: roots}, gone
}

func copied(list []types.VirtualMachineSnapshotTree) []types.VirtualMachineSnapshotTree {
	var fresh []types.VirtualMachineSnapshotTree
	for _, node := range list {
		node.ChildSnapshotList = copied(node.ChildSnapshotList)
		fresh = append(fresh, node)
	}
	return fresh
}

func find(list []types.VirtualMachineSnapshotTree, ref *types.ManagedObjectReference) *types.VirtualMachineSnapshotTree {
	if ref == nil {
		return nil
	}
	for i := range list {
		if list[i].Snapshot == *ref {
			return &list[i]
		}
		if below := find(list[i].ChildSnapshotList, ref); below != nil {
			return below
		}
	}
	return nil
}

// refs lists all snapshots of a tree.
func refs(list []types.VirtualMachineSnapshotTree) (all []types.ManagedObjectReference) {
	for _, node := range list {
		all = append(all, node.Snapshot)
		all = append(all, refs(node.ChildSnapshotList)...)
	}
	return all
}

func contains(list []types.ManagedObjectReference, ref types.ManagedObjectReference) bool {
	for _, one := range list {
		if one == ref {
			return true
		}
	}
	return false
}
