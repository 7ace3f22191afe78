"""The entry point `vllm.general_plugins`: vLLM calls `register` in every one of its processes, possibly more than once."""

import os
import sys


def register() -> None:
    """Adds `--edsd` and our draft model to vLLM.

    On a vLLM that we do not support it stays silent, unless our features are asked for: then it ends the process with one
    message and status 2.
    """
    from vllm_edsd import compat

    problem = compat.version_problem(compat.vllm_version())
    if problem is None:
        from vllm_edsd.engine import hooks

        problem = hooks.problem(hooks.REGISTER)
        if problem is None:
            hooks.install()
            return
    from vllm_edsd.flags import asked_for

    if asked_for(sys.argv[1:], os.environ):
        print(f"vllm-edsd: error: {problem}", file=sys.stderr)
        sys.exit(2)
