"""Kernels run in one worker process each way: see worker.py."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest


class Worker:
    def __init__(self, mode, cache):
        environment = os.environ | {
            "TRITON_INTERPRET": str(int(mode == "interpret")),
            "TRITON_CACHE_DIR": str(cache),
            "PYTHONWARNINGS": "ignore",
        }
        environment.pop("EDSD_KERNELS", None)
        self.process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("worker.py"), mode],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )

    def __call__(self, module, *arguments, upstream=None, **constants):
        """The public function of kernels/<module>.py on Triton; with `upstream` (result, gradients).

        `constants` replace those of kernels/<module>_triton.py for the call.
        """
        pickle.dump((module, list(arguments), upstream, constants), self.process.stdin)
        self.process.stdin.flush()
        status, answer = pickle.load(self.process.stdout)
        assert status == "ok", answer
        return answer

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def serving(mode):
    @pytest.fixture(scope="session")
    def worker(tmp_path_factory):
        worker = Worker(mode, tmp_path_factory.mktemp("triton"))
        yield worker
        worker.close()

    return worker


interpreted = serving("interpret")
compiled = serving("compile")
