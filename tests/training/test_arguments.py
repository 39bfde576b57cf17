"""What a training run is told: YAML for defaults, flags over it, and one sentence for what cannot be used."""

from dataclasses import fields
from pathlib import Path

import pytest
import transformers
from transformers import HfArgumentParser

from dcl_face_forgery.configuration_dcl import DCLConfig
from dcl_face_forgery.errors_dcl import InputError
from dcl_face_forgery.training.arguments import _trainer_options, parse_training_run
from dcl_face_forgery.training.settings import TrainingSettings
from dcl_face_forgery.training.trainer import DCLTrainingArguments

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
MANIPULATIONS = ("Deepfakes", "Face2Face", "FaceSwap", "NeuralTextures")


@pytest.fixture
def parse(tmp_path):
    """Parse YAML text and flags; a data set is named unless they name one."""

    def parse(yaml="", *flags):
        path = tmp_path / "run.yaml"
        path.write_text(yaml)
        named = [] if "dataset" in yaml else ["--dataset", "faces"]
        return parse_training_run(["-c", str(path), *named, "--output_dir", str(tmp_path / "out"), *flags])

    return parse


def test_the_defaults_are_those_of_the_paper(parse):
    run = parse()
    assert run.model.config().to_diff_dict() == DCLConfig().to_diff_dict()
    training = run.training
    assert (training.contrastive_weight, training.intra_weight, training.intra_real_weight) == (0.5, 0.1, 0.01)
    assert (training.contrastive_warmup_epochs, training.learning_rate, training.weight_decay) == (2, 2e-4, 1e-5)
    assert training.num_train_epochs == 30 and training.per_device_train_batch_size == 32


def test_a_yaml_file_sets_defaults_and_flags_override_it(parse):
    text = "temperature: 0.2\nsrm_probability: 0.25\nflip_probability: 0\nskip_corrupt: true\nseed: 7\nimage_size: 96"
    run = parse(text, "--temperature", "0.3", "--seed=8")
    assert run.model.temperature == 0.3 and run.training.seed == 8
    assert run.views.srm_probability == 0.25 and run.augmentation.flip_probability == 0
    assert run.data.skip_corrupt is True and run.model.image_size == 96


def test_numbers_that_yaml_takes_for_strings_are_numbers(parse):
    run = parse("learning_rate: 1e-4\nweight_decay: 1E-6\ncontrastive_warmup_steps: -1")
    assert run.training.learning_rate == 1e-4 and run.training.weight_decay == 1e-6
    assert run.training.contrastive_warmup_steps == -1


def test_whole_numbers_stand_for_numbers(parse):
    run = parse("momentum: 1\ndropout: 0\nnum_train_epochs: 3\ncontrastive_weight: 1")
    assert run.model.config().momentum == 1 and run.training.num_train_epochs == 3


@pytest.mark.parametrize("text", ["dataset: [a, b]", "dataset:\n- a\n- b"])
def test_lists(parse, text):
    run = parse(text + "\nmethods: [swap]\nmix_ratio: [0.5, 0.9]\njpeg_quality: [30, 50]")
    assert run.data.dataset == ["a", "b"] and run.data.methods == ["swap"]
    assert run.views.mix_ratio == [0.5, 0.9] and run.augmentation.jpeg_quality == [30, 50]
    assert parse(text, "--dataset", "c", "d", "e").data.dataset == ["c", "d", "e"]


def test_one_name_is_a_list_of_one(parse):
    run = parse("dataset: faces\nmethods: swap")
    assert run.data.dataset == ["faces"] and run.data.methods == ["swap"]


def test_booleans_can_be_set_and_unset_from_either_side(parse):
    assert parse("self_pairs: false").model.self_pairs is False
    assert parse("self_pairs: false", "--self_pairs").model.self_pairs is True
    assert parse("augment: true", "--augment", "false").views.augment is False
    assert parse("", "--no_augment").views.augment is False


def test_an_empty_value_is_none_where_none_is_a_value(parse):
    run = parse("save_total_limit:\nmethods: null")
    assert run.training.save_total_limit is None and run.data.methods is None
    assert parse("save_total_limit:", "--save_total_limit", "5").training.save_total_limit == 5
    with pytest.raises(InputError, match="learning_rate"):
        parse("learning_rate:")


@pytest.mark.parametrize(
    "yaml, flags",
    [
        ("backbone_kwargs: {drop_path_rate: 0.1}", []),
        ("", ["--backbone_kwargs", '{"drop_path_rate": 0.1}']),
        ("backbone_kwargs: {drop_rate: 0.5}", ["--backbone_kwargs", '{"drop_path_rate": 0.1}']),
    ],
)
def test_backbone_kwargs_are_a_mapping_in_yaml_and_json_as_a_flag(parse, yaml, flags):
    assert parse(yaml, *flags).model.config().backbone_kwargs == {"drop_path_rate": 0.1}


def test_mappings_of_the_trainer_can_be_given_in_yaml(parse):
    run = parse("lr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs: {min_lr_rate: 0.1}")
    assert run.training.lr_scheduler_kwargs == {"min_lr_rate": 0.1}


@pytest.mark.parametrize(
    "yaml, flags, names",
    [
        ("temprature: 0.1", [], ["temprature", "'temperature'"]),
        ("what_is_this: 1", [], ["what_is_this", "--help"]),
        ("1: 2", [], ["unknown key 1"]),
        ("", ["--temprature", "0.1"], ["--temprature", "'temperature'"]),
        ("", ["--temp", "0.1"], ["--temp"]),
        ("", ["faces"], ["faces"]),
        ("image_size: large", [], ["image_size", "large"]),
        ("image_size: [1, 2]", [], ["'2'"]),
        ("", ["--image_size", "1.5"], ["image_size", "1.5"]),
        ("image_size: 0", [], ["image_size", "0"]),
        ("learning_rate: fast", [], ["learning_rate", "fast"]),
        ("learning_rate: true", [], ["learning_rate", "True"]),
        ("augment: perhaps", [], ["augment", "perhaps"]),
        ("embedding: cells", [], ["embedding", "cells"]),
        ("backbone_kwargs: big", [], ["backbone_kwargs", "big"]),
        ("backbone_kwargs: [1]", [], ["backbone_kwargs"]),
        ("queue_size: 4\nhard_samples: 5", [], ["queue_size", "4", "5"]),
        ("dropout: 1", [], ["dropout", "1"]),
        ("momentum: 1.5", [], ["momentum", "1.5"]),
        ("temperature: 0", [], ["temperature", "0"]),
        ("contrastive_weight: 1.1", [], ["contrastive_weight", "1.1"]),
        ("intra_weight: -1", [], ["intra_weight", "-1"]),
        ("intra_weight: .nan", [], ["intra_weight", "nan"]),
        ("label_smoothing_factor: 0.1", [], ["label_smoothing_factor", "0.1"]),
        ("data_seed: 3", [], ["data_seed", "seed"]),
        ("fsdp: full_shard", [], ["fsdp", "full_shard", "momentum encoder"]),
        ("deepspeed: ds.json", [], ["deepspeed", "ds.json"]),
        ("neftune_noise_alpha: 5", [], ["neftune_noise_alpha", "token"]),
        ("train_sampling_strategy: sequential", [], ["train_sampling_strategy", "alternate"]),
        ("enable_jit_checkpoint: true", [], ["enable_jit_checkpoint", "SIGTERM"]),
        ("restore_callback_states_from_checkpoint: true", [], ["restore_callback_states_from_checkpoint", "itself"]),
        ("auto_find_batch_size: true", [], ["auto_find_batch_size"]),
        ("use_liger_kernel: true", [], ["use_liger_kernel"]),
        ("dataloader_in_order: false", [], ["dataloader_in_order"]),
        ("ignore_data_skip: true", [], ["ignore_data_skip"]),
        ("dataloader_num_workers: -2", [], ["dataloader_num_workers", "-2"]),
        ("early_stopping_patience: 0", [], ["early_stopping_patience", "0"]),
        (
            "early_stopping_patience: 2\neval_strategy: 'no'\nload_best_model_at_end: false",
            [],
            ["early_stopping_patience", "eval_strategy"],
        ),
        ("evaluate_momentum: true\ncontrastive_weight: 0", [], ["evaluate_momentum", "contrastive_weight"]),
        ("hard_share: 0.5\nhard_samples: 5", [], ["hard_share", "hard_samples", "null"]),
        ("adam_l2: true\noptim: sgd", [], ["adam_l2", "sgd"]),
        ("log_gradient_shares: true\ntorch_compile: true", [], ["log_gradient_shares", "torch_compile"]),
        ("save_for_inference: true\npush_to_hub: true", [], ["save_for_inference", "--hub_strategy end"]),
        ("hard_share: 1.5", [], ["hard_share", "1.5"]),
        ("batch_norm: group", [], ["batch_norm", "group"]),
        ("srm_probability: 2", [], ["srm_probability", "2"]),
        ("mix_ratio: [0.9, 0.1]", [], ["mix_ratio", "0.9"]),
        ("eval_strategy: steps", [], ["strategy"]),
        ("eval_strategy: sometimes", [], ["sometimes"]),
        ("hub_strategy: checkpoint", [], ["hub_strategy", "'checkpoint'"]),
        ("hub_strategy: all_checkpoints", [], ["hub_strategy"]),
        ("just words", [], ["run.yaml", "str"]),
        ("- a\n- b", [], ["run.yaml", "list"]),
        ("a: [1", [], ["run.yaml", "YAML"]),
        ("dataset: []", [], ["dataset"]),
    ],
)
def test_what_cannot_be_used_is_named_in_one_sentence(parse, yaml, flags, names):
    with pytest.raises(InputError) as error:
        run = parse(yaml, *flags)
        run.model.config()
        _ = run.training
    sentence = str(error.value)
    assert "\n" not in sentence
    for name in names:
        assert name in sentence


@pytest.fixture
def files(tmp_path):
    """Write configuration files of these contents, and return a function that parses one of them."""

    def write(**contents):
        for name, text in contents.items():
            path = tmp_path / f"{name.replace('__', '/')}.yaml"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        return lambda name, *flags: parse_training_run(
            ["-c", str(tmp_path / f"{name}.yaml"), "--output_dir", str(tmp_path / "out"), *flags]
        )

    return write


def test_a_file_sets_its_values_over_those_that_it_is_based_on(files):
    parse = files(
        top="base: middle.yaml\nseed: 3\nmethods: [swap]\nsave_total_limit:",
        middle="base: below/bottom.yaml\nseed: 2\ntemperature: 0.2",
        below__bottom="dataset: faces\nmethods: [a, b]\nseed: 1\ntemperature: 0.1\nmomentum: 0.5\nsave_total_limit: 7",
    )
    run = parse("top", "--momentum", "0.75")
    assert (run.training.seed, run.model.temperature, run.model.momentum) == (3, 0.2, 0.75)
    assert run.data.dataset == ["faces"] and run.data.methods == ["swap"]
    assert run.training.save_total_limit is None
    assert {"seed", "momentum", "dataset"} <= run.given and "base" not in run.given
    assert parse("below/bottom").model.temperature == 0.1


@pytest.mark.parametrize(
    ("contents", "names"),
    [
        ({"top": "base: top.yaml"}, ["top.yaml: its base", "is based on it in turn. Remove one `base`"]),
        (
            {"top": "base: other.yaml", "other": "base: third.yaml", "third": "base: top.yaml"},
            ["third.yaml: its base", "top.yaml", "is based on it in turn. Remove one `base`"],
        ),
        ({"top": "base: nowhere.yaml"}, ["Configuration file", "nowhere.yaml not found"]),
        ({"top": "base: other.yaml", "other": "temprature: 1"}, ["other.yaml", "'temperature'"]),
        ({"top": "base: other.yaml", "other": "- a"}, ["other.yaml", "list"]),
        ({"top": "base:"}, ["top.yaml", "None"]),
        ({"top": "base: [a.yaml, b.yaml]"}, ["top.yaml", "Name one file"]),
        ({"top": "bass: other.yaml"}, ["'bass'", "'base'"]),
    ],
)
def test_a_file_that_cannot_be_based_on_another_is_named(files, contents, names):
    with pytest.raises(InputError) as error:
        files(**contents)("top", "--dataset", "faces")
    assert "\n" not in str(error.value)
    for name in names:
        assert name in str(error.value)


def test_a_missing_configuration_file_is_named():
    with pytest.raises(InputError, match="nowhere"):
        parse_training_run(["-c", "nowhere.yaml", "--dataset", "a"])


def test_a_run_without_data_is_refused(tmp_path):
    with pytest.raises(InputError, match="--dataset"):
        parse_training_run(["--output_dir", str(tmp_path)])


def test_half_precision_that_a_cpu_does_not_have_is_refused(parse):
    with pytest.raises(InputError, match="fp16"):
        _ = parse("", "--fp16", "--use_cpu").training


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        *((f"--{name}", "0") for name in ("per_device_train_batch_size", "per_device_eval_batch_size")),
        *(("--gradient_accumulation_steps", "0"), ("--learning_rate", "-1"), ("--learning_rate", "nan")),
        *(("--seed", "-1"), ("--metric_for_best_model", "foo")),
    ],
)
def test_numbers_and_metrics_that_cannot_work_are_refused(parse, flag, value):
    with pytest.raises(InputError, match=rf"^{flag[2:]} is '?{value}.*\. Choose"):
        parse("", flag, value)


def test_the_direction_of_a_metric_follows_from_it(parse):
    for metric, more in (("auc", True), ("eer", False), ("loss", False)):
        assert parse("", "--metric_for_best_model", metric).training.greater_is_better is more
    with pytest.raises(InputError, match=r"the best eer is the smallest. Leave greater_is_better out"):
        parse("", "--metric_for_best_model", "eer", "--greater_is_better", "true")


def test_several_gpus_in_one_process_are_refused(parse, monkeypatch):
    monkeypatch.setattr(transformers.TrainingArguments, "n_gpu", property(lambda self: 2))
    with pytest.raises(InputError, match=r"2 GPUs.*torchrun --nproc_per_node 2"):
        _ = parse().training


@pytest.mark.parametrize("tracker", ["trackio", "wandb", "tensorboard", "none"])
def test_trackers_are_accepted(parse, tracker):
    wanted = [] if tracker == "none" else [tracker]
    assert parse("", "--report_to", tracker).training.report_to == wanted


def test_several_trackers_are_accepted(parse):
    assert parse("", "--report_to", "trackio", "wandb").training.report_to == ["trackio", "wandb"]
    assert parse("report_to: [wandb, tensorboard]").training.report_to == ["wandb", "tensorboard"]


def test_the_record_holds_what_decides_the_result_and_nothing_else(parse):
    record = parse().record()
    changes = {"--seed": "3", "--temperature": "0.5", "--dataset": "other", "--srm_probability": "0"}
    changes |= {"--gray_probability": "0", "--learning_rate": "1", "--max_steps": "9", "--validation_split": "x"}
    for flag, value in changes.items():
        changed = parse("", flag, value).record()
        assert [key for key in record if record[key] != changed[key]] == [flag[2:]]
    free = ["--disable_tqdm", "true", "--dataloader_num_workers", "2", "--report_to", "tensorboard"]
    free += [
        "--logging_steps",
        "3",
        "--save_total_limit",
        "9",
        "--overwrite",
        "--skip_corrupt",
        "--data_root",
        "elsewhere",
    ]
    assert parse("", *free).record() == record
    assert record["world_size"] == 1


def test_every_argument_has_a_help_text():
    for item in fields(TrainingSettings):
        assert item.metadata["help"].endswith("."), item.name


def test_the_fields_read_from_the_source_of_transformers_are_those_of_the_class():
    """Flags and their choices are known without it; a class of another file takes a text."""
    read, real = (HfArgumentParser(group)._actions for group in (_trainer_options(), DCLTrainingArguments))
    read, real = ({action.dest + "".join(action.option_strings): action for action in each} for each in (read, real))
    assert read.keys() == real.keys()
    for name, one in read.items():
        other = real[name]
        assert (one.option_strings, one.nargs, one.const) == (other.option_strings, other.nargs, other.const)
        assert (one.choices and list(one.choices)) == (other.choices and list(other.choices)), one.dest
        assert one.help == other.help
        if one.type in (int, float, bool, str):
            assert other.type is one.type or (one.type is str and other.type not in (int, float, bool)), one.dest


def test_what_is_not_given_has_the_defaults_of_the_class(parse, tmp_path):
    expected = DCLTrainingArguments(output_dir=str(tmp_path / "out")).to_dict()
    assert parse().training.to_dict() == expected


def test_workers_decide_what_is_learned_where_rows_are_streamed(parse):
    one, other = (parse("", "--streaming", "--dataloader_num_workers", workers).record() for workers in "12")
    assert [key for key in one if one[key] != other[key]] == ["dataloader_num_workers"]
    assert parse("", "--dataloader_num_workers", "1").record()["streaming"] is False


@pytest.mark.parametrize(
    "name", ["gid_df", "gid_f2f"] + [f"cross_manipulation_{name.lower()}" for name in MANIPULATIONS]
)
def test_the_paper_s_protocols_differ_in_the_methods_only(name):
    paper, run = (parse_training_run(["-c", str(CONFIGS[0].with_name(f"{stem}.yaml"))]) for stem in ("ffpp_c23", name))
    assert {key: value for key, value in run.record().items() if paper.record()[key] != value} == {
        "methods": run.data.methods
    }
    tested = {"df": "Deepfakes", "f2f": "Face2Face"}.get(name.removeprefix("gid_"))
    learned = (
        set(MANIPULATIONS) - {tested} if tested else {MANIPULATIONS[[*map(str.lower, MANIPULATIONS)].index(name[19:])]}
    )
    assert set(run.data.methods) == learned and set(paper.data.methods) == set(MANIPULATIONS)
    text = CONFIGS[0].with_name(f"{name}.yaml").read_text()
    assert run.training.output_dir == f"runs/{name}" and f"--model runs/{name} " in text
    assert tested is None or f'"{tested}", "frame"' in text


def test_configurations_do_not_share_an_output_folder():
    folders = [parse_training_run(["-c", str(path)]).training.output_dir for path in CONFIGS]
    assert len(set(folders)) == len(folders) >= 8


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_of_the_repository_parses(path, tmp_path):
    run = parse_training_run(["-c", str(path), "--output_dir", str(tmp_path)])
    assert run.data.dataset and run.model.config().backbone
