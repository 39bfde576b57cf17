"""Mutated pictures and videos: each gets an answer or one sentence, in time, and none takes the process down."""

import faulthandler
import functools
import io
import time
from collections import Counter

import av
import numpy as np
import pytest
from PIL import Image

from dcl_face_forgery.data_scripts.assets import fetch, fetch_detector
from dcl_face_forgery.errors_dcl import InputError
from dcl_face_forgery.pipeline_dcl import FaceForgeryDetectionPipeline
from dcl_face_forgery.tests.shared.checkpoints import save_checkpoint
from dcl_face_forgery.video_dcl import Video

#: Seconds that one input may take; a hang ends the process with a traceback.
LIMIT = 20
PICTURE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
VIDEO_FORMATS = (("a.mp4", "libx264"), ("a.webm", "libvpx-vp9"), ("a.avi", "mjpeg"), ("a.mkv", "mpeg4"))
FOREIGN = (
    *(
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"<!DOCTYPE html><script>1</script>",
        b"%PDF-1.7\n",
        b"PK\x03\x04",
    ),
    *(
        b"\x7fELF",
        b"GIF89a",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff\xe0",
        b"RIFF\xff\xff\xff\xffWEBP",
        b"II*\x00",
        b"BM",
    ),
)


@functools.cache
def picture_seeds():
    """A photograph with a face in every format, and in modes that decoders treat apart."""
    photograph = Image.open(sorted(fetch("orl").rglob("*.pgm"))[0]).convert("RGB")
    seeds = []
    for kind in PICTURE_FORMATS:
        for mode in ("RGB", "L", "P"):
            if kind == "JPEG" and mode == "P":
                continue
            file = io.BytesIO()
            photograph.convert(mode).save(file, kind)
            seeds.append((kind.lower(), file.getvalue()))
    return seeds


@functools.cache
def video_seeds():
    """Five frames of a talking face in several containers and codecs."""
    with Video(fetch("talking_face")) as video:
        frames = [image for _, image in video.read(range(5))]
    seeds = []
    for name, codec in VIDEO_FORMATS:
        file = io.BytesIO()
        with av.open(file, "w", format={"mkv": "matroska"}.get(name[2:], name[2:])) as container:
            stream = container.add_stream(codec, rate=25)
            stream.height, stream.width = frames[0].shape[:2]
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        seeds.append((name[2:], file.getvalue()))
    return seeds


def mutate(data, rng):
    """Damage bytes as transfers, editors and attackers do: flipped, cut, doubled, swapped, foreign, extreme."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        if not data:
            break
        at, length = int(rng.integers(len(data))), int(rng.integers(1, 1 + min(64, len(data))))
        if rng.random() < 0.5:
            at = int(rng.integers(min(len(data), 256)))  # headers decide most
        kind = rng.integers(8)
        if kind == 0:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            data[at : at + length] = rng.bytes(length)
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + length]
        elif kind == 4:
            data[at:at] = data[at : at + length]
        elif kind == 5:
            data[at : at + 4] = [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\x80\0\0\0"][rng.integers(4)]
        elif kind == 6:
            foreign = FOREIGN[rng.integers(len(FOREIGN))]
            data[at : at + len(foreign)] = foreign
        else:
            other = int(rng.integers(len(data)))
            data[at : at + length], data[other : other + length] = (
                data[other : other + length],
                data[at : at + length],
            )
    return bytes(data)


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    fetch_detector()
    return FaceForgeryDetectionPipeline.from_pretrained(
        save_checkpoint(tmp_path_factory.mktemp("model")), device="cpu"
    )


def answer(pipe, path, **options):
    """Return what became of an input: its verdict, or "refused"; fail where that is neither, or comes too late."""
    faulthandler.dump_traceback_later(LIMIT, exit=True)
    start = time.monotonic()
    try:
        result = pipe(str(path), **options)
    except InputError as error:
        sentence = str(error)
        assert "\n" not in sentence and sentence.endswith("."), sentence
        return "refused"
    finally:
        faulthandler.cancel_dump_traceback_later()
        assert time.monotonic() - start < LIMIT, path
    assert result["verdict"] in ("flagged", "inconclusive", "not_flagged", "abstained")
    return result["verdict"]


@pytest.mark.slow
@pytest.mark.parametrize("share", range(4))
def test_mutated_pictures_get_an_answer_or_a_sentence(pipe, share, tmp_path):
    rng, seeds, met = np.random.default_rng(share), picture_seeds(), Counter()
    for number in range(2000):
        suffix, data = seeds[rng.integers(len(seeds))]
        path = tmp_path / f"{number}.{suffix}"
        path.write_bytes(mutate(data, rng))
        met[answer(pipe, path, abstain=False)] += 1
        path.unlink()
    assert met["refused"] > 100 and met.total() - met["refused"] > 100, met


@pytest.mark.slow
@pytest.mark.parametrize("share", range(4))
def test_mutated_videos_get_an_answer_or_a_sentence(pipe, share, tmp_path):
    rng, seeds, met = np.random.default_rng(100 + share), video_seeds(), Counter()
    for number in range(500):
        suffix, data = seeds[rng.integers(len(seeds))]
        path = tmp_path / f"{number}.{suffix}"
        path.write_bytes(mutate(data, rng))
        met[answer(pipe, path, num_frames=2)] += 1
        path.unlink()
    assert met["refused"] > 50 and met.total() - met["refused"] > 50, met
