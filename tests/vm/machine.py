"""A small virtual machine around the kernel installed here: its own V4L2, our files, no privileges needed.

Software emulation only: it is slower than KVM, and the same everywhere.

Its initramfs holds busybox and what it takes to mount this machine's files, read-only, over 9p.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

PACKAGES = "qemu-system-x86 linux-image-amd64 busybox-static cpio kmod udev"
TOOLS = ("qemu-system-x86_64", "busybox", "cpio", "modprobe", "udevadm")
DRIVERS = ("vivid", "uvcvideo", "vhci-hcd", "dummy-hcd", "usb-f-acm", "cdc-acm")
MOUNTING = ("virtio_pci", "9pnet_virtio", "9p")
UNPACK = {".xz": "xz", ".zst": "zstd", ".gz": "gzip"}


def find_kernel() -> str:
    """The version of an installed kernel that has the drivers. Raises LookupError with what is missing."""
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        raise LookupError(f"{', '.join(missing)} not found: sudo apt-get install {PACKAGES}")
    for kernel in sorted(Path("/boot").glob("vmlinuz-*"), reverse=True):
        version = kernel.name.removeprefix("vmlinuz-")
        if os.access(kernel, os.R_OK) and all(_modules(version, name) is not None for name in DRIVERS):
            return version
    raise LookupError(f"no readable kernel with {', '.join(DRIVERS)}: sudo apt-get install {PACKAGES}")


def boot(folder: Path, version: str, place: Path, command: list[str], limit: float) -> None:
    """Run a command in the machine, in the folder ``place`` of this machine's files, and power off.

    ``folder``: gets ``console``, where the kernel and the command write, and ``results``, which is the
    command's /dev/ttyS1. Raises subprocess.TimeoutExpired after ``limit`` seconds.
    """
    script = f"cd {shlex.quote(str(place))} && exec {shlex.join(command)}"
    subprocess.run(
        [
            "qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", "1024",
            "-display", "none", "-monitor", "none", "-no-reboot", "-nic", "none",
            "-kernel", f"/boot/vmlinuz-{version}",
            "-initrd", str(_initramfs(folder, version, script)),
            "-append", "console=ttyS0 quiet panic=-1 mitigations=off",
            "-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap",
            "-serial", f"file:{folder / 'console'}",
            "-serial", f"file:{folder / 'results'}",
        ],
        check=True,
        timeout=limit,
    )  # fmt: skip


def _initramfs(folder: Path, version: str, script: str) -> Path:
    root = folder / "root"
    for name in ("bin", "modules"):
        (root / name).mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "busybox", root / "bin/busybox")
    shutil.copy(Path(__file__).with_name("init"), root / "init")
    (root / "init").chmod(0o755)
    order = list(dict.fromkeys(path for name in MOUNTING for path in _modules(version, name) or ()))
    for path in order:
        unpack = UNPACK.get(path.suffix)
        data = (
            subprocess.run([unpack, "-dc", path], check=True, capture_output=True).stdout if unpack else None
        )
        (root / "modules" / path.name).write_bytes(data or path.read_bytes())
    (root / "modules/order").write_text("\n".join(path.name for path in order))
    (root / "play").write_text(script)
    names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    packed = subprocess.run(
        ["cpio", "-o", "-H", "newc", "--quiet"],
        input=names.encode(),
        cwd=root,
        check=True,
        capture_output=True,
    )
    (folder / "initramfs").write_bytes(packed.stdout)
    return folder / "initramfs"


def _modules(version: str, name: str) -> list[Path] | None:
    """The files of a module and all that it needs, in the order to load them; None where it is not there."""
    asked = subprocess.run(
        ["modprobe", "-D", "-S", version, name], capture_output=True, text=True, check=False
    )
    if asked.returncode:
        return None
    lines = (line.split() for line in asked.stdout.splitlines())
    return [Path(line[1]) for line in lines if line[0] == "insmod"]
