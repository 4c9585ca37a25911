"""What goes wrong, for check.py.

Job: each fault and each disturbance of the rig, as pyvmomi sees it.
Rule: a step leaves the rig as it found it, and says by an assertion what it expected.
"""

import pathlib
import time

import nbd
from client import WaitForTask, connect, raises, vim, vmodl
from rig import until
from server import clock, expiry, lost_answer, orders, restart, strictness, unavailable
from services import autostart, cluster, host_doors, privileges, tags, updates


def all_of_them(rig, client, vm, plain):
    """Runs all steps, and says how long each took."""
    for step in (
        listing,
        login,
        queries,
        tracking,
        tasks,
        disks,
        guest_and_power,
        updates,
        privileges,
        autostart,
        cluster,
        tags,
        host_doors,
        stand_in,
        stand_in_limits,
        strictness,
        orders,
        lost_answer,
        unavailable,
        clock,
        expiry,
        restart,
        nothing_left,
    ):
        began = time.monotonic()
        step(rig, client, vm, plain)
        print(f"{step.__name__:<16} {time.monotonic() - began:5.2f} s")


def listing(rig, client, vm, plain):
    paths = [
        "name",
        "runtime.powerState",
        "runtime.host",
        "config.uuid",
        "config.instanceUuid",
        "summary.config",
        "snapshot",
        "config.changeTrackingEnabled",
        "guest.toolsRunningStatus",
    ]
    began = time.monotonic()
    found = client.list(paths)
    took = time.monotonic() - began
    assert len(found) == plain + 1, len(found)
    assert len({values["config.uuid"] for _, values in found}) == plain + 1
    print(f"{len(found)} machines with {len(paths)} properties each listed in {took:.2f} s (pyvmomi)")


def login(rig, client, vm, plain):
    raises(vim.fault.InvalidLogin, lambda: connect(rig, password="wrong"))
    raises(vim.fault.InvalidLogin, lambda: connect(rig, user="administrator"))


def queries(rig, client, vm, plain):
    snapshot = client.snapshot(vm, "queries")
    disk = client.disks(snapshot)[0]

    def query(**other):
        asked = {
            "snapshot": snapshot,
            "deviceKey": disk.key,
            "startOffset": 0,
            "changeId": disk.backing.changeId,
            **other,
        }
        return vm.QueryChangedDiskAreas(**asked)

    assert not query().changedArea
    raises(vmodl.fault.InvalidArgument, lambda: query(deviceKey=9), invalidProperty="deviceKey")
    raises(
        vmodl.fault.InvalidArgument,
        lambda: query(startOffset=disk.capacityInBytes),
        invalidProperty="startOffset",
    )
    raises(vmodl.fault.InvalidArgument, lambda: query(changeId="nonsense"), invalidProperty="changeId")
    raises(
        vim.fault.FileFault, lambda: vm.QueryChangedDiskAreas(deviceKey=disk.key, startOffset=0, changeId="*")
    )
    rig.order("fail", method="QueryChangedDiskAreas", fault="FileFault", times=2, skip=1)
    query()
    raises(vim.fault.FileFault, query)
    raises(vim.fault.FileFault, query)
    query()
    rig.order("tracking", machine="web", do="reset")
    raises(vim.fault.FileFault, query)
    client.remove(snapshot)
    raises(vmodl.fault.ManagedObjectNotFound, lambda: query(snapshot=snapshot))


def tracking(rig, client, vm, plain):
    """A reset shows in the first part of the ids; tracking ends and begins at a stun."""
    before = client.snapshot(vm, "before")
    old = client.disks(before)[0].backing.changeId
    client.remove(before)
    rig.order("tracking", machine="web", do="reset")
    after = client.snapshot(vm, "after")
    new = client.disks(after)[0].backing.changeId
    assert old.split("/")[0] != new.split("/")[0], (old, new)
    assert client.disks(vm)[0].backing.fileName != client.disks(after)[0].backing.fileName
    assert client.disks(vm)[0].backing.parent.fileName == client.disks(after)[0].backing.fileName
    assert client.disks(vm)[0].backing.uuid == client.disks(after)[0].backing.uuid
    client.remove(after)
    WaitForTask(vm.ReconfigVM_Task(vim.vm.ConfigSpec(changeTrackingEnabled=False)))
    rig.order("move", machine="web", host="DC0_C0_H1")
    bare = client.snapshot(vm, "bare")
    assert not client.disks(bare)[0].backing.changeId
    client.remove(bare)
    rig.order("move", machine="web", host="DC0_C0_H0")
    client.switch_tracking_on(vm)


def tasks(rig, client, vm, plain):
    snap = lambda: vm.CreateSnapshot_Task("x", "", False, True)  # noqa: E731
    rig.order(
        "fail",
        method="CreateSnapshot_Task",
        fault="ApplicationQuiesceFault",
        message="the guest cannot be quiesced",
    )
    task = snap()
    raises(vim.fault.ApplicationQuiesceFault, lambda: WaitForTask(task))
    assert task.info.error.msg == "the guest cannot be quiesced" and vm.snapshot is None
    rig.order("fail", method="CreateSnapshot_Task", fault="FileFault", after=True)
    raises(vim.fault.FileFault, lambda: WaitForTask(snap()))
    assert vm.snapshot is not None, "it should have been made, and have failed then"
    left = vm.snapshot.rootSnapshotList[0].snapshot
    rig.order("limits", task_times={"RemoveSnapshot_Task": 1.0})
    removal = left.RemoveSnapshot_Task(False)
    assert removal._moId in [one._moId for one in vm.recentTask]
    raises(vim.fault.TaskInProgress, lambda: WaitForTask(snap()))
    WaitForTask(removal)
    rig.order("limits", task_times={"RemoveSnapshot_Task": 0.05, "CreateSnapshot_Task": 1.0})
    task = snap()
    until("the task runs", lambda: task.info.state == "running")
    task.CancelTask()
    raises(vmodl.fault.RequestCanceled, lambda: WaitForTask(task))
    rig.order("limits", task_times={"CreateSnapshot_Task": 0.05})
    foreign = rig.order("snapshot", machine="web", name="Backup")["snapshot"]
    assert vm.snapshot.currentSnapshot._moId == foreign
    own = client.snapshot(vm, "on top")
    assert len(rig.machine("web")["snapshots"]) == 2
    rig.order("remove", machine="web", snapshot=foreign)
    assert [one.name for one in vm.snapshot.rootSnapshotList] == ["on top"]
    client.remove(own)
    rig.order("consolidation", machine="web", on=True)
    assert vm.runtime.consolidationNeeded
    WaitForTask(vm.ConsolidateVMDisks_Task())
    assert not vm.runtime.consolidationNeeded


def disks(rig, client, vm, plain):
    extra = str(pathlib.Path(rig.folder, "extra.raw"))
    key = rig.order(
        "disk", machine="web", do="add", spec={"file": extra, "size": 8 << 20, "controller": "sata"}
    )["disk"]
    find = lambda of: next((disk for disk in client.disks(of) if disk.key == key), None)  # noqa: E731
    assert find(vm).capacityInBytes == 8 << 20
    uuid = find(vm).backing.uuid
    rig.order("disk", machine="web", disk=key, do="independent")
    assert find(vm).backing.diskMode == "independent_persistent" and find(vm).backing.uuid == uuid
    snapshot = client.snapshot(vm, "without the independent one")
    assert find(snapshot) is None
    client.remove(snapshot)
    rig.order("disk", machine="web", disk=key, do="shared")
    assert find(vm).backing.sharing == "sharingMultiWriter"
    rig.order("disk", machine="web", disk=key, do="rdm")
    assert find(vm).backing.compatibilityMode == "physicalMode"
    rig.order("disk", machine="web", disk=key, do="plain")
    rig.order("disk", machine="web", disk=key, do="grow", size=12 << 20)
    assert find(vm).capacityInBytes == 12 << 20 and find(vm).backing.uuid == uuid
    other = str(pathlib.Path(rig.folder, "other.raw"))
    rig.order("disk", machine="web", disk=key, do="replace", spec={"file": other, "size": 4 << 20})
    assert find(vm).backing.uuid != uuid and find(vm).capacityInBytes == 4 << 20
    rig.order("disk", machine="web", disk=key, do="remove")
    assert find(vm) is None


def guest_and_power(rig, client, vm, plain):
    rig.order("guest", machine="web", do="ignores_shutdown", on=True)
    vm.ShutdownGuest()
    time.sleep(0.3)
    assert vm.runtime.powerState == "poweredOn"
    WaitForTask(vm.PowerOffVM_Task())
    raises(vim.fault.InvalidPowerState, lambda: WaitForTask(vm.PowerOffVM_Task()))
    raises(vim.fault.InvalidPowerState, vm.ShutdownGuest)
    snapshot = client.snapshot(vm, "while it is off")
    client.remove(snapshot)
    WaitForTask(vm.PowerOnVM_Task())
    rig.order("guest", machine="web", do="ignores_shutdown", on=False)
    vm.ShutdownGuest()
    until("the guest is off", lambda: vm.runtime.powerState == "poweredOff")
    rig.order("power", machine="web", do="on")
    rig.order("guest", machine="web", do="no_tools", on=True)
    raises(vim.fault.ToolsUnavailable, vm.ShutdownGuest)
    rig.order("guest", machine="web", do="no_tools", on=False)


def stand_in(rig, client, vm, plain):
    snapshot = client.snapshot(vm, "stand-in")
    file = client.disks(snapshot)[0].backing.fileName
    running = client.disks(vm)[0].backing.fileName

    def refused(words, *where, **other):
        try:
            with rig.serve(vm._moId, *where, **other):
                pass
        except nbd.Refused as error:
            assert words in str(error), error
            return
        raise AssertionError(f"served, without {words}")

    refused("incorrect user name or password", snapshot._moId, file, password="wrong")
    refused("incorrect user name or password", snapshot._moId, file, user="administrator")
    refused("One of the parameters was invalid", snapshot._moId, file, thumbprint="AA:" * 19 + "AA")
    refused("A file was not found", snapshot._moId, "[LocalDS_0] web/none.vmdk")
    refused("A file was not found", "snapshot-9999", file)
    refused("You do not have access rights to this file", None, running)
    client.remove(snapshot)
    WaitForTask(vm.PowerOffVM_Task())
    with rig.serve(vm._moId, None, client.disks(vm)[0].backing.fileName) as disk:
        assert (
            disk.read(0, 1 << 20)
            == pathlib.Path(rig.machine("web")["disks"][0]["file"]).read_bytes()[: 1 << 20]
        )
    WaitForTask(vm.PowerOnVM_Task())


def stand_in_limits(rig, client, vm, plain):
    snapshot = client.snapshot(vm, "limits")
    one, two = (disk.backing.fileName for disk in client.disks(snapshot))
    where = (vm._moId, snapshot._moId)
    with rig.stand_in(connections=1):
        with rig.serve(*where, one):
            error = raises(nbd.Refused, lambda: rig.serve(*where, two).__enter__())
            assert "The server refused connection" in str(error), error
        with rig.serve(*where, two):
            pass
    with rig.stand_in(bad_sector=4096), rig.serve(*where, one) as disk:
        disk.read(0, 1 << 20)
        raises(OSError, lambda: disk.read(2 << 20, 512))
    with rig.stand_in(latency_ms=150), rig.serve(*where, one) as disk:
        began = time.monotonic()
        disk.read(0, 4096)
        assert time.monotonic() - began >= 0.15
    client.remove(snapshot)


def nothing_left(rig, client, vm, plain):
    one = rig.machine("web")
    assert one["snapshots"] == [] and one["most_snapshots"] == 2, one
    assert not [
        path for path in pathlib.Path(rig.place["exports"]).iterdir() if path.name.startswith("snapshot-")
    ]
    assert rig.order("clear")["left"] == 0, "an ordered failure never came"
