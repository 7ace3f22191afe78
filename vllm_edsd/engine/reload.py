"""Another drafter's weights in a running engine: loaded beside the former's, watched, then kept or rolled back.

Text is never at stake: the target judges every token. Only how many of them are accepted changes.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vllm.config import set_current_vllm_config
from vllm.logger import init_logger

from vllm_edsd.drafters.checkpoint import read_config, read_shapes
from vllm_edsd.engine import observer
from vllm_edsd.errors import UserError
from vllm_edsd.observability.catalog import OUTCOMES, REFUSED, ROLLED_BACK
from vllm_edsd.policy.base import DraftPolicy
from vllm_edsd.policy.canary import Acceptance, Canary

logger = init_logger("vllm.edsd.reload")
PROVENANCE = {"edsd", "_name_or_path", "transformers_version"}  # keys of config.json that may differ


@dataclasses.dataclass
class Former:
    """What a roll-back puts back; `layers` are the drafter's attention layers by name."""

    folder: Path
    version: str
    model: Any
    layers: dict[str, Any]
    policy: DraftPolicy
    acceptance: Acceptance


class DrafterSwitch:
    """The drafter that `proposer` (an AdaptiveProposer) drafts with; `make_policy` gives a new one a policy of its own."""

    def __init__(self, proposer: Any, folder: Path, make_policy: Callable[[], DraftPolicy]):
        self.proposer = proposer
        self.folder = folder
        self.version = observer.show_drafter(proposer.tally, str(folder))
        self.make_policy = make_policy
        self.acceptance = Acceptance()
        self.former: Former | None = None
        self.canary: Canary | None = None
        self.old_requests: set[str] = set()
        self.outcome: str | None = None
        for outcome in OUTCOMES:
            proposer.tally.count("edsd:drafter_reloads", 0, outcome)

    def load(self, folder: Path) -> None:
        """Drafts with the drafter in `folder` from the next step on, and watches it.

        Raises UserError, and drafts on as before, for weights that do not fit this server or while another is watched.
        """
        try:
            if self.canary is not None:
                raise UserError(f"drafter {self.folder.name} is still being watched; wait until it is kept or rolled back")
            check_same(self.folder, folder)
            self._replace(folder)
        except Exception:
            self._conclude(REFUSED)
            raise
        self.canary, self.acceptance = Canary(self.acceptance), Acceptance()
        # What these have in the drafter's KV cache is the former's.
        self.old_requests = set(self.proposer.runner.input_batch.req_ids)
        logger.info("drafter %s (version %s) is loaded and watched", folder, self.version)

    def observe(self, accepted: Sequence[tuple[str, int]]) -> None:
        """Requests whose draft was made, with how much of it was accepted; keeps or rolls back once that is clear."""
        self.acceptance.add(count for request, count in accepted if request not in self.old_requests)
        if self.canary is None:
            return
        verdict = self.canary.verdict(self.acceptance)
        if verdict is None:
            return
        before, now = self.canary.before, self.acceptance
        logger.info(
            "drafter %s is %s: %.3f accepted tokens per draft over %d drafts, before it %.3f over %d",
            *(self.folder, verdict, now.mean, now.drafts, before.mean, before.drafts),
        )
        if verdict == ROLLED_BACK:
            self._back()
        self._conclude(verdict)

    def forget(self, requests: Sequence[str]) -> None:
        """These requests are finished."""
        self.old_requests.difference_update(requests)

    def state(self) -> dict[str, Any]:
        """What is in use, for an administrator."""
        watched = self.canary is not None
        return {
            "drafter": str(self.folder),
            "version": self.version,
            "state": "watched" if watched else "serving",
            "drafts": self.acceptance.drafts,
            "accepted_tokens_per_draft": self.acceptance.mean,
            "former": None if self.former is None else {"drafter": str(self.former.folder)},
            "last_reload": self.outcome,
        }

    def _layers(self) -> dict[str, Any]:
        return self.proposer.vllm_config.compilation_config.static_forward_context

    def _replace(self, folder: Path) -> None:
        proposer, context = self.proposer, self._layers()
        names = sorted(proposer._draft_attn_layer_names)
        former = Former(
            *(self.folder, self.version, proposer.model, {name: context.pop(name) for name in names}),
            *(proposer.policy, self.acceptance),
        )
        self.former = former
        try:
            proposer.speculative_config.draft_model_config.model = str(folder)
            with set_current_vllm_config(proposer.vllm_config):
                proposer.load_model(proposer.runner.get_model())
            # Attention has no weights, but the KV cache and what vLLM set up around it: the former's goes on.
            places = {id(context[name]): layer for name, layer in former.layers.items()}
            for path, module in list(proposer.model.named_modules()):
                if id(module) in places:
                    proposer.model.set_submodule(path, places[id(module)])
            context.update(former.layers)
        except Exception:
            self._back()
            self.former = None
            raise
        self.folder, proposer.policy = folder, self.make_policy()
        self.version = observer.show_drafter(proposer.tally, str(folder))

    def _back(self) -> None:
        assert self.former is not None
        former, proposer = self.former, self.proposer
        self._layers().update(former.layers)
        proposer._draft_attn_layer_names = set(former.layers)
        proposer.speculative_config.draft_model_config.model = str(former.folder)
        proposer.model, proposer.policy = former.model, former.policy
        self.folder, self.version, self.acceptance = former.folder, former.version, former.acceptance
        proposer.tally.replace("edsd:drafter_info", former.folder.name, former.version)

    def _conclude(self, outcome: str) -> None:
        self.outcome = outcome
        if outcome != REFUSED:
            self.canary = self.former = None
            self.old_requests = set()
        self.proposer.tally.count("edsd:drafter_reloads", 1, outcome)


def check_same(current: Path, other: Path) -> None:
    """Raises UserError unless `other` differs from `current` in nothing but the values of its weights."""
    ours, theirs = read_config(current), read_config(other)
    for key in sorted((ours.keys() | theirs.keys()) - PROVENANCE):
        if ours.get(key) != theirs.get(key):
            raise UserError(
                f"drafter {other}: {key} is {theirs.get(key)!r}, and that of the running one is {ours.get(key)!r}; only "
                "weights can be changed while serving: restart the server with this drafter"
            )
    mine, new = read_shapes(current), read_shapes(other)
    wrong = sorted(name for name in mine.keys() | new.keys() if mine.get(name) != new.get(name))
    if wrong:
        raise UserError(
            f"drafter {other}: {wrong[0]} has shape {new.get(wrong[0])}, and that of the running one has "
            f"{mine.get(wrong[0])}; restart the server with this drafter"
        )
