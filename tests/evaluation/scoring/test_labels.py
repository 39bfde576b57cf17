"""The names of classes that real checkpoints have, and those that must not be guessed at."""

import pytest

from dcl_face_forgery.errors_dcl import InputError
from dcl_face_forgery.evaluation.scoring.labels import FAKE_WORDS, REAL_WORDS, classify_labels, meaning_of


@pytest.mark.parametrize(
    "label",
    [
        *(
            "real",
            "Real",
            "REAL",
            "0_real",
            "real-1",
            "Real Face",
            "RealFace",
            "Realism",
            "authentic",
            "human",
            "Natural",
        ),
        *(
            "pristine",
            "Original image",
            "unmanipulated",
            "not fake",
            "not_fake",
            "Not a deepfake",
            "NotFake",
            "non-fake",
        ),
        *("non AI-generated", "no manipulation", "isn't AI generated", "isn\u2019t fake"),
    ],
)
def test_names_that_mean_real(label):
    assert meaning_of(label) == 0


@pytest.mark.parametrize(
    "label",
    [
        *("fake", "FAKE", "1_fake", "Fake Face", "FakeFace", "Deepfake", "deep-fake", "DeepFakes", "forged", "AI"),
        *(
            "manipulated",
            "artificial",
            "AI-generated",
            "AIGenerated",
            "ai_gen synthetic",
            "GANs",
            "High Quality Deepfake",
        ),
        *("not real", "non_real", "UnReal", "isn't real", "not authentic"),
    ],
)
def test_names_that_mean_fake(label):
    assert meaning_of(label) == 1


@pytest.mark.parametrize(
    "label",
    [
        *("LABEL_0", "0", "", "class 1", "dalle", "unreal", "surreal", "realtor", "maid", "nonfake", "unfaked"),
        *("real or fake", "Real, not fake", "not not real", "fake human", "manipulation-free", "AI-free"),
    ],
)
def test_names_that_say_nothing_or_both(label):
    assert meaning_of(label) is None


def test_no_word_is_of_both_kinds():
    assert not REAL_WORDS & FAKE_WORDS
    assert {meaning_of(word) for word in REAL_WORDS} == {0}
    assert {meaning_of(word) for word in FAKE_WORDS} == {1}


@pytest.mark.parametrize(
    ("labels", "kinds"),
    [
        (["Real", "Fake"], [0, 1]),
        (["fake", "real"], [1, 0]),
        (["Deepfake", "Real"], [1, 0]),
        (["Artificial", "Deepfake", "Real"], [1, 1, 0]),
        (["Realism", "Deepfake"], [0, 1]),
        (["fake"], [1]),
        (["real"], [0]),
    ],
)
def test_the_order_of_the_classes_is_theirs(labels, kinds):
    assert classify_labels(labels, "a model") == kinds


def test_what_the_user_says_decides_all_classes():
    assert classify_labels(["real", "dalle", "sd"], "a model", ["dalle", "sd"]) == [0, 1, 1]
    assert classify_labels(["LABEL_0", "LABEL_1"], "a model", ["LABEL_0"]) == [1, 0]
    assert classify_labels(["real", "fake"], "a model", ["real"]) == [1, 0]
    # Told of another model's labels, a model is still read by its own.
    assert classify_labels(["fake", "real"], "a model", ["LABEL_0"]) == [1, 0]


@pytest.mark.parametrize(
    ("labels", "fake_labels", "said"),
    [
        (["LABEL_0", "LABEL_1"], [], "'LABEL_0', 'LABEL_1'"),
        (["real", "dalle"], [], "whether 'dalle' means real or fake"),
        (["real or fake", "fake"], [], "whether 'real or fake' means real or fake"),
        ([f"LABEL_{index}" for index in range(1000)], [], "'LABEL_5' and 994 more"),
        (["fake", "deepfake"], [], "all mean fake"),
        (["human", "real"], [], "all mean real"),
        (["a", "b"], ["a", "b"], "all mean fake"),
        (["LABEL_0"], [], "whether 'LABEL_0' means real or fake"),
    ],
)
def test_labels_that_do_not_tell_are_refused_with_the_remedy(labels, fake_labels, said):
    with pytest.raises(InputError) as error:
        classify_labels(labels, "some/model", fake_labels)
    assert "'some/model'" in str(error.value)
    assert said in str(error.value)
    assert "--fake_labels" in str(error.value)
