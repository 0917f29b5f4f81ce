"""Checkpoints in the original HYDRA code's layout, written here, come in with the same masks and logits.

The forward passes below are written from what the papers and the layout say, in plain functions on named tensors, so
that they share nothing with our networks.
"""

import argparse
import re
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from hydraprune import models, sparsity
from hydraprune.errors import UserError
from hydraprune.export import hydra_statistics, read_hydra_checkpoint

VGG16 = [(64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)]
VGG11 = [(64,), (128,), (256, 256), (512, 512), (512, 512)]


class Writer:
    """A state dict of the original, filled with random tensors layer by layer."""

    def __init__(self, seed=0):
        self.generator = torch.Generator().manual_seed(seed)
        self.state = OrderedDict()

    def scores(self, shape):
        """No two alike in magnitude, so that any correct rule has one answer."""
        count = torch.Size(shape).numel()
        magnitudes = (torch.randperm(count, generator=self.generator) + 1) / 2**23
        signs = torch.randint(0, 2, (count,), generator=self.generator) * 2 - 1
        return (magnitudes * signs).view(shape)

    def weight(self, name, *shape, bias):
        fan_in = torch.Size(shape[1:]).numel()
        self.state[f"{name}.weight"] = torch.randn(shape, generator=self.generator) * (2 / fan_in) ** 0.5
        if bias:
            self.state[f"{name}.bias"] = torch.randn(shape[0], generator=self.generator) / 10
        self.state[f"{name}.popup_scores"] = self.scores(shape)

    def norm(self, name, width):
        self.state[f"{name}.weight"] = torch.rand(width, generator=self.generator) + 0.5
        self.state[f"{name}.bias"] = torch.randn(width, generator=self.generator) / 5
        self.state[f"{name}.running_mean"] = torch.randn(width, generator=self.generator) / 5
        self.state[f"{name}.running_var"] = torch.rand(width, generator=self.generator) + 0.5
        self.state[f"{name}.num_batches_tracked"] = torch.tensor(17)


def write_vgg(writer, depths, classes):
    place, channels = 0, 3
    for stage, widths in enumerate(depths):
        place += stage > 0  # the pooling between stages
        for width in widths:
            writer.weight(f"features.{place}", width, channels, 3, 3, bias=False)
            writer.norm(f"features.{place + 1}", width)
            place, channels = place + 3, width
    for place, (out, inputs) in {0: (256, 2048), 2: (256, 256), 4: (classes, 256)}.items():
        writer.weight(f"classifier.{place}", out, inputs, bias=True)


def write_wide(writer, widen, classes):
    writer.weight("conv1", 16, 3, 3, 3, bias=False)
    channels = 16
    widths = {"block1": 16 * widen, "sub_block1": 16 * widen, "block2": 32 * widen, "block3": 64 * widen}
    for block, width in widths.items():
        before = 16 if block == "sub_block1" else channels
        for index in range(4):
            name, inputs = f"{block}.layer.{index}", before if index == 0 else width
            writer.norm(f"{name}.bn1", inputs)
            writer.weight(f"{name}.conv1", width, inputs, 3, 3, bias=False)
            writer.norm(f"{name}.bn2", width)
            writer.weight(f"{name}.conv2", width, width, 3, 3, bias=False)
            if index == 0:
                writer.weight(f"{name}.convShortcut", width, inputs, 1, 1, bias=False)
        channels = width
    writer.norm("bn1", channels)
    writer.weight("fc", classes, channels, bias=True)


def write_resnet18(writer, classes):
    writer.weight("conv1", 64, 3, 3, 3, bias=False)
    writer.norm("bn1", 64)
    channels = 64
    for stage, width in enumerate((64, 128, 256, 512), start=1):
        for index in range(2):
            name = f"layer{stage}.{index}"
            writer.weight(f"{name}.conv1", width, channels, 3, 3, bias=False)
            writer.norm(f"{name}.bn1", width)
            writer.weight(f"{name}.conv2", width, width, 3, 3, bias=False)
            writer.norm(f"{name}.bn2", width)
            if channels != width:
                writer.weight(f"{name}.shortcut.0", width, channels, 1, 1, bias=False)
                writer.norm(f"{name}.shortcut.1", width)
            channels = width
    writer.weight("linear", classes, 512, bias=True)


def write_cnn(writer, convs, linears):
    for place, shape in (convs | linears).items():
        writer.weight(str(place), *shape, bias=True)


def small(channels, side):
    return {0: (16, channels, 4, 4), 2: (32, 16, 4, 4)}, {5: (100, 32 * (side // 4) ** 2), 7: (10, 100)}


def large(channels, side):
    convs = {0: (32, channels, 3, 3), 2: (32, 32, 4, 4), 4: (64, 32, 3, 3), 6: (64, 64, 4, 4)}
    return convs, {9: (512, 64 * (side // 4) ** 2), 11: (512, 512), 13: (10, 512)}


def run_norm(s, name, x):
    parts = (s[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(x, *parts, training=False, eps=1e-5)


def run_vgg(s, x, depths):
    place = 0
    for stage, widths in enumerate(depths):
        if stage:
            x, place = F.max_pool2d(x, 2, 2), place + 1
        for _ in widths:
            x = F.conv2d(x, s[f"features.{place}.weight"], padding=1)
            x, place = F.relu(run_norm(s, f"features.{place + 1}", x)), place + 3
    x = F.adaptive_avg_pool2d(x, (2, 2)).flatten(1)
    for place in (0, 2):
        x = F.relu(F.linear(x, s[f"classifier.{place}.weight"], s[f"classifier.{place}.bias"]))
    return F.linear(x, s["classifier.4.weight"], s["classifier.4.bias"])


def run_wide(s, x):
    x = F.conv2d(x, s["conv1.weight"], padding=1)
    for block in (1, 2, 3):
        for index in range(4):
            name, stride = f"block{block}.layer.{index}", 2 if block > 1 and index == 0 else 1
            before = F.relu(run_norm(s, f"{name}.bn1", x))
            inner = F.conv2d(before, s[f"{name}.conv1.weight"], stride=stride, padding=1)
            inner = F.conv2d(F.relu(run_norm(s, f"{name}.bn2", inner)), s[f"{name}.conv2.weight"], padding=1)
            # Where the shape changes, the shortcut starts behind the first BatchNorm and ReLU.
            x = F.conv2d(before, s[f"{name}.convShortcut.weight"], stride=stride) if index == 0 else x
            x = x + inner
    x = F.avg_pool2d(F.relu(run_norm(s, "bn1", x)), 8).flatten(1)
    return F.linear(x, s["fc.weight"], s["fc.bias"])


def run_resnet18(s, x):
    x = F.relu(run_norm(s, "bn1", F.conv2d(x, s["conv1.weight"], padding=1)))
    for stage in (1, 2, 3, 4):
        for index in range(2):
            name, stride = f"layer{stage}.{index}", 2 if stage > 1 and index == 0 else 1
            inner = F.relu(run_norm(s, f"{name}.bn1", F.conv2d(x, s[f"{name}.conv1.weight"], None, stride, 1)))
            inner = run_norm(s, f"{name}.bn2", F.conv2d(inner, s[f"{name}.conv2.weight"], padding=1))
            if f"{name}.shortcut.0.weight" in s:
                x = run_norm(s, f"{name}.shortcut.1", F.conv2d(x, s[f"{name}.shortcut.0.weight"], stride=stride))
            x = F.relu(inner + x)
    return F.linear(F.avg_pool2d(x, 4).flatten(1), s["linear.weight"], s["linear.bias"])


def run_cnn(s, x, convs, linears):
    for place, shape in convs.items():
        x = F.relu(F.conv2d(x, s[f"{place}.weight"], s[f"{place}.bias"], 2 if shape[-1] == 4 else 1, 1))
    x = x.flatten(1)
    for place in linears:
        x = F.linear(x, s[f"{place}.weight"], s[f"{place}.bias"])
        x = x if place == max(linears) else F.relu(x)
    return x


NETWORKS = {
    "vgg11_bn": (lambda w: write_vgg(w, VGG11, 10), lambda s, x: run_vgg(s, x, VGG11)),
    "vgg16_bn": (lambda w: write_vgg(w, VGG16, 10), lambda s, x: run_vgg(s, x, VGG16)),
    "resnet18": (lambda w: write_resnet18(w, 10), run_resnet18),
    "wrn_28_4": (lambda w: write_wide(w, 4, 10), run_wide),
    "wrn_28_10": (lambda w: write_wide(w, 10, 10), run_wide),
    "cifar_model": (lambda w: write_cnn(w, *small(3, 32)), lambda s, x: run_cnn(s, x, *small(3, 32))),
    "cifar_model_large": (lambda w: write_cnn(w, *large(3, 32)), lambda s, x: run_cnn(s, x, *large(3, 32))),
    "mnist_model": (lambda w: write_cnn(w, *small(1, 28)), lambda s, x: run_cnn(s, x, *small(1, 28))),
    "mnist_model_large": (lambda w: write_cnn(w, *large(1, 28)), lambda s, x: run_cnn(s, x, *large(1, 28))),
}
SHAPES = {"mnist_model": (1, 28, 28), "mnist_model_large": (1, 28, 28)}
SLOW = {"vgg11_bn", "vgg16_bn", "resnet18", "wrn_28_4", "wrn_28_10"}
CASES = [
    pytest.param(arch, k, marks=pytest.mark.slow if arch in SLOW else ())
    for arch in NETWORKS
    for k in ((0.1,) if arch in {"vgg11_bn", "wrn_28_10"} else (0.1, 0.01))
]


def written(arch, seed=0):
    writer = Writer(seed)
    NETWORKS[arch][0](writer)
    return writer.state


def original_masks(state, removed_share):
    """Masks by what remains above the r-th least magnitude; without ties there is nothing to decide."""
    masks = {}
    for name, tensor in state.items():
        if name.endswith("popup_scores"):
            magnitudes = tensor.abs()
            removed = int(removed_share * tensor.numel())
            least_kept = magnitudes.flatten().msort()[removed]
            masks[name.replace("popup_scores", "weight")] = magnitudes >= least_kept
    return masks


def original_logits(arch, state, masks, images):
    masked = {name: tensor * masks[name] if name in masks else tensor for name, tensor in state.items()}
    with torch.no_grad():
        return NETWORKS[arch][1](masked, images)


def save(path, arch, state, **others):
    torch.save({"epoch": 20, "arch": arch, "state_dict": state, "best_prec1": torch.tensor(41.7), **others}, path)
    return path


def images(arch, count=3):
    return torch.rand(count, *SHAPES.get(arch, (3, 32, 32)), generator=torch.Generator().manual_seed(1))


def logits(model, pixels):
    with torch.no_grad():
        return model(pixels)


@pytest.fixture(scope="module")
def state():
    """A small network of the original's; copy it before changing it."""
    return written("cifar_model")


@pytest.mark.parametrize(("arch", "k"), CASES)
def test_masks_and_logits_are_the_originals_to_the_bit(arch, k, tmp_path):
    state = written(arch)
    path = save(tmp_path / "model_best.pth.tar", arch, {f"module.{name}": tensor for name, tensor in state.items()})
    pixels = images(arch)
    read = read_hydra_checkpoint(path, arch, round(1 - k, 10), in_shape=tuple(pixels.shape[1:]))
    masks = original_masks({n: t for n, t in state.items() if not n.startswith("sub_block1")}, 1 - k)
    assert len(masks) == len(read.masks)
    for (name, mask), (ours, found) in zip(masks.items(), read.masks.items(), strict=True):
        assert torch.equal(found, mask), (name, ours)
    expected = original_logits(arch, state, masks, pixels)
    assert expected.std() > 0.01  # a dead network would agree with anything
    assert torch.equal(logits(read.model, pixels), expected)
    assert torch.equal(logits(sparsity.bake(read.model), pixels), expected)
    assert read.tied == ()
    assert not read.model.training


@pytest.mark.parametrize("arch", [pytest.param("resnet18", marks=pytest.mark.slow), "cifar_model_large"])
def test_a_file_without_scores_is_a_dense_network(arch, tmp_path):
    state = {name: tensor for name, tensor in written(arch).items() if not name.endswith("popup_scores")}
    torch.save(state, tmp_path / "dense.pth")
    read = read_hydra_checkpoint(tmp_path / "dense.pth", arch)
    assert read.masks == {}
    assert torch.equal(logits(read.model, images(arch)), original_logits(arch, state, {}, images(arch)))


def test_sparsity_0_takes_a_pretrained_network_whole_whatever_its_scores(state, tmp_path):
    read = read_hydra_checkpoint(save(tmp_path / "c.pth", "cifar_model", state), "cifar_model", 0)
    expected = original_logits("cifar_model", state, {}, images("cifar_model"))
    assert read.masks == {}
    assert torch.equal(logits(read.model, images("cifar_model")), expected)


# fc2 of cifar_model has 1,000 weights. 1 − 0.8 and 1 − 0.9 lie just below 0.2 and 0.1 in binary, so one weight more
# stays than in decimal: int(199.99999999999997) and int(99.99999999999997). All others come out even.
@pytest.mark.parametrize(
    ("written_sparsity", "removed"),
    [(0.99, 990), (0.95, 950), (0.9, 900), (0.5, 500), (0.3, 300), (0.2, 199), (0.1, 99), (0.999, 999), (0.0004, 0)],
)
def test_the_cut_is_rounded_as_the_original_rounds_it_for_the_k_that_was_typed(
    state, written_sparsity, removed, tmp_path
):
    path = save(tmp_path / "c.pth", "cifar_model", state)
    read = read_hydra_checkpoint(path, "cifar_model", written_sparsity)
    assert int((~read.masks["network.fc2.weight"]).sum()) == removed


def test_the_least_magnitudes_go_whatever_their_sign(state, tmp_path):
    scores = torch.linspace(-1, 1, 1000).reshape(10, 100) + 1e-4
    path = save(tmp_path / "c.pth", "cifar_model", state | {"7.popup_scores": scores})
    mask = read_hydra_checkpoint(path, "cifar_model", 0.99).masks["network.fc2.weight"].flatten()
    assert mask.nonzero().flatten().tolist() == [0, 1, 2, 3, 4, 995, 996, 997, 998, 999]


def test_equal_scores_are_cut_as_the_originals_sort_cuts_them_and_named(state, tmp_path):
    generator = torch.Generator().manual_seed(0)
    few = torch.randint(0, 3, (100, 2048), generator=generator).float()
    path = save(tmp_path / "c.pth", "cifar_model", state | {"5.popup_scores": few})
    read = read_hydra_checkpoint(path, "cifar_model", 0.9)
    assert read.tied == ("network.fc1.weight",)
    first = torch.sort(few.flatten()).indices[: int((1 - 0.1) * few.numel())]
    mask = torch.ones(few.numel())
    mask[first] = 0
    assert torch.equal(read.masks["network.fc1.weight"].float().flatten(), mask)


def test_what_the_original_saves_dense_of_a_pruned_network_has_its_masks(state, tmp_path):
    masks = original_masks(state, 1 - 0.05)
    dense = {n: t * masks[n] if n in masks else t for n, t in state.items() if not n.endswith("popup_scores")}
    path = save(tmp_path / "checkpoint_dense.pth.tar", "cifar_model", dense)
    read = read_hydra_checkpoint(path, "cifar_model", 0.95)
    assert all(torch.equal(*pair) for pair in zip(read.masks.values(), masks.values(), strict=True))
    expected = original_logits("cifar_model", state, masks, images("cifar_model"))
    assert torch.equal(logits(read.model, images("cifar_model")), expected)
    with pytest.raises(
        UserError, match=r"no popup_scores, and 'network\.conv1\.weight' 39 weights .* 0\.9 keeps 77;"
    ):
        read_hydra_checkpoint(path, "cifar_model", 0.9)


def test_pixels_are_normalised_inside_as_the_original_did_outside(state, tmp_path):
    path = save(tmp_path / "c.pth", "cifar_model", state)
    mean, std = hydra_statistics("cifar10")
    read = read_hydra_checkpoint(path, "cifar_model", 0.9, mean=mean, std=std)
    pixels = images("cifar_model")
    outside = (pixels - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
    expected = original_logits("cifar_model", state, original_masks(state, 1 - 0.1), outside)
    assert torch.equal(logits(read.model, pixels), expected)
    assert hydra_statistics("svhn") == ((0.5,) * 3, (0.5,) * 3)
    with pytest.raises(UserError, match="cannot normalise 'mnist', only cifar10, cifar100, svhn"):
        hydra_statistics("mnist")


@pytest.mark.parametrize("name", ["cnn_small", "cifar_model", "mnist_model"])
def test_our_name_and_the_originals_names_of_one_network_are_the_same(state, name, tmp_path):
    read = read_hydra_checkpoint(save(tmp_path / "c.pth", "cifar_model", state), name, 0.9)
    assert read.architecture.name == "cnn_small"


def test_a_hundred_classes(tmp_path):
    writer, (convs, linears) = Writer(), small(3, 32)
    write_cnn(writer, convs, linears | {7: (100, 100)})
    path = save(tmp_path / "c.pth", "cifar_model", writer.state)
    read = read_hydra_checkpoint(path, "cifar_model", 0.9, num_classes=100)
    assert logits(read.model, images("cifar_model")).shape == (3, 100)
    with pytest.raises(UserError, match=r"'7\.weight' .* is float32 \[100, 100\]; .* float32 \[10, 100\]"):
        read_hydra_checkpoint(path, "cifar_model", 0.9)


def test_files_of_older_torch_and_of_half_precision_are_read(state, tmp_path):
    path = tmp_path / "old.pth"
    half = {name: tensor.half() for name, tensor in state.items()}
    torch.save({"state_dict": half}, path, _use_new_zipfile_serialization=False)
    read = read_hydra_checkpoint(path, "cifar_model", 0.0)
    assert all(parameter.dtype == torch.float32 for parameter in read.model.parameters())


def test_an_optimiser_beside_the_network_does_no_harm(state, tmp_path):
    network = models.create("cnn_small")
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network(images("cifar_model")).sum().backward()
    optimiser.step()
    path = save(tmp_path / "c.pth", "cifar_model", state, optimizer=optimiser.state_dict())
    assert read_hydra_checkpoint(path, "cifar_model", 0.9).masks


def test_reading_draws_nothing_from_the_global_generator(state, tmp_path):
    path = save(tmp_path / "c.pth", "cifar_model", state)
    before = torch.random.get_rng_state()
    read_hydra_checkpoint(path, "cifar_model", 0.9)
    assert torch.equal(torch.random.get_rng_state(), before)


def without(name):
    return lambda state: {key: tensor for key, tensor in state.items() if key != name}


WRONG = {
    "no scores of one layer": (without("2.popup_scores"), r"lacks '2\.popup_scores', which a cnn_small"),
    "no weight": (without("5.weight"), r"lacks '5\.weight'"),
    "no first layer": (without("0.weight"), r"lacks '0\.weight'"),
    "one name too many": (lambda s: s | {"9.weight": torch.ones(1)}, r"holds '9\.weight', which a cnn_small"),
    "an unused stage where there is none": (
        lambda s: s | {"sub_block1.layer.0.conv1.weight": torch.ones(1)},
        r"holds 'sub_block1\.layer\.0\.conv1\.weight'",
    ),
    "another width": (
        lambda s: s | {"2.weight": torch.ones(33, 16, 4, 4)},
        r"'2\.weight' .* is float32 \[33, 16, 4, 4\]; in .* float32 \[32, 16, 4, 4\]",
    ),
    "scores of another shape": (
        lambda s: s | {"7.popup_scores": torch.ones(100, 10)},
        r"'7\.popup_scores' .* \[100, 10\]",
    ),
    "scores that are no numbers with a point": (
        lambda s: s | {"7.popup_scores": torch.ones(10, 100, dtype=torch.int64)},
        r"'7\.popup_scores' .* int64",
    ),
    "complex weights": (
        lambda s: s | {"7.weight": torch.ones(10, 100, dtype=torch.complex64)},
        r"'7\.weight' .* complex",
    ),
    "a sparse tensor": (
        lambda s: s | {"7.weight": torch.ones(10, 100).to_sparse()},
        r"'7\.weight' .* not a plain tensor",
    ),
    "text for a tensor": (lambda s: s | {"7.weight": "no"}, r"'7\.weight' .* is a str, not a plain tensor"),
    "names that are numbers": (lambda s: {1: torch.ones(1)}, "is not a state dict"),
    "nothing": (lambda s: {}, r"lacks '0\.weight'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_file_that_does_not_fit_is_one_line_that_names_the_first_key(state, case, tmp_path):
    change, message = WRONG[case]
    torch.save({"state_dict": change(dict(state))}, tmp_path / "c.pth")
    with pytest.raises(UserError, match=message) as caught:
        read_hydra_checkpoint(tmp_path / "c.pth", "cifar_model", 0.9)
    assert "\n" not in str(caught.value)
    assert "c.pth" in str(caught.value)


@pytest.mark.parametrize(
    "others", [{"args": argparse.Namespace(k=0.01)}, {"where": Path("x")}], ids=["args", "where"]
)
def test_objects_other_than_tensors_are_refused_by_name(state, others, tmp_path):
    path = save(tmp_path / "c.pth", "cifar_model", state, **others)
    with pytest.raises(UserError, match=r"holds an object of (argparse\.Namespace|pathlib\S+), and none") as caught:
        read_hydra_checkpoint(path, "cifar_model", 0.9)
    assert "\n" not in str(caught.value)


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


def test_a_hostile_file_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Bomb()}, "bomb.pth")
    with pytest.raises(UserError, match=r"is ever unpickled"):
        read_hydra_checkpoint(Path("bomb.pth"), "cifar_model", 0.9)
    assert not Path("exploded").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"\x80\x02}q\x00", b"nonsense"])
def test_damaged_files_are_one_line(content, tmp_path):
    (tmp_path / "c.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"c\.pth' is (damaged|not a state dict)") as caught:
        read_hydra_checkpoint(tmp_path / "c.pth", "cifar_model", 0.9)
    assert "\n" not in str(caught.value)


def test_every_other_mistake_is_one_line_too(state, tmp_path):
    path = save(tmp_path / "c.pth", "cifar_model", state)
    for call, message in (
        ((tmp_path / "none.pth", "cifar_model", 0.9), "cannot read .*No such file"),
        ((tmp_path, "cifar_model", 0.9), "cannot read .*directory"),
        (
            (path, "vgg16", 0.9),
            "unknown network of the original HYDRA code 'vgg16' .did you mean 'vgg16_bn'.*; known: vgg",
        ),
        ((path, "cifar_model_large", 0.9), "says that its network is 'cifar_model', not 'cifar_model_large'"),
        ((path, "cifar_model", 1.0), "sparsity is the share"),
        ((path, "cifar_model", 99.0), "sparsity is the share"),
        ((path, "cifar_model", float("nan")), "sparsity is the share"),
        ((path, "cifar_model"), "holds popup_scores: give the sparsity, 0.99 where k was 0.01"),
        ((save(tmp_path / "odd.pth", "lin_1", state), "cifar_model", 0.9), "says that its network is 'lin_1'"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            read_hydra_checkpoint(*call)
        assert not re.search(r"\n", str(caught.value))
