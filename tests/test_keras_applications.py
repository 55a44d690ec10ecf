"""One architecture of every family of `keras.applications`: a step and an evaluation equal a loop written by hand.

`python -m benchmarks.applications` does the same for all of them.
"""

import keras
import pytest

from benchmarks import applications

SMALLEST = {
    "convnext": "ConvNeXtTiny",
    "densenet": "DenseNet121",
    "efficientnet": "EfficientNetB0",
    "efficientnet_v2": "EfficientNetV2B0",
    "inception_resnet_v2": "InceptionResNetV2",
    "inception_v3": "InceptionV3",
    "mobilenet": "MobileNet",
    "mobilenet_v2": "MobileNetV2",
    "mobilenet_v3": "MobileNetV3Small",
    "nasnet": "NASNetMobile",
    "resnet": "ResNet50",
    "resnet_v2": "ResNet50V2",
    "vgg16": "VGG16",
    "vgg19": "VGG19",
    "xception": "Xception",
}


def test_the_list_is_complete():
    families = {getattr(keras.applications, name).__module__.split(".")[-1] for name in applications.ARCHITECTURES}
    assert families == set(SMALLEST)


@pytest.mark.parametrize("family", SMALLEST)
def test_a_step_and_an_evaluation_equal_a_hand_written_loop(family):
    keras.backend.clear_session()
    comparison = applications.compare(SMALLEST[family])
    # float64; what is left comes of batch normalization over four examples of 1x1 pixels, which magnifies rounding
    assert max(comparison.loss, comparison.evaluation, comparison.weights, comparison.update) < 1e-5
    assert comparison.statistics_moved == comparison.statistics
    assert comparison.changed_in_evaluation == 0
