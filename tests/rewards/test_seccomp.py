import struct

from dash_exp.rewards import seccomp


def test_the_filter_of_system_calls():
    """The filter, run here by hand on calls of both machines."""

    def run(machine, number, argument=0, architecture=None):
        data = struct.pack("<iIQQ", number, architecture or seccomp.ARCHITECTURES[machine], 0, argument)
        code = list(struct.iter_unpack("<HBBI", seccomp.rules(machine)))
        at, value = 0, 0
        while True:
            operation, yes, no, operand = code[at]
            at += 1
            if operation == 0x06:
                return operand
            if operation == 0x20:
                (value,) = struct.unpack_from("<I", data, operand)
            else:
                true = {0x15: value == operand, 0x35: value >= operand, 0x45: bool(value & operand)}[operation]
                at += yes if true else no

    allow, deny, absent, kill = 0x7FFF0000, 0x50001, 0x50026, 0x80000000
    for machine, read, socket, clone in (("x86_64", 0, 41, 56), ("aarch64", 63, 198, 220)):
        assert run(machine, read) == allow
        assert run(machine, socket) == deny
        assert run(machine, clone, 0x1200011) == allow  # fork
        assert run(machine, clone, 0x3D0F00) == allow  # a thread
        assert run(machine, clone, 0x10000011) == deny  # a user namespace
        assert run(machine, 435) == absent
        assert run(machine, read | 0x40000000) == deny
        assert run(machine, read, architecture=0x40000003) == kill  # i386
