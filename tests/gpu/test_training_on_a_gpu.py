"""What only a GPU can show: half precision over many steps, no waiting, statistics of several GPUs."""

import argparse
import socket

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.layers import convert_sync_batchnorm

from dcl_face_forgery.benchmarks.train_step import random_batch
from dcl_face_forgery.image_processing_dcl import DCLImageProcessor
from dcl_face_forgery.modeling_dcl import DCLForPreTraining
from dcl_face_forgery.training.losses import inter_instance_loss, intra_instance_loss
from dcl_face_forgery.training.trainer import DCLTrainer, DCLTrainingArguments
from dcl_face_forgery.training.views import apply_device_views

pytestmark = pytest.mark.gpu
HALF = (0.5, 0.5, 0.5)


def batch_of(device, count=16, size=96):
    """Noise; fakes have a white square."""
    batch = random_batch(argparse.Namespace(batch_size=count, image_size=size), device)
    for name in ("pixel_values", "key_pixel_values"):
        batch[name][1::2, :, size // 4 : size // 2, size // 4 : size // 2] = 255
    return batch


@pytest.fixture
def trainer(model, tmp_path):
    """Build a trainer that is ready for `step`."""

    def trainer(**settings):
        args = DCLTrainingArguments(
            output_dir=tmp_path / "run",
            contrastive_warmup_steps=0,
            eval_strategy="no",
            load_best_model_at_end=False,
            learning_rate=1e-3,
            **settings,
        )
        built = DCLTrainer(model=model, args=args, processing_class=DCLImageProcessor())
        built.create_optimizer()
        built.model, built.optimizer = built.accelerator.prepare(built.model, built.optimizer)
        built.current_gradient_accumulation_steps = 1
        return built

    return trainer


def step(trainer, batch):
    """One step, as in `Trainer._run_epoch`."""
    loss = trainer.training_step(trainer.model, batch)
    trainer._clip_grad_norm(trainer.model)
    trainer.optimizer.step()
    trainer.callback_handler.on_optimizer_step(trainer.args, trainer.state, trainer.control)
    trainer.model.zero_grad()
    return loss


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_thousand_steps_in_half_precision_stay_finite_and_learn(trainer, precision):
    trainer = trainer(**{precision: True})
    batch = batch_of(trainer.args.device)
    losses = torch.stack([step(trainer, batch) for _ in range(1000)])
    assert losses.isfinite().all()
    assert losses[-50:].mean() < 0.1 < losses[:10].mean()
    tensors = [*trainer.model.parameters(), *trainer.model.buffers()]
    assert all(tensor.isfinite().all() for tensor in tensors)
    assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())
    if precision == "fp16":
        assert trainer.accelerator.scaler.get_scale() >= 1


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_step_never_waits_for_the_device(trainer, precision):
    trainer = trainer(bf16=precision == "bf16")
    batch = batch_of(trainer.args.device)
    for _ in range(3):  # first calls choose algorithms and allocate
        step(trainer, batch)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(trainer, batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_views_on_a_gpu_are_those_on_a_cpu():
    expected = apply_device_views(batch_of("cpu"), HALF, HALF)
    actual = apply_device_views(batch_of("cuda"), HALF, HALF)
    for name in ("pixel_values", "key_pixel_values", "mask"):
        torch.testing.assert_close(actual[name].cpu(), expected[name], rtol=0, atol=1e-5)


def test_losses_on_a_gpu_are_those_on_a_cpu():
    query, key = F.normalize(torch.randn(2, 8, 9), dim=2)
    queue, filled, labels = F.normalize(torch.randn(2, 64, 9), dim=2), torch.tensor([64, 10]), torch.arange(8) % 2
    features, share = torch.randn(8, 16, 3, 3), torch.rand(8, 3, 3)
    both = []
    for device in ("cpu", "cuda"):
        q, k, memory, rows, classes, f, s = (
            t.to(device) for t in (query, key, queue, filled, labels, features, share)
        )
        q, f = q.requires_grad_(), f.requires_grad_()
        inter = inter_instance_loss(q, k, classes, memory, rows, 0.07)
        intra, _ = intra_instance_loss(f, classes, s, 0.07, 0.5)
        both.append((inter, intra, *torch.autograd.grad(inter.sum() + intra.sum(), (q, f))))
    for on_cpu, on_gpu in zip(*both, strict=True):
        torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=1e-4, atol=1e-4)


def half_batch_logits(rank, port, config, images, results):
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = convert_sync_batchnorm(DCLForPreTraining(config)).cuda().train()
    with torch.no_grad():
        results[rank] = model(images.chunk(2)[rank].cuda()).feature_map.cpu()
    dist.destroy_process_group()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_with_synchronised_statistics_are_one_large_batch(config):
    images = torch.randn(8, 3, 96, 96)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    results = torch.multiprocessing.get_context("spawn").Manager().dict()
    torch.multiprocessing.spawn(half_batch_logits, (port, config, images, results), nprocs=2)
    torch.manual_seed(0)
    expected = DCLForPreTraining(config).cuda().train()(images.cuda()).feature_map.detach().cpu()
    torch.testing.assert_close(torch.cat([results[0], results[1]]), expected, rtol=1e-3, atol=1e-3)
