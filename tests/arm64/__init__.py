"""The box on an emulated arm64 processor, compared with this machine: ``python -m tests.arm64``."""
