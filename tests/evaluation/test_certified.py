"""Certificates where the truth is known, what they must never say, and certifications that are resumed."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hydraprune import models
from hydraprune.attacks import PGD, Eps, outside
from hydraprune.data import Split
from hydraprune.errors import HydrapruneError, Interrupted, UserError
from hydraprune.evaluation import Protocol, State, certification_identity
from hydraprune.evaluation import certified as module
from hydraprune.evaluation.certified import CASCADE, certify
from hydraprune.evaluation.verdicts import VERDICTS, write_verdicts

EPS = Eps("0.05")
ATTACK = Protocol(PGD("linf", EPS, steps=20), restarts=2)
METHODS = (*CASCADE, "fast-lin", "cascade")


def gray(count, seed=0):
    """Images far enough from black and white that no ball of 0.1 leaves the box (25.5 of 255)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(90, 166, (count, 1, 3, 3), generator=generator, dtype=torch.uint8)


def linear(seed=0):
    """Logits (0, w·x + b), the border through the middle of the images: every margin is known in closed form."""
    weight = torch.randn(9, generator=torch.Generator().manual_seed(seed))
    layer = nn.Linear(9, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.stack([torch.zeros(9), weight]))
        layer.bias.copy_(torch.stack([torch.tensor(0.0), -weight.sum() / 2]))
    return nn.Sequential(nn.Flatten(), layer)


def network(seed=0):
    """Three classes between which the images of `gray` are spread."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, 3)
    ).eval()
    with torch.no_grad():
        model[-1].bias -= model(gray(60).float() / 255).mean(0)
    return model


def labelled(model, images, wrong=0):
    with torch.no_grad():
        labels = model(images.float() / 255).argmax(1)
    labels[:wrong] = (labels[:wrong] + 1) % 2
    return Split(images, labels)


@pytest.mark.parametrize(("norm", "method"), [("linf", "ibp"), ("linf", "cascade"), ("l2", "crown"), ("l2", "ibp")])
def test_a_linear_classifier_is_certified_exactly_where_it_is_robust(norm, method):
    model = linear()
    split = labelled(model, gray(200), wrong=20)
    weight = model[1].weight[1].detach().double()
    reach = 0.05 * float(weight.abs().sum() if norm == "linf" else weight.norm())
    margin = model(split.images.float() / 255)[:, 1].detach().abs()
    clear = (margin - reach).abs() > 1e-4
    truth = margin > reach
    truth[:20] = False
    protocol = Protocol(PGD(norm, EPS, steps=40), restarts=2)
    result = certify(model, split, EPS, method=method, norm=norm, attack=protocol, batch_size=64)
    assert 0.1 < truth.double().mean() < 0.8
    assert clear.double().mean() > 0.95
    assert torch.equal((result.verdicts == 0)[clear], truth[clear])
    assert (result.n, result.correct, result.errors) == (200, 180, 20)
    assert result.certified + result.attacked + result.undecided == 180
    assert result.attacked > 20
    assert result.certified_accuracy == result.certified / 200
    assert (result.verdicts[:20] == VERDICTS.index("error")).all()


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_both_certified_and_attacked(method):
    """Attack every image that is certified, to the end of what our own check of examples forgives: none may fall."""
    model = network()
    split = labelled(model, gray(60))
    result = certify(model, split, Eps("0.01"), method=method, attack=None)
    proven = torch.nonzero(result.verdicts == 0).squeeze(1)
    assert 0 < len(proven) < 60
    images, labels = split.images[proven].float() / 255, split.labels[proven]
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        attacked = PGD("linf", Eps("0.0100009"), steps=30).perturb(
            model, images, lambda z: nn.functional.cross_entropy(z, labels, reduction="sum"), generator
        )
        assert not outside(images, attacked, "linf", 0.01).any()
        assert torch.equal(model(attacked).argmax(1), labels)


def test_methods_of_the_cascade_certify_more_and_more_and_the_cascade_the_most():
    model = network()
    split = labelled(model, gray(60))
    alone = [certify(model, split, Eps("0.02"), method=method, attack=None) for method in CASCADE]
    cascade = certify(model, split, Eps("0.02"), attack=None)
    assert alone[0].certified < alone[1].certified < alone[2].certified < alone[3].certified
    for result in alone:
        assert not ((result.verdicts == 0) & (cascade.verdicts != 0)).any()
    assert {int(place) for place in cascade.decided_by} == {-1, 1, 2, 3}
    assert torch.equal(cascade.decided_by >= 0, cascade.verdicts == 0)


def test_examples_are_legal_and_fool_the_network():
    model = network()
    split = labelled(model, gray(60))
    result = certify(model, split, EPS, attack=ATTACK, batch_size=25)
    fallen = result.verdicts == VERDICTS.index("attacked")
    examples = result.examples
    assert 0 < int(fallen.sum()) == len(examples.labels) == result.attacked
    assert torch.equal(examples.clean, split.images[fallen] / 255)
    assert not outside(examples.clean, examples.adversarial, "linf", 0.05).any()
    assert (model(examples.adversarial).argmax(1) != split.labels[fallen]).all()


def test_where_no_attack_ran_the_number_of_attacked_is_none_and_not_zero():
    model = linear()
    split = labelled(model, gray(20))
    result = certify(model, split, EPS, attack=None)
    assert result.attacked is None
    assert result.examples is None
    assert result.summary()["attacked"] is None
    assert result.summary()["undecided"] == 20 - result.certified > 0


@pytest.mark.parametrize("method", METHODS)
def test_a_planted_counterexample_is_never_certified(method):
    """A spike of the logit at one corner of the box, which neither centre nor gradient there betrays."""
    layer, spike, last = nn.Linear(9, 10), nn.ReLU(), nn.Linear(10, 2)
    image = torch.full((1, 1, 3, 3), 128, dtype=torch.uint8)
    centre, radius = 128 / 255, 0.05
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[0].fill_(1.0)
        layer.bias.fill_(0.0)
        layer.bias[0] = -9 * (centre + radius) + 0.01  # above 0 only where all pixels are within 0.01 of the corner
        last.weight.copy_(torch.tensor([[-200.0] + [0.0] * 9, [200.0] + [0.0] * 9]))
        last.bias.copy_(torch.tensor([0.5, -0.5]))
    model = nn.Sequential(nn.Flatten(), layer, spike, last)
    split = Split(image, torch.zeros(1, dtype=torch.int64))
    corner = (image / 255 + radius).clamp(0, 1)
    assert model(corner).argmax(1).item() == 1
    assert certify(model, split, EPS, method=method, attack=None).certified == 0
    assert certify(model, split, Eps("0.04"), method=method, attack=None).certified == 1


@pytest.mark.parametrize("method", METHODS)
def test_an_example_in_the_l2_ball_of_an_image_with_white_pixels_is_not_certified_away(method):
    """The ball's centre is the image: the middle of what [0, 1] leaves of the ball is farther from the border."""
    image = torch.full((1, 1, 1, 17), 255, dtype=torch.uint8)
    image[..., 0] = 128
    weight = torch.full((17,), -0.1)
    weight[0] = 1.0
    layer = nn.Linear(17, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.stack([weight, torch.zeros(17)]))
        layer.bias.copy_(torch.stack([0.12 - (image / 255).flatten() @ weight, torch.tensor(0.0)]))
    model, split = nn.Sequential(nn.Flatten(), layer), Split(image, torch.zeros(1, dtype=torch.int64))
    adversarial = image / 255
    adversarial[..., 0] -= 0.2
    assert not outside(image / 255, adversarial, "l2", 0.2).any()
    assert model(adversarial).argmax(1).item() == 1
    assert certify(model, split, Eps("0.2"), norm="l2", method=method, attack=None).certified == 0
    assert certify(model, split, Eps("0.1"), norm="l2", method=method, attack=None).certified == 1


def test_a_network_that_changes_its_input_is_refused():
    """The region would be one around what the network left of the image."""

    class Shifts(nn.Module):
        def __init__(self, hidden=False):
            super().__init__()
            self.model, self.hidden = linear(), hidden

        def forward(self, x):
            if self.hidden and not isinstance(x, torch.fx.Proxy):
                x.sub_(0.0)
            if not self.hidden:
                x -= 0.5
            return self.model(x)

    split = labelled(linear(), gray(4))
    with pytest.raises(UserError, match=r"node 'isub', .* changes the network's input in place"):
        certify(Shifts(), split, EPS, attack=None)
    with pytest.raises(UserError, match="changes its input in place where its trace does not"):
        certify(Shifts(hidden=True), split, EPS, attack=None)


@pytest.mark.parametrize(
    "layer", [nn.Linear(9, 1), nn.Sequential(nn.Linear(9, 1), nn.Flatten(0)), nn.Unflatten(1, (3, 3))]
)
def test_logits_that_are_not_of_classes_are_refused(layer):
    with pytest.raises(
        UserError, match=r"certificates need logits of shape \(batch, classes\)|one row for each image"
    ):
        certify(nn.Sequential(nn.Flatten(), layer), Split(gray(4), torch.zeros(4, dtype=torch.int64)), EPS)


def test_low_contrast_images_are_not_certified_by_clipping_the_box_to_them():
    """The reference clips the box to the range of its images: a gray image then is robust at any radius."""
    model = linear()
    images = torch.full((4, 1, 3, 3), 128, dtype=torch.uint8) + torch.arange(4, dtype=torch.uint8).reshape(4, 1, 1, 1)
    split = labelled(model, images)
    assert certify(model, split, Eps("0.3"), attack=None).certified == 0


def test_a_network_that_is_not_what_its_graph_says_is_refused():
    class Lies(nn.Module):
        """Shows a trace logits twice as far apart as those that it computes."""

        def __init__(self):
            super().__init__()
            self.model = linear()

        def forward(self, x):
            logits = self.model(x)
            return logits * 2 if isinstance(x, torch.fx.Proxy) else logits

    split = labelled(linear(), gray(4))
    with pytest.raises(HydrapruneError, match="own logits lie outside its bounds"):
        certify(Lies(), split, Eps("0.0001"), attack=None)


def test_nan_logits_name_the_batch():
    model = linear()
    with torch.no_grad():
        model[1].weight.fill_(torch.nan)
    with pytest.raises(UserError, match="NaN or infinite logits in batch 0"):
        certify(model, Split(gray(4), torch.zeros(4, dtype=torch.int64)), EPS, attack=None)


def test_the_model_keeps_its_mode_and_its_parameters_have_no_gradient():
    model = network().train()
    split = Split(gray(10), torch.zeros(10, dtype=torch.int64))
    certify(model, split, EPS, attack=ATTACK)
    assert all(part.training for part in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.fixture
def tf32():
    """Matrix units that may round, as torch lets convolutions do; as it was afterwards."""
    parts = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [part.allow_tf32 for part in parts]
    for part in parts:
        part.allow_tf32 = True
    yield lambda: [part.allow_tf32 for part in parts]
    for part, value in zip(parts, before, strict=True):
        part.allow_tf32 = value


def test_no_product_is_rounded_to_10_bits_while_logits_are_held_against_bounds(tf32):
    seen = []

    class Spy(nn.Sequential):
        def forward(self, images):
            seen.append(tf32())
            return super().forward(images)

    certify(Spy(nn.Flatten(), nn.Linear(9, 2)), labelled(linear(), gray(3)), Eps("0.01"), method="ibp")
    assert seen[-1] == [False, False]
    assert tf32() == [True, True]


def test_networks_in_float64_are_certified_in_float64_and_mixtures_refused():
    model = network().double()
    split = labelled(network(), gray(12))
    result = certify(model, split, Eps("0.01"), attack=Protocol(PGD("linf", Eps("0.01"), steps=5), restarts=1))
    assert result.dtype == "float64"
    assert result.certified > 0
    model[0].float()
    with pytest.raises(UserError, match="mixes precisions"):
        certify(model, split, EPS, attack=None)
    with pytest.raises(UserError, match="float32 or float64, not in bfloat16"):
        certify(network().bfloat16(), split, EPS, attack=None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "milp"}, "unknown method 'milp'"),
        (
            {"attack": Protocol(PGD("linf", Eps("0.1")))},
            "linf ball of 0.1, but the certificate in the linf ball of 0.05",
        ),
        ({"norm": "l2", "attack": ATTACK}, "in the linf ball of 0.05, but the certificate in the l2 ball"),
        ({"norm": "l1", "attack": None}, "norms linf and l2"),
    ],
)
def test_wrong_questions_are_refused(change, message):
    split = labelled(linear(), gray(3))
    with pytest.raises(UserError, match=message):
        certify(linear(), split, EPS, **{"attack": None, **change})
    with pytest.raises(UserError, match="no image"):
        certify(linear(), split.take([]), EPS, attack=None)


def test_a_certification_stopped_anywhere_goes_on_where_it_was(tmp_path):
    model, file = network(), tmp_path / "state.safetensors"
    split = labelled(model, gray(40))
    options = {"eps": EPS, "attack": ATTACK, "batch_size": 10}
    whole = certify(model, split, **options)
    state = State(file, certification_identity(model, split, **options), every_s=0.0)
    calls = 0

    def stop():
        nonlocal calls
        calls += 1
        if calls % 90 == 0:
            raise Interrupted("stop")

    stops = 0
    while True:
        try:
            resumed = certify(model, split, **options, state=state, check=stop)
            break
        except Interrupted:
            stops += 1
    assert stops > 0
    for name in ("verdicts", "labels", "predicted", "decided_by"):
        assert torch.equal(getattr(resumed, name), getattr(whole, name)), name
    torch.testing.assert_close(resumed.margins, whole.margins, equal_nan=True)
    assert torch.equal(resumed.examples.adversarial, whole.examples.adversarial)
    again = certify(model, split, **options, state=state, check=lambda: pytest.fail("there is nothing left to do"))
    assert torch.equal(again.verdicts, whole.verdicts)


def test_a_state_of_other_work_or_a_broken_one_is_refused(tmp_path):
    file = tmp_path / "state.safetensors"
    model = linear()
    split = labelled(model, gray(6))
    state = State(file, certification_identity(model, split, EPS), every_s=0.0)
    certify(model, split, EPS, attack=None, state=state)
    for other in ((linear(1), split, EPS), (model, split.take([0, 1]), EPS), (model, split, Eps("0.06"))):
        with pytest.raises(UserError, match="belongs to another evaluation"):
            certify(*other, attack=None, state=State(file, certification_identity(*other)))
    tensors = load_file(file)
    save_file({"verdicts": tensors["verdicts"]}, file)
    with pytest.raises(UserError, match="not a usable evaluation state"):
        certify(model, split, EPS, attack=None, state=state)
    file.write_bytes(b"rubbish")
    with pytest.raises(UserError, match="not a usable evaluation state"):
        certify(model, split, EPS, attack=None, state=state)


def test_a_state_is_told_by_settings_and_constants_that_are_no_parameters(monkeypatch):
    def identity(slope=0.01, stride=1, eps=1e-5, divisor=None, shift=0.5):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 4, 1),
            nn.BatchNorm2d(4, eps=eps),
            nn.LeakyReLU(slope),
            nn.MaxPool2d(2, stride),
            nn.AvgPool2d(1, divisor_override=divisor),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            Shifted(torch.full((4,), shift)),
            nn.Linear(4, 2),
        )
        return certification_identity(model, split, EPS)

    class Shifted(nn.Module):
        def __init__(self, shift):
            super().__init__()
            self.shift = shift  # a tensor that no state dict holds

        def forward(self, x):
            return x - self.shift

    split = Split(gray(3), torch.zeros(3, dtype=torch.int64))
    assert identity() == identity()
    others = [identity(slope=0.5), identity(stride=2), identity(eps=1e-2), identity(divisor=2), identity(shift=0.25)]
    monkeypatch.setattr(module, "VERSION", module.VERSION + 1)
    assert len({*others, identity()}) == 6
    monkeypatch.undo()
    assert identity() not in others


def test_each_image_has_its_line(tmp_path):
    model = linear()
    result = certify(model, labelled(model, gray(10), wrong=2), EPS, attack=ATTACK)
    write_verdicts(tmp_path / "verdicts.tsv", result)
    lines = (tmp_path / "verdicts.tsv").read_text().splitlines()
    assert lines[0].split("\t") == ["index", "label", "predicted", "verdict", "method", "margin"]
    assert len(lines) == 11
    assert lines[1].split("\t")[3:] == ["error", "-", "nan"]
    for index, line in enumerate(lines[1:]):
        number, label, _, verdict, method, margin = line.split("\t")
        assert (int(number), int(label)) == (index, int(result.labels[index]))
        assert verdict == VERDICTS[int(result.verdicts[index])]
        assert (method == "ibp") == (verdict == "certified") == (float(margin) > 0)


def test_the_certified_ball_covers_what_the_check_of_examples_forgives():
    """A margin that ends between ε and ε + 10⁻⁶ could be attacked by an example that the check lets pass."""
    layer = nn.Linear(1, 2)
    centre = 128 / 255
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0], [-1000.0]]))
        layer.bias.copy_(torch.tensor([0.0, 1000 * (centre + 0.05 + 5e-7)]))
    model = nn.Sequential(nn.Flatten(), layer)
    split = Split(torch.full((1, 1, 1, 1), 128, dtype=torch.uint8), torch.ones(1, dtype=torch.int64))
    assert certify(model, split, EPS, attack=None).certified == 0
    assert certify(model, split, Eps("0.049"), attack=None).certified == 1
    assert module.TOLERANCE == 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnn_tiny", "wrn_16_1"])
def test_networks_of_the_zoo_pass_through(name):
    torch.manual_seed(0)
    model = models.create(name, 4, (1, 8, 8), (0.3,), (0.4,)).eval()
    images = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
    result = certify(model, labelled(model, images), Eps("0.0001"), method="crown-ibp", attack=None)
    assert result.n == result.correct == 4
