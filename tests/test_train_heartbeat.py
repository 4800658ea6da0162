"""A process that is gone or stopped ends the others; one that is done does not."""

import os
import signal
import sys
import time

import pytest
import torch.distributed as dist

from minisora.training.heartbeat import Heartbeat, stop_here


def process(port, rank, act):
    "Fork a process that beats, and acts after a moment; returns its number."
    pid = os.fork()
    if pid:
        return pid
    try:
        sys.stderr = open(os.environ["SAID"] + str(rank), "w")
        store = dist.TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False)
        heartbeat = Heartbeat(store, rank, 2, stop_here(rank), every=0.05, patience=1.5)
        time.sleep(0.5)
        act(heartbeat)
    finally:
        os._exit(9)


def done(heartbeat):
    heartbeat.leave()
    os._exit(0)


def wait_long(heartbeat):
    time.sleep(4)
    done(heartbeat)


def stand_still(heartbeat):
    os.kill(os.getpid(), signal.SIGSTOP)


def fail(heartbeat):
    heartbeat.leave("with ValueError")
    os._exit(1)


@pytest.mark.parametrize(
    "act, code, sentence",
    [
        (stand_still, 75, "minisora: rank 1 has not been heard of for 2 s; rank 0 stops\n"),
        (fail, 75, "minisora: rank 1 failed with ValueError; rank 0 stops\n"),
        (done, 0, ""),
    ],
)
def test_the_others_learn_of_it(act, code, sentence, tmp_path, monkeypatch):
    monkeypatch.setenv("SAID", str(tmp_path / "said"))
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    first = process(store.port, 0, wait_long)
    second = process(store.port, 1, act)
    try:
        _, status = os.waitpid(first, 0)
    finally:
        os.kill(second, signal.SIGKILL)
        os.waitpid(second, 0)
    assert os.waitstatus_to_exitcode(status) == code
    assert (tmp_path / "said0").read_text() == sentence
