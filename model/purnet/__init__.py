"""PurNet, salient object detection: network, training, evaluation, prediction."""
