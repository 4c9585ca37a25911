"""What goes wrong, for check.py.

Job: each fault and each disturbance of the rig, as pyvmomi sees it.
Rule: a step leaves the rig as it found it, and says by an assertion what it expected.
"""

import http.client
import pathlib
import time

import nbd
from client import WaitForTask, connect, vim, vmodl
from rig import until


def raises(kind, call, **fields):
    """A call must fail in one way only."""
    try:
        call()
    except kind as error:
        for name, value in fields.items():
            assert getattr(error, name) == value, (name, getattr(error, name), value)
        return error
    raise AssertionError(f"no {kind.__name__}")


def all_of_them(rig, client, vm, plain):
    """Runs all steps, and says how long each took."""
    for step in (
        listing, login, queries, tracking, tasks, disks, guest_and_power, updates, privileges, autostart, cluster,
        stand_in, strictness, unavailable, expiry, restart, nothing_left,
    ):
        began = time.monotonic()
        step(rig, client, vm, plain)
        print(f"{step.__name__:<16} {time.monotonic() - began:5.2f} s")


def listing(rig, client, vm, plain):
    paths = ["name", "runtime.powerState", "runtime.host", "config.uuid", "config.instanceUuid", "summary.config",
             "snapshot", "config.changeTrackingEnabled", "guest.toolsRunningStatus"]
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
        asked = {"snapshot": snapshot, "deviceKey": disk.key, "startOffset": 0, "changeId": disk.backing.changeId, **other}
        return vm.QueryChangedDiskAreas(**asked)

    assert not query().changedArea
    raises(vmodl.fault.InvalidArgument, lambda: query(deviceKey=9), invalidProperty="deviceKey")
    raises(vmodl.fault.InvalidArgument, lambda: query(startOffset=disk.capacityInBytes), invalidProperty="startOffset")
    raises(vmodl.fault.InvalidArgument, lambda: query(changeId="nonsense"), invalidProperty="changeId")
    raises(vim.fault.FileFault, lambda: vm.QueryChangedDiskAreas(deviceKey=disk.key, startOffset=0, changeId="*"))
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
    """A reset shows in the first part of the ids, and a snapshot that is there when tracking begins makes it lossy."""
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
    rig.order("fail", method="CreateSnapshot_Task", fault="ApplicationQuiesceFault", message="the guest cannot be quiesced")
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
    key = rig.order("disk", machine="web", do="add", spec={"file": extra, "size": 8 << 20, "controller": "sata"})["disk"]
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


def updates(rig, client, vm, plain):
    collector = vmodl.query.PropertyCollector
    own = client.content.propertyCollector.CreatePropertyCollector()
    view = client.content.viewManager.CreateContainerView(client.content.rootFolder, [vim.VirtualMachine], True)
    own.CreateFilter(
        collector.FilterSpec(
            propSet=[collector.PropertySpec(type=vim.VirtualMachine, pathSet=["name", "runtime.host", "snapshot"])],
            objectSet=[
                collector.ObjectSpec(
                    obj=view,
                    skip=True,
                    selectSet=[collector.TraversalSpec(name="view", path="view", type=type(view), skip=False)],
                )
            ],
        ),
        False,
    )
    options = lambda seconds: collector.WaitOptions(maxWaitSeconds=seconds, maxObjectUpdates=900)  # noqa: E731
    version, known = "", 0
    while True:
        news = own.WaitForUpdatesEx(version, options(5))
        version = news.version
        known += sum(len(part.objectSet) for part in news.filterSet)
        if not news.truncated:
            break
    assert known == plain + 1, known
    assert own.WaitForUpdatesEx(version, options(0)) is None

    def heard():
        nonlocal version
        news = own.WaitForUpdatesEx(version, options(5))
        assert news is not None, "no update came"
        version = news.version
        changes = {}
        for update in (one for part in news.filterSet for one in part.objectSet):
            assert update.obj._moId == vm._moId, update
            changes.update({change.name: change.val for change in update.changeSet})
        return changes

    rig.order("rename", machine="web", name="web-2")
    assert heard() == {"name": "web-2"}
    rig.order("rename", machine="web-2", name="web")
    heard()
    rig.order("move", machine="web", host="DC0_C0_H2")
    assert heard()["runtime.host"].name == "DC0_C0_H2"
    snapshot = client.snapshot(vm, "heard of")
    assert heard()["snapshot"].rootSnapshotList[0].name == "heard of"
    client.remove(snapshot)
    assert heard() == {"snapshot": None}
    raises(vmodl.query.InvalidCollectorVersion, lambda: own.WaitForUpdatesEx("77", options(0)))
    own.Destroy()
    view.Destroy()


def privileges(rig, client, vm, plain):
    session = client.content.sessionManager.currentSession.key
    wanted = ["VirtualMachine.State.CreateSnapshot", "VirtualMachine.Provisioning.DiskRandomRead"]
    ask = lambda: {  # noqa: E731
        one.privId: one.isGranted
        for one in client.content.authorizationManager.HasPrivilegeOnEntities([vm], session, wanted)[0].privAvailability
    }
    assert ask() == dict.fromkeys(wanted, True)
    rig.order("deny", privilege=wanted[0], object=vm._moId, on=True)
    assert ask() == {wanted[0]: False, wanted[1]: True}
    raises(vim.fault.NoPermission, lambda: vm.CreateSnapshot_Task("x", "", False, False), privilegeId=wanted[0])
    rig.order("deny", privilege=wanted[0], object=vm._moId, on=False)
    assert ask() == dict.fromkeys(wanted, True)


def autostart(rig, client, vm, plain):
    host = vm.runtime.host
    manager = host.configManager.autoStartManager
    settings = vim.host.AutoStartManager
    info = settings.AutoPowerInfo(
        key=vm, startOrder=1, startDelay=-1, waitForHeartbeat="systemDefault", startAction="powerOn", stopDelay=-1,
        stopAction="systemDefault",
    )
    manager.ReconfigureAutostart(settings.Config(defaults=settings.SystemDefaults(enabled=True), powerInfo=[info]))
    assert [one.key._moId for one in manager.config.powerInfo] == [vm._moId]
    rig.order("reboot", host=host.name)
    assert vm.runtime.powerState == "poweredOn"
    info.startAction = "none"
    manager.ReconfigureAutostart(settings.Config(powerInfo=[info]))
    rig.order("reboot", host=host.name)
    assert vm.runtime.powerState == "poweredOff"
    rig.order("power", machine="web", do="on")


def cluster(rig, client, vm, plain):
    own = vm.runtime.host.parent
    assert own.configurationEx.dasConfig.enabled and not own.configurationEx.drsConfig.enabled
    rig.order("cluster", ha=False, drs=True)
    assert not own.configurationEx.dasConfig.enabled and own.configurationEx.drsConfig.enabled


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
        assert disk.read(0, 1 << 20) == pathlib.Path(rig.machine("web")["disks"][0]["file"]).read_bytes()[: 1 << 20]
    WaitForTask(vm.PowerOnVM_Task())


def strictness(rig, client, vm, plain):
    assert rig.state()["refused"] == [], "pyvmomi's requests were taken for wrong ones"
    refused = len(rig.state()["refused"])
    moref = '<_this type="ServiceInstance">ServiceInstance</_this>'
    for body in (
        f'<CurrentTime xmlns="urn:vim25">{moref}<more/></CurrentTime>',
        '<CurrentTime xmlns="urn:vim25"></CurrentTime>',
        '<Login xmlns="urn:vim25"><_this type="SessionManager">SessionManager</_this>'
        "<password>a</password><userName>b</userName></Login>",
    ):
        refused += 1
        assert raw(rig, body) == 500, body
        assert len(rig.state()["refused"]) == refused, body
    assert raw(rig, f'<CurrentTime xmlns="urn:vim25">{moref}</CurrentTime>') == 500  # no session
    assert len(rig.state()["refused"]) == refused


def raw(rig, body):
    """Sends a request of our own, and gives the answer's status."""
    import ssl

    host, port = rig.place["address"].split(":")
    trust = ssl.create_default_context(cafile=rig.place["certificate"])
    connection = http.client.HTTPSConnection(host, int(port), context=trust, timeout=20)
    envelope = (
        '<soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/" '
        f'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><soapenv:Body>{body}</soapenv:Body></soapenv:Envelope>'
    )
    connection.request("POST", "/sdk", envelope, {"Content-Type": "text/xml"})
    status = connection.getresponse().status
    connection.close()
    return status


def unavailable(rig, client, vm, plain):
    rig.order("unavailable", seconds=0.5)
    raises(Exception, client.instance.CurrentTime)
    time.sleep(0.6)
    client.instance.CurrentTime()


def expiry(rig, client, vm, plain):
    assert rig.order("expire")["ended"] >= 1
    raises(vim.fault.NotAuthenticated, client.instance.CurrentTime)
    client.login()
    client.instance.CurrentTime()


def restart(rig, client, vm, plain):
    """A restart in mid-task: the task is forgotten, what it does is done."""
    vm = client.machine("web")
    rig.order("limits", task_times={"CreateSnapshot_Task": 1.0})
    task = vm.CreateSnapshot_Task("through a restart", "", False, False)
    rig.order("restart", seconds=0.3)
    client.login()
    vm = client.machine("web")
    again = vim.Task(task._moId, client.instance._stub)
    raises(vmodl.fault.ManagedObjectNotFound, lambda: again.info.state)
    until("the snapshot is there", lambda: vm.snapshot is not None)
    rig.order("limits", task_times={"CreateSnapshot_Task": 0.05})
    client.remove(vm.snapshot.rootSnapshotList[0].snapshot)


def nothing_left(rig, client, vm, plain):
    one = rig.machine("web")
    assert one["snapshots"] == [] and one["most_snapshots"] == 2, one
    assert not [path for path in pathlib.Path(rig.place["exports"]).iterdir() if path.name.startswith("snapshot-")]
    assert rig.order("clear")["left"] == 0, "an ordered failure never came"
