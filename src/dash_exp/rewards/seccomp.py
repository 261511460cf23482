"""Which system calls a program in a sandbox may make: a filter that bubblewrap hands to the kernel (seccomp)."""

from __future__ import annotations

import errno
import functools
import struct

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_* of linux/audit.h

# System calls that no program here needs, with their numbers on x86_64 and on aarch64 (asm/unistd.h).
DENIED = {
    # the network, including kinds that a namespace does not cover
    "socket": (41, 198),
    # memory that does not count towards the limits of a process
    "shmget": (29, 194),
    "shmat": (30, 196),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    # other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    # namespaces and mounts
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265),
    # large parts of the kernel
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
}
CLONE, CLONE3 = (56, 220), (435, 435)
NEW_NAMESPACES = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET


@functools.cache
def rules(machine: str) -> bytes:
    """The filter as bubblewrap takes it: instructions of classic BPF over `struct seccomp_data`.

    `machine` is one of `ARCHITECTURES`. A denied system call fails with EPERM, clone3 with ENOSYS; another
    architecture than `machine` ends the process.
    """
    column = list(ARCHITECTURES).index(machine)
    load, equal, at_least, any_bit, end = 0x20, 0x15, 0x35, 0x45, 0x06
    kill, allow, not_permitted, no_such_call = 0x80000000, 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
    number, architecture, first_argument = 0, 4, 16  # offsets
    program = [  # operation, jump if true, jump if false, operand; a jump is the number of instructions to skip
        (load, 0, 0, architecture),
        (equal, 1, 0, ARCHITECTURES[machine]),
        (end, 0, 0, kill),
        (load, 0, 0, number),
        (at_least, 0, 1, 0x40000000),  # x32, a second set of numbers on x86_64
        (end, 0, 0, not_permitted),
        (equal, 0, 1, CLONE3[column]),  # a filter cannot read its flags; C libraries then use clone
        (end, 0, 0, no_such_call),
    ]
    for numbers in DENIED.values():
        program += [(equal, 0, 1, numbers[column]), (end, 0, 0, not_permitted)]
    program += [
        (equal, 0, 3, CLONE[column]),
        (load, 0, 0, first_argument),
        (any_bit, 0, 1, NEW_NAMESPACES),
        (end, 0, 0, not_permitted),
        (end, 0, 0, allow),
    ]
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in program)
