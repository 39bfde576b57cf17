"""The trainer against a plain training loop, on batches that lack something, and what it publishes."""

import copy
import json
import math
import shutil
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub import ModelCard
from huggingface_hub.utils import filter_repo_objects
from sklearn.metrics import roc_auc_score
from torch.utils.data import DataLoader
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    TrainerCallback,
)

from dcl_face_forgery import train
from dcl_face_forgery.errors_dcl import InputError
from dcl_face_forgery.faces_dcl import YUNET_FILE
from dcl_face_forgery.modeling_dcl import REFERENCE_FILE
from dcl_face_forgery.prepared.cells import cell_masks
from dcl_face_forgery.prepared.names import FAKE, REAL
from dcl_face_forgery.tests.shared.prepared_data import SHIPPED_CODE, training_flags
from dcl_face_forgery.tests.shared.training import build_trainer
from dcl_face_forgery.training.arguments import parse_training_run
from dcl_face_forgery.training.losses import inter_instance_loss, intra_instance_loss
from dcl_face_forgery.training.pairs import BalancedSampler, collate
from dcl_face_forgery.training.trainer import COMPONENTS, last_complete_checkpoint
from dcl_face_forgery.training.views import apply_device_views

HALF = (0.5, 0.5, 0.5)
NEITHER = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}


@pytest.fixture
def build(prepared, tmp_path):
    """Build a trainer that neither validates nor saves unless it is told to."""

    def build(**settings):
        flags = training_flags(prepared, tmp_path / "out", **{**NEITHER, **settings})
        return build_trainer(parse_training_run(flags))

    return build


def steps_of(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def batches_of(trainer, batch_size, epochs):
    """Yield the batches of some epochs, without the Trainer."""
    dataset = trainer.train_dataset
    sampler = BalancedSampler(dataset.labels, trainer.args.seed)
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        yield from DataLoader(dataset, batch_size=batch_size, sampler=sampler, collate_fn=collate)


def terms_of(model, batch):
    """Compute the four losses of a batch and move the memory, one image after the other."""
    config, labels = model.config, batch["labels"].tolist()
    batch = apply_device_views(batch, HALF, HALF)
    outputs = model(batch["pixel_values"], batch["key_pixel_values"])
    model.memory.update(outputs.key, batch["labels"])
    shares = cell_masks(batch["mask"], outputs.feature_map.shape[-2:], model.config.mask_rule)
    values = {"ce": [], "inter": [], "intra_fake": [], "intra_real": []}
    for i, label in enumerate(labels):
        one = slice(i, i + 1)
        features = outputs.feature_map[one]
        values["ce"].append(F.cross_entropy(outputs.logits[one], batch["labels"][one]))
        values["inter"].append(
            inter_instance_loss(
                outputs.query[one],
                outputs.key[one],
                batch["labels"][one],
                model.memory.queue.clone(),
                model.memory.filled.clone(),
                config.temperature,
            )[0]
        )
        intra, valid = intra_instance_loss(
            features, batch["labels"][one], shares[one], config.temperature, config.mask_threshold
        )
        if label == REAL:
            values["intra_real"].append(intra[0])
        elif batch["has_mask"][i] and valid[0]:
            values["intra_fake"].append(intra[0])
    return {name: torch.stack(terms).mean() if terms else torch.tensor(0.0) for name, terms in values.items()}


# ---------------------------------------------------------------------------------------- the same as a plain loop


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "warmup, accumulation", [(2, 1), (0, 2), pytest.param(0, 1, marks=SLOW), pytest.param(1, 3, marks=SLOW)]
)
def test_training_is_what_a_plain_loop_does(build, warmup, accumulation):
    steps, size = 3, 4
    trainer = build(
        max_steps=steps,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
        contrastive_warmup_steps=warmup,
        intra_weight=0.5,
        intra_real_weight=0.2,
        temperature=0.5,  # at 0.07 a cell is alike itself only, and the intra-instance terms say next to nothing
        dropout=0,
        optim="sgd",  # Adam would blow rounding up to a whole step wherever a gradient is next to nothing
        weight_decay=0,
        lr_scheduler_type="constant",
        learning_rate=0.05,
    )
    model = copy.deepcopy(trainer.model).train()
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(learned, lr=0.05)
    batches = batches_of(trainer, size, epochs=2)
    expected = []
    for step in range(steps):
        weight = 0.5 if step >= warmup else 0.0
        seen = []
        for _ in range(accumulation):
            terms = terms_of(model, next(batches))
            intra = terms["intra_fake"] + 0.2 * terms["intra_real"]
            total = (1 - weight) * terms["ce"] + weight * (terms["inter"] + 0.5 * intra)
            (total / accumulation).backward()
            seen.append({"loss": total.item(), **{f"loss_{name}": term.item() for name, term in terms.items()}})
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for query, key in ((model.dcl, model.momentum_dcl), (model.embedding_head, model.momentum_embedding_head)):
                for moved, towards in zip(key.parameters(), query.parameters(), strict=True):
                    moved.copy_(0.9 * moved + 0.1 * towards)
        mean = {name: np.mean([one[name] for one in seen]) for name in ("loss", "loss_ce", "loss_inter")}
        intra_weights = {"weight_intra_fake": weight * 0.5, "weight_intra_real": weight * 0.5 * 0.2}
        expected.append({**mean, "weight_ce": 1 - weight, "weight_inter": weight, **intra_weights})
        if accumulation == 1:
            expected[-1] |= {name: seen[0][name] for name in ("loss_intra_fake", "loss_intra_real")}
    trainer.train()
    logged = steps_of(trainer)
    assert len(logged) == steps
    for want, got in zip(expected, logged, strict=True):
        for name, value in want.items():
            assert got[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    got = trainer.model.state_dict()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(got[name], value, rtol=1e-3, atol=1e-5, msg=lambda text, name=name: name + text)
    for name in ("pointer", "filled"):
        assert torch.equal(got[f"memory.{name}"], getattr(model.memory, name))
    assert got["memory.filled"].tolist() == [min(16, 2 * steps * accumulation)] * 2


def test_contrastive_weight_0_is_plain_cross_entropy(build):
    trainer = build(
        contrastive_weight=0,
        contrastive_warmup_steps=0,
        dropout=0,
        optim="sgd",
        weight_decay=0,
        lr_scheduler_type="constant",
        learning_rate=0.1,
    )
    model = copy.deepcopy(trainer.model).train()
    learned = [*model.dcl.parameters(), *model.classifier.parameters()]
    optimizer = torch.optim.SGD(learned, lr=0.1)
    for batch in batches_of(trainer, 8, epochs=1):
        images = apply_device_views(batch, HALF, HALF)["pixel_values"]
        F.cross_entropy(model(images).logits, batch["labels"]).backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.train()
    for name, value in trainer.model.state_dict().items():
        if name.startswith(("dcl.", "classifier.")):
            torch.testing.assert_close(value, model.state_dict()[name], rtol=1e-4, atol=1e-6)
    changed = trainer.model.dcl.state_dict()
    assert any(not torch.equal(changed[name], before[f"dcl.{name}"]) for name in changed)
    assert [entry["loss"] for entry in steps_of(trainer)] == [entry["loss_ce"] for entry in steps_of(trainer)]
    assert {entry["weight_inter"] for entry in steps_of(trainer)} == {0}


@pytest.mark.parametrize(
    "settings, weights",
    [
        ({"contrastive_warmup_steps": 2}, [0, 0, 0.5, 0.5, 0.5, 0.5]),
        ({"contrastive_warmup_steps": -1, "contrastive_warmup_epochs": 1}, [0, 0, 0, 0.5, 0.5, 0.5]),
        ({"contrastive_warmup_steps": -1, "contrastive_warmup_epochs": 0.5}, [0, 0, 0.5, 0.5, 0.5, 0.5]),
        pytest.param({"contrastive_warmup_steps": 0, "contrastive_weight": 0.25}, [0.25] * 6, marks=SLOW),
    ],
)
def test_the_warm_up_lasts_as_long_as_it_was_told(build, settings, weights):
    trainer = build(max_steps=6, image_size=64, intra_weight=0.3, intra_real_weight=0.05, **settings)
    trainer.train()
    logged = steps_of(trainer)
    assert [entry["weight_inter"] for entry in logged] == weights
    for entry in logged:
        total = sum(entry[f"weight_{name}"] * entry.get(f"loss_{name}", 0) for name in COMPONENTS)
        assert entry["loss"] == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize(
    "settings, never",
    [
        ({"contrastive_warmup_steps": 6}, True),
        ({"contrastive_warmup_steps": 5}, False),
        ({"contrastive_warmup_steps": -1}, True),  # two epochs of three steps
        ({"contrastive_warmup_steps": -1, "contrastive_warmup_epochs": 1.9}, False),
        ({"contrastive_warmup_steps": 6, "contrastive_weight": 0}, False),
    ],
)
def test_a_warm_up_that_outlasts_the_training_is_warned_of(build, caplog, settings, never):
    build(**settings).create_optimizer_and_scheduler(num_training_steps=6)
    assert ("contrastive losses have no effect" in caplog.text) == never


def test_momentum_moves_once_an_optimizer_step_and_memory_once_a_batch(build, monkeypatch):
    trainer = build(max_steps=2, per_device_train_batch_size=4, gradient_accumulation_steps=3)
    calls = []
    for owner, name in ((trainer.model, "momentum_update"), (trainer.model.memory, "update")):
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, n=name, o=original: (calls.append(n), o(*a))[1])
    trainer.train()
    assert calls == [*["update"] * 3, "momentum_update"] * 2


def test_the_learning_rate_falls_by_10_every_so_many_epochs_whole_or_not(build):
    trainer = build(max_steps=6, lr_step_epochs=1, learning_rate=1e-3, image_size=64, per_device_train_batch_size=10)
    trainer.train()
    assert [entry["learning_rate"] for entry in steps_of(trainer)] == pytest.approx([1e-3] * 3 + [1e-4] * 3)


def test_the_learning_rate_can_rise_before_it_falls(build):
    trainer = build(max_steps=6, lr_step_epochs=1, warmup_steps=2, learning_rate=1e-3, image_size=64)
    trainer.train()
    rates = [entry["learning_rate"] for entry in steps_of(trainer)]
    assert rates == pytest.approx([0, 5e-4, 1e-3, 1e-4, 1e-4, 1e-4])


def test_adam_with_l2_decays_every_parameter(build):
    trainer = build(adam_l2=True, weight_decay=0.1)
    optimizer = trainer.create_optimizer()
    assert type(optimizer) is torch.optim.Adam
    decayed = [p for group in optimizer.param_groups if group["weight_decay"] == 0.1 for p in group["params"]]
    assert len(decayed) == sum(p.requires_grad for p in trainer.model.parameters())
    assert type(build().create_optimizer()) is torch.optim.AdamW


# ------------------------------------------------------------------------------------- batches that lack something


def a_batch(trainer, labels, mask="own", has_mask=True):
    """Make a batch of these labels; `mask` is `own`, `empty` or `full` for the fakes."""
    dataset = trainer.train_dataset
    rows = {label: np.flatnonzero(dataset.labels == label) for label in (REAL, FAKE)}
    batch = collate([dataset[0, rows[label][number]] for number, label in enumerate(labels)])
    fakes = batch["labels"] == FAKE
    if mask != "own":
        batch["mask"][fakes] = 255 if mask == "full" else 0
    batch["has_mask"][fakes] = has_mask
    return batch


PLAIN, DCL = {"contrastive_weight": 0}, {"contrastive_warmup_steps": 0}
WARM_UP = {"contrastive_warmup_steps": 100}
POOLED = {"contrastive_warmup_steps": 0, "embedding": "pooled"}


@pytest.mark.parametrize("settings", [PLAIN, DCL, WARM_UP, POOLED], ids=["plain", "dcl", "warm_up", "pooled"])
@pytest.mark.parametrize(
    "batch",
    [
        {"labels": [REAL, FAKE] * 3},
        {"labels": [REAL] * 4},
        {"labels": [FAKE] * 4},
        {"labels": [REAL] * 3 + [FAKE]},
        {"labels": [REAL, FAKE] * 2, "mask": "empty"},
        {"labels": [REAL, FAKE] * 2, "mask": "full"},
        {"labels": [FAKE] * 3, "has_mask": False},
    ],
    ids=["both", "reals", "fakes", "one_fake", "empty_masks", "full_masks", "no_masks"],
)
def test_every_batch_gives_every_parameter_a_finite_gradient(shared_trainer, settings, batch):
    trainer = shared_trainer(settings)
    memory = copy.deepcopy(trainer.model.memory.state_dict())
    batch = a_batch(trainer, **batch)
    for _ in range(2):  # the first finds the memory empty
        trainer.model.zero_grad()
        loss = trainer.compute_loss(trainer.model.train(), copy.copy(batch))
        loss.backward()
        assert loss.isfinite()
        for name, parameter in trainer.model.named_parameters():
            if name.startswith("momentum_"):
                assert not parameter.requires_grad and parameter.grad is None
            else:
                assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    for label in (REAL, FAKE):
        if label not in batch["labels"] or settings == PLAIN:  # cross-entropy alone has no use for the memory
            for name, value in trainer.model.memory.state_dict().items():
                assert torch.equal(value[label], memory[name][label])
        else:
            assert trainer.model.memory.filled[label] > 0
    assert all(value.isfinite().all() for value in trainer.model.memory.state_dict().values())


@pytest.fixture(scope="module")
def shared_trainer(prepared, tmp_path_factory):
    """Return a trainer whose model is as it was built, made once for all tests with the same settings."""
    trainers = {}

    def get(settings):
        key = json.dumps(settings)
        if key not in trainers:
            flags = training_flags(prepared, tmp_path_factory.mktemp("out"), **{**NEITHER, **settings})
            trainers[key] = build_trainer(parse_training_run(flags))
            trainers[key].initial = copy.deepcopy(trainers[key].model.state_dict())
        trainers[key].model.load_state_dict(trainers[key].initial)
        return trainers[key]

    return get


def test_an_absent_part_counts_nothing_in_the_mean(shared_trainer):
    trainer = shared_trainer(DCL)
    trainer.model.classifier.dropout.p = 0.0
    batch = a_batch(trainer, [REAL, FAKE, FAKE, FAKE])
    batch["has_mask"] = torch.tensor([True, True, False, True])
    batch["mask"][3] = 255
    reference = terms_of(copy.deepcopy(trainer.model).train(), copy.copy(batch))
    trainer._monitor.means()
    trainer.compute_loss(trainer.model.train(), copy.copy(batch))
    sums = trainer._monitor.fold()
    assert sums["usable_masks"] == [1, 3]
    for name, count in {"ce": 4, "inter": 4, "intra_fake": 1, "intra_real": 1}.items():
        assert sums[f"loss_{name}"] == pytest.approx([count * reference[name].item(), count], rel=1e-4, abs=1e-6)


def test_a_contrastive_term_that_is_not_a_number_cannot_reach_the_weights_in_the_warm_up(shared_trainer):
    trainer = shared_trainer(WARM_UP)
    trainer.model.memory.queue.fill_(torch.nan)
    trainer.model.memory.filled.fill_(16)
    trainer._monitor.means()
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model.train(), a_batch(trainer, [REAL, FAKE] * 3))
    assert math.isnan(trainer._monitor.means()["loss_inter"])  # it is there, and it is seen
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in trainer.model.parameters() if p.requires_grad)


def test_training_on_faces_without_masks(build, tmp_path, prepared):
    trainer = build(max_steps=2, contrastive_warmup_steps=0)
    rows = trainer.train_dataset.rows
    trainer.train_dataset.rows = rows.map(lambda cells: {**cells, "mask": None})
    trainer.train()
    assert all("loss_intra_fake" not in entry and entry["loss_intra_real"] < 0 for entry in steps_of(trainer))
    assert all(value.isfinite().all() for value in trainer.model.state_dict().values())


@pytest.mark.parametrize(
    "settings",
    [{"bf16": True}, {"channels_last": True}, pytest.param({"activation_checkpointing": True}, marks=SLOW)],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_of_speed_and_memory_train_and_load_again(build, settings, tmp_path):
    trainer = build(max_steps=2, contrastive_warmup_steps=1, **settings)
    trainer.train()
    assert all(math.isfinite(entry["loss"]) for entry in steps_of(trainer))
    assert trainer.model.memory.queue.dtype == torch.float32
    trainer.save_model()
    again = type(trainer.model).from_pretrained(tmp_path / "out")
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


# ------------------------------------------------------------------------------------------------------- validation


def test_validation_is_what_a_direct_computation_gives_and_moves_nothing(build):
    trainer = build(per_device_eval_batch_size=5)
    torch.nn.init.normal_(trainer.model.classifier.linear.weight)
    before = copy.deepcopy(trainer.model.state_dict())
    metrics = trainer.evaluate()
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    faces, model = trainer.eval_dataset, trainer.model.eval()
    images = torch.stack([torch.from_numpy(faces[row]["pixel_values"]) for row in range(len(faces))])
    with torch.no_grad():
        logits = model(images).logits
    labels = np.array(faces.rows["label"])
    p_fake = logits.softmax(1)[:, 1].numpy()
    videos = np.array(faces.rows["video_id"])
    names = sorted(set(videos))
    assert metrics["eval_loss"] == pytest.approx(F.cross_entropy(logits, torch.from_numpy(labels)).item(), abs=1e-5)
    assert metrics["eval_auc"] == pytest.approx(roc_auc_score(labels, p_fake))
    assert metrics["eval_accuracy"] == pytest.approx(((p_fake >= 0.5) == labels).mean())
    assert metrics["eval_video_auc"] == pytest.approx(
        roc_auc_score([labels[videos == v][0] for v in names], [p_fake[videos == v].mean() for v in names])
    )


def test_a_broken_model_is_not_validated_silently(build):
    trainer = build()
    trainer.model.classifier.linear.bias.data.fill_(torch.nan)
    with pytest.raises(InputError, match="not finite"):
        trainer.evaluate()


# -------------------------------------------------------------------------------------------------------- the samples


def test_the_trainer_draws_the_samples_of_the_balanced_sampler(build):
    trainer = build(max_steps=5, image_size=64)
    drawn = []
    original = type(trainer.train_dataset).__getitem__

    class Recording(type(trainer.train_dataset)):
        def __getitem__(self, draw):
            drawn.append(draw)
            return original(self, draw)

    trainer.train_dataset.__class__ = Recording
    trainer.train()
    sampler = BalancedSampler(trainer.train_dataset.labels, trainer.args.seed)
    expected = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        expected += list(sampler)
    assert drawn[: 5 * 8] == expected[: 5 * 8]


# ------------------------------------------------------------------------------------------------ checkpoints and Hub


def test_only_complete_checkpoints_are_gone_on_from(tmp_path):
    assert last_complete_checkpoint(tmp_path) is None
    for step in (2, 9, 10):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    assert last_complete_checkpoint(tmp_path).name == "checkpoint-10"
    (tmp_path / "checkpoint-11").mkdir()  # killed before the state was written
    (tmp_path / "checkpoint-12").mkdir()
    (tmp_path / "checkpoint-12" / "trainer_state.json").write_text('{"global_step": 1')  # and while it was
    assert last_complete_checkpoint(tmp_path).name == "checkpoint-10"


class MockHub:
    """Keeps what would have been uploaded: one folder and one list of names a commit."""

    def __init__(self, folder):
        self.folder, self.commits, self.created = folder, [], []

    def create_repo(self, repo_id, **kwargs):
        self.created.append((repo_id, kwargs))
        return SimpleNamespace(repo_id=f"someone/{repo_id}" if "/" not in repo_id else repo_id)

    def upload_folder(
        self, *, repo_id, folder_path, commit_message, token, run_as_future, revision, allow_patterns, ignore_patterns
    ):
        names = [str(path.relative_to(folder_path)) for path in Path(folder_path).rglob("*") if path.is_file()]
        names = sorted(filter_repo_objects(names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns))
        target = self.folder / f"commit-{len(self.commits)}"
        for name in names:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(Path(folder_path) / name, target / name)
        self.commits.append(
            SimpleNamespace(
                repo_id=repo_id,
                names=names,
                folder=target,
                message=commit_message,
                revision=revision,
                token=token,
                as_future=run_as_future,
            )
        )
        future = Future()
        future.set_result("commit")
        return future if run_as_future else "commit"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    hub = MockHub(tmp_path / "hub")
    monkeypatch.setattr("transformers.trainer.hf_api", lambda: hub)
    monkeypatch.setattr("dcl_face_forgery.training.run.hub_is_reachable", lambda: True)
    return hub


def test_what_is_pushed_in_and_after_training_loads_and_has_no_pickle(hub, prepared, tmp_path):
    flags = training_flags(
        prepared, tmp_path / "a run", max_steps=4, push_to_hub=True, hub_model_id="lab/dcl", hub_revision="trial"
    )
    (tmp_path / "a run").mkdir()
    (tmp_path / "a run" / "secret.py").write_text("a file of the user's, nothing of the checkpoint")
    train.main(flags)
    assert [commit.message for commit in hub.commits] == [
        "Training in progress, step 2",
        "Training in progress, step 4",
        "Model save",
    ]
    images = torch.rand(2, 3, 96, 96)
    for commit in hub.commits:
        assert commit.repo_id == "lab/dcl" and commit.revision == "trial"
        files = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", REFERENCE_FILE}
        assert set(commit.names) - {YUNET_FILE} == SHIPPED_CODE | files | {"run_settings.json", "learning_curve.png"}
        record = json.loads((commit.folder / "run_settings.json").read_text())
        assert record["dataset"] == ["textures"] and str(tmp_path) not in json.dumps(record)
        model = AutoModelForImageClassification.from_pretrained(commit.folder, trust_remote_code=True)
        assert model(images).evidence.shape == (2, 3, 3)
        assert 'from_pretrained("lab/dcl"' in (commit.folder / "README.md").read_text()
    AutoModelForPreTraining.from_pretrained(hub.commits[0].folder, trust_remote_code=True)
    processor = AutoImageProcessor.from_pretrained(hub.commits[-1].folder, trust_remote_code=True)
    assert processor.crop == {"kind": "box", "margin": 0.3, "size": 64, "detector": "none"}
    state = json.loads((tmp_path / "a run" / "trainer_state.json").read_text())
    auc = {entry["step"]: entry["eval_auc"] for entry in reversed(state["log_history"]) if "eval_auc" in entry}
    for commit, step in zip(hub.commits, (2, 4, state["best_global_step"]), strict=True):
        card = ModelCard.load(commit.folder / "README.md")
        assert card.data.eval_results[0].metric_value == pytest.approx(auc[step], abs=1e-5)
        assert f"Optimizer steps: {step}." in card.text


def test_a_push_by_hand_makes_the_repository_and_uses_its_token(hub, build, tmp_path):
    trainer = build()
    assert trainer.push_to_hub(commit_message="First", token="secret", private=True) == "commit"
    (repo_id, created), commit = hub.created[0], hub.commits[0]
    assert (repo_id, created["token"], created["private"]) == ("out", "secret", True)
    assert (commit.repo_id, commit.message, commit.token) == ("someone/out", "First", "secret")
    assert not commit.as_future
    assert 'from_pretrained("someone/out"' in (commit.folder / "README.md").read_text()


def test_graphs_are_published_where_they_are_there(hub, build, tmp_path):
    trainer = build()
    folder = Path(trainer.args.output_dir)
    folder.mkdir(exist_ok=True)
    for name in ("model.onnx", "model_int8.onnx", "onnx_dcl.py", "hub_dcl.py", "model.onnx.data.bin"):
        (folder / name).write_text("")
    trainer.push_to_hub()
    names = set(hub.commits[0].names)
    assert {"model.onnx", "model_int8.onnx", "onnx_dcl.py", "hub_dcl.py", "model.safetensors"} <= names
    assert "model.onnx.data.bin" not in names


def test_nothing_is_pushed_in_training_where_only_the_end_was_asked_for(hub, prepared, tmp_path):
    train.main(training_flags(prepared, tmp_path / "run", push_to_hub=True, hub_strategy="end", max_steps=2))
    assert [commit.message for commit in hub.commits] == ["Model save"]


def test_a_hub_that_cannot_be_reached_is_reported_before_the_training(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr("dcl_face_forgery.training.run.hub_is_reachable", lambda: False)
    with pytest.raises(SystemExit, match="push_to_hub"):
        train.main(training_flags(prepared, tmp_path / "run", push_to_hub=True))


def test_callbacks_of_the_user_are_called_beside_the_momentum_update(build):
    seen = []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            seen.append(state.global_step)

    trainer = build(max_steps=2, image_size=64)
    trainer.add_callback(Watch)
    trainer.train()
    assert seen == [1, 2]
