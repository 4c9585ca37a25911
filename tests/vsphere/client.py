"""pyvmomi, for check.py.

Job: logs in, and the few steps that are needed more than once.
Rule: nothing of ours interprets an answer; what pyvmomi makes of it is compared.
"""

import ssl

from pyVim.connect import Disconnect, SmartConnect
from pyVim.task import WaitForTask
from pyVmomi import vim, vmodl

__all__ = ["Client", "WaitForTask", "connect", "raises", "vim", "vmodl"]


def raises(kind, call, **fields):
    """A call must fail in one way only."""
    try:
        call()
    except kind as error:
        for name, value in fields.items():
            assert getattr(error, name) == value, (name, getattr(error, name), value)
        return error
    raise AssertionError(f"no {kind.__name__}")


def connect(rig, user=None, password=None, place=None):
    """Logs in, with the server's certificate as the only one that is trusted."""
    place = place or rig.place
    host, port = place["address"].split(":")
    trust = ssl.create_default_context(cafile=place["certificate"])
    return SmartConnect(
        host=host,
        port=int(port),
        user=user or rig.place["user"],
        pwd=password or rig.password,
        sslContext=trust,
    )


class Client:
    """A session."""

    def __init__(self, rig):
        self.rig = rig
        self.login()

    def login(self):
        """Logs in again."""
        self.instance = connect(self.rig)
        self.content = self.instance.RetrieveContent()

    def close(self):
        """Logs out, whatever became of the session."""
        try:
            Disconnect(self.instance)
        except Exception:  # the check may have ended it
            pass

    def view(self, kind):
        """All objects of a kind."""
        view = self.content.viewManager.CreateContainerView(self.content.rootFolder, [kind], True)
        found = list(view.view)
        view.Destroy()
        return found

    def machine(self, name):
        """A machine by its name, out of all of them in pages."""
        for ref, values in self.list(["name"]):
            if values["name"] == name:
                return ref
        raise AssertionError(f"no machine is called {name}")

    def machines_spec(self, paths):
        """A view of all machines, and what a collector is asked for these properties of them."""
        collector = vmodl.query.PropertyCollector
        view = self.content.viewManager.CreateContainerView(
            self.content.rootFolder, [vim.VirtualMachine], True
        )
        spec = collector.FilterSpec(
            propSet=[collector.PropertySpec(type=vim.VirtualMachine, pathSet=paths)],
            objectSet=[
                collector.ObjectSpec(
                    obj=view,
                    skip=True,
                    selectSet=[
                        collector.TraversalSpec(name="view", path="view", type=type(view), skip=False)
                    ],
                )
            ],
        )
        return view, spec

    def list(self, paths, page=700):
        """Properties of all machines."""
        collector = vmodl.query.PropertyCollector
        view, spec = self.machines_spec(paths)
        answer = self.content.propertyCollector.RetrievePropertiesEx(
            [spec], collector.RetrieveOptions(maxObjects=page)
        )
        found = []
        while answer:
            assert len(answer.objects) <= page
            found += [(one.obj, {value.name: value.val for value in one.propSet}) for one in answer.objects]
            if not answer.token:
                break
            answer = self.content.propertyCollector.ContinueRetrievePropertiesEx(answer.token)
        view.Destroy()
        return found

    @staticmethod
    def disks(of):
        """The disks of a machine or of a snapshot."""
        return [
            device for device in of.config.hardware.device if isinstance(device, vim.vm.device.VirtualDisk)
        ]

    @staticmethod
    def answers(vm, snapshot, disk, mark):
        """The answers about all that changed on a disk since a mark; each begins where the one before ends."""
        offset = 0
        while offset < disk.capacityInBytes:
            answer = vm.QueryChangedDiskAreas(
                snapshot=snapshot, deviceKey=disk.key, startOffset=offset, changeId=mark
            )
            assert answer.startOffset == offset and answer.length > 0, answer
            yield answer
            offset += answer.length
        assert offset == disk.capacityInBytes, (offset, disk.capacityInBytes)

    def snapshot(self, vm, name):
        """Makes a snapshot; the task must not be done within the call."""
        task = vm.CreateSnapshot_Task(name, "by check.py", False, False)
        assert task.info.state in ("queued", "running"), task.info.state
        WaitForTask(task)
        return task.info.result

    @staticmethod
    def remove(snapshot):
        """Removes a snapshot and waits for the consolidation."""
        WaitForTask(snapshot.RemoveSnapshot_Task(removeChildren=False, consolidate=True))

    def switch_tracking_on(self, vm):
        """Switches tracking on, and sees that it begins at a stun and not before."""
        WaitForTask(vm.ReconfigVM_Task(vim.vm.ConfigSpec(changeTrackingEnabled=True)))
        assert vm.config.changeTrackingEnabled
        assert not self.rig.machine(vm.name)["tracked"], "tracking began without a stun"
        self.remove(self.snapshot(vm, "throw-away"))
        assert self.rig.machine(vm.name)["tracked"]
        assert vm.snapshot is None
