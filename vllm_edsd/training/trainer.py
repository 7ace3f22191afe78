"""The training loop: one recipe in, one drafter out, resumable at any checkpoint."""

import dataclasses
import itertools
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vllm_edsd.attention import without_plans
from vllm_edsd.drafters.checkpoint import check, resolve, version
from vllm_edsd.drafters.config import DrafterConfig
from vllm_edsd.drafters.core import Drafter
from vllm_edsd.drafters.factory import build, load
from vllm_edsd.errors import UserError
from vllm_edsd.training import checkpoint, schedule
from vllm_edsd.training.batches import Batch, Indexed, collate, index, plan
from vllm_edsd.training.belonging import check_data
from vllm_edsd.training.conditioning import condition, folded
from vllm_edsd.training.curriculum import depth, masked_share
from vllm_edsd.training.evaluation import Evaluation, evaluate
from vllm_edsd.training.export import environment, export
from vllm_edsd.training.features import Features, collect, require_room, size_in_bytes
from vllm_edsd.training.finished import trained_tokens
from vllm_edsd.training.masks import Mask
from vllm_edsd.training.online import Online
from vllm_edsd.training.optimizers import optimizers
from vllm_edsd.training.ranks import Ranks
from vllm_edsd.training.recipe import Recipe
from vllm_edsd.training.samples import fingerprint, length, metadata, read_samples, shards, split
from vllm_edsd.training.step import drafted, positions, prepare, training_loss
from vllm_edsd.training.target import TargetEnds
from vllm_edsd.training.vocabulary import draft_vocabulary, token_counts

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a progress display shows after a step, which took `seconds`.

    `acceptance` is over the positions trained on, by depth.
    """

    step: int
    steps: int
    loss: float
    acceptance: list[float]
    tokens: int
    learning_rate: float
    seconds: float
    evaluation: Evaluation | None


class Trainer:
    """Holds a run's state. Building it collects missing features and restores the last checkpoint.

    With several `ranks` each has a trainer, and all hold the same state; the first alone writes.
    """

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        say: Callable[[str], None],
        collected: Callable[[int, int], None],
        ranks: Ranks | None = None,
    ):
        self.recipe = recipe
        self.out = Path(out)
        self.ranks = ranks or Ranks()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = DTYPES[recipe.precision]
        without_plans()
        self.target = TargetEnds.read(recipe.target).to(self.device)
        _check_layers(recipe, self.target.config.num_hidden_layers)
        samples = read_samples(recipe.data)
        if self.ranks.first:
            check_data(recipe.data, samples, recipe.target, self.target.config.vocab_size, self.device)
        # Before the hidden states, which take hours: what follows may refuse the recipe.
        training, kept = split(samples, recipe.held_out, recipe.seed, recipe.data)
        counts = token_counts([samples[place] for place in training], self.target.config.vocab_size)
        torch.manual_seed(recipe.seed)
        self.drafter = _fresh(recipe, self.target, counts) if recipe.start is None else _started(recipe, self.target)
        self.features = self._features(sum(len(sample.tokens) for sample in samples), say, collected)
        self.columns = [recipe.feature_layers.index(layer) for layer in recipe.layers]
        items = index(samples, [length(path, "answers") for path in shards(recipe.data)])
        self.train_set, self.held_out = [items[place] for place in training], [items[place] for place in kept]
        self.batches = _schedule(self.train_set, recipe)
        self.data_fingerprint = fingerprint(recipe.data)
        ids = self.drafter.draft_ids
        self.coverage = float(counts[ids].sum() / counts.sum())
        say(f"{len(self.train_set)} samples, {len(self.batches)} steps, draft vocabulary covers {self.coverage:.2%}")
        self.scale = condition(self.drafter, *self._states(items), fresh=recipe.start is None).to(self.device)
        self.drafter.to(self.device)
        self.head = self.target.head[ids.to(self.device)].to(self.dtype)
        self.optimizers = optimizers(self.drafter, recipe.optimizer, recipe.learning_rate, recipe.betas, recipe.weight_decay)
        self.identity = recipe.model_dump(mode="json", exclude={"target", "data", "features", "checkpoint_every"})
        self.identity["data_fingerprint"] = self.data_fingerprint
        self.mask = Mask(recipe.curriculum.mask, recipe.curriculum.selection, recipe.seed, self.device)
        self.step = checkpoint.restore(self._checkpoint, self.drafter, self.optimizers, self.mask, self.identity)
        if set(self.ranks.gather(self.step)) != {self.step}:
            raise UserError(f"not every process sees checkpoint {self._checkpoint}; give an --out on a disk that all share")
        self.ranks.copy(self.drafter.state_dict().values())
        self.unrolled = 0
        self.seconds = 0.0
        if self.step:
            say(f"resuming after step {self.step}")

    @property
    def _checkpoint(self) -> Path:
        return self.out.with_name(self.out.name + ".checkpoint.safetensors")

    def run(self, shown: Callable[[Progress], None]) -> Evaluation:
        """Trains to the end, exports to `out`, and returns the last held-out evaluation (r = 0, full depth)."""
        steps = len(self.batches)
        evaluation = None
        while self.step < steps:
            begun = time.monotonic()
            loss, acceptance, tokens = self._advance()
            seconds = time.monotonic() - begun
            self.seconds += seconds
            evaluation = None
            if self.step % self.recipe.evaluate_every == 0 or self.step == steps:
                evaluation = self.evaluate()
            if self.ranks.first and (self.step % self.recipe.checkpoint_every == 0 or self.step == steps):
                checkpoint.save(self._checkpoint, self.drafter, self.optimizers, self.mask, self.step, self.identity)
            rate = self.optimizers[0].param_groups[0]["lr"]
            shown(Progress(self.step, steps, loss, acceptance, tokens, rate, seconds, evaluation))
        final = evaluation or self.evaluate()
        if self.ranks.first:
            export(self.drafter.config, folded(self.drafter, self.scale), self.out, self._provenance(final))
        return final

    def evaluate(self) -> Evaluation:
        """The held-out samples at full depth and without a mask."""
        groups = plan(self.held_out, self.recipe.batch_tokens, self.recipe.seed, 0)
        batches = (self._load(group) for group in groups)
        return evaluate(self.drafter, self.target.embedding, batches, self.recipe.max_depth, self.dtype)

    def _advance(self) -> tuple[float, list[float], int]:
        recipe, items = self.recipe, self.batches[self.step]
        unrolled = depth(recipe.curriculum, self.step / len(self.batches), recipe.max_depth)
        rows = drafted(len(items), unrolled, recipe.going_on)
        counts = positions(items, rows)
        for group in itertools.chain.from_iterable(each.param_groups for each in self.optimizers):
            group["lr"] = recipe.learning_rate * schedule.share(self.step, len(self.batches), recipe.warmup)
        self.drafter.zero_grad(set_to_none=True)
        loss, right, compared = (torch.zeros(size, device=self.device) for size in (1, unrolled, unrolled))
        longest = max(item.chains for item in items)
        # A part is every stride-th sample: the first of a batch, which are drafted deeper, are spread evenly.
        stride = self.ranks.count * recipe.accumulate
        parts = {
            place: prepare(self.drafter, self.head, self._load(items[place::stride], longest), recipe.loss)
            for place in range(self.ranks.rank, min(stride, len(items)), self.ranks.count)
        }
        kept = self._select({place: part.entropies() for place, part in parts.items()}, stride)
        for place, part in parts.items():
            result = training_loss(
                self.drafter,
                self.target.embedding,
                part,
                kept[place],
                [len(range(place, count, stride)) for count in rows],
                counts,
                recipe.depth_decay,
                self.dtype,
                recipe.loss,
            )
            result.loss.backward()
            loss, right, compared = loss + result.loss.detach(), right + result.right, compared + result.compared
        self.ranks.add([*self._gradients(), loss, right, compared])
        norm = torch.nn.utils.clip_grad_norm_(self.drafter.parameters(), recipe.clip)
        self._check_finite(float(loss), float(norm))
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        self.unrolled += unrolled
        return float(loss), (right / compared.clamp_min(1)).tolist(), counts[0]

    def _select(self, entropies: dict[int, list[torch.Tensor]], stride: int) -> dict[int, torch.Tensor]:
        """Which tokens of this process's parts are kept, by the entropies of the whole batch's."""
        share = masked_share(self.recipe.curriculum, self.step / len(self.batches))
        mine = {place + row * stride: part.cpu() for place, parts in entropies.items() for row, part in enumerate(parts)}
        whole = {sample: part for found in self.ranks.gather(mine) for sample, part in found.items()}
        order = sorted(whole)
        kept = self.mask.keep(torch.cat([whole[sample] for sample in order]).to(self.device), share, self.step)
        by_sample = dict(zip(order, kept.split([len(whole[sample]) for sample in order]), strict=True))
        return {place: torch.cat([by_sample[sample] for sample in order if sample % stride == place]) for place in entropies}

    def _gradients(self) -> list[torch.Tensor]:
        """Of every parameter; nil where this process had no sample."""
        for parameter in self.drafter.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return [parameter.grad for parameter in self.drafter.parameters() if parameter.grad is not None]

    def _check_finite(self, loss: float, norm: float) -> None:
        """Stops before such a step would spoil the weights; the checkpoint is of an earlier one."""
        if math.isfinite(loss) and math.isfinite(norm):
            return
        places: dict[str, list[int]] = {}
        for item in self.batches[self.step]:
            places.setdefault(shards(self.recipe.data)[item.shard].name, []).append(item.place)
        named = "; ".join(f"{shard}: {', '.join(map(str, sorted(found)))}" for shard, found in sorted(places.items()))
        raise UserError(
            f"step {self.step + 1} has loss {loss} and gradient norm {norm}: its samples, by shard and place, are {named}. "
            "No weight was changed by them. Look at these samples and their features; if they are in order, lower "
            "learning_rate, or set precision to float32, and give another --out"
        )

    def _load(self, items: list[Indexed], chains: int = 0) -> Batch:
        batch = collate(items, self.features.read(items, self.columns), chains).to(self.device)
        return dataclasses.replace(
            batch, hidden=(batch.hidden * self.scale).to(self.dtype), final=batch.final.to(self.dtype)
        )

    def _features(
        self, positions: int, say: Callable[[str], None], collected: Callable[[int, int], None]
    ) -> Features | Online:
        """What the target thinks of the text: written by the first process and read by all, or as it is asked for."""
        recipe = self.recipe
        if recipe.features is None:
            say(f"{recipe.target} runs beside the drafter, since the recipe names no `features` folder")
            return Online(recipe.target, recipe.feature_layers, self.device)
        if self.ranks.first:
            size = (self.target.config.hidden_size, len(recipe.feature_layers))
            needed = size_in_bytes(positions, *size)
            say(f"hidden states of {positions} positions need {needed / 2**30:.1f} GiB in {recipe.features}")
            require_room(recipe.data, recipe.features, *size)
            places = (recipe.target, recipe.data, recipe.features)
            collect(*places, recipe.feature_layers, self.device, lambda count: collected(count, positions))
        self.ranks.gather(None)  # the others wait
        return Features(recipe.features, len(shards(recipe.data)))

    def _states(self, items: list[Indexed]) -> tuple[torch.Tensor, torch.Tensor]:
        """The captured states of the first shard, and where its samples begin."""
        first = [item for item in items if item.shard == 0]
        states = self.features.read(first, self.columns)
        return torch.cat([part["hidden"].cpu() for part in states]), torch.tensor([item.begin for item in first])

    def _start(self) -> dict[str, Any]:
        """What the run went on from, and the answer tokens trained on in all."""
        own = sum(item.chains for batch in self.batches[: self.step] for item in batch)
        if self.recipe.start is None:
            return {"trained_tokens": own}
        folder = resolve(self.recipe.start)
        path = folder / "provenance.json"
        made = json.loads(path.read_text()) if path.exists() else {}
        start = {"drafter": folder.name, "version": version(folder), "provenance": made}
        return {"start": start, "trained_tokens": trained_tokens(made) + own}

    def _provenance(self, evaluation: Evaluation) -> dict:
        return {
            **environment(),
            "recipe": self.recipe.model_dump(mode="json"),
            **self._start(),
            "data": {
                "fingerprint": f"sha256:{self.data_fingerprint}",
                "samples": len(self.train_set),
                "answer_tokens": sum(item.chains for item in self.train_set),
                "made_with": metadata(self.recipe.data),
            },
            "seed": self.recipe.seed,
            "steps": self.step,
            "processes": self.ranks.count,
            "unroll_steps_since_resume": self.unrolled,
            "train_seconds_since_resume": round(self.seconds, 1),
            "draft_vocabulary_coverage": self.coverage,
            "parameters": sum(parameter.numel() for parameter in self.drafter.parameters()),
            "held_out": {"samples": len(self.held_out), "temperature": 0.0, **dataclasses.asdict(evaluation)},
        }


def _check_layers(recipe: Recipe, count: int) -> None:
    for layer in (*recipe.layers, *recipe.feature_layers):
        if not 0 <= layer < count:
            raise UserError(f"layer {layer} is out of range; {recipe.target} has inputs of layers 0 to {count - 1}")
    if missing := set(recipe.layers) - set(recipe.feature_layers):
        raise UserError(f"layers {sorted(missing)} are not in feature_layers {list(recipe.feature_layers)}; add them there")


def _schedule(items: list[Indexed], recipe: Recipe) -> list[list[Indexed]]:
    batches: list[list[Indexed]] = []
    whole = math.ceil(recipe.epochs)
    for epoch in range(whole):
        batches += plan(items, recipe.batch_tokens, recipe.seed, epoch)
    return batches[: max(1, round(len(batches) * recipe.epochs / whole))]


def _config(recipe: Recipe, target: TargetEnds) -> DrafterConfig:
    config = DrafterConfig.of_target(
        target.config, recipe.target_name, recipe.drafter, recipe.layers, recipe.draft_vocab_size
    )
    if recipe.intermediate_size:
        config = config.model_copy(update={"intermediate_size": recipe.intermediate_size})
    return config


def _fresh(recipe: Recipe, target: TargetEnds, counts: torch.Tensor) -> Drafter:
    """A new drafter whose draft vocabulary are the tokens of the largest `counts`."""
    ids = draft_vocabulary(counts, recipe.draft_vocab_size)
    drafter = build(_config(recipe, target), ids)
    with torch.no_grad():
        # The draft head starts as the target's own rows: a drafter that finds the target's state is then right at once.
        drafter.lm_head.weight.copy_(target.head[ids.to(target.head.device)])
        drafter.norm.weight.copy_(target.norm)
    return drafter


def _started(recipe: Recipe, target: TargetEnds) -> Drafter:
    """The drafter that `recipe.start` names. Raises UserError where the recipe describes another one."""
    assert recipe.start is not None
    folder = resolve(recipe.start)
    if "edsd" not in check(folder):
        raise UserError(
            f"start {folder} was not exported by `vllm-edsd train` (its config.json has no `edsd`), and only such can be "
            "trained on; leave start out"
        )
    drafter = load(folder)
    wanted = _config(recipe, target).model_dump()
    for key, value in drafter.config.model_dump().items():
        if value != wanted[key]:
            raise UserError(
                f"start {recipe.start} has {key} {value!r}, and this recipe makes a drafter with {wanted[key]!r}; "
                "make the recipe like it, or leave start out"
            )
    return drafter
