"""The networks that come with the package: each is whole, small, described, and as good as its card says."""

import hashlib
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from hydraprune import data, runtime
from hydraprune.errors import UserError
from hydraprune.runtime import zoo

DIGITS = "digits-cnn_tiny-99"
KEYS = {
    *("card_version", "name", "license", "data", "architecture", "class_names", "input", "pruning", "sparsity"),
    *("sparsity_delivered", "weights_total", "weights_kept", "layers", "size_bytes", "dense_size_bytes", "sha256"),
    *("threat", "numbers", "preserved", "warnings", "limits", "recipe", "command", "epochs", "seconds_train"),
    *("provenance", "multiply_adds_kept", "multiply_adds_total"),
}

every_entry = pytest.mark.parametrize("name", zoo.names())


@pytest.fixture
def folder(tmp_path):
    """A zoo of three."""
    for name in ("cifar10-vgg16_bn-99", "digits-cnn_tiny-95", DIGITS):
        for suffix in ("hp", "json"):
            shutil.copy(zoo.FOLDER / f"{DIGITS}.{suffix}", tmp_path / f"{name}.{suffix}")
    return tmp_path


def test_the_zoo_is_not_empty():
    assert DIGITS in zoo.names()


@every_entry
def test_every_file_is_whole_and_at_most_a_megabyte(name):
    path, card = zoo.locate(f"zoo:{name}"), zoo.card(name)
    runtime.inspect(path)  # which checks the hash in the file
    assert path.stat().st_size == card["size_bytes"] <= 1_000_000
    assert hashlib.sha256(path.read_bytes()).hexdigest() == card["sha256"]


@every_entry
def test_every_card_says_all_of_it_and_fits_its_file(name):
    card, file = zoo.card(name), runtime.inspect(zoo.locate(f"zoo:{name}"))
    assert card.keys() == KEYS
    assert card["name"] == name
    assert card["architecture"] == file.description["architecture"]
    assert card["weights_kept"] == sum(layer["kept"] for layer in card["layers"])
    assert card["weights_kept"] == sum(tensor.kept for tensor in file.tensors.values() if tensor.kept is not None)
    assert {"benign_accuracy", "robust_accuracy"} <= {number["name"] for number in card["numbers"]}
    assert all(number["protocol"] and number["n"] and number["means"] for number in card["numbers"])
    measured = file.description["measured"]
    assert all(number["value"] == measured[number["name"]] for number in card["numbers"])
    assert card["limits"]
    assert card["provenance"]["commit"]


@every_entry
def test_no_card_and_no_file_names_a_folder_of_the_machine_that_made_it(name):
    for text in (json.dumps(zoo.card(name)), json.dumps(runtime.inspect(zoo.locate(f"zoo:{name}")).description)):
        assert not any(mark in text for mark in ('"/', " /", "../", "--out", "root ", "root="))


@every_entry
def test_every_network_predicts(name):
    session = runtime.load(f"zoo:{name}")
    logits = session(np.zeros((2, *session.info().in_shape), np.float32))
    assert logits.shape == (2, len(zoo.card(name)["class_names"]))
    assert session.info().weights_kept == zoo.card(name)["weights_kept"]


def test_the_session_reproduces_the_benign_accuracy_of_the_card_exactly():
    test = data.load("digits").test
    logits = runtime.load(f"zoo:{DIGITS}")(test.images.numpy().astype(np.float32) / np.float32(255))
    right = int((logits.argmax(1) == test.labels.numpy()).sum())
    (benign,) = (number for number in zoo.card(DIGITS)["numbers"] if number["name"] == "benign_accuracy")
    assert benign["n"] == len(test)
    assert right / benign["n"] == benign["value"]


def test_it_loads_without_torch():
    script = (
        "import sys; from hydraprune import runtime; runtime.load(sys.argv[1]); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script, f"zoo:{DIGITS}"], check=True)


@pytest.mark.parametrize(
    ("name", "nearest"), [("digits-cnn_tiny", "digits-"), ("cifar-vgg16-99", "cifar10-vgg16_bn-99"), ("", "")]
)
def test_an_unknown_name_is_one_line_with_the_nearest_first(folder, name, nearest):
    for ask in (zoo.locate, lambda target, folder: zoo.card(target.removeprefix("zoo:"), folder)):
        with pytest.raises(UserError, match="the zoo has no network") as caught:
            ask(f"zoo:{name}", folder)
        known = str(caught.value).partition("it has: ")[2].split(", ")
        assert sorted(known) == list(zoo.names(folder))
        assert known[0].startswith(nearest)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["../zoo/x", "/etc/passwd", "..", "digits-cnn_tiny-99.hp"])
def test_a_name_leads_nowhere_but_into_the_zoo(name):
    with pytest.raises(UserError, match="the zoo has no network"):
        zoo.locate(f"zoo:{name}")


def test_an_altered_entry_is_refused_like_any_file(folder):
    path = zoo.locate(f"zoo:{DIGITS}", folder)
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="altered or damaged"):
        runtime.load(path)


def test_an_empty_zoo_says_so(tmp_path):
    with pytest.raises(UserError, match="it has: none"):
        zoo.locate("zoo:digits", tmp_path)
