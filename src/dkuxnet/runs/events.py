"""Curves for TensorBoard, in its own file format, written without the package tensorboard.

A file is a list of records: length, its checksum, the content, its checksum; the content is an
`Event` message in protobuf's encoding. Sources: tensorboard's record_writer.py and event.proto,
protobuf's encoding guide, RFC 3720 appendix B.4 (CRC-32C).
"""

import itertools
import struct
import time
from collections.abc import Mapping
from ctypes import c_float
from pathlib import Path

LOG_START = b"\x08\x01"  # SessionLog: status = START


class EventFile:
    """A new event file in `folder`; it hides what older ones say of `first_step` and later."""

    def __init__(self, folder: Path, first_step: int):
        # TensorBoard reads the files in the order of their names: counted, so that a clock that is
        # set back changes nothing
        names = (folder / f"events.out.tfevents.{n:06d}" for n in itertools.count())
        self.path = next(path for path in names if not path.exists())
        self._first_step = first_step
        self._begun = False

    def records(self, step: int, values: Mapping[str, float]) -> bytes:
        """The bytes to append for the values of a step; the first call begins the file."""
        events = [_number(2, step) + _bytes(5, b"".join(map(_value, values, values.values())))]
        if not self._begun:
            session = _number(2, self._first_step) + _bytes(7, LOG_START)
            events = [_bytes(3, b"brain.Event:2"), session, *events]
        self._begun = True
        now = b"\x09" + struct.pack("<d", time.time())  # field 1, a double
        return b"".join(_record(now + event) for event in events)


def _value(tag: str, value: float) -> bytes:
    """Field 1 of a Summary: its tag in field 1, its float in field 2."""
    single = c_float(value).value  # infinite where it is too large for a float, not an error
    return _bytes(1, _bytes(1, tag.encode()) + b"\x15" + struct.pack("<f", single))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value) if value else b""  # 0 is what a reader assumes


def _bytes(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the top bit says that more follow."""
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])


def _record(content: bytes) -> bytes:
    length = struct.pack("<Q", len(content))
    return length + _checksum(length) + content + _checksum(content)


def _checksum(content: bytes) -> bytes:
    """CRC-32C, masked as TensorFlow masks it: rotated right by 15 bits, plus a constant."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc = crc >> 8 ^ CRC_OF_BYTE[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _crc_of_byte(crc: int) -> int:
    for _ in range(8):
        crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc


CRC_OF_BYTE = [_crc_of_byte(byte) for byte in range(256)]
