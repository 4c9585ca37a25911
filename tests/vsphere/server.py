"""What the server itself does, for check.py: strictness, 503, sessions, a restart.

Job: each of them as pyvmomi, or a request of our own, sees it.
Rule: a step leaves the rig as it found it.
"""

import datetime
import http.client
import ssl
import time

from client import raises, vim, vmodl
from rig import until


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
    host, port = rig.place["address"].split(":")
    trust = ssl.create_default_context(cafile=rig.place["certificate"])
    connection = http.client.HTTPSConnection(host, int(port), context=trust, timeout=20)
    envelope = (
        '<soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/" '
        'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">'
        f"<soapenv:Body>{body}</soapenv:Body></soapenv:Envelope>"
    )
    connection.request("POST", "/sdk", envelope, {"Content-Type": "text/xml"})
    status = connection.getresponse().status
    connection.close()
    return status


def orders(rig, client, vm, plain):
    """Orders that cannot be carried out are refused."""
    for name, what in (
        ("wriet", {}),
        ("write", {"machine": "web", "dsik": 0}),
        ("write", {"machine": "none", "length": 1}),
        ("write", {"machine": "web", "disk": 2000, "offset": 64 << 20, "length": 1}),
        ("fail", {"method": "Login", "fault": "NoSuchFault"}),
        ("disk", {"machine": "web", "disk": 2000, "do": "grow", "size": 1024}),
        ("move", {"machine": "web", "host": "none"}),
    ):
        raises(RuntimeError, lambda name=name, what=what: rig.order(name, **what))


def lost_answer(rig, client, vm, plain):
    """A call that is dropped has done nothing; one whose answer is dropped has done it."""
    rig.order("fail", method="CreateSnapshot_Task", drop=True)
    raises(Exception, lambda: vm.CreateSnapshot_Task("dropped", "", False, False))
    rig.order("fail", method="CreateSnapshot_Task", drop=True, after=True)
    raises(Exception, lambda: vm.CreateSnapshot_Task("done", "", False, False))
    until("the snapshot is there", lambda: vm.snapshot is not None)
    assert [one.name for one in vm.snapshot.rootSnapshotList] == ["done"]
    client.remove(vm.snapshot.rootSnapshotList[0].snapshot)


def unavailable(rig, client, vm, plain):
    rig.order("unavailable", seconds=0.5)
    raises(Exception, client.instance.CurrentTime)
    time.sleep(0.6)
    client.instance.CurrentTime()


def clock(rig, client, vm, plain):
    assert abs((client.instance.CurrentTime() - now()).total_seconds()) < 5
    rig.order("clock", seconds=600)
    assert 590 < (client.instance.CurrentTime() - now()).total_seconds() < 610
    rig.order("clock", seconds=0)


def now():
    """The time, as pyvmomi gives times."""
    return datetime.datetime.now(datetime.UTC)


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
