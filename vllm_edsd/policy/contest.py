"""Which way of decoding is faster, with drafts or without: found out as one goes, at little cost [ours]."""

from collections.abc import Callable

from vllm_edsd.policy.base import Step
from vllm_edsd.policy.pace import Pace

TRIAL = {True: 12, False: 6}  # steps of the other way at a time; those that draft vary more in what they emit
FIRST = 12  # steps before the first trial, and the least between two
DOUBTED = 96  # the same where drafting lost with fewer requests, or promises a loss
SHARE = 0.005  # of the time may be lost to trials
BEGIN = 0.02  # of the time of plain steps to the drafter's reading before a trial; copies and prompts take time as well
LONGEST = 4096  # at most so many steps between two trials
COLD = {True: 4, False: 1}  # first steps of a way that do not count: caches fill
ENOUGH = {True: 24, False: 8}  # steps of a way before it is judged; SOON do where one way is clearly slower
SOON = {True: 8, False: 4}
CLEARLY = 1.3  # times; then short trials do as well, and a way that has become so much slower is not waited with
SHORT = 4
MARGIN = 0.01  # the ways change places only for more than this, relative


class Contests:
    """A contest for each power of two of the batch size."""

    def __init__(self) -> None:
        self.sizes: dict[int, Contest] = {}

    def of(self, requests: int, promise: Callable[[int], float] = lambda requests: 1.0) -> "Contest":
        """The one for so many requests; a new one starts with drafts unless `promise`, as a policy's, is below 1."""
        size = requests.bit_length()
        if size not in self.sizes:
            # Drafting pays less, the more requests there are: where it lost with fewer, a new size starts without.
            fewer = [known for known in self.sizes if known < size]
            lost = bool(fewer) and not self.sizes[max(fewer)].drafts
            self.sizes[size] = Contest(not lost and promise(requests) >= 1)
        return self.sizes[size]


class Contest:
    """One batch size: which way is used, and what either gave.

    It keeps tokens per second of both and tries the slower one the more rarely the slower it is.
    """

    def __init__(self, drafts: bool) -> None:
        self.drafts = drafts
        self.ways = {way: Pace(COLD[way]) for way in (True, False)}
        self.current = self.before = drafts
        self.until_trial = FIRST if drafts else DOUBTED
        self.trials = 0
        self.trial = 0
        self.judging = False
        self.later = 0.0
        self.passed = 0.0  # seconds of the steps since the last trial

    def next(self, later: float = 0.0, now: float = 0.0) -> bool:
        """Whether the next step drafts, which costs time beside its steps: `later` and `now` as in `DraftPolicy.reads`."""
        self.later = later
        if self.judging and not self.trial:
            self._judge()
        due = self.until_trial <= 0 and (self.drafts or now <= BEGIN * self.passed)
        if not self.trial and (due or (self._ratio() or 1.0) < 1 / CLEARLY):
            self.trial, self.judging, self.passed = self._trial_steps(), True, 0.0
        self.before = self.current
        if self.trial:
            self.trial -= 1
            self.current = not self.drafts
        else:
            self.until_trial -= 1
            self.current = self.drafts
        return self.current

    @property
    def changed(self) -> bool:
        """Whether the way has just changed: such a step verified what the other had drafted, or was the first to draft."""
        return self.current != self.before

    def learn(self, drafts: bool, step: Step) -> None:
        """What a step with drafts, or without, gave; those that `changed` count for neither."""
        if self.ways[drafts].add(step) and not self.trial:
            self.passed += step.seconds

    def speeds(self) -> dict[str, float]:
        """Tokens per second with drafts ("draft") and without ("plain"), as far as known."""
        names = {True: "draft", False: "plain"}
        return {names[way]: 1 / self._cost(way) for way, held in self.ways.items() if held.steps > 0}

    def _judge(self) -> None:
        self.judging = False
        self.trials += 1
        self.until_trial = FIRST
        ratio = self._ratio()
        clear = ratio is not None and not 1 / CLEARLY < ratio < CLEARLY
        if ratio is None or (not clear and any(self.ways[way].steps < ENOUGH[way] for way in (True, False))):
            return
        if ratio < 1 - MARGIN:
            self.drafts, self.trials, ratio = not self.drafts, 0, 1 / ratio
        lost = self._trial_steps() * (ratio - 1)
        # Little is known after few trials: unless the matter is clear, the next ones come soon all the same.
        most = LONGEST if clear else FIRST << min(self.trials, 10)
        self.until_trial = int(min(max(lost / SHARE, FIRST), most, LONGEST))

    def _ratio(self) -> float | None:
        """What a token costs the other way, in what it costs this way; None while little is known."""
        if any(self.ways[way].steps < SOON[way] for way in (True, False)):
            return None
        return self._cost(not self.drafts) / self._cost(self.drafts)

    def _cost(self, way: bool) -> float:
        """Seconds for each token emitted."""
        return self.ways[way].seconds_per_token() + self.later * way

    def _trial_steps(self) -> int:
        return SHORT if (self._ratio() or 1.0) > CLEARLY else TRIAL[not self.drafts]
