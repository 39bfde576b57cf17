"""The app through its API: what it answers, what it refuses and in which words, and that nothing gets in or out."""

import ast
import asyncio
import io
import json
import os
import re
import socket
import struct
import sys
import threading
import time
import tomllib
import zlib
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from packaging.specifiers import SpecifierSet
from PIL import Image

from dcl_face_forgery.decision_dcl import VERDICTS
from dcl_face_forgery.tests.shared.app_server import EXAMPLES, ROOT, serve, write_video
from dcl_face_forgery.tests.shared.checkpoints import save_checkpoint

API = "gradio_api"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    checkpoint = save_checkpoint(tmp_path_factory.mktemp("checkpoint"))
    with serve(checkpoint, tmp_path_factory.mktemp("app")) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    return Client(server.url, verbose=False)


@pytest.fixture(scope="module")
def listener():
    """A server that nothing of the app may ever reach: its address, and the connections that were made to it."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        reached = []

        def listen():
            while True:
                try:
                    reached.append(listening.accept())
                except OSError:
                    return

        threading.Thread(target=listen, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", reached


@pytest.fixture(scope="module")
def web():
    """The modules of `web/`, found as by `python app.py`."""
    sys.path.append(str(ROOT))
    try:
        from web import analysis, answers, gate, uploads
    finally:
        sys.path.remove(str(ROOT))
    return SimpleNamespace(analysis=analysis, answers=answers, gate=gate, uploads=uploads)


def refusal(client, path, api_name, *options):
    with pytest.raises(Exception) as error:
        client.predict(handle_file(path), *options, api_name=api_name)
    return str(error.value)


# ------------------------------------------------------------------------------------------------------------- answers


def test_a_picture_is_answered_with_boxes_evidence_and_numbers(client, web):
    annotated, numbers = client.predict(handle_file(EXAMPLES / "portrait.jpg"), api_name="/detect_image")
    (face,) = numbers["faces"]
    assert numbers["name"] == "portrait.jpg" and face["verdict"] in ("flagged", "inconclusive", "not_flagged")
    assert 0 <= face["p_fake"] <= 1 and np.shape(face["evidence"]) == (3, 3)
    assert numbers["band"] == {"low": 0.3, "high": 0.6, "reason": None} and numbers["expected_fpr"]["value"] == 0.075
    drawn, picture = (
        np.asarray(Image.open(each).convert("RGB"), int) for each in (annotated, EXAMPLES / "portrait.jpg")
    )
    left, top, right, bottom = (round(edge) for edge in face["box"])
    changed = np.abs(drawn - picture).mean(-1) > 40
    assert drawn.shape == picture.shape
    assert changed[top : top + 2, left + 5 : right - 5].mean() > 0.5 and changed[bottom + 60 :].mean() < 0.01
    page = web.answers.show_verdict(numbers)
    assert numbers["sentence"] in page.replace("&#x27;", "'") and 'class="dcl-bar"' in page
    assert "What this means" in page and "What it does not mean" in page


def test_a_video_is_answered_with_people_a_plot_and_frames(client, web, tmp_path):
    video = write_video(tmp_path / "clip.mp4", frames=16)
    frame, numbers = client.predict(handle_file(video), 8, api_name="/detect_video")
    assert numbers["frames_read"] == 8 and len(numbers["people"]) == 1
    assert Image.open(frame).size == (256, 256)
    person = numbers["people"][0]
    assert len(person["frames"]) == 8 and "evidence" not in person["frames"][0]
    assert {frame["verdict"] for frame in person["frames"]} == {person["verdict"]} == {numbers["verdict"]}
    points = web.answers.plot_points(numbers)
    times = [frame["time"] for frame in person["frames"]]
    assert points[points.series == "Person 1"].time.tolist() == times
    assert f'data-times="{times}"' in web.answers.show_verdict(numbers)
    assert set(points.series) == {"Person 1", "Flagged from", "Not flagged below"}


def test_each_frame_is_drawn_with_the_verdict_on_the_person_and_told_its_own_score(web):
    drawn = []

    def annotate(picture, result, evidence):
        drawn.append(result)
        return Image.fromarray(picture)

    face = {"box": [10, 10, 50, 50], "evidence_box": [[0, 0], [60, 0], [60, 60], [0, 60]], "verdict": "not_flagged"}
    faces = [
        {**face, "frame": 0, "time": 0.0, "p_fake": 0.7, "reason": None},
        {**face, "frame": 5, "time": 1.25, "p_fake": None, "verdict": "abstained", "reason": "too_blurred"},
    ]
    people = [{"person": 1, "p_fake": 0.4, "verdict": "not_flagged", "frames": faces}]
    frames = {number: Image.new("RGB", (32, 32)) for number in (0, 5)}
    shown = web.answers.draw_frames(annotate, frames, {"width": 64, "height": 64, "people": people})
    assert [(time, caption) for time, _, caption in shown] == [
        (0.0, "0.00 s, person 1: 0.700"),
        (1.25, "1.25 s, person 1: too blurred"),
    ]
    assert [result["faces"][0]["p_fake"] for result in drawn] == [0.4, None]
    assert drawn[0]["faces"][0]["box"] == [5, 5, 25, 25] and drawn[0]["width"] == 32


def test_a_threshold_of_ones_own_takes_the_place_of_the_checkpoints(client):
    for threshold, verdict in ((0.01, "flagged"), (0.99, "not_flagged")):
        _, numbers = client.predict(handle_file(EXAMPLES / "portrait.jpg"), "eer", threshold, api_name="/detect_image")
        assert (numbers["verdict"], numbers["threshold"], numbers["operating_point"]) == (verdict, threshold, None)
    said = refusal(client, EXAMPLES / "portrait.jpg", "/detect_image", "eer", 1.5)
    assert "threshold is 1.5. Choose a number between 0 and 1" in said


def test_a_picture_without_a_face_is_not_judged(client, web, tmp_path):
    Image.new("RGB", (200, 100), "green").save(tmp_path / "lawn.png")
    _, numbers = client.predict(handle_file(tmp_path / "lawn.png"), api_name="/detect_image")
    assert numbers["verdict"] == "abstained" and numbers["faces"] == []
    page = web.answers.show_verdict(numbers)
    assert "No score" in page and "shows a face from the front" in page


def test_notes_on_what_was_left_out_are_shown(client, web, tmp_path):
    pages = [Image.new("RGB", (200, 100), colour) for colour in ("green", "blue")]
    pages[0].save(tmp_path / "scan.tif", save_all=True, append_images=pages[1:])
    _, numbers = client.predict(handle_file(tmp_path / "scan.tif"), api_name="/detect_image")
    (note,) = numbers["notes"]
    assert "2 pages" in note and note in web.answers.show_verdict(numbers)


def test_two_endpoints_are_documented(server):
    endpoints = httpx.get(f"{server.url}{API}/info").json()["named_endpoints"]
    assert set(endpoints) == {"/detect_image", "/detect_video"}
    assert endpoints["/detect_image"]["description"].startswith("Score each face")
    assert endpoints["/detect_video"]["description"].startswith("Score each person")


def test_nothing_of_a_pictures_metadata_is_returned_and_names_are_escaped(client, web, tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "SECRET PLACE"
    path = tmp_path / "<img src=x onerror=alert(1)>&{{value}}${1}.jpg"
    Image.open(EXAMPLES / "portrait.jpg").save(path, exif=exif, comment=b"SECRET PLACE")
    annotated, numbers = client.predict(handle_file(path), api_name="/detect_image")
    assert b"SECRET" not in Path(annotated).read_bytes() and not Image.open(annotated).getexif()
    assert "SECRET" not in json.dumps(numbers)
    for page in (
        web.answers.show_refusal(f"{path.name} cannot be decoded."),
        web.answers.show_verdict({**numbers, "sentence": path.name, "notes": [path.name]}),
    ):
        assert "<img src=x" not in page and "&lt;img src=x onerror" in page


# ------------------------------------------------------------------------------------------------------------ refusals


def bomb() -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (8, 8)).save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    data[16:24] = struct.pack(">II", 60_000, 40_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


PICTURES = {
    "an SVG": ("drawing.jpg", lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'),
    "HTML": ("page.png", lambda: b"<!doctype html><script>alert(1)</script>"),
    "a PDF": ("paper.jpg", lambda: b"%PDF-1.7\n"),
    "a ZIP": ("archive.webp", lambda: b"PK\x03\x04" + bytes(100)),
    "cannot be decoded": ("half.jpg", lambda: (EXAMPLES / "portrait.jpg").read_bytes()[:20_000]),
    "pixels": ("bomb.png", bomb),
    "is empty": ("nothing.png", lambda: b"\0"),
    "open it in the Video tab": ("clip.jpg", lambda: (EXAMPLES / "portrait_forged_from_2_s.mp4").read_bytes()),
    "its name is that of a video": ("portrait.mp4", lambda: (EXAMPLES / "portrait.jpg").read_bytes()),
    "more than 20 MB": ("large.bmp", lambda: (EXAMPLES / "portrait.jpg").read_bytes() + bytes(21 << 20)),
}


@pytest.mark.parametrize("words", PICTURES)
def test_a_bad_picture_gets_a_sentence(client, tmp_path, words):
    name, content = PICTURES[words]
    (tmp_path / name).write_bytes(content())
    sentence = refusal(client, tmp_path / name, "/detect_image")
    assert words in sentence and name in sentence and sentence.endswith(".")
    assert "dcl-app-" not in sentence and "most_" not in sentence


def playlists(address: str) -> dict[str, bytes]:
    return {
        "hls.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{address}/a.ts\n#EXT-X-ENDLIST\n".encode(),
        "concat.mov": f"ffconcat version 1.0\nfile '{address}/a.mp4'\n".encode(),
        "dash.webm": f'<?xml version="1.0"?><MPD><BaseURL>{address}/</BaseURL></MPD>'.encode(),
        "session.mkv": f"v=0\nc=IN IP4 127.0.0.1\nm=video {address[-5:]} RTP/AVP 96\n".encode(),
        "portrait.webm": (EXAMPLES / "portrait.jpg").read_bytes(),
        "broken.mp4": (EXAMPLES / "portrait_forged_from_2_s.mp4").read_bytes()[:400],
    }


@pytest.mark.parametrize("name", playlists("http://127.0.0.1:11111"))
def test_a_bad_video_gets_a_sentence_and_leads_nowhere(client, server, listener, tmp_path, name):
    address, reached = listener
    (tmp_path / name).write_bytes(playlists(address)[name])
    sentence = refusal(client, tmp_path / name, "/detect_video", 8)
    assert name in sentence and sentence.endswith(".") and "dcl-app-" not in sentence
    assert reached == [] and server.attempts.read_text() == ""


def test_long_and_large_videos_are_refused_before_they_are_decoded(client, tmp_path):
    slow = write_video(tmp_path / "slow.mp4", frames=400, rate=1, size=(16, 16))
    assert "lasts 400.0 s, more than 300 s" in refusal(client, slow, "/detect_video", 8)


def test_only_the_offered_numbers_of_frames_are_taken(client, tmp_path):
    assert "1000" in refusal(client, write_video(tmp_path / "clip.mp4", frames=2), "/detect_video", 1000)


def test_a_request_without_a_file_gets_a_sentence(client):
    with pytest.raises(Exception, match="There is no file yet"):
        client.predict(None, api_name="/detect_image")


def test_too_much_is_refused_by_its_length(server):
    def post(path, length):
        with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":")[-1].strip("/")))) as connection:
            connection.sendall(
                f"POST /{API}/{path} HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
                f"{length}\r\nConnection: close\r\n\r\n".encode()
            )
            answer = b""
            while part := connection.recv(4096):
                answer += part
        return answer.decode()

    assert "413" in (answer := post("upload", f"Content-Length: {200 << 20}")) and "up to 100 MB" in answer
    assert "413" in (answer := post("queue/join", f"Content-Length: {1 << 20}")) and "too long" in answer
    assert "411" in (answer := post("upload", "Transfer-Encoding: chunked")) and "Content-Length" in answer
    both = post("queue/join", "Content-Length: 3\r\nTransfer-Encoding: chunked")
    assert both.split()[1] in ("400", "411")


@pytest.mark.parametrize("body", [b"{", b"[]", b"[" * 30_000, b"\xff", b'"a"'])
def test_what_is_no_json_object_gets_a_sentence(server, body):
    answer = httpx.post(f"{server.url}{API}/queue/join", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400 and re.search("is not (a )?JSON", answer.json()["detail"])


# -------------------------------------------------------------------------------------------- nothing in, nothing out


def upload(server, name="portrait.jpg"):
    files = {"files": (name, (EXAMPLES / "portrait.jpg").read_bytes())}
    return httpx.post(f"{server.url}{API}/upload", files=files).json()[0]


def file_data(path, **more):
    return {"path": path, "meta": {"_type": "gradio.FileData"}, **more}


def hostile_values(address):
    """What a client may write where a file is meant, with an address in it."""
    return [
        file_data(f"{address}/a.jpg"),
        file_data(f"{address.upper()}/a.jpg"),
        file_data("/etc/passwd", url=f"{address}/a.jpg"),
        file_data(None, url=f"{address}/a.jpg"),
        {"url": f"{address}/a.jpg", "meta": {"_type": "gradio.FileData"}},
        [file_data(f"{address}/a.jpg")],
        {"nested": [{"deep": file_data(f"{address}/a.jpg")}]},
        f"{address}/a.jpg",
        json.dumps(file_data(f"{address}/a.jpg")),
        file_data([f"{address}/a.jpg"]),
    ]


def finished(server, answer):
    """Wait for what became of a request of `/call`, and return its last words."""
    name, event = answer.request.url.path.rsplit("/", 1)[-1], answer.json()["event_id"]
    return httpx.get(f"{server.url}{API}/call/{name}/{event}", timeout=30).text


@pytest.mark.parametrize("endpoint", ["detect_image", "detect_video"])
@pytest.mark.parametrize("case", range(len(hostile_values(""))))
def test_no_address_that_a_client_sends_is_opened(server, listener, endpoint, case):
    address, reached = listener
    value = hostile_values(address)[case]
    options = ["eer", None] if endpoint == "detect_image" else [8, "eer", None]
    for place in range(len(options) + 1):  # in the place of the file, and of every option
        data = [None, *options]
        data[place] = value
        answer = httpx.post(f"{server.url}{API}/call/{endpoint}", json={"data": data}, timeout=30)
        if answer.status_code == 200:
            assert "event: complete" not in finished(server, answer)
        else:
            assert 400 <= answer.status_code < 500 and answer.json()["detail"]
    assert reached == [] and server.attempts.read_text() == ""


@pytest.mark.parametrize("value", ["a.jpg", 3, [], {}, {"meta": {}}])
def test_what_is_no_upload_is_refused_in_words(server, value):
    answer = httpx.post(f"{server.url}{API}/call/detect_image", json={"data": [value, "eer", None]}, timeout=30)
    assert "Not an uploaded file: upload one" in finished(server, answer)


@pytest.mark.parametrize("data", [[], [None], [None] * 4, {}, "eer", None])
def test_another_number_of_values_is_refused_in_words(server, data):
    answer = httpx.post(f"{server.url}{API}/call/detect_image", json={"data": data}, timeout=30)
    assert answer.status_code == 400 and "takes a list of 3 values" in answer.json()["detail"]


@pytest.mark.parametrize("function", ["0", 0.0, 999, -1, True, None, [0]])
def test_what_is_no_function_is_refused_in_words(server, function):
    body = {"data": [None, "eer", None], "fn_index": function, "session_hash": "s"}
    answer = httpx.post(f"{server.url}{API}/queue/join", json=body, timeout=30)
    assert answer.status_code == 400 and ("no such function" in answer.json()["detail"] or function is True)


def test_what_is_not_to_be_chosen_is_refused_in_words(client):
    clip, portrait = (handle_file(EXAMPLES / name) for name in ("portrait_forged_from_2_s.mp4", "portrait.jpg"))
    with pytest.raises(Exception, match=r"num_frames is 9: choose one of \(8, 16, 32\)"):
        client.predict(clip, 9, "eer", api_name="/detect_video")
    with pytest.raises(Exception, match=r"operating_point is 'nonsense'. Choose one of eer"):
        client.predict(portrait, "nonsense", api_name="/detect_image")
    _, numbers = client.predict(clip, "8", "eer", api_name="/detect_video")  # as the API says it
    assert numbers["frames_wanted"] == 8


def test_an_answer_that_nobody_asked_for_is_none_in_words_and_in_the_log(server):
    answer = httpx.get(f"{server.url}{API}/call/detect_image/{'0' * 32}", timeout=30)
    assert "event: error" in answer.text and "No such answer" in answer.text
    assert "Traceback" not in server.output.read_text()


def announced(count, size=1):
    """The example's video, whose table says that it has so many frames."""
    data = bytearray((EXAMPLES / "portrait_forged_from_2_s.mp4").read_bytes())
    at = data.index(b"stsz") + 8
    data[at : at + 8] = struct.pack(">II", size, count)
    return bytes(data)


@pytest.mark.parametrize("count", [200_000, 60_000_000, 400_000_000, 2_000_000_000])
def test_a_video_that_announces_millions_of_frames_takes_neither_memory_nor_time(server, client, tmp_path, count):
    (tmp_path / "long.mp4").write_bytes(announced(count))
    began = time.monotonic()
    said = refusal(client, tmp_path / "long.mp4", "/detect_video", 8, "eer")
    assert "long.mp4" in said and time.monotonic() - began < 15
    peak = int(re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{server.process.pid}/status").read_text())[1])
    assert server.process.poll() is None and peak < 6 << 20  # kB
    client.predict(handle_file(EXAMPLES / "portrait.jpg"), "eer", api_name="/detect_image")


def test_nor_by_the_queue_or_other_routes(server, listener):
    address, reached = listener
    hostile = file_data(f"{address}/a.jpg")
    api = f"{server.url}{API}"
    with httpx.Client(timeout=30) as http:
        config = http.get(f"{server.url}config").json()
        for function in config["dependencies"]:
            data = [hostile] * len(function["inputs"])
            for route in ("queue/join", "run/predict", "api/predict", f"run/{function['api_name']}"):
                body = {"data": data, "fn_index": function["id"], "session_hash": "s"}
                if data or route != "queue/join":
                    assert http.post(f"{api}/{route}", json=body).status_code == 403
        for component in config["components"]:
            body = {"component_id": component["id"], "fn_name": "ls", "session_hash": "s", "data": hostile}
            assert http.post(f"{api}/component_server", json=body).status_code == 403
        for route in (
            f"proxy={address}/a",
            f"file={address}/a",
            f"file/{address}/a",
            f"FILE={address}/a",
            "deep_link",
        ):
            assert http.get(f"{api}/{route}").status_code in (403, 404)
        for ending in ("", "%0a", "/x%0ay"):
            assert http.get(f"{server.url}monitoring{ending}").status_code == 403
            assert http.get(f"{api}/deep_link{ending}").status_code == 403
        assert http.post(f"{api}/upload", json={"url": f"{address}/a.jpg"}).status_code == 400
        assert http.post(f"{api}/process_recording", json={}).status_code == 403
        assert http.post(f"{api}/vibe-edit", json={}).status_code == 403
    assert reached == [] and server.attempts.read_text() == ""


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "app.py", "../app.py", "/proc/self/environ", "..%2f..%2fetc/passwd", "~/.bashrc", "/", "", "\0"],
)
def test_no_path_outside_of_the_uploads_is_read(server, path):
    for route in (f"file={path}", f"file/{path}", f"file={server.uploads}/../{path}"):
        answer = httpx.get(f"{server.url}{API}/{route.encode().decode().replace(chr(0), '%00')}")
        assert answer.status_code in (403, 404) and "root:" not in answer.text
    answer = httpx.post(f"{server.url}{API}/call/detect_image", json={"data": [file_data(path), "eer", None]})
    assert answer.status_code == 403 and "not here" in answer.json()["detail"]


def test_the_page_names_no_other_host(server):
    answer = httpx.get(server.url)
    assert "connect-src 'self'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "fonts.googleapis" not in answer.text


def test_names_of_files_are_in_no_log(server, client, tmp_path):
    name = "a_very_private_name"
    (tmp_path / f"{name}.jpg").write_bytes((EXAMPLES / "portrait.jpg").read_bytes())
    (tmp_path / f"{name}.png").write_bytes(b"<html>")
    client.predict(handle_file(tmp_path / f"{name}.jpg"), api_name="/detect_image")
    assert name in refusal(client, tmp_path / f"{name}.png", "/detect_image")
    number = upload(server, f"{name}.jpg")
    answer = httpx.post(f"{server.url}{API}/call/detect_image", json={"data": [file_data(number), f"{name}", None]})
    assert "event: error" in finished(server, answer)
    assert name not in server.output.read_text() and "Traceback" not in server.output.read_text()


@pytest.mark.slow
def test_uploads_are_gone_within_a_minute(server, tmp_path):
    (tmp_path / "first.jpg").write_bytes((EXAMPLES / "portrait.jpg").read_bytes() + b"\0")
    (tmp_path / "second.jpg").write_bytes((EXAMPLES / "portrait.jpg").read_bytes() + b"\0\0")
    visitor = Client(server.url, verbose=False)

    def there():
        return {path.name for path in server.uploads.rglob("*.jpg")}

    visitor.predict(handle_file(tmp_path / "first.jpg"), api_name="/detect_image")
    assert "first.jpg" in there()
    visitor.predict(handle_file(tmp_path / "second.jpg"), api_name="/detect_image")
    visitor.close()
    unused = upload(server, "unused.jpg")
    called = f"{server.url}{API}/call/detect_image"
    unfetched = httpx.post(called, json={"data": [file_data(unused), "eer", None]}, timeout=30)
    time.sleep(60)
    assert "No such answer" in finished(server, unfetched)
    assert not {"first.jpg", "second.jpg", "unused.jpg"} & there()
    answer = httpx.post(called, json={"data": [file_data(unused), "eer", None]})
    assert answer.status_code == 403 and "Choose it again" in answer.json()["detail"]


# --------------------------------------------------------------------------------------------------- parts of the app


def test_an_upload_stays_while_it_is_used_and_no_longer(web, tmp_path):
    uploads = web.uploads.Uploads(tmp_path, grace=30)
    paths = []
    for name in ("example", "old", "running", "held", "answer", "fresh"):
        (tmp_path / name).mkdir()
        paths.append(tmp_path / name / "picture.jpg")
        paths[-1].write_bytes(b"x")
        if name == "example":
            uploads.keep()
    example, old, running, held, answer, fresh = paths

    def sweep(*recent):
        for path in paths:
            if path.exists() and path not in recent:
                os.utime(path, (time.time() - 100,) * 2)
        uploads.sweep()
        return [path for path in paths if path.exists()]

    uploads.use([str(running)], "program")  # which has no page
    with uploads.page("session"):
        uploads.use([str(held)], "session")
        uploads.done(held, "session", "image", answer.parent)
        assert sweep(fresh) == [example, running, held, answer, fresh] and not old.parent.exists()
        uploads.use([str(fresh)], "session")  # the next upload
        assert sweep() == [example, running, held, answer, fresh]
        uploads.done(fresh, "session", "image", tmp_path / "next")
        assert sweep() == [example, running, fresh]
        uploads.use([str(fresh)], "session")
    assert sweep() == [example, running]  # the page is closed
    uploads.done(running, "another", "image", tmp_path / "none")
    assert sweep() == [example, running]
    uploads.done(running, "program", "image", tmp_path / "none")
    assert sweep() == [example]


@pytest.fixture
def uploads(web, tmp_path, monkeypatch):
    """The gate's uploads, in a folder of their own."""
    uploads = web.uploads.Uploads(tmp_path, grace=30)
    monkeypatch.setattr(web.gate, "uploads", uploads)
    monkeypatch.setattr(
        web.gate.Gate, "functions", {2: web.gate.Function(1, False), "run": web.gate.Function(1, True)}
    )
    return uploads


def old_file(uploads, name="picture.jpg"):
    """A file that a sweep deletes unless something holds it."""
    (path := uploads.folder / name).write_bytes(b"x")
    os.utime(path, (time.time() - 100,) * 2)
    return path


def stays(uploads, path):
    """Whether a file is still there after its grace and a sweep."""
    os.utime(path, (time.time() - 100,) * 2)
    uploads.sweep()
    return path.exists()


def post(web, address, body, status=200, answer=None, during=lambda: None):
    """Send a POST through the gate to a Gradio that answers so; return the body that Gradio got, and the status."""
    got, sent = [], []

    async def gradio(scope, receive, send):
        got.append(json.loads((await receive())["body"]))
        during()
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(answer or {}).encode()})

    async def receive():
        return {"type": "http.request", "body": json.dumps(body).encode()}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": f"/{API}/{address}", "headers": [(b"content-length", b"9")]}
    asyncio.run(web.gate.Gate(gradio)(scope, receive, send))
    return got[0] if got else None, sent[0]["status"]


def test_a_request_that_is_refused_holds_no_upload(web, uploads):
    for body in ({"fn_index": 2, "data": []}, {"fn_index": 9, "data": [None]}, {"fn_index": 2}):
        path = old_file(uploads)
        body |= {"session_hash": "session", "more": file_data(str(path))}
        assert post(web, "queue/join", body) == (None, 400)
        assert not stays(uploads, path)
    assert post(web, "queue/join", {"data": [file_data(str(path))]}) == (None, 403)  # it is gone


@pytest.mark.parametrize("status", [503, 422, 500])
def test_a_request_that_finds_the_queue_full_holds_no_upload(web, uploads, status):
    path = old_file(uploads)
    body = {"fn_index": 2, "data": [file_data(str(path))], "session_hash": "session"}
    held = []
    answer = {"detail": "Queue is full.", "event_id": "1"}
    _, given = post(web, "queue/join", body, status, answer, lambda: held.append(stays(uploads, path)))
    assert given == status and held == [True] and not stays(uploads, path)


def test_a_request_that_is_answered_at_once_holds_its_upload_no_longer(web, uploads):
    path, held = old_file(uploads), []
    _, status = post(
        web, "run/run", {"data": [file_data(str(path))]}, during=lambda: held.append(stays(uploads, path))
    )
    assert status == 200 and held == [True] and not stays(uploads, path)


def test_cancelling_a_request_lets_go_of_its_upload_and_of_no_other(web, uploads):
    paths = {name: old_file(uploads, name) for name in ("first", "second")}
    for name, path in paths.items():
        body = {"fn_index": 2, "data": [file_data(str(path))], "session_hash": "session"}
        post(web, "queue/join", body, answer={"event_id": name})
    cancel = {"fn_index": 2, "session_hash": "session", "event_id": "first"}
    post(web, "cancel", cancel, status=422)
    assert stays(uploads, paths["first"])
    post(web, "cancel", cancel)
    assert not stays(uploads, paths["first"]) and stays(uploads, paths["second"])


def test_only_an_answer_to_the_session_that_asked_lets_go_of_an_upload(web, uploads):
    path = old_file(uploads)
    got, _ = post(web, "queue/join", {"fn_index": 2, "data": [file_data(str(path))]}, answer={"event_id": "1"})
    session = got["session_hash"]  # which a program need not choose
    uploads.done(path, "another", "image", uploads.folder / "answer")
    assert stays(uploads, path)
    uploads.done(path, session, "image", uploads.folder / "answer")
    assert not stays(uploads, path)


def test_an_upload_is_held_for_ten_minutes_at_most(web, tmp_path):
    uploads = web.uploads.Uploads(tmp_path, grace=30, longest=0)
    with uploads.page("session"):
        uploads.use([str(old_file(uploads))], "session")  # and no answer comes
        assert not stays(uploads, tmp_path / "picture.jpg")
        uploads.use([str(path := old_file(uploads))], "session")
        uploads.done(path, "session", "image", tmp_path / "answer")
        assert not stays(uploads, path)


@pytest.mark.parametrize(
    "call",
    [
        lambda uploads, path: uploads.keep(),
        lambda uploads, path: uploads.use([str(path)], "session"),
        lambda uploads, path: uploads.queued([], "1"),
        lambda uploads, path: uploads.forget([]),
        lambda uploads, path: uploads.cancel("1"),
        lambda uploads, path: uploads.done(path, "session", "image", path.parent / "answer"),
        lambda uploads, path: uploads.page("session").__enter__(),
        lambda uploads, path: uploads.is_open("session"),
        lambda uploads, path: uploads.coming(1).__enter__(),
        lambda uploads, path: uploads.room(1),
        lambda uploads, path: uploads.sweep(),
    ],
)
def test_no_thread_changes_what_another_one_is_working_on(uploads, call):
    path = old_file(uploads)
    thread = threading.Thread(target=call, args=[uploads, path])
    with uploads._lock:
        thread.start()
        thread.join(0.1)
        assert thread.is_alive()
    thread.join(10)
    assert not thread.is_alive()


def test_gradio_forgets_what_it_has_of_visitors_who_are_gone(web, monkeypatch):
    uploads, gr = web.uploads.Uploads(Path("none"), grace=30), web.analysis.gr
    clock = [1000.0]
    monkeypatch.setattr(web.uploads, "uploads", uploads)
    monkeypatch.setattr(web.uploads, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    with gr.Blocks() as blocks:
        gr.Textbox()
    blocks.app = gr.routes.App.create_app(blocks.queue())
    memory, queue, states = web.uploads.Memory(blocks), blocks._queue, blocks.app.state_holder
    for session in ("gone", "page", "running"):
        queue.pending_messages_per_session[session] = session
        queue.pending_event_ids_session[session] = {f"of {session}"}
        states[session].state_data[1] = session
    queue.event_ids_to_events["1"] = SimpleNamespace(session_hash="running")

    def known(after):
        clock[0] += after
        memory.sweep()
        assert set(states.session_data) == set(states.time_last_used) == set(queue.pending_messages_per_session)
        return set(queue.pending_messages_per_session)

    with uploads.page("page"):
        assert known(after=0) == known(after=29) == {"gone", "page", "running"}
        queue.pending_event_ids_session["gone"].add("another")  # and it was answered before the next sweep
        assert known(after=2) == known(after=29) == {"gone", "page", "running"}
        assert known(after=2) == {"page", "running"} == set(queue.pending_event_ids_session)
    assert known(after=100) == {"page", "running"}
    del queue.event_ids_to_events["1"]
    assert known(after=31) == {"running"}
    assert known(after=31) == set()


def test_a_refused_request_leaves_no_folder(web, tmp_path, monkeypatch):
    monkeypatch.setattr(web.analysis, "UPLOADS", tmp_path)
    monkeypatch.setattr(web.analysis, "uploads", web.uploads.Uploads(tmp_path))
    (path := tmp_path / "page.jpg").write_bytes(b"<html>")
    requests = web.analysis.Requests(SimpleNamespace(InputError=ValueError, pipe=SimpleNamespace(file_kind=refuse)))
    assert list(requests.answer("image", {"path": str(path)}, {}, None)) == ["page.jpg is HTML."]
    assert list(tmp_path.iterdir()) == [path]
    web.analysis._save_json(tmp_path / "answer", {})
    assert (tmp_path / "answer" / "result.json").read_text() == "{}"


def refuse(path):
    raise ValueError(f"{path} is HTML.")


def test_a_length_beside_which_chunks_would_count_is_refused(web):
    headers = {b"content-length": b"3", b"transfer-encoding": b"chunked"}
    with pytest.raises(web.gate._RefusalError, match="Content-Length"):
        asyncio.run(web.gate.Gate._checked_post(f"/{API}/queue/join", headers, None))


def test_uploads_that_go_while_they_are_counted_take_no_room(web, tmp_path, monkeypatch):
    uploads = web.uploads.Uploads(tmp_path)
    monkeypatch.setattr(uploads, "_files", lambda: [tmp_path / "gone"])
    assert uploads.room(1)


def test_uploads_on_their_way_take_room(web, tmp_path, monkeypatch):
    monkeypatch.setattr(web.uploads, "MOST_FOLDER_BYTES", 10)
    uploads = web.uploads.Uploads(tmp_path)
    with uploads.coming(6):
        assert uploads.room(4) and not uploads.room(5)
    assert uploads.room(10)


def test_a_request_that_takes_too_long_ends_between_the_frames_that_are_wanted(web, monkeypatch):
    monkeypatch.setattr(web.gate, "MOST_REQUEST_SECONDS", 0.05)
    left = []

    def stream(*_, **__):
        try:
            while True:
                time.sleep(0.02)
                yield {"event": "progress", "done": 1, "total": 16, "frame": None, "image": None}
        finally:
            left.append(True)

    detector = web.analysis.Detector.__new__(web.analysis.Detector)
    detector.pipe, detector.InputError, detector._one = SimpleNamespace(stream=stream), ValueError, threading.Lock()
    with pytest.raises(ValueError, match=r"took longer than 0\.05 s"):
        list(detector.events("long.mp4"))
    assert left and not detector._one.locked()


def test_an_answer_that_is_there_is_given_however_long_it_took(web, monkeypatch):
    monkeypatch.setattr(web.gate, "MOST_REQUEST_SECONDS", 0.0)
    event = {"event": "result", "result": {}}
    detector = web.analysis.Detector.__new__(web.analysis.Detector)
    detector.pipe = SimpleNamespace(stream=lambda *_, **__: (event for _ in range(1)))
    detector.InputError, detector._one = ValueError, threading.Lock()
    assert list(detector.events("short.mp4")) == [event]


def test_frames_without_a_score_stand_below_the_axis_of_the_plot(web):
    faces = [
        {"frame": 0, "time": 0.0, "p_fake": 0.0, "verdict": "inconclusive"},
        {"frame": 4, "time": 1.0, "p_fake": None, "verdict": "abstained"},
        {"frame": 8, "time": 2.0, "p_fake": 1.0, "verdict": "inconclusive"},
        {"frame": 9, "time": 2.5, "p_fake": 0.5, "verdict": "inconclusive"},
    ]
    band = {"low": 0.25, "high": 0.75, "reason": None}
    result = {"duration": 3.0, "threshold": 0.5, "band": band, "people": [{"person": 1, "frames": faces}]}
    points = web.answers.plot_points(result)
    person = points[points.series == "Person 1"]
    alone = person[person.time.between(-0.1, 0.1)]  # drawn as a short line, or it could not be seen
    assert alone.p_fake.dropna().tolist() == [0.0, 0.0] and alone.time.mean() == pytest.approx(0, abs=0.02)
    assert person[person.time == 1.0].p_fake.isna().all()  # a gap
    assert person[person.time >= 2].p_fake.tolist() == [1.0, 0.5]
    marks = points[points.series == "No score"].dropna()
    assert (marks.p_fake < -0.05).all() and marks.time.mean() == pytest.approx(1)
    for name, at in (("Not flagged below", 0.25), ("Flagged from", 0.75)):
        line = points[points.series == name]
        assert line.time.tolist() == [0, 3] and line.p_fake.tolist() == [at, at]
    alone = web.answers.plot_points(result | {"band": {"low": None, "high": None, "reason": "few"}})
    assert alone[alone.series == "Threshold"].p_fake.tolist() == [0.5, 0.5]
    assert set(points.series) | {"Threshold"} <= set(web.answers.COLOURS)


@pytest.mark.parametrize("verdict", ["flagged", "inconclusive", "not_flagged", "abstained"])
def test_every_verdict_has_its_words_and_its_colour(web, verdict):
    rate = {"value": 0.075, "low": 0.01, "high": 0.2, "reason": None}
    assert web.answers.WORDS == VERDICTS
    page = web.answers.show_verdict(
        {"kind": "image", "verdict": verdict, "sentence": "So.", "expected_fpr": rate, "faces": []}
    )
    assert f"<h2>{web.answers.WORDS[verdict]}</h2>" in page and web.answers.DOES_NOT_MEAN[verdict] in page
    assert ("7.5 % of the real ones score this high. For new people, 1.0 to 20.0 %" in page) == (verdict == "flagged")
    assert f".dcl .{verdict} {{ --verdict:" in (ROOT / "web" / "app.css").read_text()


def test_every_reason_to_give_no_score_says_what_to_do_next(web):
    codes = {"no_face"}
    for name in ("abstention_dcl.py", "decision_dcl.py"):
        for node in ast.walk(ast.parse((ROOT / name).read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Abstention":
                codes.add(node.args[0].value)
            if isinstance(node, ast.Dict):
                pairs = zip(node.keys, node.values, strict=True)
                codes |= {
                    value.value
                    for key, value in pairs
                    if getattr(key, "value", "") == "reason"
                    and isinstance(getattr(value, "value", None), str)
                    and " " not in value.value
                }
    assert len(codes) >= 7 and codes <= set(web.answers.REASONS)


def faces_of(*faces):
    return [
        {"face": number, "verdict": verdict, "p_fake": p_fake, "reason": reason}
        for number, (verdict, p_fake, reason) in enumerate(faces, start=1)
    ]


def test_the_moments_of_each_person_are_listed(web):
    people = [
        {"person": 1, "moments": [{"time": 1.25, "p_fake": 0.7, "why": "highest"}]},
        {"person": 2, "moments": []},
        {
            "person": 3,
            "moments": [
                {"time": 4.0, "p_fake": 0.91, "why": "highest"},
                {"time": 3.5, "p_fake": 0.8, "why": "rise"},
            ],
        },
    ]
    page = web.answers.show_moments(people)
    assert re.findall(r'<li>(Person \d)|data-moment="(.*?)">(.*?)<', page) == [
        ("Person 1", "", ""),
        ("", "1.25", "Highest: 0.700 at 1.25 s"),
        ("Person 3", "", ""),
        ("", "4.0", "Highest: 0.910 at 4.00 s"),
        ("", "3.5", "Rise: 0.800 at 3.50 s"),
    ]
    assert web.answers.show_moments(people[1:2]) == ""


def test_only_the_answer_about_a_video_has_times_for_the_plot(web):
    rate = {"value": None, "low": None, "high": None, "reason": None}
    answer = {"verdict": "abstained", "sentence": "So.", "expected_fpr": rate}
    assert "data-times" not in web.answers.show_verdict(answer | {"kind": "image", "faces": []})
    page = web.answers.show_verdict(answer | {"kind": "video", "people": [], "duration": 2.0})
    assert 'data-times="[]" data-end="2.0"' in page


def test_faces_alike_share_a_sentence(web):
    flagged, small = ("flagged", 0.7, None), ("abstained", None, "too_small")
    assert web.answers.group(faces_of(small, flagged, ("flagged", 0.9, None), small, small), "face") == [
        "Faces 1, 4 and 5: no score, too small.",
        "Faces 2 and 3: flagged as forged, p_fake 0.700 to 0.900.",
    ]
    assert web.answers.group([{**faces_of(flagged)[0], "person": 1}], "person") == [
        "Person 1: flagged as forged, p_fake 0.700."
    ]


def test_the_bar_shows_the_score_against_the_threshold(web):
    bar = web.answers._bar(0.62, {"band": {"low": 0.3, "high": 0.6}, "threshold": 0.6})
    assert "left:30.00%;right:40.00%" in bar and "width:62.00%" in bar
    assert 'aria-label="Score 0.620 on a scale from 0 to 1; flagged from 0.600, not flagged below 0.300."' in bar
    assert "threshold 0.500" in web.answers._bar(0.62, {"band": {"low": None, "high": None}, "threshold": 0.5})


def test_the_page_says_what_its_checkpoint_can_judge(web):
    def said(methods):
        return web.answers.introduce(SimpleNamespace(seen_methods=methods), 73)

    assert "forgeries by Deepfakes and FaceSwap. It judges faces of at least 73 pixels" in said(
        ["Deepfakes", "FaceSwap"]
    )
    assert "demonstration" in said(["self_blend", "lowres_swap"]) and "demonstration" not in said(["Deepfakes"])
    assert "does not name" in said(None)


@pytest.mark.parametrize("span", [None, [], "x", {}, [None], [1, "y"], 3, [float("nan")]])
def test_the_frame_nearest_to_whatever_a_client_selects_is_found(web, span):
    assert web.answers.nearest([0.0, 1.0, 2.0], [0.9, 1.3]) == 1
    assert web.answers.nearest([0.0, 1.0, 2.0], span) == 0 == web.answers.nearest([], [1.0])


def test_links_out_of_the_folder_are_no_uploads(web, tmp_path):
    uploads = web.uploads.Uploads(tmp_path)
    (tmp_path / "link").symlink_to("/etc/passwd")
    assert not uploads.owns(tmp_path / "link") and not uploads.owns(tmp_path) and not uploads.owns(None)


@pytest.mark.parametrize("name", ["app.py", "web/gate.py", "web/uploads.py", "web/analysis.py", "web/answers.py"])
def test_the_app_imports_nothing_of_the_package(name):
    imported = set()
    for node in ast.walk(ast.parse((ROOT / name).read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level
            imported.add(node.module.partition(".")[0])
    allowed = {"web", "gradio", "torch", "transformers", "numpy", "pandas", "PIL", "huggingface_hub", "starlette"}
    assert imported - set(sys.stdlib_module_names) <= allowed


def test_a_space_gets_what_the_app_and_a_checkpoint_need():
    card = (ROOT / "space" / "README.md").read_text()
    assert re.search(r"^app_file: app.py$", card, re.MULTILINE) and re.search(r"^sdk: gradio$", card, re.MULTILINE)
    version = re.search(r"^sdk_version: (.*)$", card, re.MULTILINE)[1]
    (bounds,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["app"]
    assert SpecifierSet(bounds.removeprefix("gradio")).contains(version)
    ours = (ROOT / "requirements.txt").read_text().splitlines()
    needed = (ROOT / "space" / "requirements.txt").read_text().splitlines()
    heif = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["heif"]
    assert set(needed) <= {*ours, *heif} and set(heif) <= set(needed) and len(needed) == 10
