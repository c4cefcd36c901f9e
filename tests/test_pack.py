"""Packing: the bundle that comes of parts, what is refused, and that nothing is left behind."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from safelens.bundle import Bundle, BundleError, packaged_bundles
from safelens.bundle_parts import Parts, is_hub_id
from safelens.pack import pack
from safelens.policy import Policy

SETTINGS = {
    "name": "small",
    "version": "1",
    "tau": 0.8,
    "clip": {"max_side": 48},
    "screen": {"frame_pixels": 48 * 48},
    "deliberate": {"max_new_tokens": 8, "max_caption_tokens": 4},
}


@pytest.fixture
def parts(vlm_dir, captioner_dir, adapter_dir, probe_dir, guard_file, policy):
    return {
        "model": str(vlm_dir),
        "captioner": str(captioner_dir),
        "policy": policy,
        "probe": probe_dir,
        "domain": guard_file,
        "adapter": str(adapter_dir),
    }


def refused(out, parts, settings=SETTINGS, **changes):
    """What packing says, after which nothing has been written."""
    with pytest.raises(BundleError) as caught:
        pack(Parts(**(parts | changes)), out, settings)
    assert list(out.parent.iterdir()) == []
    return str(caught.value)


@pytest.fixture
def out(tmp_path):
    (tmp_path / "here").mkdir()
    return tmp_path / "here" / "b"


def test_parts_become_a_bundle_that_names_no_machine(parts, out, tmp_path):
    packed = pack(Parts(**parts), out, SETTINGS)
    bundle = Bundle.load(out)
    assert packed.sha256 == bundle.sha256
    assert packed.notes == ()
    assert bundle.settings.tau == 0.8
    assert [p.name for p in out.parent.iterdir()] == ["b"]
    adapter = json.loads((out / "deliberate" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] is None
    for path in out.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644)
        if path.suffix in (".json", ".md", ".yaml", ".jinja"):
            text = path.read_text()
            for place in (parts["model"], parts["adapter"], str(tmp_path), str(Path.home())):
                assert place not in text or place == "/", (path, place)
    card = (out / "card.md").read_text()
    assert "No figures have been measured" in card
    assert "| probe | SHA-256 `" in card


def test_tiny_packed_again_is_the_same_to_the_byte(tmp_path, capsys):
    from recipes.tiny.pack import pack as pack_tiny

    tiny = packaged_bundles()["tiny"]
    work = tmp_path / "work"
    for name, part in (
        ("model", "embedder/model"),
        ("captioner", "captioner/model"),
        ("deliberate", "reasoner/adapter"),
        ("probe", "fast/probe"),
    ):
        shutil.copytree(tiny / name, work / part)
    trained = work / "reasoner/adapter/adapter_config.json"
    trained.write_text(trained.read_text().replace("null", '"/where/it/was"', 1))
    config = json.loads(trained.read_text())
    config |= {"base_model_name_or_path": "/where/it/was", "alora_invocation_tokens": None}
    trained.write_text(json.dumps(config))
    (work / "reasoner/adapter/README.md").write_text("base_model: /where/it/was")
    shutil.copy(tiny / "domain.safetensors", work / "fast")
    out = tmp_path / "tiny"
    shutil.copytree(tiny, out)
    (out / "stale.txt").write_text("of an older bundle")
    pack_tiny({name: work / name for name in ("embedder", "captioner", "fast", "reasoner")}, out)
    assert (out / "bundle.yaml").read_bytes() == (tiny / "bundle.yaml").read_bytes()
    assert not (out / "stale.txt").exists()
    assert Bundle.load(out).sha256 in capsys.readouterr().out


def test_a_hub_id_is_referred_to_and_not_called_checked(parts, out, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    packed = pack(Parts(**(parts | {"captioner": "nobody/florence"})), out, SETTINGS)
    assert packed.notes == ("nobody/florence: not checked: the hub cannot be reached",)
    assert Bundle.load(out).settings.deliberate.captioner == "nobody/florence"
    assert not (out / "captioner").exists()
    assert "model hub: `nobody/florence`, not in the bundle" in (out / "card.md").read_text()


def test_a_mistyped_path_is_no_hub_id(parts, out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "embedder").mkdir()
    assert is_hub_id("Qwen/Qwen3-VL-2B-Instruct")
    assert not is_hub_id("embedder/modle")
    assert not is_hub_id("./embedder/modle")
    said = refused(out, parts, model="embedder/modle", captioner=str(tmp_path / "none"))
    assert "embedder/modle: no such directory" in said
    assert f"{tmp_path / 'none'}: no such directory" in said


def test_a_directory_that_is_no_model_is_named_with_what_it_lacks(parts, out, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    said = refused(out, parts, model=str(empty), captioner=parts["model"])
    assert f"{empty}: not a model's directory: it lacks config.json, model.safetensors" in said
    assert "holds a model of type 'qwen3_vl'; expected a Florence-2" in said
    shutil.copytree(parts["model"], tmp_path / "cut")
    (tmp_path / "cut" / "model.safetensors").unlink()
    (tmp_path / "cut" / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "1-of-2"}}'
    )
    assert "lacks 1-of-2" in refused(out, parts, model=str(tmp_path / "cut"))
    (tmp_path / "cut" / "config.json").write_text("{")
    (tmp_path / "cut" / "1-of-2").touch()
    assert "config.json: not a model's configuration" in refused(
        out, parts, model=str(tmp_path / "cut")
    )


def test_a_probe_of_another_policy_or_width_is_refused(parts, out, tmp_path, policy):
    from safelens.probe import ProbeConfig, RollingAttentionProbe

    data = policy.to_dict()
    data["categories"].pop()
    other = Policy.from_yaml(yaml.safe_dump(data))
    said = refused(out, parts, policy=other)
    assert f"{parts['probe']}: its classes are" in said
    RollingAttentionProbe(ProbeConfig(32, policy.labels)).save(tmp_path / "narrow")
    said = refused(out, parts, probe=tmp_path / "narrow")
    assert f"{tmp_path / 'narrow'}: reads states of width 32" in said
    assert "gives 64" in said
    assert "probe.safetensors: missing" in refused(out, parts, probe=tmp_path / "none")


def test_another_guard_is_refused(parts, out, tmp_path):
    tiny = packaged_bundles()["tiny"] / "domain.safetensors"
    assert f"{tiny}: reads 292 features" in refused(out, parts, domain=tiny)
    assert "missing; expected a saved domain guard" in refused(out, parts, domain=tmp_path / "no")


def test_an_adapter_of_another_rank_or_model_is_refused(parts, out, tmp_path):
    tiny = packaged_bundles()["tiny"] / "deliberate"
    said = refused(out, parts, adapter=str(tiny))
    assert "it was made for another model" in said
    changed = tmp_path / "adapter"
    shutil.copytree(parts["adapter"], changed)
    config = changed / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"r": 7}))
    said = refused(out, parts, adapter=str(changed))
    assert "of rank 4, but adapter_config.json says 7" in said
    (changed / "adapter_model.safetensors").unlink()
    assert "adapter_model.safetensors: cannot be read" in refused(out, parts, adapter=str(changed))
    assert "adapter_config.json: not a LoRA" in refused(out, parts, adapter=parts["model"])


def test_all_that_is_wrong_is_said_at_once(parts, out, tmp_path):
    settings = SETTINGS | {"tau": 3, "colour": "red"}
    said = refused(out, parts, settings, model=str(tmp_path / "m"), probe=tmp_path / "p")
    for text in (f"{tmp_path / 'm'}: no such", f"{tmp_path / 'p'}", "tau: ", "colour: "):
        assert text in said


def test_what_lies_there_is_only_replaced_when_asked_and_only_a_bundle(parts, out):
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    for asked in (False, True):
        with pytest.raises(BundleError, match="exists"):
            pack(Parts(**parts), out, SETTINGS, replace_bundle=asked)
    assert [p.name for p in out.iterdir()] == ["thesis.txt"]
    (out / "thesis.txt").unlink()
    out.rmdir()
    pack(Parts(**parts), out, SETTINGS)
    inside = parts | {"model": str(out / "model")}
    with pytest.raises(BundleError, match="--replace"):
        pack(Parts(**inside), out, SETTINGS)
    pack(Parts(**inside), out, SETTINGS | {"version": "2"}, replace_bundle=True)
    assert Bundle.load(out).settings.version == "2"
    assert [p.name for p in out.parent.iterdir()] == ["b"]


def test_a_failure_leaves_the_old_bundle_and_no_rubbish(parts, out, tmp_path):
    pack(Parts(**parts), out, SETTINGS)
    before = Bundle.load(out).sha256
    bad = tmp_path / "model"
    shutil.copytree(parts["model"], bad)
    (bad / "gone").symlink_to(tmp_path / "nowhere")
    with pytest.raises(BundleError, match="could not be written"):
        pack(Parts(**(parts | {"model": str(bad)})), out, SETTINGS, replace_bundle=True)
    assert Bundle.load(out).sha256 == before
    assert [p.name for p in out.parent.iterdir()] == ["b"]
