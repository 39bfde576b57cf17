"""Time one training step of DCL against its bare backbone: `python benchmarks/train_step.py --json`.

The DCL step has the trainer's parts: views on the device, both encoders, losses, memory, backward pass, optimizer and
momentum update. The bare step is the minimum for such a method: a forward and a backward pass of the query encoder, a
forward pass of the key encoder, and the optimizer. Both use the same backbone, memory format, autocast and optimizer,
and alternate in one process. Peak memory is measured in a separate process for each.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from numpy.random import default_rng
from torch import nn

from dcl_face_forgery.benchmarks.harness import print_result
from dcl_face_forgery.configuration_dcl import DCLConfig
from dcl_face_forgery.image_processing_dcl import DCLImageProcessor
from dcl_face_forgery.modeling_dcl import DCLForPreTraining, DCLModel
from dcl_face_forgery.training.settings import ViewSettings
from dcl_face_forgery.training.trainer import DCLTrainer, DCLTrainingArguments
from dcl_face_forgery.training.views import draw_device_views


def main() -> None:
    """Parse the command line, measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backbone", default="tf_efficientnet_b4")
    parser.add_argument("--image_size", type=int, default=299)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--precision", choices=("float32", "bf16", "fp16"), default="float32")
    parser.add_argument("--channels_last", action="store_true", help="use the channels_last memory format in both")
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each, after a warm-up step")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--peak_of", choices=STEPS, help="print the peak memory of one kind of step in GiB, and exit")
    options = parser.parse_args()
    if options.peak_of:
        print(peak_memory(STEPS[options.peak_of](options)))
        return
    result = measure(options)
    print_result(result, options.json)


def measure(options: argparse.Namespace) -> dict[str, float | int | str]:
    """Time both steps in turns and return the median seconds of each, and the median ratio within a turn."""
    # First, while this process is small: on Linux, a child's peak memory starts at that of its parent.
    peaks = {name: peak_in_own_process(name) for name in STEPS}
    step = {name: build(options) for name, build in STEPS.items()}
    times: dict[str, list[float]] = {name: [] for name in step}
    for turn in range(options.steps + 1):
        for name in step if turn % 2 else reversed(step):
            seconds = timed(step[name])
            if turn:
                times[name].append(seconds)
    ratios = [dcl / bare for dcl, bare in zip(times["dcl"], times["bare"], strict=True)]
    return {
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"cpu, {torch.get_num_threads()} threads",
        "backbone": options.backbone,
        "image_size": options.image_size,
        "batch_size": options.batch_size,
        "precision": options.precision,
        "channels_last": options.channels_last,
        "dcl_s": round(statistics.median(times["dcl"]), 4),
        "bare_s": round(statistics.median(times["bare"]), 4),
        "dcl_over_bare": round(statistics.median(ratios), 4),
        "dcl_over_bare_min": round(min(ratios), 4),
        "dcl_over_bare_max": round(max(ratios), 4),
        "dcl_peak_gib": peaks["dcl"],
        "bare_peak_gib": peaks["bare"],
    }


def dcl_step(options: argparse.Namespace) -> Callable[[], None]:
    """Build a training step on random faces, after the warm-up and with full queues."""
    config = DCLConfig(backbone=options.backbone, image_size=options.image_size)
    model = DCLForPreTraining(config)
    nn.functional.normalize(torch.randn_like(model.memory.queue), dim=2, out=model.memory.queue)
    model.memory.filled.fill_(config.queue_size)
    with tempfile.TemporaryDirectory() as folder:
        args = DCLTrainingArguments(
            output_dir=folder,
            contrastive_warmup_steps=0,
            bf16=options.precision == "bf16",
            fp16=options.precision == "fp16",
            channels_last=options.channels_last,
            eval_strategy="no",
            load_best_model_at_end=False,
        )
        trainer = DCLTrainer(model=model, args=args, processing_class=DCLImageProcessor())
    model = trainer.model.train()
    optimizer = make_optimizer(model)
    scaler = torch.amp.GradScaler(args.device.type, enabled=args.fp16)
    batch = random_batch(options, args.device)

    def step() -> None:
        with trainer.compute_loss_context_manager():
            loss = trainer.compute_loss(model, batch)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        model.momentum_update()
        optimizer.zero_grad()

    return step


def bare_step(options: argparse.Namespace) -> Callable[[], None]:
    """Build the step with the bare passes over the backbone."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    memory_format = torch.channels_last if options.channels_last else torch.contiguous_format
    config = DCLConfig(backbone=options.backbone, image_size=options.image_size)
    query, key = (DCLModel(config).to(device, memory_format=memory_format).train() for _ in range(2))
    classifier = nn.Linear(query.geometry.channels, 2).to(device)
    optimizer = make_optimizer(nn.ModuleList([query, classifier]))
    dtype = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[options.precision]
    scaler = torch.amp.GradScaler(device.type, enabled=options.precision == "fp16")
    batch = random_batch(options, device)
    images, keys = (
        (batch[name].float() / 127.5 - 1).contiguous(memory_format=memory_format)
        for name in ("pixel_values", "key_pixel_values")
    )

    def step() -> None:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            loss = F.cross_entropy(classifier(query(images).pooler_output).float(), batch["labels"])
            with torch.no_grad():
                key(keys)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return step


STEPS = {"dcl": dcl_step, "bare": bare_step}


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """Build the Trainer's default optimizer."""
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4, fused=True)


def random_batch(options: argparse.Namespace, device: torch.device) -> dict[str, torch.Tensor]:
    """Make a batch like those of the data loader; half of it are fakes with a square mask."""
    count, size = options.batch_size, options.image_size
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(count, size, size, dtype=torch.uint8)
    mask[1::2, size // 4 : size // 2, size // 4 : size // 2] = 255
    draws = [draw_device_views(ViewSettings(), default_rng(index)) for index in range(count)]
    batch = {
        name: torch.randint(256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
        for name in ("pixel_values", "key_pixel_values")
    }
    batch |= {name: torch.stack([torch.as_tensor(draw[name]) for draw in draws]) for name in draws[0]}
    batch |= {"mask": mask, "has_mask": torch.ones(count, dtype=torch.bool), "labels": torch.arange(count) % 2}
    return {name: value.to(device) for name, value in batch.items()}


def timed(step: Callable[[], None]) -> float:
    """Run a step and return its seconds."""
    start = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_memory(step: Callable[[], None]) -> float:
    """Run a step twice, to include the optimizer state, and return the peak memory of this process in GiB."""
    for _ in range(2):
        step()
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**30, 3)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3)


def peak_in_own_process(name: str) -> float:
    """Return the peak memory of one kind of step in GiB: allocated on a GPU, or resident on a CPU."""
    command = [sys.executable, __file__, *sys.argv[1:], "--peak_of", name]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


if __name__ == "__main__":
    main()
