"""Time one training step of DCL against a baseline: `python benchmarks/train_step.py --json`.

The DCL step is what the Trainer does with a batch: `training_step` (training mode, views on the device, both encoders,
losses, memory, backward pass), the gradient norm and clipping, the optimizer and the momentum update. The data loader
and the log are not part of it. The baselines:

- `bare`: the minimum for such a method: a forward and a backward pass of the query encoder, a forward pass of the key
  encoder, and the optimizer; with the memory format, autocast and optimizer of the DCL step.
- `released`: our re-creation of the step of the code that was released with the paper: contiguous float32, Adam
  without fused or foreach kernels, contrastive losses in a loop over images. Its views are made before the step.
- `classifier`: a plain classifier, against a DCL step with cross-entropy alone (`contrastive_weight` 0).

Both steps alternate in one process, and ratios are those within a turn. Peak memory is that of each step alone.
`--cpu_time` measures CPU time on a single thread, for busy machines.
"""

import argparse
import gc
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import chain

import torch
import torch.nn.functional as F
from numpy.random import default_rng
from torch import nn

from dcl_face_forgery.benchmarks.harness import print_result
from dcl_face_forgery.configuration_dcl import DCLConfig
from dcl_face_forgery.image_processing_dcl import DCLImageProcessor
from dcl_face_forgery.modeling_dcl import DCLForImageClassification, DCLForPreTraining, DCLModel
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
    parser.add_argument("--channels_last", action="store_true", help="use the channels_last memory format")
    parser.add_argument("--optimizer", choices=("fused", "foreach", "loop"), default="fused", help="form of AdamW")
    parser.add_argument("--compile", action="store_true", help="compile the encoders of the DCL step")
    parser.add_argument("--queue_size", type=int, default=DCLConfig().queue_size, help="keys of each class")
    parser.add_argument("--baseline", choices=("bare", "released", "classifier"), default="bare")
    parser.add_argument("--cpu_time", action="store_true", help="measure CPU time on a single thread")
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each, after a warm-up step")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--peak_of", choices=STEPS, help="print the peak memory of one kind of step in GiB, and exit")
    options = parser.parse_args()
    if options.cpu_time:
        torch.set_num_threads(1)
    if options.peak_of:
        print(peak_memory(STEPS[options.peak_of](options)))
        return
    result = measure(options)
    print_result(result, options.json)


def measure(options: argparse.Namespace) -> dict[str, float | int | str]:
    """Time both steps in turns and return the median seconds of each, and the median ratio within a turn."""
    # First, while this process is small: on Linux, a child's peak memory starts at that of its parent.
    names = ("dcl", options.baseline)
    peaks = {name: peak_alone(name, options) for name in names}
    step = {name: STEPS[name](options) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(options.steps + 1):
        for name in names if turn % 2 else reversed(names):
            seconds = timed(step[name], time.process_time if options.cpu_time else time.perf_counter)
            if turn:
                times[name].append(seconds)
    ratios = [dcl / other for dcl, other in zip(times["dcl"], times[options.baseline], strict=True)]
    over = f"dcl_over_{options.baseline}"
    return {
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"cpu, {torch.get_num_threads()} threads",
        "cpu_time": options.cpu_time,
        "backbone": options.backbone,
        "image_size": options.image_size,
        "batch_size": options.batch_size,
        "precision": options.precision,
        "channels_last": options.channels_last,
        "optimizer": options.optimizer,
        "compile": options.compile,
        "queue_size": options.queue_size,
        **{f"{name}_s": round(statistics.median(times[name]), 4) for name in names},
        over: round(statistics.median(ratios), 4),
        f"{over}_min": round(min(ratios), 4),
        f"{over}_max": round(max(ratios), 4),
        **{f"{name}_peak_gib": peaks[name] for name in names},
    }


def dcl_step(options: argparse.Namespace) -> Callable[[], None]:
    """Build a training step on random faces, after the warm-up and with full queues."""
    config = DCLConfig(backbone=options.backbone, image_size=options.image_size, queue_size=options.queue_size)
    model = DCLForPreTraining(config)
    nn.functional.normalize(torch.randn_like(model.memory.queue), dim=2, out=model.memory.queue)
    model.memory.filled.fill_(config.queue_size)
    with tempfile.TemporaryDirectory() as folder:
        args = DCLTrainingArguments(
            output_dir=folder,
            use_cpu=not torch.cuda.is_available(),
            contrastive_warmup_steps=0,
            contrastive_weight=0.0 if options.baseline == "classifier" else 0.5,
            bf16=options.precision == "bf16",
            fp16=options.precision == "fp16",
            channels_last=options.channels_last,
            torch_compile=options.compile,
            eval_strategy="no",
            load_best_model_at_end=False,
        )
        trainer = DCLTrainer(model=model, args=args, processing_class=DCLImageProcessor())
    trainer.optimizer = make_optimizer(trainer.model, options.optimizer)
    model, trainer.optimizer = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
    trainer.current_gradient_accumulation_steps = 1
    batch = random_batch(options, args.device)

    def step() -> None:  # as in `Trainer._run_epoch`
        trainer.training_step(model, batch)
        norm = trainer._clip_grad_norm(model) if args.max_grad_norm > 0 else None
        trainer._get_grad_norm(model, grad_norm=norm)
        trainer.optimizer.step()
        trainer.callback_handler.on_optimizer_step(args, trainer.state, trainer.control)  # the momentum update
        model.zero_grad()

    return step


def bare_step(options: argparse.Namespace) -> Callable[[], None]:
    """Build the step with the bare passes over the backbone."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    memory_format = torch.channels_last if options.channels_last else torch.contiguous_format
    config = DCLConfig(backbone=options.backbone, image_size=options.image_size)
    query, key = (DCLModel(config).to(device, memory_format=memory_format).train() for _ in range(2))
    classifier = nn.Linear(query.geometry.channels, 2).to(device)
    optimizer = make_optimizer(nn.ModuleList([query, classifier]), options.optimizer)
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


def released_step(options: argparse.Namespace) -> Callable[[], None]:
    """Build a step like that of the code that was released with the paper, with full queues."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = DCLConfig(backbone=options.backbone, image_size=options.image_size)
    encoders = [DCLModel(config).to(device).train() for _ in range(2)]
    geometry = encoders[0].geometry
    squeezes = [nn.Conv2d(geometry.channels, 1, 1).to(device) for _ in range(2)]
    classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(geometry.channels, 2)).to(device)
    for parameter in chain(encoders[1].parameters(), squeezes[1].parameters()):
        parameter.requires_grad_(False)
    learned = [*encoders[0].parameters(), *squeezes[0].parameters(), *classifier.parameters()]
    optimizer = torch.optim.Adam(learned, lr=2e-4, weight_decay=1e-5, foreach=False, fused=False)
    cells, width = geometry.height * geometry.width, options.queue_size + 128
    queues = [F.normalize(torch.randn(cells, width, device=device), dim=0) for _ in range(2)]  # real, fake
    prototypes, pointers = torch.zeros(2, cells, device=device), [0, 0]
    batch = random_batch(options, device)
    labels = batch["labels"]
    images, keys = (batch[name].float() / 127.5 - 1 for name in ("pixel_values", "key_pixel_values"))
    masks = F.interpolate(batch["mask"][:, None].float() / 255, (geometry.height, geometry.width), mode="bilinear")

    def embed(features: torch.Tensor, branch: int) -> torch.Tensor:
        return F.normalize(squeezes[branch](features).flatten(1), dim=1)

    def step() -> None:
        features = encoders[0](images).last_hidden_state
        logits, query = classifier(features.mean((2, 3))), embed(features, 0)
        with torch.no_grad():
            for moved, towards in zip(
                chain(encoders[1].parameters(), squeezes[1].parameters()),
                chain(encoders[0].parameters(), squeezes[0].parameters()),
                strict=True,
            ):
                moved.copy_(moved * 0.999 + towards * 0.001)
            key = embed(encoders[1](keys).last_hidden_state, 1)
            for label in (0, 1):
                prototypes[label] = 0.9 * prototypes[label] + 0.1 * key[labels == label].mean(0)
            for label in (0, 1):
                own = key[labels == label]
                hard = own[(own @ prototypes[1 - label]).topk(min(5, len(own))).indices]
                at = pointers[label]
                queues[label][:, at : at + len(hard)] = hard.T
                pointers[label] = (at + len(hard)) % options.queue_size
        loss = 0.5 * F.cross_entropy(logits, labels) + 0.5 * contrastive_loss(features, masks, query, key)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()  # for the log, at every step

    def contrastive_loss(
        features: torch.Tensor, masks: torch.Tensor, query: torch.Tensor, key: torch.Tensor
    ) -> torch.Tensor:
        vectors = F.normalize(features, dim=1).flatten(2)
        inter, inside, across, alike = [], [], [], []
        for image, label in enumerate(labels.tolist()):
            positive = query[image : image + 1] @ key[image : image + 1].T
            scores = torch.cat([positive, query[image : image + 1] @ queues[1 - label]], 1) / 0.07
            inter.append(F.cross_entropy(scores, labels.new_zeros(1)))
            if label == 0:
                alike.append((vectors[image].T @ vectors[image] / 0.07).exp().sum())
                continue
            mask = masks[image].flatten()
            real, fake = vectors[image] * (mask == 0), vectors[image] * (mask > 0.01)  # the others are zeroed
            inside.append((real.T @ real / 0.07).exp().sum())
            across.append((fake.T @ real / 0.07).exp().sum())
        inside, across, alike = (torch.stack(sums).sum() for sums in (inside, across, alike))
        intra = -torch.log(inside / (inside + across)) - 0.01 * torch.log(alike)
        return torch.stack(inter).mean() + 0.1 * intra

    return step


def classifier_step(options: argparse.Namespace) -> Callable[[], None]:
    """Build the step of a plain classifier on images that are ready."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    memory_format = torch.channels_last if options.channels_last else torch.contiguous_format
    config = DCLConfig(backbone=options.backbone, image_size=options.image_size)
    model = DCLForImageClassification(config).to(device, memory_format=memory_format).train()
    optimizer = make_optimizer(model, options.optimizer)
    dtype = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[options.precision]
    scaler = torch.amp.GradScaler(device.type, enabled=options.precision == "fp16")
    batch = random_batch(options, device)
    images = (batch["pixel_values"].float() / 127.5 - 1).contiguous(memory_format=memory_format)

    def step() -> None:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            loss = model(images, labels=batch["labels"]).loss
        scaler.scale(loss).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return step


STEPS = {"dcl": dcl_step, "bare": bare_step, "released": released_step, "classifier": classifier_step}


def make_optimizer(model: nn.Module, form: str) -> torch.optim.Optimizer:
    """Build AdamW, the Trainer's default optimizer, in its fused, foreach or plain form."""
    learned = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(learned, lr=2e-4, fused=form == "fused", foreach=form == "foreach")


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
    batch["row"] = torch.arange(count)
    return {name: value.to(device) for name, value in batch.items()}


def timed(step: Callable[[], None], clock: Callable[[], float] = time.perf_counter) -> float:
    """Run a step and return its seconds."""
    start = clock()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - start


def peak_memory(step: Callable[[], None]) -> float:
    """Run a step twice, to include the optimizer state, and return the peak memory of this process in GiB."""
    for _ in range(2):
        step()
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3)


def peak_alone(name: str, options: argparse.Namespace) -> float:
    """Return the peak memory of one kind of step in GiB: allocated on a GPU, or resident on a CPU."""
    if torch.cuda.is_available():
        gc.collect()  # a step before
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 2**30
        return round(peak_memory(STEPS[name](options)) - before, 3)
    command = [sys.executable, __file__, *sys.argv[1:], "--peak_of", name]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


if __name__ == "__main__":
    main()
