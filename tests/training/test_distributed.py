"""Several processes learn what one process with the whole batch learns."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from filelock import FileLock
from torch.utils.data import DataLoader

from dcl_face_forgery.errors_dcl import InputError
from dcl_face_forgery.prepared.names import FAKE, REAL
from dcl_face_forgery.tests.shared.prepared_data import make_rows, training_flags, write_split
from dcl_face_forgery.tests.shared.training import build_trainer
from dcl_face_forgery.training.arguments import parse_training_run
from dcl_face_forgery.training.distributed import (
    gather_rows,
    means_over_processes,
    shuffle_over_processes,
    world_size,
)
from dcl_face_forgery.training.pairs import BalancedSampler
from dcl_face_forgery.training.run import find_start

#: Runs the training command, then keeps what each process holds and tries the collectives on uneven parts.
WORKER = """
import os, signal, sys
from pathlib import Path
import torch, torch.distributed as dist
from dcl_face_forgery import train
from dcl_face_forgery.training import run
from dcl_face_forgery.training.distributed import (
    gather_rows, means_over_processes, shuffle_over_processes, unshuffle_over_processes, world_size
)
from dcl_face_forgery.training.trainer import DCLTrainer

folder, stop, *flags = sys.argv[1:]
built, build = [], run.build_trainer
run.build_trainer = lambda *given: built.append(build(*given)) or built[-1]
if int(stop):
    step = DCLTrainer.training_step
    def training_step(self, *args, **kwargs):
        if self.state.global_step == abs(int(stop)):
            if int(stop) > 0:
                sys.exit(3)
            if dist.get_rank() == 1:  # one process alone gets the signal
                os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args, **kwargs)
    DCLTrainer.training_step = training_step
train.main(flags)
rank = dist.get_rank()
state = {"model": built[0].model.state_dict(), "world": world_size(), "calibration": built[0].model.config.calibration}
state["familiarity"] = built[0].model.config.familiarity
state["gathered"] = gather_rows(torch.arange(4.0).reshape(2, 2) + 10 * rank)
state["shuffled"], where = shuffle_over_processes(torch.arange(3) + 3 * rank, seed=4)
state["unshuffled"] = unshuffle_over_processes(state["shuffled"], where)
values = torch.tensor([[1.0, 2.0], [4.0, 8.0]])[rank].requires_grad_()
parts = {"all": "1111", "uneven": "1101", "one": "0010", "none": "0000"}  # which of the four values are valid
for name, part in parts.items():
    values.grad = None
    valid = torch.tensor([digit == "1" for digit in part[2 * rank : 2 * rank + 2]])
    mean = means_over_processes({"a": (values, valid), "b": (values.detach(), valid)})["a"]
    mean.backward()
    state[name] = mean.detach(), values.grad
torch.save(state, Path(folder) / f"rank{rank}.pt")
"""


def launch(folder, flags, stop=0, processes=2):
    """Train with several processes and return what each of them holds, or `None` after a stop.

    A negative `stop` sends a signal to the second process in that step.
    """
    folder.mkdir(exist_ok=True)
    (folder / "worker.py").write_text(WORKER)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [*launcher, str(folder / "worker.py"), str(folder), str(stop), *flags, "--ddp_backend", "gloo"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert (done.returncode == 0) == (stop == 0), done.stderr[-3000:]
    return None if stop else [torch.load(folder / f"rank{rank}.pt") for rank in range(processes)]


def steps_of(output_dir):
    log = json.loads((output_dir / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in log if "loss" in entry]


@pytest.fixture(scope="module")
def half_masked(tmp_path_factory):
    """A data set in which the fakes by one of two methods have no mask."""
    folder = tmp_path_factory.mktemp("half_masked")
    for split, videos in (("train", range(6)), ("validation", range(6, 8))):
        rows = make_rows(videos)
        for row in rows:
            if row["method"] == "warp":
                row["mask"] = None
        write_split(folder, split, rows)
    return folder


#: A network without batch normalisation, whose statistics each process has to itself, and an optimizer that does not
#: blow rounding up.
SETTINGS = {
    "backbone": "test_vit",
    "image_size": 64,
    "dropout": 0,
    "optim": "sgd",
    "learning_rate": 0.05,
    "contrastive_warmup_steps": 2,
    "max_steps": 6,
    "eval_steps": 3,
    "save_steps": 3,
    "load_best_model_at_end": False,
}


def assert_processes_learn_what_one_learns(ranks, several, one):
    first, *others = [rank["model"] for rank in ranks]
    for name, value in first.items():
        for other in others:
            assert torch.equal(value, other[name]), name
    expected = torch.load(one / "model.pt")
    assert first.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(first[name], value, rtol=1e-3, atol=2e-5, msg=lambda text, name=name: name + text)
    logged, wanted = steps_of(several), steps_of(one)
    assert len(logged) == len(wanted) > 0
    for got, want in zip(logged, wanted, strict=True):
        assert got.keys() == want.keys()
        for name in want:
            assert got[name] == pytest.approx(want[name], rel=1e-3, abs=1e-4), (got["step"], name)


def train_alone(folder, data, **settings):
    trainer = build_trainer(parse_training_run(training_flags(data, folder, **settings)))
    trainer.train()
    trainer.save_state()
    torch.save(trainer.model.state_dict(), folder / "model.pt")


def test_two_processes_of_one_class_each_learn_what_one_process_learns(half_masked, tmp_path):
    """A batch of one image a process: the first has reals only, the second fakes only, some of them without mask."""
    flags = training_flags(half_masked, tmp_path / "two", **SETTINGS, per_device_train_batch_size=1)
    ranks = launch(tmp_path / "state", flags)
    train_alone(tmp_path / "one", half_masked, **SETTINGS, per_device_train_batch_size=2)
    assert_processes_learn_what_one_learns(ranks, tmp_path / "two", tmp_path / "one")
    saved = json.loads((tmp_path / "two" / "config.json").read_text())
    assert saved["calibration"]["frame"]["reals"] == 4 and saved["familiarity"]["families"] == 2
    for name in ("calibration", "familiarity"):
        assert ranks[0][name] == ranks[1][name] == saved[name]
    steps = steps_of(tmp_path / "two")
    assert 0 < sum("loss_intra_fake" in step for step in steps) < len(steps)  # some steps saw no mask anywhere
    for rank, other in ((0, 1), (1, 0)):
        state = ranks[rank]
        assert state["world"] == 2
        assert torch.equal(state["gathered"], torch.tensor([[0.0, 1], [2, 3], [10, 11], [12, 13]]))
        assert state["unshuffled"].tolist() == [3 * rank, 3 * rank + 1, 3 * rank + 2]
        for name, mean in {"all": 15 / 4, "uneven": 11 / 3, "one": 4.0, "none": 0.0}.items():
            assert (state[name][0] + ranks[other][name][0]).item() / 2 == pytest.approx(mean)
    shuffled = [rank["shuffled"].tolist() for rank in ranks]
    assert sorted([*shuffled[0], *shuffled[1]]) == list(range(6)) and any(row > 2 for row in shuffled[0])
    # What DDP averages is the gradient of the mean over all valid values: 1 / count for each of them.
    gradients = {name: torch.cat([rank[name][1] for rank in ranks]) / 2 for name in ("all", "uneven", "one", "none")}
    assert gradients["all"].tolist() == pytest.approx([1 / 4] * 4)
    assert gradients["uneven"].tolist() == pytest.approx([1 / 3, 1 / 3, 0, 1 / 3])
    assert gradients["one"].tolist() == [0, 0, 1, 0] and gradients["none"].tolist() == [0] * 4


def test_the_first_process_decides_where_all_begin(monkeypatch, prepared, tmp_path):
    """What another process sees in its folder, on a disk of its own perhaps, does not count."""
    run = parse_training_run(training_flags(prepared, tmp_path / "run"))
    monkeypatch.setattr(type(run.training), "world_size", 2)
    monkeypatch.setattr(type(run.training), "process_index", 1)
    answers = [[None, True, None], ["another run", False, None], [None, False, str(tmp_path / "run" / "checkpoint-2")]]
    monkeypatch.setattr(
        "torch.distributed.broadcast_object_list", lambda answer, device: answer.__setitem__(slice(3), told)
    )
    told, lock = answers[0], FileLock(tmp_path / ".lock")
    assert find_start(run, tmp_path / "run", {}, lock) == (True, None)
    told = answers[1]
    with pytest.raises(InputError, match="another run"):
        find_start(run, tmp_path / "run", {}, lock)
    told = answers[2]
    with pytest.raises(InputError, match=r"trainer_state.json is missing.*all must see the same folder"):
        find_start(run, tmp_path / "run", {}, lock)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings, one",
    [
        ({"per_device_train_batch_size": 3}, {"per_device_train_batch_size": 6}),
        (
            {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3},
            {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3},
        ),
        ({"per_device_train_batch_size": 1, "contrastive_weight": 0}, {"per_device_train_batch_size": 2}),
        (
            {"per_device_train_batch_size": 4, "backbone": "test_efficientnet", "batch_norm": "frozen"},
            {"per_device_train_batch_size": 8},
        ),
        ({"per_device_train_batch_size": 4, "batch_norm": "shuffle"}, {"per_device_train_batch_size": 8}),
        (
            {"per_device_train_batch_size": 4, "hard_samples": None, "hard_share": 0.5},
            {"per_device_train_batch_size": 8},
        ),
    ],
    ids=["uneven classes", "accumulation", "cross-entropy", "frozen batch norm", "shuffled keys", "hard share"],
)
def test_two_processes_learn_what_one_process_learns(half_masked, tmp_path, settings, one):
    settings = {**SETTINGS, **settings}
    ranks = launch(tmp_path / "state", training_flags(half_masked, tmp_path / "two", **settings))
    train_alone(tmp_path / "one", half_masked, **{**settings, **one})
    assert_processes_learn_what_one_learns(ranks, tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["test_vit", "test_efficientnet"])
def test_two_processes_stopped_inside_a_later_epoch_go_on_to_the_same_weights(prepared, tmp_path, backbone):
    settings = {**SETTINGS, "backbone": backbone, "dropout": 0.2, "per_device_train_batch_size": 4, "max_steps": 9}
    settings |= {"save_steps": 5, "eval_steps": 5, "optim": "adamw_torch"}
    whole = launch(tmp_path / "a", training_flags(prepared, tmp_path / "whole", **settings))
    flags = training_flags(prepared, tmp_path / "run", **settings)
    launch(tmp_path / "b", flags, stop=7)
    resumed = launch(tmp_path / "c", flags)
    for one, other in zip(whole, resumed, strict=True):
        for name, value in one["model"].items():
            assert torch.equal(value, other["model"][name]), name
    assert steps_of(tmp_path / "whole") == steps_of(tmp_path / "run")


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_stops_both_after_the_same_step(prepared, tmp_path):
    settings = {**SETTINGS, "per_device_train_batch_size": 4, "save_steps": 50, "eval_steps": 50, "max_steps": 9}
    whole = launch(tmp_path / "a", training_flags(prepared, tmp_path / "whole", **settings))
    flags = training_flags(prepared, tmp_path / "run", **settings)
    launch(tmp_path / "b", flags, stop=-3)
    assert not (tmp_path / "run" / "all_results.json").exists()
    assert len(list((tmp_path / "run").glob("checkpoint-*/trainer_state.json"))) == 1
    resumed = launch(tmp_path / "c", flags)
    for one, other in zip(whole, resumed, strict=True):
        for name, value in one["model"].items():
            assert torch.equal(value, other["model"][name]), name


@pytest.mark.slow
def test_shuffled_key_views_have_other_batch_statistics_than_those_of_the_own_process(prepared, tmp_path):
    settings = {**SETTINGS, "backbone": "test_efficientnet", "max_steps": 1, "per_device_train_batch_size": 4}
    kept = {}
    for kind in ("local", "shuffle"):
        flags = training_flags(prepared, tmp_path / kind, **settings, batch_norm=kind)
        kept[kind] = launch(tmp_path / f"{kind} state", flags)[0]["model"]
    name = "backbone.bn1.running_mean"
    assert torch.equal(kept["local"][f"dcl.{name}"], kept["shuffle"][f"dcl.{name}"])
    assert not torch.allclose(
        kept["local"][f"momentum_dcl.{name}"], kept["shuffle"][f"momentum_dcl.{name}"], rtol=1e-4
    )


@pytest.mark.slow
def test_each_process_drops_features_of_its_own(prepared, tmp_path):
    """With the same masks everywhere, several processes would see less of the network than one."""
    settings = {**SETTINGS, "dropout": 0.5, "max_steps": 1, "per_device_train_batch_size": 4}
    launch(tmp_path / "state", training_flags(prepared, tmp_path / "run", **settings))
    states = [
        torch.load(path, weights_only=False)["cpu"] for path in (tmp_path / "run").glob("checkpoint-*/rng_state_*")
    ]
    assert len(states) == 2 and not torch.equal(*states)


def test_a_run_of_several_processes_that_is_resumed_inside_an_epoch_draws_that_epoch(prepared, tmp_path):
    flags = training_flags(prepared, tmp_path, max_steps=5, image_size=64)
    trainer = build_trainer(parse_training_run(flags))
    sampler = BalancedSampler(np.array([REAL, FAKE] * 12))
    loader = prepare_data_loader(
        DataLoader(range(24), batch_size=4, sampler=sampler), num_processes=2, process_index=1, put_on_device=False
    )
    skipped = skip_first_batches(loader, 1)
    trainer.state.max_steps, sampler.epoch = 5, 0
    drawn = []
    parent = type(trainer).__mro__[1]
    original = parent._run_epoch
    try:
        parent._run_epoch = lambda self, *, train_dataloader, **kwargs: drawn.extend(train_dataloader.batch_sampler)
        trainer._run_epoch(epoch=3, train_dataloader=skipped)
    finally:
        parent._run_epoch = original
    assert {epoch for batch in drawn for epoch, _ in batch} == {3}


def test_one_process_is_its_own_world():
    values, valid = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([True, False, True])
    assert world_size() == 1 and gather_rows(values) is values
    nowhere = torch.zeros(3, dtype=torch.bool)
    means = means_over_processes({"some": (values, valid), "all": (values, ~nowhere), "none": (values, nowhere)})
    assert means == {"some": 3.5, "all": 3, "none": 0}
    broken = torch.tensor([1.0, torch.nan], requires_grad=True)
    means_over_processes({"term": (broken, torch.tensor([True, False]))})["term"].backward()
    assert broken.grad.tolist() == [1, 0]
    assert shuffle_over_processes(values, seed=1)[0].sort()[0].tolist() == values.tolist()
