"""Blocks against an attention that is written out, in any order, and on disk."""

import random

import pytest
import torch
from slow_model import Slow

from safelens.safewatch.blocks import PolicyBlocks, compose
from safelens.vlm import VisionLanguageModel

torch.set_num_threads(1)
FAMILIES = ("qwen3_vl", "internvl", "lfm2_vl")
TRUNK = "You check videos.\n\n"
TEXTS = ["<policy>\nA fight.\n</policy>\n", "<policy>\nLies and fraud, long\n</policy>\n", "Arms\n"]
REST = "Which is violated?"


@pytest.fixture(scope="module")
def loaded(family_dirs):
    """Each family's model in double precision, so that only a mistake is a difference."""
    return {
        name: VisionLanguageModel.load(folder, dtype=torch.float64, frame_pixels=48 * 48)
        for name, folder in family_dirs.items()
    }


@pytest.fixture(params=FAMILIES)
def vlm(loaded, request):
    return loaded[request.param]


def behind(vlm, blocks, order):
    """Hidden states of the rest behind blocks in an order."""
    trunk, found = blocks.of(TRUNK, [TEXTS[i] for i in order])
    return vlm.extend(compose(trunk, found).fork(), vlm.ids(REST))[0]


def test_composed_blocks_equal_an_attention_that_is_written_out(vlm):
    slow = Slow(vlm.model)
    first, _ = slow.run(vlm.ids(TRUNK).tolist(), 0, [], [])
    seen, longest = list(first), 0
    for text in TEXTS:
        ids = vlm.ids(text).tolist()
        own, _ = slow.run(ids, len(first), first, first)
        seen, longest = seen + own, max(longest, len(ids))
    _, wanted = slow.run(vlm.ids(REST).tolist(), len(first) + longest, seen, first)
    found = behind(vlm, PolicyBlocks(vlm), [0, 1, 2])
    torch.testing.assert_close(found, wanted.double(), atol=1e-5, rtol=1e-5)
    alone = vlm.extend(vlm.prefill_text(TRUNK + "".join(TEXTS)), vlm.ids(REST))[0]
    assert (alone - wanted).abs().max() > 0.05  # a sequential policy is something else


def test_a_hundred_orders_agree(family_dirs):
    """In float32, as in use; beside it what order does to a sequential policy."""
    vlm = VisionLanguageModel.load(family_dirs["qwen3_vl"])
    blocks, rng = PolicyBlocks(vlm), random.Random(0)
    order, spread = list(range(3)), []
    first = vlm.logits(behind(vlm, blocks, order))
    for _ in range(100):
        rng.shuffle(order)
        spread.append(float((vlm.logits(behind(vlm, blocks, order)) - first).abs().max()))
    assert blocks.read == 3
    texts = [vlm.ids(TRUNK + "".join(TEXTS[i] for i in o)) for o in ((0, 1, 2), (2, 1, 0))]
    rest = vlm.ids(REST)
    one, other = (
        vlm.logits(vlm.run(vlm.text_inputs(torch.cat([ids, rest])[None], 0)))[0, -len(rest) :]
        for ids in texts
    )
    assert max(spread) < 1e-3 * float((one - other).abs().max())


def test_any_subset_without_computing_anything_again(vlm):
    blocks = PolicyBlocks(vlm)
    behind(vlm, blocks, [0, 1])
    assert blocks.read == 2
    added = behind(vlm, blocks, [2, 0, 1])
    assert blocks.read == 3  # a category more is a block more
    subset = behind(vlm, blocks, [1, 2])
    assert blocks.read == 3
    torch.testing.assert_close(behind(vlm, PolicyBlocks(vlm), [2, 0, 1]), added)
    torch.testing.assert_close(behind(vlm, PolicyBlocks(vlm), [1, 2]), subset)
    assert (behind(vlm, blocks, [1]) - subset).abs().max() > 1e-3


def test_blocks_are_kept_on_disk_for_one_model(vlm, loaded, tmp_path, monkeypatch):
    blocks = PolicyBlocks(vlm, folder=tmp_path / "blocks")
    wanted = behind(vlm, blocks, [0, 1, 2])
    files = sorted((tmp_path / "blocks").iterdir())
    assert len(files) == 3
    again = PolicyBlocks(vlm, folder=tmp_path / "blocks")
    assert torch.equal(behind(vlm, again, [0, 1, 2]), wanted)
    assert again.read == 0

    files[1].write_bytes(files[1].read_bytes()[:-100])  # as after a full disk
    mended = PolicyBlocks(vlm, folder=tmp_path / "blocks")
    assert torch.equal(behind(vlm, mended, [0, 1, 2]), wanted)
    assert mended.read == 1
    assert sorted((tmp_path / "blocks").iterdir()) == files

    other_layer = PolicyBlocks(vlm, folder=tmp_path / "blocks", layer=1)
    behind(vlm, other_layer, [0])
    assert other_layer.read == (0 if other_layer.layer == mended.layer else 1)
    monkeypatch.setitem(vlm.__dict__, "language_sha256", "0" * 64)  # other weights
    other = PolicyBlocks(vlm, folder=tmp_path / "blocks")
    behind(vlm, other, [0, 1, 2])
    assert other.read == 3


def test_the_digest_is_of_weights_and_settings_without_adapters(vlm_dir, adapter_dir):
    plain = VisionLanguageModel.load(vlm_dir)
    adapted = VisionLanguageModel.load(vlm_dir)
    adapted.load_adapter(adapter_dir, "deliberate")
    assert plain.language_sha256 == adapted.language_sha256
    changed = VisionLanguageModel.load(vlm_dir)
    with torch.no_grad():
        changed.model.model.language_model.layers[1].mlp.up_proj.weight[3, 5] += 1e-3
    assert changed.language_sha256 != plain.language_sha256
    assert VisionLanguageModel.load(vlm_dir, dtype=torch.float64).language_sha256 not in (
        plain.language_sha256,
        changed.language_sha256,
    )
