"""Several machines emulated on one: network namespaces, each with a name and an address, joined by a wire of chosen delay.

Linux only; needs root, /dev/net/tun and the commands ip, unshare and nsenter.
"""

import fcntl
import os
import select
import shutil
import struct
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
LARGEST = 60_000  # bytes of a packet: large, as the wire costs by packets


@dataclass(frozen=True)
class Machine:
    """A command put behind `enter` runs there; interface is its end of the wire."""

    address: str
    interface: str
    enter: tuple[str, ...]


def missing() -> str:
    """Why no machines can be emulated here; empty where they can"""
    if not hasattr(os, "geteuid") or os.geteuid():
        return "network namespaces need root"
    absent = [name for name in ("ip", "unshare", "nsenter", "mount", "hostname") if not shutil.which(name)]
    if absent or not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return f"{', '.join(absent) or '/dev/net/tun'} is not there"
    tried = subprocess.run(["unshare", "--net", "--uts", "--mount", "true"], capture_output=True, text=True)
    return tried.stderr.strip()


@contextmanager
def machines(count: int, delay: float = 0.0, names: bool = True) -> Iterator[list[Machine]]:
    """`count` machines; a packet from one to another arrives after `delay` seconds and what forwarding it takes (some 0.03 ms).

    They are called machine0, .. and know each other by these names; without `names` each takes its own name for the loopback.
    They vanish with this process.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        addresses = [f"10.77.0.{k + 1}" for k in range(count)]
        known = [f"{address if names else '127.0.0.1'} machine{k}" for k, address in enumerate(addresses)]
        (folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *known, ""]))
        ends: list[int] = []
        found = [_machine(stack, k, address, folder / "hosts", ends) for k, address in enumerate(addresses)]
        over, stop = os.pipe()
        wire = Thread(target=_forward, args=(ends, delay, over))
        wire.start()
        stack.callback(os.close, over)
        stack.callback(wire.join)
        stack.callback(os.close, stop)
        yield found


def _machine(stack: ExitStack, k: int, address: str, hosts: Path, ends: list[int]) -> Machine:
    """Namespaces that live as long as a waiting `cat`, hence as this process; the end of their wire is appended to `ends`"""
    own_files = f"mount --bind {hosts} /etc/hosts; mount --bind /dev/null /etc/resolv.conf"
    command = ["unshare", "--net", "--uts", "--mount", "sh", "-ec", f"hostname machine{k}; {own_files}; echo; exec cat"]
    holder = stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
    stack.callback(holder.kill)
    if not holder.stdout or not holder.stdout.readline():
        raise RuntimeError(f"no namespace: {' '.join(command)} failed")
    end, name = os.open("/dev/net/tun", os.O_RDWR), f"wire{os.getpid()}"
    stack.callback(os.close, end)
    fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    ends.append(end)
    # env: nsenter forgets the folder
    enter = ("nsenter", f"--target={holder.pid}", "--net", "--uts", "--mount", "env", f"--chdir={Path.cwd()}")
    _run("ip", "link", "set", name, "netns", str(holder.pid))
    _run(*enter, "ip", "address", "add", f"{address}/24", "dev", name)
    _run(*enter, "ip", "link", "set", name, "mtu", str(LARGEST), "up")
    _run(*enter, "ip", "link", "set", "lo", "up")
    return Machine(address, name, enter)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def _forward(ends: Sequence[int], delay: float, over: int) -> None:
    """Carry IPv4 packets to the end that their last number names, until `over` is closed on the other side"""
    waiting: deque[tuple[float, int, bytes]] = deque()
    while True:
        left = max(0.0, waiting[0][0] - time.perf_counter()) if waiting else None
        ready = select.select([*ends, over], [], [], left)[0]
        if over in ready:
            return
        now = time.perf_counter()
        for end in ready:
            packet = os.read(end, 65536)
            if packet[0] >> 4 == 4 and 0 < packet[19] <= len(ends):
                waiting.append((now + delay, ends[packet[19] - 1], packet))
        while waiting and waiting[0][0] <= time.perf_counter():
            _, end, packet = waiting.popleft()
            os.write(end, packet)
