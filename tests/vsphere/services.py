"""What stands beside machines and disks, for check.py: updates, privileges, autostart, clusters.

Job: each of them as pyvmomi sees it.
Rule: a step leaves the rig as it found it.
"""

import base64
import http.client
import json
import pathlib
import ssl

import nbd
from client import connect, raises, vim, vmodl


def updates(rig, client, vm, plain):
    collector = vmodl.query.PropertyCollector
    own = client.content.propertyCollector.CreatePropertyCollector()
    view, spec = client.machines_spec(["name", "runtime.host", "snapshot"])
    own.CreateFilter(spec, False)

    def options(seconds):
        return collector.WaitOptions(maxWaitSeconds=seconds, maxObjectUpdates=900)

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
        for one in client.content.authorizationManager.HasPrivilegeOnEntities([vm], session, wanted)[
            0
        ].privAvailability
    }
    assert ask() == dict.fromkeys(wanted, True)
    rig.order("deny", privilege=wanted[0], object=vm._moId, on=True)
    assert ask() == {wanted[0]: False, wanted[1]: True}
    raises(
        vim.fault.NoPermission, lambda: vm.CreateSnapshot_Task("x", "", False, False), privilegeId=wanted[0]
    )
    rig.order("deny", privilege=wanted[0], object=vm._moId, on=False)
    assert ask() == dict.fromkeys(wanted, True)


def autostart(rig, client, vm, plain):
    host = vm.runtime.host
    manager = host.configManager.autoStartManager
    settings = vim.host.AutoStartManager
    info = settings.AutoPowerInfo(
        key=vm,
        startOrder=1,
        startDelay=-1,
        waitForHeartbeat="systemDefault",
        startAction="powerOn",
        stopDelay=-1,
        stopAction="systemDefault",
    )
    manager.ReconfigureAutostart(
        settings.Config(defaults=settings.SystemDefaults(enabled=True), powerInfo=[info])
    )
    assert [one.key._moId for one in manager.config.powerInfo] == [vm._moId]
    rig.order("reboot", host=host.name)
    assert vm.runtime.powerState == "poweredOn"
    info.startAction = "none"
    manager.ReconfigureAutostart(settings.Config(powerInfo=[info]))
    rig.order("reboot", host=host.name)
    assert vm.runtime.powerState == "poweredOff"
    rig.order("power", machine="web", do="on")


def host_doors(rig, client, vm, plain):
    """A host has the same machine and the same snapshot under other ids, and nothing of other hosts."""
    snapshot = client.snapshot(vm, "by a door")
    disk = client.disks(snapshot)[0]
    here, there = (
        next(one for one in rig.place["hosts"] if (one["host"] == vm.runtime.host.name) == same)
        for same in (True, False)
    )
    secret = pathlib.Path(here["password_file"]).read_text()
    raises(vim.fault.InvalidLogin, lambda: connect(rig, here["user"], rig.password, here))
    host = connect(rig, here["user"], secret, here)
    content = host.RetrieveContent()
    assert content.about.apiType == "HostAgent"
    same = content.searchIndex.FindByUuid(None, vm.config.instanceUuid, True, True)
    assert same._moId != vm._moId and same.config.uuid == vm.config.uuid
    seen = same.snapshot.rootSnapshotList[0]
    assert seen.name == "by a door" and seen.snapshot._moId != snapshot._moId
    raises(vmodl.fault.ManagedObjectNotFound, lambda: vim.VirtualMachine(vm._moId, host._stub).name)
    where = {"user": here["user"], "password": secret, "thumbprint": here["thumbprint_sha1"]}
    where["address"] = here["address"]
    with rig.serve(same._moId, seen.snapshot._moId, disk.backing.fileName, **where) as served:
        assert (
            served.read(0, 1 << 20)
            == pathlib.Path(rig.machine("web")["disks"][0]["file"]).read_bytes()[: 1 << 20]
        )
    raises(nbd.Refused, rig.serve(vm._moId, snapshot._moId, disk.backing.fileName, **where).__enter__)
    raises(nbd.Refused, rig.serve(same._moId, seen.snapshot._moId, disk.backing.fileName).__enter__)
    other = connect(rig, there["user"], pathlib.Path(there["password_file"]).read_text(), there)
    index = other.RetrieveContent().searchIndex
    assert index.FindByUuid(None, vm.config.instanceUuid, True, True) is None
    raises(vmodl.fault.ManagedObjectNotFound, lambda: vim.VirtualMachine(same._moId, other._stub).name)
    client.remove(snapshot)


def tags(rig, client, vm, plain):
    """A category, a tag and what it is attached to, by REST."""
    session = rest(rig, "POST", "/rest/com/vmware/cis/session", None)["value"]
    call = lambda path, body: rest(rig, "POST", path, body, session)["value"]  # noqa: E731
    base = "/rest/com/vmware/cis/tagging"
    spec = {"name": "owner", "cardinality": "SINGLE", "associable_types": ["VirtualMachine"]}
    category = call(f"{base}/category", {"create_spec": spec})
    tag = call(f"{base}/tag", {"create_spec": {"name": "payroll", "category_id": category}})
    thing = {"id": vm._moId, "type": "VirtualMachine"}
    rest(rig, "POST", f"{base}/tag-association/id:{tag}?~action=attach", {"object_id": thing}, session)
    attached = call(f"{base}/tag-association?~action=list-attached-tags", {"object_id": thing})
    assert attached == [tag], attached


def rest(rig, method, path, body, session=None):
    """Calls the REST interface."""
    host, port = rig.place["address"].split(":")
    trust = ssl.create_default_context(cafile=rig.place["certificate"])
    connection = http.client.HTTPSConnection(host, int(port), context=trust, timeout=20)
    login = base64.b64encode(f"{rig.place['user']}:{rig.password}".encode()).decode()
    headers = {"Content-Type": "application/json", "Authorization": f"Basic {login}"}
    if session:
        headers = {"Content-Type": "application/json", "vmware-api-session-id": session}
    connection.request(method, path, json.dumps(body) if body else None, headers)
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    assert answer.status == 200, (path, answer.status, text)
    return json.loads(text) if text else {}


def cluster(rig, client, vm, plain):
    own = vm.runtime.host.parent
    assert own.configurationEx.dasConfig.enabled and not own.configurationEx.drsConfig.enabled
    rig.order("cluster", ha=False, drs=True)
    assert not own.configurationEx.dasConfig.enabled and own.configurationEx.drsConfig.enabled
