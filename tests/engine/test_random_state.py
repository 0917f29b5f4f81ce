"""A process's random state is of its own device: the machine that goes on may have fewer."""

import pytest
import torch

from hydraprune.engine.checkpoint import random_state, set_random_state


@pytest.fixture
def gpus(monkeypatch):
    """A machine of GPUs as torch's functions show it: their states, and which one is this process's."""

    class Machine:
        def become(self, count, own):
            self.states = [torch.full((16,), device, dtype=torch.uint8) for device in range(count)]
            self.own = own

        def draw(self, state):
            self.states[self.own] = state

        def draw_all(self, states):
            for device, state in enumerate(states):
                self.states[device] = state

    machine = Machine()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: machine.own)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: machine.states[machine.own])
    monkeypatch.setattr(torch.cuda, "set_rng_state", machine.draw)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: list(machine.states))
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", machine.draw_all)
    return machine


def test_a_state_of_the_fourth_gpu_goes_on_on_the_only_one(gpus):
    gpus.become(4, 3)
    state = random_state()
    gpus.become(1, 0)
    set_random_state(state)
    assert [int(each[0]) for each in gpus.states] == [3]


def test_a_state_of_a_machine_without_gpus_leaves_them_alone(gpus):
    gpus.become(1, 0)
    set_random_state(random_state() | {"cuda": None})
    assert [int(each[0]) for each in gpus.states] == [0]
