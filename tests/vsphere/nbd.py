"""A reader of NBD servers over a Unix socket, for check.py.

Job: one connection, plain reads.
Rule: no library, so that what check.py reads is read by nothing that the tests read with otherwise.
"""

import socket
import struct
import time


class Refused(Exception):
    """The server does not serve the disk."""


class Disk:
    """An open export."""

    def __init__(self, path, deadline=20):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(deadline)
        end = time.monotonic() + deadline
        while True:
            try:
                self.socket.connect(path)
                break
            except (FileNotFoundError, ConnectionRefusedError):
                if time.monotonic() > end:
                    raise
                time.sleep(0.02)
        try:
            self._open()
        except (ConnectionError, Refused) as error:
            self.socket.close()
            raise Refused(str(error)) from error

    def _open(self):
        magic, option_magic, flags = struct.unpack(">8s8sH", self._get(18))
        if magic != b"NBDMAGIC" or option_magic != b"IHAVEOPT" or not flags & 1:
            raise Refused("no NBD server")
        self.socket.sendall(struct.pack(">I", 3))  # fixed newstyle, no zeroes
        body = struct.pack(">IH", 0, 0)  # the default export, nothing more to know
        self.socket.sendall(struct.pack(">8sII", b"IHAVEOPT", 7, len(body)) + body)  # go
        while True:
            _, _, kind, length = struct.unpack(">QIII", self._get(20))
            reply = self._get(length)
            if kind == 1:  # acknowledged
                return
            if kind == 3 and struct.unpack(">H", reply[:2])[0] == 0:
                self.size, _ = struct.unpack(">QH", reply[2:12])
            elif kind & 1 << 31:
                raise Refused(f"error {kind & 0xFFFF} {reply.decode(errors='replace')}")

    def _get(self, length):
        parts = []
        while length:
            part = self.socket.recv(min(length, 1 << 20))
            if not part:
                raise ConnectionError("the server hung up")
            parts.append(part)
            length -= len(part)
        return b"".join(parts)

    def read(self, offset, length):
        """Reads a range in pieces of a MiB."""
        parts = []
        while length:
            size = min(length, 1 << 20)
            self.socket.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 0, offset, offset, size))
            magic, error, handle = struct.unpack(">IIQ", self._get(16))
            if magic != 0x67446698 or handle != offset:
                raise ConnectionError("an answer to nothing")
            if error:
                raise OSError(error, f"reading {size} bytes at {offset}")
            parts.append(self._get(size))
            offset += size
            length -= size
        return b"".join(parts)

    def close(self):
        """Says goodbye, so that the server does not take it for a failure."""
        try:
            self.socket.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 2, 0, 0, 0))
        except OSError:
            pass
        self.socket.close()
