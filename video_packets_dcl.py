"""Tell what the packets of a video hold by a few of their bytes, without decoding."""

import itertools
import re
from typing import Any

#: Kinds of NAL units that go with the pictures of H.264 and HEVC: parameter sets, SEI messages, delimiters, filler.
_COMPANIONS = {"h264": range(6, 16), "hevc": range(32, 41)}
#: By how much to shift the first byte of a unit, and what to keep of it, to get its kind.
_KIND = {"h264": (0, 31), "hevc": (1, 63)}
#: Where the configuration record (ISO/IEC 14496-15) says how many bytes tell the length of a unit.
_LENGTH_FIELD = {"h264": 4, "hevc": 21}
_UNIT = re.compile(rb"\x00\x00\x01(.)", re.DOTALL)  # a start code, and the first byte of its unit
_MOST_UNITS = 64  # of a packet that are looked at: a packet of megabytes may be nothing but tiny units
_IDR = 5  # the kind of an H.264 unit from which decoding can begin anew
_SHOWN_VP8 = 0x10  # in the first byte of a frame: RFC 6386, section 9.1


class PacketReader:
    """Tells what packets of one video track hold.

    Args:
        stream: an `av.VideoStream` that can be decoded.
    """

    def __init__(self, stream: Any):
        self._codec = stream.codec_context.codec.canonical_name
        record, field = stream.codec_context.extradata or b"", _LENGTH_FIELD.get(self._codec, 0)
        # Without the record, start codes separate the units, and FFmpeg itself puts those of a picture together.
        self._length_size = (record[field] & 3) + 1 if field < len(record) and record[0] == 1 else 0
        self._may_lack_pictures = self._codec in _COMPANIONS and self._length_size > 0

    def holds_picture(self, packet: Any) -> bool:
        """Whether an `av.Packet` holds a picture that is shown; damaged ones count as such.

        Empty packets repeat the last picture. VP8 has pictures that are never shown, from which others are predicted.
        Some recorders store what goes with the pictures of H.264 and HEVC in packets of its own.
        """
        if not packet.size:
            return False
        if self._may_lack_pictures:
            return self._kind_of_picture(packet) is not None
        return self._codec != "vp8" or bool(memoryview(packet)[0] & _SHOWN_VP8)

    def is_clean_start(self, packet: Any) -> bool:
        """Whether a decoder surely shows what an `av.Packet` holds without those before it.

        A key frame of H.264 may be a recovery point, from which the picture is complete only some frames later.
        """
        return packet.is_keyframe and (self._codec != "h264" or self._kind_of_picture(packet) == _IDR)

    def _kind_of_picture(self, packet: Any) -> int | None:
        """Return the kind of the first NAL unit of a picture, None if there is none, -1 if only the decoder can tell.

        It cannot be told if lengths are wrong, or too many other units come first.
        """
        companions, (shift, mask) = _COMPANIONS[self._codec], _KIND[self._codec]
        data, at = memoryview(packet), 0
        if not self._length_size:
            units = itertools.islice(_UNIT.finditer(data), _MOST_UNITS)
            kinds = (unit[1][0] >> shift & mask for unit in units)
            return next((kind for kind in kinds if kind not in companions), -1)
        for _ in range(_MOST_UNITS):
            if at + self._length_size >= len(data):
                return None if at == len(data) else -1
            kind = data[at + self._length_size] >> shift & mask
            if kind not in companions:
                return kind
            at += self._length_size + int.from_bytes(data[at : at + self._length_size])
        return -1


__all__ = ["PacketReader"]
