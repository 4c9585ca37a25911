#!/usr/bin/env python3
"""Checks the vSphere rig with pyvmomi, a client that is not ours: a full copy and two deltas, then faults.

usage: check.py [--lossy] [--no-guest] [--plain N]

It ends with code 0 when all is as it should be: copies are compared byte by byte. With --lossy the tracking
loses an area, and the check must fail. tests/setup builds what it needs.
"""

import argparse
import json
import os
import pathlib
import random
import signal
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).parent
PYTHON = HERE.parent / ".cache/vsphere/python/bin/python"
if pathlib.Path(sys.prefix).resolve() != PYTHON.parent.parent.resolve():
    if not PYTHON.exists():
        sys.exit("check.py: the rig is not built: run tests/vsphere/setup")
    os.execv(PYTHON, [str(PYTHON), *sys.argv])
sys.path.insert(0, str(HERE))

import faults  # noqa: E402  (below the change of interpreter)
import guest  # noqa: E402
import rig as rigs  # noqa: E402
from client import Client  # noqa: E402

# Small figures, so that an answer ends where its areas or its bytes do.
MOST, SPAN = 4, 4 << 20
SIZES = {2000: 64 << 20, 2001: (24 << 20) + (96 << 10)}  # the second one ends within a block


class Copy:
    """A replica of a machine's disks, kept by the rules of changed-block tracking."""

    def __init__(self, rig, client, vm):
        self.rig, self.client, self.vm = rig, client, vm
        self.replica = {key: bytearray(size) for key, size in SIZES.items()}
        self.marks = {}
        self.queries = self.empty = self.full = 0

    def truth(self):
        """What the disks hold now, read beside everything that is under test."""
        return {
            disk["key"]: pathlib.Path(disk["file"]).read_bytes() for disk in self.rig.machine("web")["disks"]
        }

    def areas(self, snapshot, disk, mark):
        """All that changed since a mark, over as many answers as it takes."""
        found = []
        for answer in self.client.answers(self.vm, snapshot, disk, mark):
            offset = answer.startOffset
            found += [(area.start, area.length) for area in answer.changedArea]
            for area in answer.changedArea:
                assert offset <= area.start and area.start + area.length <= offset + answer.length, answer
            self.queries += 1
            self.empty += not answer.changedArea
            self.full += len(answer.changedArea) == MOST and answer.length < min(
                SPAN, disk.capacityInBytes - offset
            )
        return found

    def draw(self, snapshot, marks):
        """Reads what changed since the marks (all, without one) and gives the number of bytes."""
        read = 0
        for disk in self.client.disks(snapshot):
            assert disk.capacityInBytes == SIZES[disk.key], disk
            assert disk.backing.changeId, "a snapshot's disk has no changeId"
            mark = marks.get(disk.key)
            areas = self.areas(snapshot, disk, mark) if mark else [(0, disk.capacityInBytes)]
            with self.rig.serve(self.vm._moId, snapshot._moId, disk.backing.fileName) as served:
                assert served.size == disk.capacityInBytes, (served.size, disk.capacityInBytes)
                for start, length in areas:
                    self.replica[disk.key][start : start + length] = served.read(start, length)
                    read += length
            self.marks[disk.key] = disk.backing.changeId
        return read

    def differences(self, truth):
        """The disks that are not equal."""
        return [key for key in SIZES if self.replica[key] != truth[key]]


class Writer:
    """The guest."""

    def __init__(self, rig, seed):
        self.rig, self.random = rig, random.Random(seed)

    def scatter(self, count, most):
        """Writes, and now and then zeroes, at random places of both disks, but not in their middle."""
        for key, size in SIZES.items():
            for _ in range(count):
                length = self.random.randrange(1, most)
                seed = 0 if self.random.random() < 0.2 else self.random.randrange(1, 1 << 40)
                offset = self.random.choice((0, size * 3 // 5)) + self.random.randrange(
                    size * 2 // 5 - length
                )
                self.rig.order("write", machine="web", disk=key, offset=offset, length=length, seed=seed)

    def end(self):
        """Writes to the very last bytes."""
        for key, size in SIZES.items():
            self.rig.order(
                "write",
                machine="web",
                disk=key,
                offset=size - 700,
                length=700,
                seed=self.random.randrange(1, 99),
            )


def passes(rig, client, vm, lossy):
    """A full copy and two deltas, each compared with what the disks held at its moment."""
    writer = Writer(rig, 7)
    writer.scatter(12, 300_000)
    client.switch_tracking_on(vm)
    if lossy:
        rig.order("tracking", machine="web", do="lossy", on=True)
    copy = Copy(rig, client, vm)
    marks = {}
    for number in range(3):
        if number:
            writer.scatter(80, 3000)
            writer.scatter(3, 400_000)
            writer.end()
        truth = copy.truth()
        snapshot = client.snapshot(vm, f"pass {number}")
        writer.scatter(5, 100_000)  # after the snapshot: nothing of it may be seen
        read = copy.draw(snapshot, marks)
        client.remove(snapshot)
        marks = dict(copy.marks)
        wrong = copy.differences(truth)
        met = f"{copy.queries} queries, {copy.empty} empty, {copy.full} full"
        print(f"pass {number}: {read} bytes, so far {met}")
        assert not wrong, f"pass {number}: the copies of {wrong} differ"
    assert copy.full and copy.empty, "no answer was full, or none was empty"
    # A retry from an older mark is cumulative: it finds what the newer one does, and more.
    snapshot = client.snapshot(vm, "from the first mark")
    truth = copy.truth()
    copy.draw(snapshot, marks)
    assert not copy.differences(truth)
    # The check itself: with tracking that loses an area, the comparison must see it.
    writer.scatter(3, 50_000)
    client.remove(snapshot)
    rig.order("tracking", machine="web", do="lossy", on=True)
    snapshot, truth = client.snapshot(vm, "lossy"), copy.truth()
    copy.draw(snapshot, copy.marks)
    assert copy.differences(truth), "tracking that loses an area was not noticed: this check checks nothing"
    rig.order("tracking", machine="web", do="lossy", on=False)
    client.remove(snapshot)
    return copy


def standalone(folder):
    """The same of an ESXi, for one snapshot."""
    file = pathlib.Path(folder, "esxi.raw")
    file.write_bytes(random.Random(5).randbytes(3 << 20))
    place = pathlib.Path(folder, "esxi")
    place.mkdir()
    with rigs.started(place, "-esxi", "-machine", f"alone={file}") as rig:
        client = Client(rig)
        assert client.content.about.apiType == "HostAgent"
        vm = client.machine("alone")
        client.switch_tracking_on(vm)
        snapshot = client.snapshot(vm, "one")
        disk = client.disks(snapshot)[0]
        with rig.serve(vm._moId, snapshot._moId, disk.backing.fileName) as served:
            assert served.read(0, served.size) == file.read_bytes()
        client.remove(snapshot)
        assert vm.runtime.host.configManager.autoStartManager.config.defaults.enabled is False
        client.close()
    print("a standalone ESXi does the same")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lossy", action="store_true", help="break the tracking: the check must fail")
    parser.add_argument(
        "--plain", type=int, default=5000, help="machines without disks beside, for the listing"
    )
    parser.add_argument("--no-guest", action="store_true", help="without the real guest")
    options = parser.parse_args()
    # An end by a signal ends what was started, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("check.py: ended by a signal"))
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="vsphere-check.") as folder:
        files = []
        for key, size in SIZES.items():
            file = pathlib.Path(folder, f"{key}.raw")
            file.touch()
            os.truncate(file, size)
            files.append(str(file))
        machines = [{"name": "web", "no_guest": True, "disks": [{"file": file} for file in files]}]
        power = []
        if not options.no_guest:
            guest.boot_disk(pathlib.Path(folder, "guest.raw"))
            machines.append(
                {
                    "name": "guest",
                    "memory_mb": 256,
                    "cpus": 1,
                    "networks": [{"type": "e1000"}],
                    "disks": [{"file": f"{folder}/guest.raw", "controller": "ide"}],
                }
            )
            power = ["-on-power", str(HERE / "qemu")]
        listed = pathlib.Path(folder, "machines.json")
        listed.write_text(json.dumps(machines))
        with rigs.started(
            folder,
            "-machines",
            str(listed),
            "-plain",
            str(options.plain),
            "-max-areas",
            str(MOST),
            "-span",
            str(SPAN),
            "-task-time",
            "50ms",
            "-ha",
            "-host-doors",
            *power,
        ) as rig:
            print(f"started in {time.monotonic() - began:.1f} s")
            client = Client(rig)
            try:
                vm = client.machine("web")
                passes(rig, client, vm, options.lossy)
                print(f"copies are equal after {time.monotonic() - began:.1f} s")
                if not options.no_guest:
                    guest.check(rig, client)
                faults.all_of_them(rig, client, vm, len(machines) - 1 + options.plain)
            finally:
                client.close()
        standalone(folder)
    print(f"all as it should be, in {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    try:
        main()
    except AssertionError as error:
        import traceback

        traceback.print_exc()
        sys.exit(f"check.py: FAILED: {error}")
