"""The rig, for check.py.

Job: starts it, speaks to its control endpoints, serves a snapshot's disk by nbdkit.
Rule: nothing outlives a `with`; every wait has a deadline.
"""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

import nbd

HERE = pathlib.Path(__file__).parent


class Rig:
    """A running simulator."""

    def __init__(self, place, folder, process):
        self.place, self.folder, self.process = place, folder, process
        self.password = pathlib.Path(place["password_file"]).read_text()

    def order(self, name, /, **what):
        """Sends an order to a control endpoint."""
        request = urllib.request.Request(
            f"http://{self.place['control']}/{name}", data=json.dumps(what).encode(), method="POST"
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{name} {what}: {error.read().decode()}") from error

    def state(self):
        """All that the simulator knows."""
        with urllib.request.urlopen(f"http://{self.place['control']}/state", timeout=60) as answer:
            return json.load(answer)

    def machine(self, name):
        """The state of one machine."""
        return next(one for one in self.state()["machines"] if one["name"] == name)

    @contextlib.contextmanager
    def stand_in(self, **settings):
        """Sets the stand-in's settings for a while."""
        file = pathlib.Path(self.place["libdir"], "standin.conf")
        before = file.read_text()
        file.write_text(before + "".join(f"{name}={value}\n" for name, value in settings.items()))
        try:
            yield
        finally:
            file.write_text(before)

    @contextlib.contextmanager
    def serve(self, vm, snapshot, file, user=None, password=None, thumbprint=None, address=None):
        """Serves a disk by the real plugin: the open disk, or nbd.Refused with nbdkit's words."""
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            secret, socket = f"{folder}/password", f"{folder}/socket"
            descriptor = os.open(secret, os.O_CREAT | os.O_WRONLY, 0o600)
            with open(descriptor, "w", encoding="utf-8") as out:
                out.write(password or self.password)
            host, port = (address or self.place["address"]).split(":")
            command = [
                "nbdkit",
                "--foreground",
                "--exit-with-parent",
                "--readonly",
                "--unix",
                socket,
                self.place["plugin"],
                f"libdir={self.place['libdir']}",
                f"server={host}",
                f"port={port}",
                f"user={user or self.place['user']}",
                f"password=+{secret}",
                f"thumbprint={thumbprint or self.place['thumbprint_sha1']}",
                f"vm=moref={vm}",
                "transports=nbdssl:nbd",
                "compression=none",
                f"file={file}",
            ]
            if snapshot:
                command.append(f"snapshot={snapshot}")
            with open(f"{folder}/said", "w+", encoding="utf-8") as said:
                server = subprocess.Popen(command, stdout=said, stderr=said)
                try:
                    try:
                        disk = nbd.Disk(socket)
                    except nbd.Refused as error:
                        said.seek(0)
                        raise nbd.Refused(said.read() or str(error)) from error
                    yield disk
                    disk.close()
                finally:
                    server.terminate()
                    try:
                        server.wait(10)
                    except subprocess.TimeoutExpired:
                        server.kill()
                        server.wait(10)


@contextlib.contextmanager
def started(folder, *arguments):
    """Starts the rig, and ends it."""
    said = open(f"{folder}/said", "w+", encoding="utf-8")
    process = subprocess.Popen(
        [HERE / "start", f"{folder}/rig", "-exit-with-parent", *arguments],
        stdout=subprocess.PIPE,
        stderr=said,
        text=True,
    )
    try:
        line = process.stdout.readline()
        if not line:
            said.seek(0)
            raise RuntimeError(f"the rig did not start: {said.read()}")
        yield Rig(json.loads(line), folder, process)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
        said.close()


def until(what, condition, deadline=20):
    """Waits for a condition."""
    end = time.monotonic() + deadline
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"not within {deadline} s: {what}")
