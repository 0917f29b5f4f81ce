"""The engine: one training loop, one checkpointable state, optimisers and schedules as values, Fabric below."""

from hydraprune.engine.hardware import Hardware, available_cores
from hydraprune.engine.loop import Training, Work, train
from hydraprune.engine.optimisers import OPTIMISERS, SGD, Adam, Optimiser
from hydraprune.engine.schedules import SCHEDULES, Constant, Cosine, OneCycle, Schedule
from hydraprune.engine.stopping import check_stop, graceful, request_stop, stop_requested

__all__ = [
    "OPTIMISERS",
    "SCHEDULES",
    "SGD",
    "Adam",
    "Constant",
    "Cosine",
    "Hardware",
    "OneCycle",
    "Optimiser",
    "Schedule",
    "Training",
    "Work",
    "available_cores",
    "check_stop",
    "graceful",
    "request_stop",
    "stop_requested",
    "train",
]
