"""The shipped checkpoints are what their cards say."""

import json

import numpy as np
import pytest
from test_things import DIGESTS

from labutils import metrics, paths, train
from labutils.images import data
from labutils.models import zoo
from labutils.train import config as config_module

LEAST_TOP1 = {"mobilenet_v3_large": 0.96, "mobilenet_v3_small": 0.91}


@pytest.fixture(params=LEAST_TOP1)
def card(request):
    return json.loads((paths.CHECKPOINTS / f"{request.param}.json").read_text())


def test_the_card_is_about_this_file_and_these_pixels(card):
    assert card["sha256"] == paths.sha256(paths.CHECKPOINTS / card["file"])
    assert card["dataset_digest"] == DIGESTS
    config = train.CONFIGS[card["architecture"]]
    assert config_module.is_stored(config, json.dumps(card["config"]))
    assert card["steps"] == config.steps


def test_the_card_reaches_the_mark_and_its_figures_fit_together(card):
    assert card["top1"] >= LEAST_TOP1[card["architecture"]]
    assert card["n"] == data.VALIDATION_IMAGES
    assert np.mean(list(card["accuracy_per_class"].values())) == pytest.approx(card["top1"])
    assert sum(pair["images"] for pair in card["confusion_pairs"]) <= (1 - card["top1"]) * card["n"]
    text = (paths.CHECKPOINTS / f"{card['architecture']}.md").read_text()
    assert card["sha256"] in text
    assert f"Top-1 {100 * card['top1']:.2f} %" in text


def test_the_weights_do_what_the_card_says(card):
    model = zoo.load(card["architecture"], "things16")
    images = data.load("val", 320, 128)
    found = metrics.accuracy(train.logits_of(model.module, images), images.labels)
    low, high = found.interval
    assert low <= card["top1"] <= high
