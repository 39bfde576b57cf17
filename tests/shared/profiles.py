"""ICC profiles for tests, made of published numbers."""

import struct

import numpy as np


def profile_of(space, connection, tags, description="made by a test"):
    """Return an ICC profile of version 2."""
    text = description.encode() + b"\0"
    tags = {b"desc": struct.pack(">4s4xI", b"desc", len(text)) + text + bytes(78), **tags}
    body, table, start = b"", b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += struct.pack(">4sII", name, start + len(body), len(data))
        body += data
    head = bytearray(128)
    head[:4], head[8:12] = struct.pack(">I", start + len(body)), b"\x02\x10\0\0"
    head[12:24], head[36:40] = b"mntr" + space + connection, b"acsp"
    head[68:80] = struct.pack(">3I", 63190, 65536, 54061)
    return bytes(head) + struct.pack(">I", len(tags)) + table + body


def curve(exponent):
    if exponent is None:
        values = np.linspace(0, 1, 1024)
        table = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
        return struct.pack(">4s4xI1024H", b"curv", 1024, *np.round(table * 65535).astype(int))
    return struct.pack(">4s4xIH", b"curv", 1, round(exponent * 256))


def matrix_profile(columns, exponent, description):
    numbers = [struct.pack(">4s4x3i", b"XYZ ", *(round(value * 65536) for value in column)) for column in columns]
    tags = dict(zip((b"rXYZ", b"gXYZ", b"bXYZ"), numbers, strict=True))
    return profile_of(
        b"RGB ", b"XYZ ", tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve(exponent)), description
    )


def grey_profile(exponent):
    white = struct.pack(">4s4x3i", b"XYZ ", 63190, 65536, 54061)
    return profile_of(b"GRAY", b"XYZ ", {b"wtpt": white, b"kTRC": curve(exponent)})


#: The published XYZ of red, green and blue under D50, and the exponent of the curve (None: that of sRGB).
SPACES = {
    "sRGB": (((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410)), None),
    "Adobe RGB (1998)": (
        ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)),
        563 / 256,
    ),
    "Display P3": (((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407)), None),
    "ProPhoto RGB": (((0.79767, 0.28804, 0.0), (0.13519, 0.71188, 0.0), (0.03134, 0.00008, 0.82491)), 1.8),
}
PROFILES = {name: matrix_profile(*space, name) for name, space in SPACES.items()}


def inks_profile():
    """Return a profile of four inks of which the first is a red and the last black."""
    colours = {0b1000: (50, 60, 40)}  # Lab
    grid = []
    for corner in range(16):
        lightness, a, b = colours.get(corner, (100 if corner == 0 else 0, 0, 0))
        grid += [round(lightness * 2.55), a + 128, b + 128]
    ramp = bytes(range(256))
    table = struct.pack(">4s4x4B9i", b"mft1", 4, 3, 2, 0, *(65536 * (place % 4 == 0) for place in range(9)))
    return profile_of(b"CMYK", b"Lab ", {b"A2B0": table + ramp * 4 + bytes(grid) + ramp * 3})
