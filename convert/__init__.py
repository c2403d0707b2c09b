"""From a training run to a bundle: int8 TFLite, golden vectors, card."""
