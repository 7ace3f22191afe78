"""`vllm-edsd demo`: see it work, with no input."""


def demo() -> None:
    """Serve the bundled target plain and with the bundled EDSD drafter, send eight prompts, show answers and speed."""
    from vllm_edsd.demo import run_demo

    run_demo()
