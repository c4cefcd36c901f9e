import copy
import weakref

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers.activations import GELUActivation, GELUTanh

from safelens.cascade import SafeLens
from safelens.packed import PackedLinear, Passed, pack, unpack, weight_bytes

torch.set_num_threads(1)
TYPES = [torch.float32]
if torch.ops.mkldnn._is_mkldnn_bf16_supported():
    TYPES.append(torch.bfloat16)


def made(dtype):
    torch.manual_seed(0)
    layers = (nn.Linear(24, 40), nn.GELU(), nn.Linear(40, 16, bias=False))
    return nn.Sequential(*layers).to(dtype).eval()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("tokens", [1, 3, 70])
def test_equals_the_plain_layer(dtype, tokens):
    plain = made(dtype)
    packed = copy.deepcopy(plain)
    pack(packed, 0)
    assert [type(m) for m in packed] == [PackedLinear, nn.GELU, PackedLinear]
    x = torch.randn(2, tokens, 24, dtype=dtype)
    with torch.inference_mode():
        torch.testing.assert_close(packed(x), plain(x), rtol=1e-2, atol=1e-5)
        if dtype == torch.float32:
            torch.testing.assert_close(packed(x), plain(x))


@pytest.mark.parametrize("dtype", TYPES)
def test_weights_come_back_as_they_were(dtype):
    plain = made(dtype)
    packed = copy.deepcopy(plain)
    pack(packed, 0)
    assert weight_bytes(packed) == weight_bytes(plain)
    assert list(packed.state_dict()) == list(plain.state_dict())
    for name, weight in packed.state_dict().items():
        assert torch.equal(weight, plain.state_dict()[name])
    unpack(packed)
    assert [type(m) for m in packed] == [nn.Linear, nn.GELU, nn.Linear]
    for name, weight in packed.named_parameters():
        assert torch.equal(weight, plain.get_parameter(name))


def test_what_cannot_be_packed_stays():
    double = made(torch.float64)
    pack(double, 0)
    assert type(double[0]) is nn.Linear
    tied = nn.ModuleDict({"embedding": nn.Embedding(40, 24), "head": nn.Linear(24, 40, bias=False)})
    tied["head"].weight = tied["embedding"].weight
    pack(tied, 0)
    assert type(tied["head"]) is nn.Linear
    adapted = nn.ModuleDict({"lora_A": nn.Linear(24, 4), "base_layer": nn.Linear(24, 40)})
    pack(adapted, 0)
    assert type(adapted["lora_A"]) is nn.Linear
    assert type(adapted["base_layer"]) is PackedLinear


def test_small_weights_stay():
    model = nn.Sequential(nn.Linear(256, 256), nn.Linear(255, 256))
    pack(model)
    assert [type(m) for m in model] == [PackedLinear, nn.Linear]


def test_no_weight_is_held_twice(monkeypatch):
    """Each layer is gone before the next one is packed, and before the next one is unpacked."""
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(3)))
    refs, alive, made = [weakref.ref(m) for m in model], [], PackedLinear.__init__

    def watched(packed, linear):
        alive.append(sum(ref() is not None for ref in refs))
        made(packed, linear)

    monkeypatch.setattr(PackedLinear, "__init__", watched)
    pack(model, 0)
    assert alive == [3, 2, 1]
    refs, alive = [weakref.ref(m) for m in model], []
    dense = PackedLinear.weight.fget

    def counted(packed):
        alive.append(sum(ref() is not None for ref in refs))
        return dense(packed)

    monkeypatch.setattr(PackedLinear, "weight", property(counted))
    unpack(model)
    assert alive == [3, 2, 1]


def test_operations_are_counted():
    packed = made(torch.float32)
    pack(packed, 0)
    with FlopCounterMode(display=False) as counted, torch.inference_mode():
        packed(torch.randn(5, 24))
    assert counted.get_total_flops() == 2 * 5 * (24 * 40 + 40 * 16)


def test_a_system_of_packed_models_answers_as_before(bundle_dir, videos):
    with SafeLens.load(bundle_dir, device="cpu") as lens:
        vlm, captioner = lens.screener.vlm, lens.captioner
        lens.screener.guard = None
        before = vlm.language_sha256
        found = [lens.moderate(video).verdict for video in videos]
        for model in (vlm.model, captioner.model):
            pack(model, 0)
            assert any(isinstance(m, PackedLinear) for m in model.modules())
        del vlm.language_sha256
        assert vlm.language_sha256 == before
        for video, plain in zip(videos, found, strict=True):
            packed = lens.moderate(video).verdict
            assert (packed.label, packed.decided_by) == (plain.label, plain.decided_by)
            scores = [category.score for category in plain.categories]
            assert [c.score for c in packed.categories] == pytest.approx(scores, abs=1e-4)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("kind", "form"), [(GELUActivation, "none"), (GELUTanh, "tanh")])
def test_a_gelu_is_part_of_the_product_before_it(dtype, kind, form):
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.activation_fn, self.fc2 = nn.Linear(24, 40), kind(), nn.Linear(40, 24)

        def forward(self, x):
            return self.fc2(self.activation_fn(self.fc1(x)))

    torch.manual_seed(0)
    plain = Wide().to(dtype).eval()
    packed = copy.deepcopy(plain)
    pack(packed, 0)
    assert type(packed.activation_fn) is Passed
    x = torch.randn(2, 7, 24, dtype=dtype)
    with torch.inference_mode():
        wanted = nn.functional.gelu(plain.fc1(x), approximate=form)
        near = {"rtol": 2e-2, "atol": 1e-2} if dtype == torch.bfloat16 else {}
        torch.testing.assert_close(packed.fc1(x), wanted, **near)
        torch.testing.assert_close(packed(x), plain(x), **near)
    unpack(packed)
    assert type(packed.activation_fn) is kind
    with torch.inference_mode():
        assert torch.equal(packed(x), plain(x))
