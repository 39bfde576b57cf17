"""README and docs say what is true: their links, commands and Python code are checked against the repository."""

import argparse
import ast
import importlib
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path

import av
import pytest
from PIL import Image

from dcl_face_forgery.errors_dcl import InputError
from dcl_face_forgery.tests.shared.checkpoints import save_checkpoint
from dcl_face_forgery.tests.shared.prepared_data import write_prepared

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for folder, pattern in ((".", "*.md"), ("docs", "**/*.md"), ("examples", "*.md"), ("space", "*.md"))
    for path in sorted((ROOT / folder).glob(pattern))
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
#: By the script of each command, the module that parses its command line.
COMMANDS = {
    "train.py": "training.arguments",
    "evaluate_dcl.py": "evaluate_dcl",
    "detect.py": "detect",
    "detection/export.py": "detection.export",
    "data_scripts/prepare.py": "data_scripts.prepare",
}
FOLDERS = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")} - {"data", "runs"}
FENCE = re.compile(r"((?:<!--.*?-->\n)?)^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


@dataclass
class Block:
    """A fenced block of a page."""

    language: str
    text: str
    comment: str

    def commands(self) -> list[list[str]]:
        """The commands of a shell block as words."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def blocks(page: str, language: str) -> list[Block]:
    found = [Block(name, text, comment) for comment, name, text in FENCE.findall(PAGES[page])]
    return [block for block in found if block.language == language]


def prose(page: str) -> str:
    return FENCE.sub("", PAGES[page])


def spans(page: str) -> list[str]:
    return [span.replace("\\|", "|") for span in SPAN.findall(prose(page))]


def slugs(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).replace(" ", "-") for heading in headings}


# ----------------------------------------------------------------------------------------------------- pages and links


def test_the_readme_is_short():
    assert len(PAGES["README.md"].splitlines()) <= 160


@pytest.mark.parametrize("page", PAGES)
def test_links_and_images_lead_somewhere(page):
    text = SPAN.sub("", prose(page))
    targets = re.findall(r"\]\((.+?)\)", prose(page)) + re.findall(r'(?:src|href)="(.+?)"', text)
    for target in targets:
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), f"{page} links to {target}"
        if anchor:
            assert anchor in slugs(path.read_text(encoding="utf-8")), f"{page} links to the heading {target}"


def test_the_index_names_every_page():
    linked = set(re.findall(r"^- \[.+?\]\((.+?\.md)\)", PAGES["docs/index.md"], re.MULTILINE))
    pages = {str(Path(page).relative_to("docs")) for page in PAGES if page.startswith("docs/")}
    assert linked == pages - {"index.md"}


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("docs/api/")])
def test_the_reference_names_modules_that_exist(page):
    modules = re.findall(r"automodule:: dcl_face_forgery\.(\S+)", PAGES[page])
    assert modules
    for module in modules:
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])  # which names files that went
def test_files_of_the_repository_that_are_named_exist(page):
    for span in spans(page):
        words = [span] if " " not in span else span.split() if is_ours(span.split()) else []
        for word in words:
            check_path(page, word)


def check_path(page: str, word: str) -> None:
    """Check a word that reads like a path of this repository."""
    plain = re.fullmatch(r"[\w./-]+", word)
    if plain and "/" in word and word.split("/")[0] in FOLDERS - {"build"}:
        assert (ROOT / word).exists(), f"{page} names {word}"
    elif plain and word.endswith("_dcl.py") and word != "_dcl.py":
        assert (ROOT / word).is_file(), f"{page} names {word}"


@pytest.mark.parametrize("page", PAGES)
def test_tests_that_are_named_exist(page):
    named = {span for span in spans(page) if re.fullmatch(r"test(_[a-z0-9]+){3,}", span)}
    found = {
        match
        for path in (ROOT / "tests").rglob("test_*.py")
        for match in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
    }
    assert named <= found, f"{page} names {named - found}"


def test_the_security_page_names_tests_as_its_policy_promises():
    assert "names the tests" in PAGES["SECURITY.md"]
    assert len({span for span in spans("docs/security.md") if span.startswith("test_")}) > 10


# ------------------------------------------------------------------------------------------------------------ commands


def parser_of(script: str) -> argparse.ArgumentParser:
    module = importlib.import_module(f"dcl_face_forgery.{COMMANDS[script]}")
    return (getattr(module, "make_parser", None) or module._parser)()


def flags_of(script: str) -> set[str]:
    """All flags of a command, those of its sub-commands among them."""
    if script == "train.py":
        from dcl_face_forgery.training import arguments, settings

        groups = (
            *(settings.ModelArguments, settings.DataArguments, settings.ViewSettings),
            *(settings.AugmentationSettings, arguments._trainer_options()),
        )
        return {"-c", "--config", "--help"} | {f"--{item.name}" for group in groups for item in fields(group)}
    if script in COMMANDS:
        parsers, found = [parser_of(script)], set()
        while parsers:
            for action in parsers.pop()._actions:
                found.update(action.option_strings)
                if isinstance(action, argparse._SubParsersAction):
                    parsers += action.choices.values()
        return found
    calls = (node for node in ast.walk(ast.parse((ROOT / script).read_text())) if isinstance(node, ast.Call))
    adds = (call for call in calls if getattr(call.func, "attr", None) == "add_argument")
    return {"--help"} | {word.value for call in adds for word in call.args if isinstance(word, ast.Constant)}


def script_of(words: list[str]) -> tuple[str | None, list[str]]:
    """Return which script of this repository a command runs, if any, and its arguments."""
    while words and re.match(r"[A-Z]\w*=", words[0]):
        words = words[1:]
    installed = {
        name: f"{module.partition(':')[0].removeprefix('dcl_face_forgery.').replace('.', '/')}.py"
        for name, module in PROJECT["scripts"].items()
    }
    if words and words[0].startswith("dcl-"):
        assert words[0] in installed, f"there is no command {words[0]}"
        return installed[words[0]], words[1:]
    if words and words[0] in ("python", "torchrun"):
        for place, word in enumerate(words[1:], start=1):
            if word.endswith(".py") and (words[0] == "torchrun" or place == 1):
                return word, words[place + 1 :]
    return None, words


def is_ours(words: list[str]) -> bool:
    script, _ = script_of(words)
    return script is not None and "..." not in words


def check_flags(script: str, arguments: list[str]) -> None:
    known = flags_of(script)
    for word in arguments:
        if re.match(r"--?[a-z]", word):
            assert word.partition("=")[0] in known, f"{script} has no flag {word}"


def check_command(page: str, words: list[str]) -> None:
    """Check one command of a shell block as far as that is possible without running it."""
    script, arguments = script_of(words)
    if script is not None:
        assert (ROOT / script).is_file(), f"there is no {script}"
        check_flags(script, arguments)
        for word in arguments:
            if word.split("/")[0] in ("benchmarks", "configs", "docs", "examples", "tests"):
                check_path(page, word)
        if script == "train.py":
            importlib.import_module("dcl_face_forgery.training.arguments").parse_training_run(arguments)
        elif script in COMMANDS:
            # Variables of a shell stand for numbers.
            options = parser_of(script).parse_args(["1" if word.startswith("$") else word for word in arguments])
            if script == "evaluate_dcl.py":
                importlib.import_module("dcl_face_forgery.evaluate_dcl").refuse_what_makes_no_sense(options)
    elif words and words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        for word in words[1:]:
            assert "=" in word or word in targets, f"there is no make target {word}"
    elif words[:2] == ["pip", "install"]:
        for names in re.findall(r"\.\[(.+?)\]", " ".join(words)):
            assert set(names.split(",")) <= PROJECT["optional-dependencies"].keys(), f"unknown extras in {names}"


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "bash")])
def test_commands_are_parsed_by_their_parsers(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for block in blocks(page, "bash"):
        for words in block.commands():
            try:
                check_command(page, words)
            except (SystemExit, InputError) as error:
                pytest.fail(f"{page}: {shlex.join(words)}: {error}")


def test_the_table_of_extras_lists_all_of_them_and_nothing_else():
    table = PAGES["docs/quickstart.md"].partition("| Extra |")[2].partition("\n\n")[0]
    listed = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert sorted(listed) == sorted(PROJECT["optional-dependencies"])


@pytest.mark.parametrize("page", PAGES)
def test_flags_in_the_text_exist(page):
    everywhere = None
    for span in spans(page):
        words = span.split()
        if words[0] == "make":
            check_command(page, words)
        elif is_ours(words):
            check_flags(script_of(words)[0], words)
        elif re.match(r"--[a-z]", span) and words[0] != "--group":  # of pip
            if everywhere is None:
                scripts = [*COMMANDS, *(str(path.relative_to(ROOT)) for path in ROOT.glob("benchmarks/*.py"))]
                everywhere = set().union(*map(flags_of, scripts))
            assert words[0].partition("=")[0] in everywhere, f"{page}: no command has the flag {words[0]}"


# -------------------------------------------------------------------------------------------------------------- Python


def write_video(path: Path, image: Image.Image) -> None:
    """Write a video of a second that shows one image."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height = image.size
        for _ in range(8):
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A folder with all that the Python blocks name, with a checkpoint and an export that are tiny."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / "evaluation").symlink_to(ROOT / "evaluation")
    checkpoint = save_checkpoint(folder / "runs" / "demo")
    shutil.copy(ROOT / "examples" / "portrait.jpg", folder / "photograph.jpg")
    write_video(folder / "interview.mp4", Image.open(folder / "photograph.jpg").resize((256, 256)))
    (folder / "holiday").mkdir()
    Image.new("RGB", (64, 64)).save(folder / "holiday" / "wall.png")
    if importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnxscript"):
        from dcl_face_forgery.detection.export import main

        main(["--model", str(checkpoint), "--output", str(folder / "runs" / "demo-onnx")])
    return folder


@pytest.fixture(scope="module")
def evaluated(workspace):
    """The same, with an evaluation of the checkpoint."""
    from dcl_face_forgery.evaluate_dcl import main

    data = write_prepared(workspace / "textures")
    flags = ["--split", "validation", "--bootstrap", "0", "--output_dir", str(workspace / "runs/demo/evaluation")]
    main(["--model", str(workspace / "runs" / "demo"), "--dataset", str(data), *flags])
    return workspace


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_python_blocks_compile_and_import_what_exists(page):
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block.text)):
            if isinstance(node, ast.Constant) and str(node.value).startswith("examples/"):
                check_path(page, node.value)
            names = []
            if isinstance(node, ast.ImportFrom):  # relative: of a new layout
                where = "dcl_face_forgery.data_scripts.layouts"
                names = [importlib.util.resolve_name("." * node.level + (node.module or ""), where)]
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else names
            for name in names:
                if importlib.util.find_spec(name.partition(".")[0]) is None:
                    continue  # of an extra that is not installed
                module = importlib.import_module(name)
                for alias in node.names if isinstance(node, ast.ImportFrom) else ():
                    assert hasattr(module, alias.name), f"{page}: {name} has no {alias.name}"


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_python_blocks_run(page, request, monkeypatch, capsys):
    chosen = [block for block in blocks(page, "python") if "not run" not in block.comment]
    chosen = [block for block in chosen if "gradio_client" not in block.text]  # which needs a server
    text = "\n".join(block.text for block in chosen)
    if "onnx" in text:
        pytest.importorskip("onnxruntime")
    if "write_report" in text:
        pytest.importorskip("matplotlib")
    if re.search(r"^import evaluate$", text, re.MULTILINE):
        pytest.importorskip("evaluate")
    monkeypatch.chdir(request.getfixturevalue("evaluated" if "evaluation" in text else "workspace"))
    names = {}
    for block in chosen:  # those of a page go on from one another
        exec(compile(block.text, page, "exec"), names)


# ------------------------------------------------------------------------------------------------------------- website


@pytest.mark.slow
def test_the_website_builds_without_a_warning(tmp_path):
    for name in ("sphinx", "myst_parser", "furo", "sphinx_copybutton"):
        pytest.importorskip(name)
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet"]
    done = subprocess.run(
        [*command, "-d", str(tmp_path / "doctrees"), str(ROOT / "docs"), str(tmp_path / "site")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "index.html").is_file()
