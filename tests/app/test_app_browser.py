"""The app's page in a browser: pictures, videos, keyboard, phone, light and dark, and behind a reverse proxy."""

import base64
import json
import re
import shutil
import subprocess
import tarfile
import threading
import time

import httpx
import pytest
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.responses import StreamingResponse
from starlette.routing import Route

from dcl_face_forgery.tests.shared.app_server import EXAMPLES, free_port, serve, write_video
from dcl_face_forgery.tests.shared.checkpoints import save_checkpoint

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium"),
]
FLAGS = ["--no-sandbox", "--disable-background-networking", "--disable-component-update"]
PORTRAIT = EXAMPLES / "portrait.jpg"

AXE = "axe-core@4.14.1"


@pytest.fixture(scope="module")
def axe(tmp_path_factory):
    """The script of axe-core, which finds what people with disabilities cannot use."""
    folder = tmp_path_factory.mktemp("axe")
    packed = shutil.which("npm") and subprocess.run(["npm", "pack", AXE], cwd=folder, capture_output=True).returncode
    if packed != 0:
        pytest.skip(f"{AXE} cannot be fetched by npm")
    with tarfile.open(next(folder.glob("*.tgz"))) as package:
        return package.extractfile("package/axe.min.js").read().decode()


def serious(page, axe):
    """Return what axe-core finds on a page that is serious or critical."""
    page.evaluate(axe)
    found = page.evaluate("async () => (await axe.run(document, {resultTypes: ['violations']})).violations")
    return [(each["id"], each["nodes"][0]["html"]) for each in found if each["impact"] in ("serious", "critical")]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def server(checkpoint, tmp_path_factory):
    with serve(checkpoint, tmp_path_factory.mktemp("app")) as server:
        yield server


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, server):
    """Return what opens the page, and check at the end that it spoke to its own server only, and without an error."""
    pages = []

    def visit(url=server.url, width=1280, height=900, scheme="light"):
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        strangers, errors = [], []
        page.on("request", lambda request: strangers.append(request.url) if is_strange(request.url, url) else None)
        page.on("console", lambda message: errors.append(message) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        pages.append((page, strangers, errors))
        page.goto(url)
        page.get_by_role("button", name="Analyze").wait_for()
        return page

    yield visit
    for page, strangers, errors in pages:
        page.close()
        # Before it knows the page's own icon, a browser asks for one at the host's root.
        errors = [each for each in errors if "/favicon.ico" not in getattr(each, "location", {}).get("url", "")]
        assert strangers == [] and errors == []


def is_strange(address, url):
    return not address.startswith((url, "data:", "blob:"))


def analyze_picture(page, path=PORTRAIT):
    page.locator("#image-file input[type=file]").set_input_files(path)
    page.locator("#image-result .dcl-verdict").wait_for()
    return page.locator("#image-result")


def open_videos(page):
    page.get_by_role("tab", name="Video").click()
    page.locator("#video-file").wait_for()


def analyze_video(page, path):
    open_videos(page)
    page.locator("#video-file input[type=file]").set_input_files(path)
    page.locator("#video-result .dcl-verdict").wait_for(timeout=60_000)
    return page.locator("#video-result")


def loaded(image):
    return image.evaluate("async (node) => { await node.decode(); return node.naturalWidth; }")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_picture_shows_its_faces_its_evidence_and_a_bar(visit, axe, scheme):
    page = visit(scheme=scheme)
    assert serious(page, axe) == []
    result = analyze_picture(page)
    assert loaded(page.locator("#image-file img")) == 512  # what was chosen is seen
    drawn = page.locator("#image-drawn img")
    assert loaded(drawn) == 512
    sentence = result.locator(".dcl-verdict p").first.inner_text()
    assert sentence in drawn.get_attribute("alt")
    layers = page.locator("#image-evidence img")
    assert [loaded(layers.nth(place)) for place in (0, 1)] == [512, 512]
    assert layers.nth(0).get_attribute("src") != layers.nth(1).get_attribute("src")
    page.get_by_label(re.compile("range slider for Evidence shown")).focus()
    hidden = "Number(document.querySelectorAll('#image-evidence img')[1].style.clipPath.match(/([\\d.]+)%/)[1])"
    page.keyboard.press("End")  # the picture without evidence, which lies above, from there on
    page.wait_for_function(f"{hidden} > 75")
    page.keyboard.press("Home")
    page.wait_for_function(f"{hidden} < 25")
    bar = result.get_by_role("img", name=re.compile(r"^Score 0\.\d{3} on a scale from 0 to 1; flagged from 0\.600"))
    score, whole = result.locator(".dcl-score").bounding_box(), bar.bounding_box()
    assert score["width"] / whole["width"] == pytest.approx(float(re.search(r"is (0\.\d+)", sentence)[1]), abs=0.02)
    assert "What it does not mean" in result.inner_text()
    assert serious(page, axe) == []


def test_the_annotated_picture_and_the_numbers_can_be_downloaded(visit):
    page = visit()
    result = analyze_picture(page)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download annotated picture").click()
    assert Image.open(download.value.path()).size == (512, 512)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download JSON").click()
    numbers = json.loads(download.value.path().read_text())
    assert numbers["sentence"] in result.inner_text() and numbers["faces"][0]["evidence"]


def test_a_picture_of_three_people_shows_each_and_one_sentence_for_those_alike(visit, tmp_path):
    picture = Image.new("RGB", (1536, 512))
    for place in range(3):
        picture.paste(Image.open(PORTRAIT), (512 * place, 0))
    picture.save(tmp_path / "three.png")
    page = visit()
    result = analyze_picture(page, tmp_path / "three.png")
    faces = page.locator("#image-faces .thumbnail-item")
    faces.nth(2).wait_for()
    assert [faces.nth(place).inner_text().partition(":")[0] for place in range(3)] == ["1", "2", "3"]
    assert faces.count() == 3 and result.locator(".dcl > ul > li").count() <= 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_video_shows_a_plot_that_leads_to_its_frames(visit, axe, tmp_path, scheme):
    page = visit(scheme=scheme)
    analyze_picture(page)  # whose answer stays on the page
    open_videos(page)
    assert serious(page, axe) == []
    analyze_video(page, write_video(tmp_path / "clip.mp4", frames=16))
    assert page.locator("#video-file video").evaluate("node => node.videoWidth") == 256  # what was chosen is seen
    assert loaded(page.locator("#video-drawn img")) == 256
    area = page.locator("#video-plot .mark-group .background").first
    area.scroll_into_view_if_needed()
    assert {"Person 1", "Flagged from", "Not flagged below", "p_fake", "seconds", "0.2"} <= set(
        page.locator("#video-plot text").all_text_contents()
    )
    assert serious(page, axe) == []
    box, caption = area.bounding_box(), page.locator("#video-frames .preview")
    page.mouse.click(box["x"] + box["width"] * 0.49, box["y"] + 20)  # of two seconds
    caption.get_by_text(re.compile(r"^(0\.88|1\.00) s, person 1: 0\.\d{3}")).wait_for()
    page.keyboard.press("ArrowRight")
    caption.get_by_text(re.compile(r"^(1\.00|1\.12|1\.13) s")).wait_for()
    area.scroll_into_view_if_needed()
    box = area.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.2, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + 40, steps=5)
    page.mouse.up()
    caption.get_by_text(re.compile(r"^0\.50 s")).wait_for()
    highest = page.get_by_role("list", name="Moments").get_by_role("button", name=re.compile(r"^Highest: 0\.\d{3} at"))
    score, time = re.search(r": (\S+) at (\S+ s)", highest.inner_text()).groups()
    highest.click()
    caption.get_by_text(f"{time}, person 1: {score}").wait_for()


def test_a_frame_can_be_chosen_by_keyboard(visit, tmp_path):
    page = visit()
    analyze_video(page, write_video(tmp_path / "clip.mp4", frames=16))
    page.get_by_role("button", name=re.compile(r"^0\.25 s")).focus()
    page.keyboard.press("Enter")
    page.locator("#video-frames .preview").get_by_text(re.compile(r"^0\.25 s, person 1")).wait_for()


def test_a_bad_file_gets_a_sentence_on_the_page(visit, axe, tmp_path):
    (tmp_path / "drawing.jpg").write_text("<svg xmlns='http://www.w3.org/2000/svg'></svg>")
    (tmp_path / "<b>{{bold}}${1}.jpg").write_bytes(PORTRAIT.read_bytes()[:9_000])
    page = visit()
    result = analyze_picture(page, tmp_path / "drawing.jpg")
    assert "drawing.jpg is an SVG" in result.inner_text()
    assert result.get_by_role("alert").count() == 1 and page.locator(".toast-body").count() == 0
    assert serious(page, axe) == []
    page.locator("#image-file").get_by_role("button", name=re.compile("Clear|Remove")).click()
    page.locator("#image-file input[type=file]").set_input_files(tmp_path / "<b>{{bold}}${1}.jpg")
    result.get_by_text("cannot be decoded").wait_for()
    assert result.locator("b").count() == 0


def test_an_answer_without_a_score_says_what_to_do_next(visit, axe, tmp_path):
    Image.new("RGB", (200, 100), "green").save(tmp_path / "lawn.png")
    page = visit()
    result = analyze_picture(page, tmp_path / "lawn.png")
    assert "To get a score\nUse a picture that shows a face" in result.inner_text()
    assert not page.locator("#image-evidence").is_visible() and not page.locator("#image-faces").is_visible()
    assert serious(page, axe) == []


def test_examples_are_a_click_away(visit):
    page = visit()
    page.get_by_role("button", name="Example: portrait forged", exact=True).click()
    page.locator("#image-result .dcl-verdict").wait_for()
    assert loaded(page.locator("#image-file img")) == 512
    page.get_by_role("tab", name="Video").click()
    page.get_by_role("button", name="Example: portrait forged from 2 s").click()
    page.locator("#video-result .dcl-verdict").wait_for()


def drop(page, where, path, kind):
    """Drop a file on a component."""
    page.evaluate(
        """([where, name, type, data]) => {
          const files = new DataTransfer();
          files.items.add(new File([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], name, { type }));
          const event = new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer: files });
          document.querySelector(`${where} button`).dispatchEvent(event);
        }""",
        [where, path.name, kind, base64.b64encode(path.read_bytes()).decode()],
    )


def test_what_is_dropped_on_the_wrong_tab_goes_to_the_other(visit):
    page = visit()
    drop(page, "#image-file", EXAMPLES / "portrait_forged_from_2_s.mp4", "video/mp4")
    page.locator("#video-result .dcl-verdict").wait_for(timeout=60_000)
    assert page.get_by_role("tab", name="Video").get_attribute("aria-selected") == "true"
    drop(page, "#video-file", PORTRAIT, "image/jpeg")  # over a video that is there
    page.locator("#image-result .dcl-verdict").wait_for()
    assert page.get_by_role("tab", name="Picture").get_attribute("aria-selected") == "true"
    drop(page, "#image-file", EXAMPLES / "portrait_forged_from_2_s.mp4", "video/mp4")
    page.locator("#video-result progress, #video-result .dcl-verdict").first.wait_for()


def test_pictures_and_videos_can_come_from_a_camera_or_the_clipboard(visit):
    page = visit()
    for name in ("Upload file", "Capture from camera", "Paste from clipboard"):
        assert page.locator("#image-file").get_by_role("button", name=name).is_visible()
    open_videos(page)
    for name in ("Upload file", "Capture from camera"):
        assert page.locator("#video-file").get_by_role("button", name=name).is_visible()


def test_a_video_can_be_cancelled_and_the_next_request_is_served(visit, tmp_path):
    video = write_video(tmp_path / "long.mp4", frames=600, rate=24, size=(1280, 960))
    page = visit()
    open_videos(page)
    page.get_by_role("button", name="Options").locator("visible=true").click()
    page.get_by_role("radio", name="32").check()
    page.locator("#video-file input[type=file]").set_input_files(video)
    page.locator("#video-result progress").wait_for()
    page.get_by_role("tabpanel").get_by_role("button", name="Cancel").locator("visible=true").click()
    page.locator("#video-result").get_by_text("Cancelled.", exact=True).wait_for()
    page.get_by_role("tab", name="Picture").click()
    analyze_picture(page)
    cancel = page.get_by_role("tabpanel").get_by_role("button", name="Cancel").locator("visible=true")
    cancel.click()  # when nothing runs
    page.wait_for_timeout(500)
    assert page.locator("#image-result .dcl-verdict").count() == 1
    page.get_by_role("tab", name="Video").click()
    assert page.locator("#video-result .dcl").all_inner_texts() == ["Cancelled."]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_everything_within_its_width_and_scrolls_to_the_answer(visit, axe, tmp_path, scheme):
    page = visit(width=390, height=844, scheme=scheme)
    places = [page.locator(name).bounding_box()["y"] for name in ("h1", "#image-file", "#introduction", "#privacy")]
    assert places == sorted(places)
    result = analyze_picture(page)
    page.wait_for_timeout(1500)  # whatever comes after the answer moves the page no more
    assert 0 <= result.locator("h2").first.bounding_box()["y"] < 400
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 390
    assert serious(page, axe) == []
    result = analyze_video(page, write_video(tmp_path / "clip.mp4"))
    page.wait_for_timeout(1500)
    assert 0 <= result.locator("h2").first.bounding_box()["y"] < 400
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 390
    assert page.locator("#video-plot .mark-group .background").first.bounding_box()["width"] > 200
    assert serious(page, axe) == []


def test_everything_can_be_reached_by_keyboard_and_has_a_name(visit):
    page = visit()
    analyze_picture(page)
    page.get_by_role("button", name="Download JSON").wait_for()
    names = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        names.add(
            page.evaluate(
                "() => { const n = document.activeElement; return n.getAttribute('aria-label') || n.innerText || "
                "n.closest('label')?.innerText || n.title || n.querySelector('img')?.alt || n.tagName; }"
            ).strip()
        )
    assert {
        "Analyze",
        "Cancel",
        "Example: portrait",
        "Download annotated picture",
        "Download JSON",
    } <= names
    assert any(name.startswith("Options") for name in names) and not {"INPUT", "BUTTON"} & names


def test_it_works_below_the_prefix_of_a_reverse_proxy(visit, checkpoint, tmp_path_factory):
    """As a proxy does that takes the prefix away, with answers passed on as they come."""
    port = free_port()
    with serve(checkpoint, tmp_path_factory.mktemp("app"), GRADIO_ROOT_PATH="/faces") as server:
        proxied = httpx.AsyncClient(base_url=server.url, timeout=60)

        async def forward(request):
            target = httpx.URL(path="/" + request.path_params["path"], query=request.url.query.encode())
            headers = [(name, value) for name, value in request.headers.raw if name != b"accept-encoding"]
            sent = proxied.build_request(request.method, target, headers=headers, content=await request.body())
            answer = await proxied.send(sent, stream=True)
            passed = {name: value for name, value in answer.headers.items() if name != "transfer-encoding"}
            return StreamingResponse(answer.aiter_raw(), answer.status_code, passed)

        app = Starlette(routes=[Route("/faces/{path:path}", forward, methods=["GET", "POST", "HEAD"])])
        proxy = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
        threading.Thread(target=proxy.run, daemon=True).start()
        while not proxy.started:
            time.sleep(0.05)
        page = visit(f"http://127.0.0.1:{port}/faces/")
        analyze_picture(page)
        assert loaded(page.locator("#image-drawn img")) == 512
        page.close()  # before the server, whose end is an error to an open page
        proxy.should_exit = True
