"""What `create`, `Normalize` and `table` promise and refuse."""

import pytest
import torch

from hydraprune import models
from hydraprune.errors import UserError


def test_normalize_subtracts_the_mean_and_divides_by_the_deviation():
    layer = models.Normalize((0.5, 0.25), (0.5, 0.125))
    pixels = torch.tensor([1.0, 0.5]).reshape(1, 2, 1, 1)
    assert layer(pixels).flatten().tolist() == [1.0, 2.0]


def test_normalize_saves_its_statistics_and_does_not_train_them():
    layer = models.Normalize((0.5,), (0.25,))
    assert {name: tensor.shape for name, tensor in layer.state_dict().items()} == {
        "mean": (1, 1, 1),
        "std": (1, 1, 1),
    }
    assert not list(layer.parameters())
    assert "mean=[0.5], std=[0.25]" in repr(layer)


def test_statistics_reach_the_first_layer_and_default_to_neutral():
    network = models.create("cnn_tiny", in_shape=(3, 8, 8), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    torch.testing.assert_close(network.normalize.mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))
    torch.testing.assert_close(network.normalize.std.flatten(), torch.tensor([0.4, 0.5, 0.6]))
    neutral = models.create("cnn_tiny", in_shape=(1, 8, 8)).normalize
    assert (neutral.mean.item(), neutral.std.item()) == (0, 1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"name": "vgg16"}, r"unknown network 'vgg16' \(did you mean 'vgg16_bn'\?\); known: .*wrn_28_10"),
        (
            {"name": "vgg16_bn", "in_shape": (1, 8, 8)},
            r"'vgg16_bn' needs at least 16 pixels.*\(1, 8, 8\) are too small",
        ),
        ({"name": "cnn_tiny", "in_shape": (8, 8)}, r"\(channels, height, width\), not \(8, 8\)"),
        ({"name": "cnn_tiny", "in_shape": (1, 8, 0)}, r"not \(1, 8, 0\)"),
        ({"name": "cnn_tiny", "in_shape": (1, 8.0, 8)}, r"not \(1, 8\.0, 8\)"),
        ({"name": "cnn_tiny", "num_classes": 1}, "at least 2 classes, not 1"),
        ({"name": "cnn_tiny", "mean": (0.5,)}, "one number for each of 3 channels"),
        ({"name": "cnn_tiny", "std": (1, 1, 0)}, "std above 0"),
    ],
)
def test_an_impossible_network_is_one_clear_line(arguments, says):
    with pytest.raises(UserError, match=says) as caught:
        models.create(**arguments)
    assert "\n" not in str(caught.value)


def test_the_table_has_a_row_for_each_network_and_leaves_the_random_numbers_alone():
    torch.manual_seed(0)
    rows = models.table()
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(1))
    assert [row.name for row in rows] == list(models.MODELS)
    by_name = {row.name: row for row in rows}
    assert (by_name["cnn_tiny"].parameters, by_name["cnn_tiny"].in_shape) == (71_754, (1, 8, 8))
    assert (by_name["wrn_28_10"].parameters, by_name["wrn_28_10"].in_shape) == (36_479_194, (3, 32, 32))
    assert "arXiv 1605.07146" in by_name["wrn_28_10"].paper
