"""The command line of bubblewrap, which gives a process of a sandbox its own namespaces and its own file system."""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
import shutil
import sys
from pathlib import Path

from dash_exp.core.errors import UserError
from dash_exp.rewards.seccomp import ARCHITECTURES

FILE_BYTES = 16 * 1024 * 1024  # of /tmp in all, and of one file


@functools.cache
def site_folders() -> list[str]:
    """The folder of the installed packages, numpy among them; programs and tests may import them."""
    found = importlib.util.find_spec("numpy")
    return [str(Path(found.origin).parent.parent)] if found and found.origin else []


@functools.cache
def command() -> list[str]:
    """`bwrap` with all its options but those of one process. Raises UserError where bubblewrap is not installed."""
    found = shutil.which("bwrap")
    if found is None or platform.machine() not in ARCHITECTURES:
        missing = "bubblewrap is not installed" if found is None else f"is not supported on {platform.machine()}"
        raise UserError(
            "reward.isolation=bwrap",
            f"{missing}, and programs written by a model are not run without it",
            "Install it (apt install bubblewrap), or choose reward.isolation=process, which gives them the rights of the user",
        )
    command = [found, "--die-with-parent", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"]
    command += ["--unshare-cgroup-try", "--cap-drop", "ALL"]
    if os.geteuid() == 0:
        # The limit on processes does not hold for root, not even in a user namespace of its own. So the process starts as root
        # and then changes to another user itself, after which it has no capability.
        command += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        command += ["--unshare-user", "--uid", "65534", "--gid", "65534"]
    for folder in ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"):
        if os.path.islink(folder):
            command += ["--symlink", os.readlink(folder), folder]
        elif os.path.isdir(folder):
            command += ["--ro-bind", folder, folder]
    # before the libraries, which may be under the machine's own /tmp
    command += ["--perms", "1777", "--size", str(FILE_BYTES), "--tmpfs", "/tmp"]
    libraries = [sys.base_prefix, sys.base_exec_prefix, *site_folders()]
    libraries = [f for f in dict.fromkeys(libraries) if os.path.isdir(f) and not Path(f).is_relative_to("/usr")]
    parents = {str(parent) for f in libraries for parent in Path(f).parents} - {"/", "/tmp", *libraries}
    for folder in sorted({*parents, "/dev", "/etc"}):
        command += ["--perms", "0755", "--dir", folder]  # empty except for what is bound into it below
    for folder in sorted(libraries):
        command += ["--ro-bind", folder, folder]
    command += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    for device in ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"):
        command += ["--dev-bind", device, device]
    # no /proc: it would show the machine and other processes
    return [*command, "--remount-ro", "/", "--chdir", "/tmp"]
