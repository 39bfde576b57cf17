"""Videos whose frames show their numbers, and their packets, for tests of reading videos."""

from fractions import Fraction

import av
import numpy as np

WIDTH, HEIGHT, BITS = 128, 64, 8


def numbered(number, width=WIDTH, height=HEIGHT):
    """A frame that shows its number: eight bright or dark bars over the upper half, the lower half grey."""
    image = np.full((height, width, 3), 128, np.uint8)
    for bit in range(BITS):
        image[: height // 2, bit * width // BITS : (bit + 1) * width // BITS] = 230 if number >> bit & 1 else 25
    return image


def number_of(image):
    height, width = image.shape[0], image.shape[1] // BITS
    upper = image[height // 8 : height * 3 // 8]
    bars = [upper[:, bit * width + width // 4 : bit * width + width * 3 // 4].mean() for bit in range(BITS)]
    return sum(1 << bit for bit, bar in enumerate(bars) if bar > 128)


def write_video(
    path,
    frames=60,
    codec="libx264",
    options=None,
    rotation=None,
    container_options=None,
    *,
    first=0,
    times=None,
    size=(WIDTH, HEIGHT),
    pixels=None,
    rate=25,
):
    """Encode frames that show their numbers, which begin with `first`; their times are in ms."""
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=1000 if times else rate, options=options or {})
        stream.width, stream.height = size
        stream.pix_fmt = pixels or ("yuvj420p" if codec == "mjpeg" else "yuv420p")
        if rotation:
            stream.set_display_rotation(rotation)
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(numbered(first + number, *size), format="rgb24")
            if times:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def read_packets(path):
    """Return the packets of a video that are not empty, each as (data, pts, dts, whether it is a key frame)."""
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    return [(bytes(packet), packet.pts, packet.dts, packet.is_keyframe) for packet in packets]


def write_packets(path, packets, like):
    """Write what `read_packets` returns as a video with the parameters of the one that it is `like`."""
    with av.open(str(like)) as source, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        for data, pts, dts, is_keyframe in packets:
            packet = av.Packet(data)
            packet.pts, packet.dts, packet.is_keyframe = pts, dts, is_keyframe
            packet.time_base, packet.stream = source.streams.video[0].time_base, stream
            container.mux(packet)
    return path
