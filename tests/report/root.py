#!/usr/bin/env python3
"""The manifest root of a raw image or a block device, from what daemon/REPORT.md says and nothing of warmd's.

usage: root.py FILE [BYTES]      needs b3sum
"""
import os
import subprocess
import sys
import tempfile

BLOCK = 65536
AT_ONCE = 256


def b3sum(arguments, data=None):
    return subprocess.run(["b3sum", *arguments], input=data, check=True, capture_output=True).stdout.split()


def hashes(blocks):
    """The 16-byte hashes of some blocks; `b3sum` hashes files, so each block that is not zero becomes one."""
    with tempfile.TemporaryDirectory() as folder:
        named = {}
        for number, block in enumerate(blocks):
            if any(block):
                named[number] = os.path.join(folder, str(number))
                with open(named[number], "wb") as file:
                    file.write(block)
        found = dict(zip(named, b3sum(["--no-names", "--length", "16", *named.values()]))) if named else {}
    return b"".join(bytes.fromhex(found[n].decode()) if n in found else bytes(16) for n in range(len(blocks)))


def root(path, size=None):
    manifest = bytearray()
    with open(path, "rb") as disk:
        # Also of a block device, of which `stat` says nothing.
        held = disk.seek(0, os.SEEK_END)
        size = held if size is None else size
        if size > held:
            sys.exit(f"{path} has {held} bytes, fewer than {size}")
        disk.seek(0)
        manifest += b"warmd manifest 1\n" + size.to_bytes(8, "little") + BLOCK.to_bytes(8, "little")
        left = size
        while left:
            blocks = []
            while left and len(blocks) < AT_ONCE:
                block = disk.read(min(BLOCK, left))
                if len(block) != min(BLOCK, left):
                    sys.exit(f"{path} was cut off while it was read: {left} bytes are missing")
                blocks.append(block)
                left -= len(block)
            manifest += hashes(blocks)
        if disk.seek(0, os.SEEK_END) != held:
            sys.exit(f"{path} was changed while it was read")
    return b3sum(["--no-names"], manifest)[0].decode()


if __name__ == "__main__":
    print(root(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None))
