"""PurNet: salient object detection with a purificatory mechanism. Network, training, evaluation, prediction."""
