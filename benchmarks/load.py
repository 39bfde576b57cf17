"""Load test of the app: are all requests answered or refused with a reason, in order, and is memory stable?

    python benchmarks/load.py --model runs/demo --json

The app runs in its own process, on loopback. Each client repeatedly uploads a picture, a short video, or a hostile
file and waits for the result; if the queue is full, it retries after a moment. The output has the numbers of answered,
refused and rejected requests, the memory of the app, and waiting times relative to a fair wait: the number of requests
ahead in the queue of pictures or of videos, times the mean time of an answered request in that queue.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
PICTURE = (ROOT / "examples" / "portrait.jpg").read_bytes()
VIDEO = (ROOT / "examples" / "portrait_forged_from_2_s.mp4").read_bytes()
API = "/gradio_api"
#: Kinds of requests: share, file name, content, endpoint, options.
WORK = {
    "picture": (0.55, "portrait.jpg", PICTURE, "detect_image", ["default", None]),
    "video": (0.2, "clip.mp4", VIDEO, "detect_video", [8, "default", None]),
    "svg": (0.05, "drawing.jpg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "detect_image", ["default", None]),
    "half a picture": (0.05, "half.jpg", PICTURE[:20_000], "detect_image", ["default", None]),
    "half a video": (0.05, "half.mp4", VIDEO[:2_000], "detect_video", [8, "default", None]),
    "address": (0.05, None, "http://127.0.0.1:9/a.jpg", "detect_image", ["default", None]),
    "foreign path": (0.05, None, "/etc/passwd", "detect_image", ["default", None]),
}
WARM_UP = 0.25  # share of the time before memory counts
TURNED_AWAY = "Queue is full"
_SKEW = 0.05  # seconds of delay with which clients on a shared core may notice events


@dataclass
class Request:
    """One queued request: its queue, and the times in seconds when it was sent, queued, started and finished."""

    line: str
    sent: float
    joined: float = float("nan")
    begun: float = float("nan")
    ended: float = float("nan")
    answered: bool = False


class Visitors:
    """Simulated clients and the outcomes of their requests.

    Args:
        url: URL of the app.
        seconds: duration of the test.
        seed: random seed of the requests.
    """

    def __init__(self, url: str, seconds: float, seed: int):
        self.url, self.until, self.random = url, time.monotonic() + seconds, random.Random(seed)
        self.outcomes: Counter[str] = Counter()
        self.requests: list[Request] = []
        self.unexplained: list[str] = []

    async def come_and_go(self, number: int) -> None:
        """Run one client until the time is over."""
        kinds, shares = list(WORK), [work[0] for work in WORK.values()]
        async with httpx.AsyncClient(base_url=self.url, timeout=300) as http:
            count = 0
            while time.monotonic() < self.until:
                count += 1
                kind = self.random.choices(kinds, shares)[0]
                try:
                    outcome, words = await self.ask(http, kind, f"visitor{number}-{count}")
                except httpx.HTTPError as error:
                    outcome, words = "no answer", type(error).__name__
                self.outcomes[f"{kind}: {outcome}"] += 1
                if not words:
                    self.unexplained.append(f"{kind}: {outcome}")
                if outcome == "turned away":
                    await asyncio.sleep(self.random.uniform(0.5, 2))

    async def ask(self, http: httpx.AsyncClient, kind: str, session: str) -> tuple[str, str]:
        """Send one request and return its outcome and message."""
        _, name, content, endpoint, options = WORK[kind]
        path = content
        if name is not None:
            uploaded = await http.post(f"{API}/upload", files={"files": (name, content)})
            if uploaded.status_code != 200:
                return "refused", uploaded.text
            path = uploaded.json()[0]
        data = [{"path": path, "meta": {"_type": "gradio.FileData"}}, *options]
        request = Request(endpoint.removeprefix("detect_"), time.monotonic())
        joined = await http.post(
            f"{API}/queue/join", json={"data": data, "session_hash": session, **self.functions[endpoint]}
        )
        if joined.status_code != 200:
            words = str(joined.json()["detail"])
            return ("turned away" if TURNED_AWAY in words else "refused"), words
        request.joined = time.monotonic()
        self.requests.append(request)
        async with http.stream("GET", f"{API}/queue/data", params={"session_hash": session}) as answer:
            async for line in answer.aiter_lines():
                if not line.startswith("data: "):
                    continue
                if '"process_starts"' in line[:60]:
                    request.begun = time.monotonic()
                elif '"process_completed"' in line[:60]:
                    request.ended = time.monotonic()
                    message = json.loads(line[6:])
                    if message["success"]:
                        request.answered = True
                        return "answered", message["output"]["data"][1]["sentence"]
                    return "refused", message["output"].get("error") or ""
        return "no answer", ""

    async def run(self, clients: int) -> None:
        """Run several clients at once."""
        config = httpx.get(f"{self.url}/config").json()
        self.functions = {each["api_name"]: {"fn_index": each["id"]} for each in config["dependencies"]}
        await asyncio.gather(*(self.come_and_go(number) for number in range(clients)))


def waiting(requests: list[Request]) -> dict[str, float]:
    """Return the waiting times relative to a fair wait, for requests with others ahead in their queue.

    A fair wait is the number of requests ahead times the mean time of an answered request. A second ratio uses the
    actual times of the requests ahead. A request is ahead if it started earlier; it has overtaken another one if it
    was sent after that one was queued.
    """
    served = [each for each in requests if each.ended == each.ended and each.begun == each.begun]
    waits: dict[str, list[tuple[float, float]]] = {"fair": [], "time_of_those_ahead": []}  # wait, and reference
    result: dict[str, float] = {"requests": len(served), "overtaken": 0}
    for line in sorted({each.line for each in served}):
        of_line = [each for each in served if each.line == line]
        answered = [each for each in of_line if each.answered] or of_line
        mean = float(np.mean([each.ended - each.begun for each in answered]))
        for each in of_line:
            ahead = [other for other in of_line if other.begun < each.begun and other.ended > each.sent]
            if not ahead:
                continue
            result["overtaken"] += any(
                other.sent > each.joined and other.begun < each.begun - _SKEW for other in ahead
            )
            wait = each.begun - each.sent
            waits["fair"].append((wait, len(ahead) * mean))
            spent = sum(other.ended - max(other.begun, each.sent) for other in ahead)
            waits["time_of_those_ahead"].append((wait, spent))
        of_all = [each.begun - each.sent for each in of_line]
        result |= {
            f"{line}_requests": len(of_line),
            f"{line}_service_s": mean,
            f"{line}_wait_median_s": float(np.median(of_all)),
            f"{line}_wait_max_s": float(np.max(of_all)),
        }
    for name, pairs in waits.items():
        if not pairs:  # nobody waited
            continue
        wait, just = np.array(pairs).T
        result |= {
            f"wait_over_{name}_median": float(np.median(wait / just)),
            f"wait_within_1.5_of_{name}": float(np.mean(wait <= 1.5 * just)),
            f"wait_beyond_1.5_of_{name}_max_s": float(np.max(wait - 1.5 * just)),
        }
    return result


def resident_mib(pid: int) -> float:
    """Return the memory of a process in MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


async def measure(process: subprocess.Popen, url: str, clients: int, seconds: float, seed: int) -> dict:
    """Run the load test and return the measurements."""
    await Visitors(url, 5, seed).run(2)
    visitors, memory = Visitors(url, seconds, seed + 1), []

    async def watch() -> None:
        while True:
            memory.append(resident_mib(process.pid))
            await asyncio.sleep(0.5)

    watching = asyncio.create_task(watch())
    await visitors.run(clients)
    watching.cancel()
    warm = memory[int(len(memory) * WARM_UP) :]
    third = max(1, len(warm) // 3)
    early, late = float(np.mean(warm[:third])), float(np.mean(warm[-third:]))
    return {
        "clients": clients,
        "seconds": seconds,
        "alive": process.poll() is None,
        "outcomes": dict(sorted(visitors.outcomes.items())),
        "without_words": len(visitors.unexplained),
        "memory_warm_mib": early,
        "memory_end_mib": late,
        "memory_max_mib": max(memory),
        "memory_growth": late / early - 1,
        **waiting(visitors.requests),
    }


def main() -> None:
    """Parse the command line, start the app, and print the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "runs" / "demo"), help="checkpoint (folder or Hub id)")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    environment = {**os.environ, "DCL_MODEL": arguments.model, "GRADIO_SERVER_PORT": str(port)}
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "app.py")],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        if "The app is at" not in (process.stdout.readline() or ""):
            sys.exit(f"error: The app did not start. Run DCL_MODEL={arguments.model} python app.py to see why.")
        url = f"http://127.0.0.1:{port}"
        result = asyncio.run(measure(process, url, arguments.clients, arguments.seconds, arguments.seed))
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        for name, value in result.items():
            print(f"{name:36} {value:.3f}" if isinstance(value, float) else f"{name:36} {value}")


if __name__ == "__main__":
    main()
