"""A real guest on the rig, for check.py.

Job: the tests' small Linux, run by QEMU over a machine's disk, copied while it writes, shut down, compared.
Rule: what is compared in the end is the disk's file of a machine that is off: nothing of the rig made it.
"""

import pathlib
import struct
import subprocess
import sys
import time

from client import WaitForTask
from rig import until

KIT = pathlib.Path(__file__).parent.parent / ".cache/guest"
SIZE, PARTITION = 128 << 20, 1 << 20


def boot_disk(path):
    """Makes the disk that tests/src/guest/disk.rs makes for other tests: GRUB, one partition, settings."""
    if not KIT.exists():
        sys.exit("check.py: the guest is not built: run tests/setup, or leave it out by --no-guest")
    stage = path.with_suffix(".stage")
    (stage / "boot").mkdir(parents=True)
    for name in ("vmlinuz", "initrd"):
        (stage / "boot" / name).write_bytes((KIT / name).read_bytes())
    (stage / "warmd.conf").write_text("record_ms=20\nchurn_kib_s=2048\nchurn_mib=32\nnoacpi=0\n")
    with open(path, "wb") as disk:
        disk.truncate(SIZE)
    subprocess.run(
        [
            "mkfs.ext4",
            "-q",
            "-F",
            "-b",
            "4096",
            "-E",
            f"offset={PARTITION},root_owner=0:0,nodiscard",
            "-d",
            stage,
            path,
            str((SIZE - PARTITION) // 4096),
        ],
        check=True,
        timeout=60,
    )
    entry = struct.pack(
        "<8B2I", 0x80, 0xFE, 0xFF, 0xFF, 0x83, 0xFE, 0xFF, 0xFF, PARTITION // 512, (SIZE - PARTITION) // 512
    )
    sector = bytearray((KIT / "boot.img").read_bytes()[:512])
    sector[446:510] = entry + bytes(48)
    sector[510:] = b"\x55\xaa"
    with open(path, "r+b") as disk:
        disk.write(sector + (KIT / "core.img").read_bytes())


def check(rig, client):
    """Copies the guest warm, compares it when it is off, and kills it after a start."""
    vm = client.machine("guest")
    console = pathlib.Path(rig.folder, "rig/guests", vm._moId, "console")
    began = time.monotonic()
    said = lambda: console.read_text(errors="replace") if console.exists() else ""  # noqa: E731
    until("the guest writes", lambda: "ACK 5" in said() or "WRITER FAILED" in said(), 120)
    assert "WRITER FAILED" not in said(), said()[-400:]
    print(f"the guest writes after {time.monotonic() - began:.1f} s")
    disk_file = pathlib.Path(rig.machine("guest")["disks"][0]["file"])
    client.switch_tracking_on(vm)
    replica, mark, passes = bytearray(SIZE), None, []
    for number in range(4):
        if number == 3:
            vm.ShutdownGuest()
            until("the guest is off", lambda: vm.runtime.powerState == "poweredOff", 60)
            assert "CLEAN" in said(), "the guest was not shut down in order"
        snapshot = client.snapshot(vm, f"guest {number}")
        disk = client.disks(snapshot)[0]
        areas = [(0, SIZE)]
        if mark:
            answers = client.answers(vm, snapshot, disk, mark)
            areas = [(area.start, area.length) for answer in answers for area in answer.changedArea]
        with rig.serve(vm._moId, snapshot._moId, disk.backing.fileName) as served:
            for start, length in areas:
                replica[start : start + length] = served.read(start, length)
        mark = disk.backing.changeId
        client.remove(snapshot)
        passes.append(sum(length for _, length in areas) >> 10)
        time.sleep(0.3)
    print(f"the guest's passes: {passes} KiB")
    assert passes[1] > 0 and passes[2] > 0, "the guest wrote nothing between passes"
    assert replica == disk_file.read_bytes(), "the guest's disk differs"
    copied = pathlib.Path(rig.folder, "replica.raw")
    copied.write_bytes(replica[PARTITION:])
    found = subprocess.run(["e2fsck", "-fn", copied], capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    # On again, and killed: the machine is off, and its tracking begins again.
    WaitForTask(vm.PowerOnVM_Task())
    rig.order("power", machine="guest", do="crash")
    assert vm.runtime.powerState == "poweredOff"
    after = client.snapshot(vm, "after the crash")
    assert client.disks(after)[0].backing.changeId.split("/")[0] != mark.split("/")[0]
    client.remove(after)
