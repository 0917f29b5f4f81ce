"""Predicting with a compact file: answers by hand, agreement of all kernels, threads, and refusals."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from networks import ENGINES, conv, small, sparse, store

from hydraprune import runtime
from hydraprune.errors import UserError

every_engine = pytest.mark.parametrize("kernels", ENGINES)


def images(batch, shape=(2, 7, 6), seed=0):
    return np.random.default_rng(seed).random((batch, *shape), dtype=np.float32)


@every_engine
def test_a_convolution_counted_by_hand(tmp_path, kernels):
    # A kernel that takes the pixel to the right, twice, and that below; then the mean of the map.
    weight = np.zeros((1, 1, 3, 3), np.float32)
    weight[0, 0, 1, 2], weight[0, 0, 2, 1] = 2, 1
    nodes = [
        conv("w", 0, bias="b", padding=(1, 1)),
        {"op": "adaptive_avg_pool", "in": [1], "size": [1, 1]},
        {"op": "flatten", "in": [2]},
    ]
    tensors = {"w": weight, "b": np.array([10], np.float32)}
    session = runtime.load(store(tmp_path / "n", (1, 2, 2), nodes, tensors, {"w": weight != 0}), kernels=kernels)
    # [[1, 2], [3, 4]] -> [[2·2 + 3, 0 + 4], [2·4 + 0, 0]] + 10 = [[17, 14], [18, 10]]
    assert session(np.array([[[[1, 2], [3, 4]]]], np.float32)).tolist() == [[14.75]]


@every_engine
@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        ({"op": "max_pool", "kernel": [2, 2], "stride": [2, 2], "padding": [0, 0], "ceil": False}, [4]),
        ({"op": "max_pool", "kernel": [2, 2], "stride": [2, 2], "padding": [0, 0], "ceil": True}, [4, 5, 7, 8]),
        (
            {"op": "avg_pool", "kernel": [2, 2], "stride": [2, 2], "padding": [1, 1], "ceil": False}
            | {"count_padding": True},
            [0, 0.75, 2.25, 6],
        ),
        (
            {"op": "avg_pool", "kernel": [2, 2], "stride": [2, 2], "padding": [1, 1], "ceil": False}
            | {"count_padding": False},
            [0, 1.5, 4.5, 6],
        ),
        ({"op": "adaptive_avg_pool", "size": [2, 2]}, [2, 3, 5, 6]),
        ({"op": "adaptive_max_pool", "size": [1, 2]}, [7, 8]),
    ],
)  # fmt: skip
def test_pooling_counted_by_hand(tmp_path, kernels, pool, expected):
    nodes = [pool | {"in": [0]}, {"op": "flatten", "in": [1]}]
    session = runtime.load(store(tmp_path / "n", (1, 3, 3), nodes, {}), kernels=kernels)
    assert session(np.arange(9, dtype=np.float32).reshape(1, 1, 3, 3)).tolist() == [expected]


@every_engine
def test_normalisation_comes_before_the_padding(tmp_path, kernels):
    nodes = [{"op": "normalize", "in": [0], "mean": "m", "std": "s"}, conv("w", 1, padding=(1, 1), stride=(3, 3))]
    tensors = {
        "m": np.array([[[0.5]]], np.float32),
        "s": np.array([[[0.25]]], np.float32),
        "w": np.ones((1, 1, 3, 3), np.float32),
    }
    session = runtime.load(store(tmp_path / "n", (1, 1, 1), nodes, tensors), kernels=kernels)
    assert session(np.array([[[[1]]]], np.float32)).tolist() == [[2]]  # the padding is 0 = 0.5 as a pixel


@every_engine
@pytest.mark.parametrize("batch", [0, 1, 2, 7, 16, 64, 67])
def test_every_image_of_a_batch_is_what_it_is_alone(tmp_path, kernels, batch):
    path = small(tmp_path / "n")
    alone = runtime.load(path, kernels="numpy")
    found = runtime.load(path, kernels=kernels)(images(batch))
    assert found.shape == (batch, 5)
    assert found.dtype == np.float32
    for image, logits in zip(images(batch), found, strict=True):
        assert np.allclose(alone(image[None])[0], logits, rtol=0, atol=1e-5 * np.abs(logits).max())


@every_engine
def test_the_same_call_gives_the_same_bits_on_any_number_of_threads(tmp_path, kernels):
    path = small(tmp_path / "n")
    one, three = (runtime.load(path, threads=threads, kernels=kernels) for threads in (1, 3))
    for batch in (1, 33):
        expected = one(images(batch)).tobytes()
        assert all(session(images(batch)).tobytes() == expected for session in (one, three, three))


@every_engine
def test_calls_from_many_threads_do_not_disturb_each_other(tmp_path, kernels):
    session = runtime.load(small(tmp_path / "n"), threads=2, kernels=kernels)
    inputs = [images(batch, seed=seed) for seed, batch in enumerate([1, 20, 3, 16, 40, 1, 2, 64] * 3)]
    expected = [session(batch) for batch in inputs]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(session, inputs))
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


@every_engine
@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 1.0])
@pytest.mark.parametrize("side", [1, 2, 3, 5, 17])
def test_any_density_and_map_agrees_with_a_plain_sum(tmp_path, kernels, density, side):
    rng = np.random.default_rng(side)
    weight, mask = sparse(rng, (9, 3, 3, 3), density)
    nodes = [conv("w", 0, padding=(1, 1)), {"op": "flatten", "in": [1]}]
    session = runtime.load(store(tmp_path / "n", (3, side, side), nodes, {"w": weight}, {"w": mask}), kernels=kernels)
    x = images(18, (3, side, side))
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    expected = np.zeros((18, 9, side, side))
    for out, channel, ky, kx in np.argwhere(mask):
        expected[:, out] += weight[out, channel, ky, kx] * padded[:, channel, ky : ky + side, kx : kx + side]
    # The map of the last value is its logits, so it is read off through a flatten of its own shape.
    assert np.allclose(
        session(x).reshape(expected.shape), expected, rtol=0, atol=1e-5 * max(1, np.abs(expected).max())
    )


def test_images_that_do_not_lie_in_one_piece_are_read_right(tmp_path):
    session = runtime.load(small(tmp_path / "n"))
    wide = images(6, (2, 7, 12))
    assert np.array_equal(session(wide[::2, :, :, ::2]), session(wide[::2, :, :, ::2].copy()))


@pytest.mark.parametrize(
    ("value", "came"),
    [
        (np.zeros((1, 2, 7, 6)), "float64"),
        (np.zeros((2, 7, 6), np.float32), r"\(2, 7, 6\)"),
        (np.zeros((1, 2, 6, 7), np.float32), r"\(1, 2, 6, 7\)"),
        ([[0.0]], "list"),
    ],
)
def test_other_inputs_are_refused_with_what_came(tmp_path, value, came):
    session = runtime.load(small(tmp_path / "n"))
    with pytest.raises(UserError, match=rf"\(batch, 2, 7, 6\), not .*{came}"):
        session(value)


def test_info_says_what_the_session_keeps_and_how_it_computes(tmp_path):
    path = small(tmp_path / "n", description={"classes": ["a"]})
    session = runtime.load(path, threads=2)
    session(images(3))
    info = session.info()
    assert (info.in_shape, info.num_classes, info.threads) == ((2, 7, 6), 5, 2)
    assert info.weights_total == 4 * 2 * 9 + 4 * 4 * 9 + 6 * 4 * 9 + 5 * 12
    assert 0 < info.weights_kept < info.weights_total
    assert info.layers_sparse + info.layers_dense == 4
    assert info.file_bytes == path.stat().st_size
    assert session.description == {"classes": ["a"]}
    if info.kernels != "numpy":
        assert info.slow_path is None
        assert 0 < info.weight_bytes < 100_000
        assert 0 < info.peak_activation_bytes < 10**6


def test_without_compiled_kernels_the_session_says_that_it_is_slow(tmp_path, monkeypatch):
    monkeypatch.setattr("hydraprune.runtime.session.library", lambda: None)
    monkeypatch.setattr("hydraprune.runtime.session.available_kernels", lambda: ())
    session = runtime.load(small(tmp_path / "n"))
    assert session.info().kernels == "numpy"
    assert "without a C++ compiler" in session.info().slow_path


def test_kernels_and_threads_that_there_are_not_are_refused(tmp_path):
    path = small(tmp_path / "n")
    with pytest.raises(UserError, match=r"unknown kernels 'sse9'; known: avx512, avx2, portable, numpy"):
        runtime.load(path, kernels="sse9")
    for threads in (0, 1.5, 10**6):
        with pytest.raises(UserError, match="1 to 256 threads"):
            runtime.load(path, threads=threads)


def test_a_file_without_a_graph_cannot_be_run(tmp_path):
    runtime.write(tmp_path / "n", {"w": np.ones(3, np.float32)}, {}, {})
    with pytest.raises(UserError, match=r"n' does not hold its architecture as a graph: .*load_compact") as error:
        runtime.load(tmp_path / "n")
    assert "\n" not in str(error.value)


def test_predicting_imports_nothing_of_the_training_stack(tmp_path):
    script = (
        "import sys, numpy as np; from hydraprune import runtime\n"
        "runtime.load(sys.argv[1])(np.zeros((1, 2, 7, 6), np.float32))\n"
        "heavy = {'torch', 'scipy', 'sklearn', 'matplotlib', 'PIL', 'jsonargparse', 'lightning', 'yaml', 'rich'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(small(tmp_path / "n"))], check=True)


def test_a_forked_child_predicts_too_and_ends(tmp_path):
    """The threads of a session are not there in a child: it must neither wait for them nor for their end."""
    script = (
        "import os, signal, sys, numpy as np; from hydraprune import runtime\n"
        "session, images = runtime.load(sys.argv[1], threads=3), np.ones((40, 2, 7, 6), np.float32)\n"
        "expected = session(images)\n"
        "child = os.fork()\n"
        "if not child: signal.alarm(60)\n"
        "assert all(np.array_equal(session(images), expected) for _ in range(3))\n"
        "if child: sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", script, str(small(tmp_path / "n"))], check=True)
