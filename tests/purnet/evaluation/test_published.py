from __future__ import annotations

from purnet.data.pairs import NAMED_SETS
from purnet.evaluation.metrics import METRICS
from purnet.evaluation.published import KEYS, PUBLISHED


def test_both_backbones_report_the_six_named_sets_in_order():
    assert list(PUBLISHED) == ["ResNet-50", "VGG-16"]
    for table in PUBLISHED.values():
        assert list(table) == list(NAMED_SETS)


def test_the_columns_are_metrics_of_ours():
    assert set(KEYS) <= {metric.key for metric in METRICS}


def test_resnet_is_better_than_vgg_everywhere():
    for name, resnet in PUBLISHED["ResNet-50"].items():
        vgg = PUBLISHED["VGG-16"][name]
        assert resnet.mae < vgg.mae
        assert resnet.weighted_f > vgg.weighted_f
        assert resnet.purnet_f > vgg.purnet_f
