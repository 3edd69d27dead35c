"""CAN sockets: frames and the kernel's receive times, as a CAN arm's driver needs them."""

from __future__ import annotations

import socket
import struct
import subprocess
import threading
import time

FRAME = struct.Struct("=IB3x8s")
SO_TIMESTAMPNS = 35  # asm-generic/socket.h; its message has the same number


def test_request_and_response_on_a_virtual_bus() -> None:
    subprocess.run(["/run/busybox", "ip", "link", "add", "vcan0", "type", "vcan"], check=True)
    subprocess.run(["/run/busybox", "ip", "link", "set", "vcan0", "up"], check=True)
    with (
        socket.socket(socket.AF_CAN, socket.SOCK_RAW, socket.CAN_RAW) as ours,
        socket.socket(socket.AF_CAN, socket.SOCK_RAW, socket.CAN_RAW) as motor,
    ):
        for end in (ours, motor):
            end.bind(("vcan0",))
            end.settimeout(30)
        ours.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)

        def answer() -> None:
            for _ in range(100):
                identifier, length, data = FRAME.unpack(motor.recv(16))
                motor.send(FRAME.pack(identifier + 0x10, length, data))

        thread = threading.Thread(target=answer)
        thread.start()
        for i in range(100):
            send_ns = time.time_ns()
            ours.send(FRAME.pack(0x141, 8, struct.pack("<q", i)))
            frame, control, _, _ = ours.recvmsg(16, 64)
            assert FRAME.unpack(frame) == (0x151, 8, struct.pack("<q", i))
            ((_, kind, when),) = control
            assert kind == SO_TIMESTAMPNS
            seconds, ns = struct.unpack("qq", when)
            assert send_ns - 1_000_000 <= seconds * 1_000_000_000 + ns <= time.time_ns()
        thread.join()
