"""The app's page in a browser: pictures, videos, keyboard, phone, light and dark, and behind a reverse proxy."""

import re
import shutil
import threading

import httpx
import pytest
import uvicorn
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

#: The lowest contrast of text and background in the result, as WCAG counts it.
CONTRAST = """() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const colour = parse(getComputedStyle(node).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  return Math.min(...[...document.querySelectorAll('.dcl p, .dcl h2, .dcl label, .dcl-tag, .dcl figcaption')]
    .filter((node) => node.offsetParent).map((node) => {
      const [a, b] = [light(parse(getComputedStyle(node).color)), light(ground(node))].sort((x, y) => y - x);
      return (a + .05) / (b + .05);
    }));
}"""


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
        page.get_by_role("button", name="Look at the picture").wait_for()
        return page

    yield visit
    for page, strangers, errors in pages:
        page.close()
        # Before it knows the page's own icon, a browser asks for one at the host's root.
        errors = [each for each in errors if "/favicon.ico" not in getattr(each, "location", {}).get("url", "")]
        assert strangers == [] and errors == []


def is_strange(address, url):
    return not address.startswith((url, "data:", "blob:"))


def look_at_picture(page, path=PORTRAIT):
    page.locator("#image-file input[type=file]").set_input_files(path)
    page.locator("#image-result .dcl-verdict").wait_for()
    return page.locator("#image-result")


def look_at_video(page, path):
    page.get_by_role("tab", name="Video").click()
    page.locator("#video-file input[type=file]").set_input_files(path)
    page.locator("#video-result .dcl-verdict").wait_for(timeout=60_000)
    return page.locator("#video-result")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_picture_shows_boxes_names_and_evidence_that_a_slider_fades(visit, scheme):
    page = visit(scheme=scheme)
    result = look_at_picture(page)
    assert re.fullmatch(
        r"1: (Flagged as forged|Inconclusive|Not flagged) \d\.\d{3}", result.locator(".dcl-tag").inner_text()
    )
    box, picture = result.locator(".dcl-box").bounding_box(), result.locator(".dcl-picture").bounding_box()
    assert picture["x"] < box["x"] < box["x"] + box["width"] < picture["x"] + picture["width"]
    evidence = result.locator(".dcl-evidence")
    assert evidence.bounding_box()["width"] > box["width"]  # the crop is wider than the face's box
    assert evidence.evaluate("node => getComputedStyle(node).opacity") == "0.6"
    slider = page.get_by_label("Evidence shown over the faces")
    slider.focus()
    page.keyboard.press("Home")
    assert evidence.evaluate("node => getComputedStyle(node).opacity") == "0"
    assert "What it does not mean" in result.inner_text()
    assert page.evaluate(CONTRAST) >= 4.5


def test_a_video_shows_a_timeline_that_leads_to_its_frames(visit, tmp_path):
    page = visit()
    result = look_at_video(page, write_video(tmp_path / "clip.mp4", frames=16))
    shown = result.locator("figure[data-frame]:visible")
    scrub = page.get_by_label("Frame", exact=True)
    scrub.focus()
    page.keyboard.press("Home")
    assert shown.count() == 1 and shown.get_attribute("data-frame") == "0"
    page.keyboard.press("ArrowRight")
    assert shown.get_attribute("data-frame") == "1"
    assert scrub.get_attribute("aria-valuetext").startswith(f"{1 / 8:.2f} s. Person 1:"[:4])
    result.locator("circle[data-jump='9']").click()
    assert shown.get_attribute("data-frame") == "9" and scrub.input_value() == "9"
    assert shown.locator(".dcl-box").count() == 1
    jump = result.get_by_role("button", name=re.compile("^Highest of person 1"))
    jump.click()
    assert shown.get_attribute("data-frame") == jump.get_attribute("data-jump")


def test_a_bad_file_gets_a_sentence_on_the_page(visit, tmp_path):
    (tmp_path / "drawing.jpg").write_text("<svg xmlns='http://www.w3.org/2000/svg'></svg>")
    (tmp_path / "<b>{{bold}}${1}.jpg").write_bytes(PORTRAIT.read_bytes()[:9_000])
    page = visit()
    result = look_at_picture(page, tmp_path / "drawing.jpg")
    assert "drawing.jpg is an SVG" in result.inner_text()
    assert result.get_by_role("alert").count() == 1
    page.get_by_role("button", name=re.compile("Clear|Remove")).first.click()
    page.locator("#image-file input[type=file]").set_input_files(tmp_path / "<b>{{bold}}${1}.jpg")
    result.get_by_text("cannot be decoded").wait_for()
    assert result.locator("b").count() == 0


def test_examples_are_a_click_away(visit):
    page = visit()
    page.get_by_role("button", name="Example: portrait forged", exact=True).click()
    page.locator("#image-result .dcl-verdict").wait_for()
    page.get_by_role("tab", name="Video").click()
    page.get_by_role("button", name="Example: portrait forged from 2 s").click()
    page.locator("#video-result .dcl-verdict").wait_for()


def test_a_video_can_be_cancelled_and_the_next_request_is_served(visit, tmp_path):
    video = write_video(tmp_path / "long.mp4", frames=600, rate=24, size=(1280, 960))
    page = visit()
    page.get_by_role("tab", name="Video").click()
    page.get_by_role("radio", name="32").check()
    page.locator("#video-file input[type=file]").set_input_files(video)
    page.locator("#video-result progress").wait_for()
    page.get_by_role("tabpanel").get_by_role("button", name="Cancel").locator("visible=true").click()
    page.wait_for_timeout(1000)
    done = page.locator("#video-result progress").get_attribute("value")
    page.get_by_role("tab", name="Picture").click()
    look_at_picture(page)
    assert page.locator("#video-result progress").get_attribute("value") == done
    assert page.locator("#video-result .dcl-verdict").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_everything_within_its_width(visit, tmp_path, scheme):
    page = visit(width=390, height=844, scheme=scheme)
    look_at_picture(page)
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 390
    result = look_at_video(page, write_video(tmp_path / "clip.mp4"))
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 390
    assert result.locator(".dcl-chart").bounding_box()["width"] > 250
    assert page.evaluate(CONTRAST) >= 4.5


def test_everything_can_be_reached_by_keyboard_and_has_a_name(visit):
    page = visit()
    look_at_picture(page)
    names = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        names.add(
            page.evaluate(
                "() => { const n = document.activeElement; return n.getAttribute('aria-label') || n.innerText || "
                "n.closest('label')?.innerText || n.getAttribute('title') || n.tagName; }"
            ).strip()
        )
    assert {"Look at the picture", "Cancel", "Example: portrait", "Evidence shown over the faces"} <= names
    assert not {"INPUT", "BUTTON"} & names


def test_it_works_below_a_reverse_proxys_prefix(visit, checkpoint, tmp_path_factory):
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
        page = visit(f"http://127.0.0.1:{port}/faces/")
        assert look_at_picture(page).locator(".dcl-tag").inner_text().startswith("1: ")
        proxy.should_exit = True
