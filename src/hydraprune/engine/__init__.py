"""The engine: one training loop, one checkpointable state, optimisers and schedules as values, Fabric below."""

from hydraprune.engine.averaging import Average, RunningAverage, recalibrate
from hydraprune.engine.compiled import outputs_complaint
from hydraprune.engine.group import Group
from hydraprune.engine.hardware import Hardware, available_cores, default_threads, launched, launched_rank
from hydraprune.engine.log import Logging, StageLog, read_log
from hydraprune.engine.loop import train
from hydraprune.engine.memory import memory_advice
from hydraprune.engine.optimisers import OPTIMISERS, SGD, Adam, Optimiser
from hydraprune.engine.perturbation import AWP
from hydraprune.engine.savings import Checkpointing, Savings
from hydraprune.engine.schedules import SCHEDULES, Constant, Cosine, OneCycle, Schedule
from hydraprune.engine.sparse_attacks import SparseAttacks
from hydraprune.engine.stopping import check_stop, graceful, request_stop, stop_requested
from hydraprune.engine.training import Distillation, Training, Work

__all__ = [
    "AWP",
    "OPTIMISERS",
    "SCHEDULES",
    "SGD",
    "Adam",
    "Average",
    "Checkpointing",
    "Constant",
    "Cosine",
    "Distillation",
    "Group",
    "Hardware",
    "Logging",
    "OneCycle",
    "Optimiser",
    "RunningAverage",
    "Savings",
    "Schedule",
    "SparseAttacks",
    "StageLog",
    "Training",
    "Work",
    "available_cores",
    "check_stop",
    "default_threads",
    "graceful",
    "launched",
    "launched_rank",
    "memory_advice",
    "outputs_complaint",
    "read_log",
    "recalibrate",
    "request_stop",
    "stop_requested",
    "train",
]
