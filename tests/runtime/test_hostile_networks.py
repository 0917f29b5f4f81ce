"""10,000 altered files whose hash is right all the same: each is refused in one line or predicts."""

import copy
import json
import random
import resource

import numpy as np
import pytest
from networks import small

from hydraprune import runtime
from hydraprune.errors import HydrapruneError, UserError
from hydraprune.runtime.container import seal
from hydraprune.runtime.header import pack_index, unpack_index

NUMBERS = [-1, 0, 1, 2, 3, 7, 16, 63, 255, 65535, 2**20, 2**31, 2**63, 10**30, 0.5, None, True, "a", [], {}]


def altered_json(value, rng):
    """Change one leaf of a JSON value, drop it, double it or put it elsewhere."""
    places = []

    def walk(node):
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, child in list(items):
            places.append((node, key))
            walk(child)

    walk(value)
    holder, key = rng.choice(places)
    choice = rng.random()
    if choice < 0.6:
        near = [holder[key] + step for step in (-1, 1, 5)] if type(holder[key]) is int else []
        holder[key] = copy.deepcopy(rng.choice(NUMBERS + near * 5))
    elif choice < 0.75:
        del holder[key]
    elif choice < 0.9:
        other, place = rng.choice(places)
        if isinstance(other, dict) or place < len(other):
            holder[key] = copy.deepcopy(other[place])
    elif isinstance(holder, list):
        holder.insert(key, holder[key])
    return value


def altered(sound, rng):
    size = int.from_bytes(sound[:8], "little")
    header, data = json.loads(sound[8 : 8 + size]), bytearray(sound[8 + size :])
    kind = rng.random()
    if kind < 0.6:  # what the header says of the network
        inner = altered_json(json.loads(unpack_index(header["__metadata__"]["index"])), rng)
        header["__metadata__"]["index"] = pack_index(json.dumps(inner))
    elif kind < 0.75:  # where the tensors lie
        header = altered_json(header, rng)
    else:  # the tensors
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file = len(text).to_bytes(8, "little") + text + bytes(data)
    return seal(file) if b'"sha256":"' in file else file


@pytest.mark.parametrize("files", [400, pytest.param(10_000, marks=pytest.mark.slow)])
def test_altered_files_are_refused_in_one_line_or_predict(tmp_path, files):
    small(tmp_path / "sound")
    sound = (tmp_path / "sound").read_bytes()
    rng = random.Random(files)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    predicted = 0
    for number in range(files):
        path = tmp_path / f"altered{number}"  # a new file: to write an old one anew takes most file systems longer
        path.write_bytes(altered(sound, rng))
        try:
            session = runtime.load(path)
            shape = session.info().in_shape
            logits = session(np.zeros((1, *shape), np.float32)) if np.prod(shape) <= 10_000 else None
        except UserError as error:
            assert str(path) in str(error)
            assert "\n" not in str(error)
        except HydrapruneError as error:
            assert "cannot run this network" in str(error)  # too large for the memory that it may take
        else:
            assert logits is None or logits.shape == (1, session.info().num_classes)
            predicted += logits is not None
        path.unlink()
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 3 * 2**20
    assert 0.1 * files < predicted < 0.7 * files


def test_a_file_altered_without_its_hash_is_refused(tmp_path):
    data = bytearray(small(tmp_path / "n").read_bytes())
    data[-1] ^= 1
    (tmp_path / "n").write_bytes(data)
    for function in (runtime.load, runtime.read, runtime.inspect):
        try:
            function(tmp_path / "n")
        except UserError as error:
            assert "altered or damaged" in str(error)
        else:
            raise AssertionError
