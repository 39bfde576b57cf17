"""The app: pictures and videos in a browser, scored by a checkpoint, and nothing of them kept.

It imports nothing of the package: model, processor and pipeline come with the checkpoint that the environment variable
`DCL_MODEL` names (a folder, or an id on the Hub). So this file, `web/` and `examples/` are a Space.
"""

import argparse
import json
import logging
import mimetypes
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
if str(HERE) not in sys.path:  # where another program runs this file
    sys.path.insert(0, str(HERE))

from web import gate  # noqa: E402 (before Gradio)
from web.uploads import UPLOADS, log_failure, sweep_for_ever, uploads  # noqa: E402

_PORT = os.environ.get("GRADIO_SERVER_PORT") or "7860"
if not (_PORT.isascii() and _PORT.isdigit() and 0 < int(_PORT) < 1 << 16):  # else Gradio fails in its own words
    sys.exit(f"error: GRADIO_SERVER_PORT is {_PORT}: choose a number from 1 to 65535.")


def find_model() -> str:
    """Return the folder or id that `DCL_MODEL` names; end the program in a sentence if there is no such checkpoint."""
    name = os.environ.get("DCL_MODEL") or str(HERE / "runs" / "demo")
    if Path(name).is_dir():
        if not (Path(name) / "config.json").is_file() or not any(Path(name).glob("model*.safetensors")):
            sys.exit(
                f"error: {name} is not a checkpoint: it has no config.json or no weights (*.safetensors). Set "
                "DCL_MODEL to the folder of one, or to a model id on the Hub."
            )
        return name
    if name.count("/") != 1 or Path(name).is_absolute() or name.startswith("."):
        sys.exit(
            f"error: Model {name} not found. Create it with `make demo`, or set DCL_MODEL to the folder of a "
            "checkpoint or a model id on the Hub."
        )
    from huggingface_hub import model_info
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    try:
        model_info(name, timeout=5)
    except GatedRepoError:
        sys.exit(f"error: Model {name} is gated: accept its terms on the Hub, and log in with `hf auth login`.")
    except (RepositoryNotFoundError, HFValidationError):
        sys.exit(
            f"error: Model {name} not found: there is no such folder, and no public repository of that name on the "
            "Hub. Check DCL_MODEL, or log in with `hf auth login` if it is private."
        )
    except Exception:  # without the Hub, the local cache may have it
        logging.getLogger("dcl_face_forgery.app").warning(
            "The Hub cannot be reached: %s is looked for in the local cache.", name
        )
    return name


if __name__ == "__main__":  # before the imports, which take seconds
    argparse.ArgumentParser(
        description="Serve the page on this machine.",
        epilog="Configure it with environment variables: DCL_MODEL, the folder of a checkpoint or a model id on the "
        "Hub (default: runs/demo, of `make demo`); GRADIO_SERVER_PORT (default: 7860, or the next free port); and "
        "GRADIO_ROOT_PATH, the prefix behind a reverse proxy, such as /faces (default: none).",
    ).parse_args()
    MODEL = find_model()

import gradio as gr  # noqa: E402
import torch  # noqa: E402
from starlette.middleware import Middleware  # noqa: E402

from web import answers  # noqa: E402
from web.analysis import NUM_FRAMES, Answer, Detector, Requests, options_of  # noqa: E402

# ----------------------------------------------------------------------------------------------------------- the page

Fill = Callable[[Answer], list[Any]]
POINTS = {
    "default": "Default, with an inconclusive range",
    "eer": "Equal error rates",
    "fpr_0.05": "Flags at most 5 % of real faces",
    "fpr_0.01": "Flags at most 1 % of real faces",
}
PRIVACY = (
    "Uploads and answers are deleted within a minute after you close the page, and ten minutes after use at the "
    "latest; no log names them. "
    f"Limits: pictures of {gate.MOST_PICTURE_BYTES >> 20} MB and {gate.MOST_PIXELS // 1_000_000} million pixels; "
    f"videos of {gate.MOST_UPLOAD_BYTES >> 20} MB and {gate.MOST_SECONDS // 60} minutes; "
    f"{gate.MOST_REQUEST_SECONDS // 60} minutes to analyze a file; {gate.MOST_WAITING} requests in the queue."
)


def build(detector: Detector) -> gr.Blocks:
    """Return the page."""
    requests, pipe = Requests(detector), detector.pipe
    with gr.Blocks(title="Face forgery detection (DCL)", analytics_enabled=False, delete_cache=(300, 3600)) as demo:
        gr.Markdown("# Face forgery detection")
        gr.Markdown(
            "Finds the faces in a picture or video, flags those that look forged, and shows which areas led to that."
            f"\n\n{answers.introduce(pipe.model.config, pipe.smallest_face)}",
            elem_id="introduction",
        )
        with gr.Tabs():
            _tab("image", "picture", requests, detector.operating_points("frame"))
            _tab("video", "video", requests, detector.operating_points("video"))
        gr.Markdown(f"{PRIVACY} Runs on: {detector.device}.", elem_id="privacy")
        for kind, function in (("image", requests.detect_image), ("video", requests.detect_video)):
            gr.api(function, api_name=f"detect_{kind}", concurrency_id=kind, concurrency_limit=1)
    gate.Gate.learn(demo.get_config_file())
    uploads.keep()  # the examples
    return demo.queue(max_size=gate.MOST_WAITING, default_concurrency_limit=1, api_open=False)


def _tab(kind: str, name: str, requests: Requests, points: list[str]) -> None:
    """Lay out one tab: a file and options at the left, the answer at the right."""
    with gr.Tab(name.capitalize(), elem_id=f"{kind}-tab"), gr.Row():
        with gr.Column(scale=2, min_width=300):
            if kind == "image":
                file = gr.Image(label="Picture", type="filepath", height=300, elem_id="image-file", buttons=[])
            else:
                file = gr.Video(label="Video", elem_id="video-file", buttons=[])
            with gr.Row():
                start = gr.Button("Analyze", variant="primary", min_width=120)
                cancel = gr.Button("Cancel", min_width=80)
            paths = [
                [str(path)]
                for path in sorted((HERE / "examples").glob("*"))
                if (mimetypes.guess_type(path)[0] or "").startswith(kind)
            ]
            examples = gr.Examples(paths, file, label="Examples") if paths else None
            with gr.Accordion("Options", open=False):
                frames = gr.Radio(NUM_FRAMES, value=16, label="Frames to analyze", visible=kind == "video")
                choices = [(POINTS[each], each) for each in ("default", *points)]
                point = gr.Radio(choices, value="default", label="Threshold", visible=bool(points))
                own = gr.Number(label="Your own threshold (above 0 and below 1; 0 for none)", step=0.01)
        with gr.Column(scale=3, min_width=320):
            verdict = gr.HTML(answers.show_start(name), label="Answer", padding=False, elem_id=f"{kind}-result")
            with gr.Column(visible=False) as details:
                drawn = gr.Image(show_label=False, interactive=False, buttons=["fullscreen"], elem_id=f"{kind}-drawn")
                others, fill = _picture_answer() if kind == "image" else _video_answer()
                with gr.Row():
                    download = gr.DownloadButton(f"Download annotated {'picture' if kind == 'image' else 'frame'}")
                    download_json = gr.DownloadButton("Download JSON")
                with gr.Accordion("JSON", open=False):
                    numbers = gr.JSON(label="Numbers", show_label=False)

    def analyze(file: Any, frames: Any, point: Any, own: Any, request: gr.Request) -> Iterator[dict[Any, Any]]:
        if file is None:
            yield {verdict: answers.show_start(name), details: gr.update(visible="hidden")}
            return
        options = options_of(point, own) | ({"num_frames": frames} if kind == "video" else {})
        for step in requests.answer(kind, file, options, request):
            if not isinstance(step, Answer):
                page = answers.show_refusal(step) if isinstance(step, str) else answers.show_progress(*step)
                yield {verdict: page, details: gr.update(visible="hidden")}
                continue
            there, said = step.annotated is not None, step.result["sentence"]
            yield {
                verdict: answers.show_verdict(step.result),
                details: gr.update(visible=True),
                drawn: gr.update(value=step.annotated, visible=there, alt_text=f"The annotated {name}. {said}"),
                download: gr.update(value=step.annotated, visible=there),
                download_json: step.file,
                numbers: step.numbers,
                **dict(zip(others, fill(step), strict=True)),
            }

    # A line for each kind, first come first: what is ahead of a request then takes about as long as itself.
    work = {
        "fn": analyze,
        "inputs": [file, frames, point, own],
        "outputs": [verdict, details, drawn, download, download_json, numbers, *others],
        "concurrency_id": kind,
        "concurrency_limit": 1,
        "show_progress": "minimal",
        "show_progress_on": verdict,
        "preprocess": False,  # which would decode the picture, or convert the video, before anything is checked
        "api_visibility": "private",
    }
    runs = [start.click(**work), file.input(**work, trigger_mode="always_last")]
    if kind == "video":
        runs.append(file.stop_recording(**work))
    if examples is not None:
        runs.append(examples.load_input_event.then(**work))
    # After the progress that is on its way; an answer that is there already stays.
    cancelled = (
        "async () => { await new Promise((next) => setTimeout(next, 500)); "
        f"return document.querySelector('#{kind}-result progress') ? {json.dumps(answers.show_cancelled())} : "
        "{ __type__: 'update' }; }"
    )
    cancel.click(None, None, verdict, js=cancelled, cancels=runs)


def _picture_answer() -> tuple[list[gr.components.Component], Fill]:
    """Lay out what an answer about a picture has of its own; return the components, and what fills them."""
    slider = gr.ImageSlider(show_label=False, interactive=False, buttons=["fullscreen"], elem_id="image-evidence")
    # The line itself cannot be moved by keyboard.
    line = gr.Slider(0, 100, 50, step=1, label="Evidence shown, from the left (%)", interactive=True)
    line.input(None, line, slider, js="(share) => ({ __type__: 'update', slider_position: share })")
    faces = gr.Gallery(
        show_label=False, columns=4, object_fit="contain", buttons=[], interactive=False, elem_id="image-faces"
    )

    def fill(answer: Answer) -> list[Any]:
        scored = answer.layers is not None
        return [
            gr.update(value=answer.layers, visible=scored, slider_position=50),
            gr.update(value=50, visible=scored),
            gr.update(value=answer.gallery, visible=len(answer.gallery) > 1),
        ]

    return [slider, line, faces], fill


def _video_answer() -> tuple[list[gr.components.Component], Fill]:
    """Lay out what an answer about a video has of its own; return the components, and what fills them."""
    caption = gr.Markdown("**p_fake over time.** Click to see a frame. Marks below 0 are frames without a score.")
    plot = gr.LinePlot(
        x="time",
        y="p_fake",
        color="series",
        y_lim=[-0.1, 1],
        x_title="seconds",
        color_title=" ",
        color_map=answers.COLOURS,
        label="p_fake over time",
        show_label=False,
        height=300,
        elem_id="video-plot",
    )
    moments = gr.HTML(padding=False, elem_id="video-moments")
    frames = gr.Gallery(show_label=False, columns=8, buttons=["fullscreen"], interactive=False, elem_id="video-frames")
    times = gr.State(())

    def show_frame(times: Sequence[float], event: gr.SelectData) -> dict[str, Any]:
        return gr.update(selected_index=answers.nearest(times, event.index))

    plot.select(show_frame, times, frames, show_progress="hidden", api_visibility="private")

    def fill(answer: Answer) -> list[Any]:
        there, points = bool(answer.gallery), answers.plot_points(answer.result)
        return [
            gr.update(visible=there),
            gr.update(value=points, x_lim=[0, float(points.time.max())], visible=there),
            answers.show_moments(answer.result["people"]),
            gr.update(value=answer.gallery, selected_index=None, visible=there),
            answer.times,
        ]

    return [caption, plot, moments, frames, times], fill


def main(name: str) -> None:
    """Serve the page until it is stopped.

    Args:
        name: folder or id of the checkpoint.
    """
    gate.return_memory()
    logging.basicConfig(level=logging.WARNING)
    tempfile.tempdir = str(UPLOADS)  # for uploads on their way, too
    # Gradio prints what fails outside of our functions with what the client sent in it.
    traceback.print_exc = lambda *_, **__: log_failure("a request", sys.exc_info()[1])
    try:
        detector = Detector(name)
    except Exception as error:  # of the Hub, of the files, or a checkpoint without the pipeline
        why = (str(error).strip().splitlines() or [type(error).__name__])[0].removesuffix(".")
        sys.exit(f"error: Model {name} cannot be loaded ({why}). Set DCL_MODEL to a DCL checkpoint.")
    demo = build(detector)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # the uploads are removed at exit
    try:
        demo.launch(
            # That one, or none, if it was asked for: what stands before the app knows no other.
            server_port=int(_PORT) if "GRADIO_SERVER_PORT" in os.environ else None,
            app_kwargs={"middleware": [Middleware(gate.Gate)], "docs_url": None, "redoc_url": None},
            css_paths=HERE / "web" / "app.css",
            js=(HERE / "web" / "app.js").read_text(),
            theme=gr.themes.Default(
                primary_hue="indigo", font=["system-ui", "sans-serif"], font_mono=["monospace"]
            ).set(
                button_primary_background_fill="*primary_600"  # whose contrast with white is enough
            ),
            max_file_size=gate.MOST_UPLOAD_BYTES,
            max_threads=8,
            state_session_capacity=200,
            run_history=False,
            footer_links=["api"],
            ssr_mode=False,
            quiet=True,
            prevent_thread_lock=True,
        )
    except OSError:
        sys.exit(f"error: the port {_PORT} cannot be opened: set GRADIO_SERVER_PORT to a free one.")
    sweep_for_ever(demo)
    if not torch.cuda.is_available():  # whose driver reserves more than it takes
        gate.limit_memory()
    print(f"The app is at {demo.local_url}", flush=True)
    demo.block_thread()


if __name__ == "__main__":
    main(MODEL)
