"""The shipped checkpoints are what their cards say."""

import json

import numpy as np
import pytest
import test_marked_things
import test_things

from labutils import metrics, paths, train
from labutils.images import data
from labutils.models import zoo
from labutils.train import config as configuration

DIGESTS = {"things16": test_things.DIGESTS, "marked-things": test_marked_things.DIGESTS}
LEAST_TOP1 = {
    "mobilenet_v3_large": 0.96,
    "mobilenet_v3_small": 0.91,
    "mobilenet_v3_large-marked-things": 0.70,
    "mobilenet_v3_small-marked-things": 0.57,
    "fbnet_a-marked-things": 0.65,
    "mobilenet_v2-marked-things": 0.75,
}
SHIPPED = [name for name in LEAST_TOP1 if (paths.CHECKPOINTS / f"{name}.safetensors").is_file()]


@pytest.fixture(params=SHIPPED)
def name(request):
    return request.param


@pytest.fixture
def card(name):
    return json.loads((paths.CHECKPOINTS / f"{name}.json").read_text())


def test_the_lab_ships_its_networks_and_all_checkpoints_stay_small():
    assert {"mobilenet_v3_large", "mobilenet_v3_small"} <= set(SHIPPED)
    assert {file.stem for file in paths.CHECKPOINTS.glob("*.safetensors")} == set(SHIPPED)
    assert sum(file.stat().st_size for file in paths.CHECKPOINTS.iterdir()) < 40e6


def test_the_card_is_about_this_file_and_these_pixels(name, card):
    config = train.CONFIGS[name]
    assert card["sha256"] == paths.sha256(paths.CHECKPOINTS / card["file"])
    assert card["dataset_digest"] == DIGESTS[config.image_set]
    assert configuration.is_stored(config, json.dumps(card["config"]))
    assert card["steps"] == config.steps


def test_the_card_reaches_the_mark_and_its_figures_fit_together(name, card):
    assert card["top1"] >= LEAST_TOP1[name]
    assert card["n"] == data.validation_images(train.CONFIGS[name].image_set)
    assert np.mean(list(card["accuracy_per_class"].values())) == pytest.approx(card["top1"])
    assert sum(pair["images"] for pair in card["confusion_pairs"]) <= (1 - card["top1"]) * card["n"]
    text = (paths.CHECKPOINTS / f"{name}.md").read_text()
    assert card["sha256"] in text
    assert f"Top-1 {100 * card['top1']:.2f} %" in text


def test_the_weights_do_what_the_card_says(name, card):
    image_set = train.CONFIGS[name].image_set
    prefix = "tv:" if card["architecture"] == "mobilenet_v2" else ""
    model = zoo.load(prefix + card["architecture"], image_set)
    images = data.load("val", 320, 128, image_set)
    found = metrics.accuracy(train.logits_of(model.module, images), images.labels)
    low, high = found.interval
    assert low <= card["top1"] <= high
