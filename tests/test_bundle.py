import hashlib
import shutil

import pytest
import yaml

from safelens.bundle import Bundle, BundleError, packaged_bundles, write_bundle
from safelens.policy import Policy


@pytest.fixture
def bundle(tmp_path):
    """A bundle of text files; loading one runs no model."""
    folder = tmp_path / "b"
    for name in ("model/config.json", "model/sub/bundle.yaml", "captioner/config.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    (folder / "policy.yaml").write_text(Policy.load("default").to_yaml())
    labels = list(Policy.load("default").labels)
    (folder / "probe").mkdir()
    (folder / "probe" / "probe.json").write_text(f'{{"labels": {labels}}}'.replace("'", '"'))
    write_bundle(folder, settings())
    return folder


def settings(**fields):
    base = {
        "name": "b",
        "version": "1",
        "screen": {"model": "model", "probe": "probe"},
        "deliberate": {"captioner": "captioner"},
    }
    return base | fields


def rewrite(folder, **fields):
    """Change settings without `write_bundle`'s own check; None takes a field away."""
    path = folder / "bundle.yaml"
    content = yaml.safe_load(path.read_text()) | fields
    path.write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}))


def test_loads_what_was_written(bundle):
    found = Bundle.load(bundle)
    assert found.settings.name == "b"
    assert found.policy == Policy.load("default")
    assert found.sha256 == hashlib.sha256((bundle / "bundle.yaml").read_bytes()).hexdigest()
    assert "model/sub/bundle.yaml" in found.settings.files
    assert found.path("model") == str(bundle / "model")
    assert found.path("Qwen/Qwen3-VL-2B-Instruct") == "Qwen/Qwen3-VL-2B-Instruct"


def test_a_copy_under_another_name_is_the_same_bundle(bundle, tmp_path):
    shutil.copytree(bundle, tmp_path / "copy")
    (tmp_path / "copy" / ".gitattributes").write_text("what a hub adds")
    (tmp_path / "copy" / "model" / "__pycache__").mkdir()
    (tmp_path / "copy" / "model" / "__pycache__" / "x.pyc").write_text("what Python adds")
    assert Bundle.load(tmp_path / "copy").sha256 == Bundle.load(bundle).sha256


def test_missing_changed_and_extra_files_are_named(bundle):
    (bundle / "captioner" / "config.json").unlink()
    (bundle / "model" / "config.json").write_bytes(b"[}")
    (bundle / "model" / "extra.json").write_text("{}")
    with pytest.raises(BundleError) as caught:
        Bundle.load(bundle)
    message = str(caught.value)
    assert "captioner/config.json is missing" in message
    assert "model/config.json has SHA-256" in message
    assert "model/extra.json is not listed" in message
    assert "captioner is missing" not in message


def test_every_byte_counts(bundle):
    path = bundle / "policy.yaml"
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match=r"policy\.yaml has SHA-256"):
        Bundle.load(bundle)


@pytest.mark.parametrize(
    "part", ["../model", "model/../../x", "/etc", "a/../b", "..", ".git", "a//b", "a\\..\\b", ""]
)
def test_parts_cannot_lead_out_of_the_bundle(bundle, part):
    rewrite(bundle, screen={"model": part, "probe": "probe"})
    with pytest.raises(BundleError, match=r"screen\.model.*expected a path inside the bundle"):
        Bundle.load(bundle)
    rewrite(bundle, screen={"model": "model", "probe": "probe"}, policy=part)
    with pytest.raises(BundleError, match=r"policy.*expected a path inside the bundle"):
        Bundle.load(bundle)


def test_a_link_to_a_folder_holds_no_part(bundle, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "config.json").write_text("{}")
    (bundle / "other").symlink_to(tmp_path / "elsewhere")
    rewrite(bundle, screen={"model": "other", "probe": "probe"})
    with pytest.raises(BundleError, match="other is missing"):
        Bundle.load(bundle)


def test_absent_parts_are_named(bundle):
    rewrite(bundle, screen={"model": "mode", "probe": "prob", "domain": "guard.safetensors"})
    with pytest.raises(BundleError) as caught:
        Bundle.load(bundle)
    for name in ("mode is missing", "prob is missing", "guard.safetensors is missing"):
        assert name in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tau": 2}, "tau: "),
        ({"taus": {"safe": 1.5}}, r"taus\.safe: "),
        ({"taus": {"nosuch": 0.5}}, "has a tau for nosuch, but the classes of policy"),
        ({"calibration": "none.json"}, r"none\.json is missing"),
        ({"outside_domain": "guess"}, "outside_domain: "),
        ({"name": None}, "name: Field required"),
        ({"extra": 1}, "extra: Extra inputs"),
        ({"clip": {"min_frames": 9, "max_frames": 2}}, r"ClipOptions\.min_frames=9"),
        ({"format": "safelens.bundle/2"}, "format: "),
        ({"screen": {"model": "model", "temperature": 0}}, r"screen\.temperature: "),
    ],
)
def test_wrong_settings_are_named(bundle, fields, message):
    rewrite(bundle, **fields)
    with pytest.raises(BundleError, match=message):
        Bundle.load(bundle)


@pytest.mark.parametrize("text", ["", "- 1", "{", "a: *b", "\x00", "!!python/object:os.system {}"])
def test_bad_yaml_is_named(bundle, text):
    (bundle / "bundle.yaml").write_text(text)
    with pytest.raises(BundleError, match=r"bundle\.yaml: not a bundle's settings"):
        Bundle.load(bundle)


def test_a_policy_that_is_not_the_probes_is_refused(bundle):
    data = Policy.load("default").to_dict()
    data["categories"].pop()
    other = Policy.from_yaml(yaml.safe_dump(data))
    with pytest.raises(BundleError, match="does not match the probe") as caught:
        Bundle.load(bundle).check_policy(other)
    assert "extreme" in str(caught.value)
    (bundle / "policy.yaml").write_text(other.to_yaml())
    with pytest.raises(BundleError, match="does not match the probe"):
        write_bundle(bundle, settings())


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"labels": 3}'])
def test_an_unreadable_probe_is_named(bundle, text):
    (bundle / "probe" / "probe.json").write_text(text)
    with pytest.raises(BundleError, match=r"probe\.json: no probe configuration"):
        write_bundle(bundle, settings())


def test_a_broken_policy_is_named(bundle):
    (bundle / "policy.yaml").write_text("id: x\n")
    with pytest.raises(BundleError, match=r"policy\.yaml"):
        write_bundle(bundle, settings())


def test_unknown_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    known = ", ".join(packaged_bundles()) or "none"
    with pytest.raises(BundleError, match=f"bundle nosuch: no such directory.*{known}"):
        Bundle.load("nosuch")
    with pytest.raises(BundleError, match="no such directory"):
        Bundle.load(tmp_path / "nosuch")
    with pytest.raises(BundleError, match=r"no bundle\.yaml in it"):
        Bundle.load(tmp_path)


def test_an_unreachable_hub_is_named_with_the_alternatives(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BundleError, match="nobody/none: no such directory, and the model hub") as e:
        Bundle.load("nobody/none")
    assert "bundle of the package" in str(e.value)
