"""A small virtual machine around the kernel installed here: its own V4L2, our files, no privileges needed.

Software emulation only: it is slower than KVM, and the same everywhere.

Its initramfs holds busybox and what it takes to mount files of this machine, read-only, over 9p.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

PACKAGES = "qemu-system-x86 linux-image-amd64 busybox-static cpio kmod udev"
TOOLS = ("qemu-system-x86_64", "busybox", "cpio", "modprobe", "udevadm")
DRIVERS = ("vivid", "uvcvideo", "vhci-hcd", "dummy-hcd", "usb-f-acm", "cdc-acm")
MOUNTING = ("virtio_pci", "9pnet_virtio", "9p")
BOX_DRIVERS = (
    *("overlay", "vfat", "nls_cp437", "nls_ascii", "nls_iso8859-1", "nls_utf8"),
    *("xhci-pci", "usb-storage", "sd-mod"),
)
INIT, BOX_INIT = Path(__file__).with_name("init"), Path(__file__).with_name("init_box")
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
    initramfs = _initramfs(folder, version, MOUNTING, {"init": INIT.read_text(), "play": script})
    _run(folder, version, initramfs, {"host": Path("/")}, limit)


def boot_box(folder: Path, version: str, root: Path, added: Path, stick: Path, limit: float) -> None:
    """Run the system that is installed in ``root``, with the files in ``added`` laid over it and the disk
    image ``stick`` plugged into its USB, until it powers off. What it writes to its own disk is lost.

    ``folder``: gets ``console`` and ``results``, as with ``boot``. Raises subprocess.TimeoutExpired after
    ``limit`` seconds.
    """
    modules = (*MOUNTING, *BOX_DRIVERS)
    initramfs = _initramfs(folder, version, modules, {"init": BOX_INIT.read_text()})
    usb = ["-device", "qemu-xhci", "-drive", f"if=none,id=stick,format=raw,file={stick}"]
    usb += ["-device", "usb-storage,drive=stick,removable=on"]
    _run(folder, version, initramfs, {"box": root, "added": added}, limit, *usb, memory=2048)


def _run(
    folder: Path, version: str, initramfs: Path, shares: dict[str, Path], limit: float, *more: str,
    memory: int = 1024,
) -> None:  # fmt: skip
    how = "security_model=none,readonly=on,multidevs=remap"
    shared: list[str] = []
    for tag, path in shares.items():
        shared += ["-virtfs", f"local,path={path},mount_tag={tag},{how}"]
    subprocess.run(
        [
            "qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", str(memory),
            "-display", "none", "-monitor", "none", "-no-reboot", "-nic", "none",
            "-kernel", f"/boot/vmlinuz-{version}",
            "-initrd", str(initramfs),
            "-append", "console=ttyS0 quiet panic=-1 mitigations=off",
            *shared,
            "-serial", f"file:{folder / 'console'}",
            "-serial", f"file:{folder / 'results'}",
            *more,
        ],
        check=True,
        timeout=limit,
    )  # fmt: skip


def _initramfs(folder: Path, version: str, modules: Iterable[str], files: dict[str, str]) -> Path:
    root = folder / "root"
    for name in ("bin", "modules"):
        (root / name).mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "busybox", root / "bin/busybox")
    for name, text in files.items():
        (root / name).write_text(text)
        (root / name).chmod(0o755)
    order = list(dict.fromkeys(path for name in modules for path in _modules(version, name) or ()))
    for path in order:
        unpack = UNPACK.get(path.suffix)
        data = (
            subprocess.run([unpack, "-dc", path], check=True, capture_output=True).stdout if unpack else None
        )
        (root / "modules" / path.name).write_bytes(data or path.read_bytes())
    (root / "modules/order").write_text("\n".join(path.name for path in order))
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
