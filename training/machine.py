"""What Keras computes on: precision, and several GPUs through its own distribution."""

from __future__ import annotations

import keras

from training.datasets import DataError


def use_machine(mixed: bool, devices: int | None) -> None:
    """Set Keras up for the whole process.

    ``mixed``: compute in bfloat16 and keep the weights in float32, which needs no loss scaling.
    ``devices``: split every batch over so many accelerators (or host devices where there is none);
    only the JAX backend can. Raises DataError where it cannot be done.
    """
    if mixed:
        keras.mixed_precision.set_global_policy("mixed_bfloat16")
    if devices is None:
        return
    if keras.backend.backend() != "jax":
        raise DataError(
            f"--devices: the {keras.backend.backend()} backend uses one device; set KERAS_BACKEND=jax"
        )
    found = keras.distribution.list_devices()
    if not 1 <= devices <= len(found):
        raise DataError(f"--devices {devices}: this machine has {len(found)} ({', '.join(found)})")
    keras.distribution.set_distribution(keras.distribution.DataParallel(devices=found[:devices]))


def check_batch(*sizes: int) -> None:
    """Raise DataError where batches of these sizes cannot be shared out evenly over the devices in use."""
    distribution = keras.distribution.distribution()
    devices = 1 if distribution is None else distribution.device_mesh.devices.size
    for size in sizes:
        if size % devices:
            raise DataError(f"--devices {devices}: a batch of {size} cannot be shared out evenly")
