"""The app through its API: what it answers, what it refuses and in which words, and that nothing gets in or out."""

import ast
import asyncio
import base64
import importlib.util
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
def app_module():
    specification = importlib.util.spec_from_file_location("app_under_test", ROOT / "app.py")
    module = sys.modules["app_under_test"] = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def refusal(client, path, api_name, *options):
    with pytest.raises(Exception) as error:
        client.predict(handle_file(path), *options, api_name=api_name)
    return str(error.value)


# ------------------------------------------------------------------------------------------------------------- answers


def test_a_picture_is_answered_with_boxes_evidence_and_numbers(client):
    page, numbers = client.predict(handle_file(EXAMPLES / "portrait.jpg"), api_name="/detect_image")
    (face,) = numbers["faces"]
    assert numbers["name"] == "portrait.jpg" and face["verdict"] in ("flagged", "inconclusive", "not_flagged")
    assert 0 <= face["p_fake"] <= 1 and np.shape(face["evidence"]) == (3, 3)
    assert page.count('class="dcl-box') == 1 and page.count('class="dcl-evidence"') == 1
    assert numbers["band"] == {"low": 0.3, "high": 0.6, "reason": None} and numbers["expected_fpr"]["value"] == 0.075
    assert "towards real" in page and "towards forged" in page
    assert "data-evidence" in page and "What this means" in page and "What it does not mean" in page
    assert numbers["sentence"] in page.replace("&#x27;", "'")


def test_a_video_is_answered_with_people_a_timeline_and_frames_to_jump_to(client, tmp_path):
    video = write_video(tmp_path / "clip.mp4", frames=16)
    page, numbers = client.predict(handle_file(video), 8, api_name="/detect_video")
    assert numbers["frames_read"] == 8 and len(numbers["people"]) == 1
    person = numbers["people"][0]
    assert len(person["frames"]) == 8 and "evidence" not in person["frames"][0]
    figures = re.findall(r'data-frame="(\d+)"', page)
    assert figures == [str(place) for place in range(8)]
    assert set(re.findall(r'data-jump="(\d+)"', page)) == set(figures)
    assert page.count(" hidden>") == 7 and "data-scrub" in page and page.count("dcl-threshold") == 2
    assert {frame["verdict"] for frame in person["frames"]} == {person["verdict"]} == {numbers["verdict"]}


def test_a_threshold_of_ones_own_takes_the_place_of_the_checkpoints(client):
    for threshold, verdict in ((0.01, "flagged"), (0.99, "not_flagged")):
        _, numbers = client.predict(handle_file(EXAMPLES / "portrait.jpg"), "eer", threshold, api_name="/detect_image")
        assert (numbers["verdict"], numbers["threshold"], numbers["operating_point"]) == (verdict, threshold, None)
    said = refusal(client, EXAMPLES / "portrait.jpg", "/detect_image", "eer", 1.5)
    assert "threshold is 1.5: choose a number between 0 and 1" in said


def test_a_picture_without_a_face_is_not_judged(client, tmp_path):
    Image.new("RGB", (200, 100), "green").save(tmp_path / "lawn.png")
    page, numbers = client.predict(handle_file(tmp_path / "lawn.png"), api_name="/detect_image")
    assert numbers["verdict"] == "abstained" and numbers["faces"] == [] and "No score" in page


def test_notes_on_what_was_left_out_are_shown(client, tmp_path):
    pages = [Image.new("RGB", (200, 100), colour) for colour in ("green", "blue")]
    pages[0].save(tmp_path / "scan.tif", save_all=True, append_images=pages[1:])
    page, numbers = client.predict(handle_file(tmp_path / "scan.tif"), api_name="/detect_image")
    (note,) = numbers["notes"]
    assert "2 pages" in note and note in page


def test_two_endpoints_are_documented(server):
    endpoints = httpx.get(f"{server.url}{API}/info").json()["named_endpoints"]
    assert set(endpoints) == {"/detect_image", "/detect_video"}
    assert endpoints["/detect_image"]["description"].startswith("Score each face")
    assert endpoints["/detect_video"]["description"].startswith("Score each person")


def test_nothing_of_a_pictures_metadata_is_returned_and_names_are_escaped(client, tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "SECRET PLACE"
    path = tmp_path / "<img src=x onerror=alert(1)>&{{value}}${1}.jpg"
    Image.open(EXAMPLES / "portrait.jpg").save(path, exif=exif, comment=b"SECRET PLACE")
    page, numbers = client.predict(handle_file(path), api_name="/detect_image")
    assert "<img src=x" not in page and "onerror" not in page
    shown = base64.b64decode(re.search(r'src="data:image/webp;base64,([^"]+)"', page)[1])
    assert b"SECRET" not in shown and not Image.open(io.BytesIO(shown)).getexif()
    assert "SECRET" not in json.dumps(numbers)


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
    "use the tab Video": ("clip.jpg", lambda: (EXAMPLES / "portrait_forged_from_2_s.mp4").read_bytes()),
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
    assert answer.status_code == 400 and "no JSON" in answer.json()["detail"]


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
    assert "This is no uploaded file: upload one" in finished(server, answer)


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
    with pytest.raises(Exception, match=r"operating_point is 'nonsense': choose one of eer"):
        client.predict(portrait, "nonsense", api_name="/detect_image")
    _, numbers = client.predict(clip, "8", "eer", api_name="/detect_video")  # as the API says it
    assert numbers["frames_wanted"] == 8


def test_an_answer_that_nobody_asked_for_is_none_in_words_and_in_the_log(server):
    answer = httpx.get(f"{server.url}{API}/call/detect_image/{'0' * 32}", timeout=30)
    assert "event: error" in answer.text and "This has no answer" in answer.text
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
    time.sleep(60)
    assert not {"first.jpg", "second.jpg", "unused.jpg"} & there()
    answer = httpx.post(f"{server.url}{API}/call/detect_image", json={"data": [file_data(unused), "eer", None]})
    assert answer.status_code == 403 and "Choose it again" in answer.json()["detail"]


# --------------------------------------------------------------------------------------------------- parts of the app


def test_an_upload_stays_while_it_is_used_and_no_longer(app_module, tmp_path):
    uploads = app_module.Uploads(tmp_path, grace=30)
    paths = []
    for name in ("old", "running", "held", "fresh"):
        (tmp_path / name).mkdir()
        paths.append(tmp_path / name / "picture.jpg")
        paths[-1].write_bytes(b"x")
        os.utime(paths[-1], (time.time() - 100 * (name != "fresh"),) * 2)
    old, running, held, fresh = paths

    def sweep():
        if held.exists():
            os.utime(held, (time.time() - 100,) * 2)
        uploads.sweep({running})
        return [path for path in paths if path.exists()]

    with uploads.page("session"):
        uploads.use(str(held), "session")
        assert sweep() == [running, held, fresh] and not old.parent.exists()
        uploads.use(str(fresh), "session")  # the next upload
        assert sweep() == [running, fresh]
    os.utime(fresh, (time.time() - 100,) * 2)
    assert sweep() == [running]


def test_a_page_holds_an_upload_for_ten_minutes_at_most(app_module, tmp_path):
    uploads = app_module.Uploads(tmp_path, grace=30, longest=0)
    (tmp_path / "picture.jpg").write_bytes(b"x")
    with uploads.page("session"):
        uploads.use(str(tmp_path / "picture.jpg"), "session")
        os.utime(tmp_path / "picture.jpg", (time.time() - 100,) * 2)
        uploads.sweep(set())
        assert not (tmp_path / "picture.jpg").exists()


def test_a_length_beside_which_chunks_would_count_is_refused(app_module):
    headers = {b"content-length": b"3", b"transfer-encoding": b"chunked"}
    with pytest.raises(app_module._RefusalError, match="Content-Length"):
        asyncio.run(app_module.Gate._checked_post(f"/{API}/queue/join", headers, None))


def test_uploads_that_go_while_they_are_counted_take_no_room(app_module, tmp_path, monkeypatch):
    uploads = app_module.Uploads(tmp_path)
    monkeypatch.setattr(uploads, "_files", lambda: [tmp_path / "gone"])
    assert uploads.room(1)


def test_uploads_on_their_way_take_room(app_module, tmp_path, monkeypatch):
    monkeypatch.setattr(app_module, "MOST_FOLDER_BYTES", 10)
    uploads = app_module.Uploads(tmp_path)
    with uploads.coming(6):
        assert uploads.room(4) and not uploads.room(5)
    assert uploads.room(10)


def test_a_request_that_takes_too_long_ends_between_the_frames_that_are_wanted(app_module, monkeypatch):
    monkeypatch.setattr(app_module, "MOST_REQUEST_SECONDS", 0.05)
    left = []

    def stream(*_, **__):
        try:
            while True:
                time.sleep(0.02)
                yield {"event": "progress", "done": 1, "total": 16, "frame": None, "image": None}
        finally:
            left.append(True)

    detector = app_module.Detector.__new__(app_module.Detector)
    detector.pipe, detector.InputError, detector._one = SimpleNamespace(stream=stream), ValueError, threading.Lock()
    with pytest.raises(ValueError, match=r"took longer than 0\.05 s"):
        list(detector.events("long.mp4"))
    assert left and not detector._one.locked()


def test_an_answer_that_is_there_is_given_however_long_it_took(app_module, monkeypatch):
    monkeypatch.setattr(app_module, "MOST_REQUEST_SECONDS", 0.0)
    event = {"event": "result", "result": {}}
    detector = app_module.Detector.__new__(app_module.Detector)
    detector.pipe = SimpleNamespace(stream=lambda *_, **__: (event for _ in range(1)))
    detector.InputError, detector._one = ValueError, threading.Lock()
    assert list(detector.events("short.mp4")) == [event]


def test_frames_without_a_score_stand_below_the_axis_of_the_timeline(app_module):
    faces = [
        {"frame": 0, "time": 0.0, "p_fake": 0.0, "verdict": "inconclusive"},
        {"frame": 4, "time": 1.0, "p_fake": None, "verdict": "abstained"},
        {"frame": 8, "time": 2.0, "p_fake": 1.0, "verdict": "inconclusive"},
    ]
    band = {"low": 0.25, "high": 0.75, "reason": None}
    result = {"duration": 2.0, "threshold": 0.5, "band": band, "people": [{"person": 1, "frames": faces}]}
    chart = app_module._timeline(result, {0: 0, 4: 1, 8: 2})
    lowest, unscored, highest = (float(y) for y in re.findall(r'<circle [^>]*cy="([\d.]+)"', chart))
    axis = float(re.search(r"V(\d+)H", chart)[1])
    assert highest < lowest == axis < unscored - 5
    assert f'points="12.0,{lowest},588.0,{highest}"'.replace(",588", " 588") in chart
    lines = [float(y) for y in re.findall(r'dcl-threshold" [^>]*y1="([\d.]+)"', chart)]
    assert lines == pytest.approx([lowest - at * (lowest - highest) for at in (0.25, 0.75)], abs=0.1)
    assert "Dashed: 0.25 and 0.75, where the verdict" in chart
    alone = result | {"threshold": 0.5, "band": {"low": None, "high": None, "reason": "few"}}
    assert app_module._timeline(alone, {0: 0, 4: 1, 8: 2}).count("dcl-threshold") == 1


@pytest.mark.parametrize("verdict", ["flagged", "inconclusive", "not_flagged", "abstained"])
def test_every_verdict_has_its_words_and_its_colour(app_module, verdict):
    rate = {"value": 0.075, "low": 0.01, "high": 0.2, "reason": None}
    assert app_module.WORDS == VERDICTS
    page = app_module._page({"verdict": verdict, "sentence": "So.", "expected_fpr": rate}, "", evidence=False)
    assert f"<h2>{app_module.WORDS[verdict]}</h2>" in page and app_module.DOES_NOT_MEAN[verdict] in page
    assert ("7.5 % of the real ones score this high. For new people, 1.0 to 20.0 %" in page) == (verdict == "flagged")
    assert f".dcl .{verdict} {{ --verdict:" in app_module.CSS


def test_links_out_of_the_folder_are_no_uploads(app_module, tmp_path):
    uploads = app_module.Uploads(tmp_path)
    (tmp_path / "link").symlink_to("/etc/passwd")
    assert not uploads.owns(tmp_path / "link") and not uploads.owns(tmp_path) and not uploads.owns(None)


def test_the_app_imports_nothing_of_the_repository():
    imported = set()
    for node in ast.walk(ast.parse((ROOT / "app.py").read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level
            imported.add(node.module.partition(".")[0])
    allowed = {"gradio", "torch", "transformers", "numpy", "PIL", "huggingface_hub", "starlette"}
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
