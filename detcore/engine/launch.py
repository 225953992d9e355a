"""Starting the processes of a distributed run on this machine, from a shell or from a notebook.

Several machines are the business of torchrun, `accelerate launch` or a cluster, which start a process for each GPU.
"""
from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch import multiprocessing
from torch.distributed.elastic.utils.distributed import get_free_port

from detcore.errors import DetcoreError
from detcore.runs import stop_signals


def launch(work: Callable[..., Any], processes: int, device: torch.device, /, *args: Any, **options: Any) -> None:
    """Call `work(*args, **options)` in several processes that know of each other, and wait for them.

    Raises:
        DetcoreError: what the first of them raised.
        KeyboardInterrupt: they were interrupted.
    """
    errors = multiprocessing.get_context("spawn").SimpleQueue()
    running = multiprocessing.start_processes(
        _work, (work, processes, get_free_port(), device.type, errors, args, options), processes, join=False,
        start_method="spawn")
    interrupted = False

    def hand_on(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        for process in running.processes:
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, number)

    main = threading.current_thread() is threading.main_thread()
    before = {s: signal.signal(s, hand_on) for s in stop_signals() if main and s != signal.SIGINT}
    try:
        while True:
            try:
                if running.join():
                    break
            except KeyboardInterrupt:  # the processes had it too, and are writing their checkpoint
                interrupted = True
            except multiprocessing.ProcessExitedException as error:
                if interrupted:
                    break
                message = errors.get() if not errors.empty() else f"A training process died: {error}."
                raise DetcoreError(message) from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if interrupted:
        raise KeyboardInterrupt


def _work(rank: int, work: Callable[..., Any], processes: int, port: int, device: str, errors: Any,
          args: tuple[Any, ...], options: dict[str, Any]) -> None:
    """What each process does: say who it is, then work."""
    for name, value in dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=processes, LOCAL_WORLD_SIZE=processes,
                            MASTER_ADDR="127.0.0.1", MASTER_PORT=port).items():
        os.environ[name] = str(value)
    if device == "cpu":
        threads = max(len(os.sched_getaffinity(0)) // processes, 1) if hasattr(os, "sched_getaffinity") else 1
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)
    try:
        work(*args, **options)
    except DetcoreError as error:
        errors.put(str(error))
        os._exit(1)
    except KeyboardInterrupt:
        os._exit(130)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
