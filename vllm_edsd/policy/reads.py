"""What a drafter reads beside drafting: prompts, and what was decoded while it rested [ours]."""

REQUESTS = 64  # newest finished requests by whose prompts the next ones' are foreseen
PASSES = 16  # newest passes by which the next ones are


class Reads:
    """Seconds that reading takes, of tokens that wait and for each token emitted; 0 until something was read."""

    def __init__(self) -> None:
        self.tokens = self.taken = 0.0  # read by the newest passes, and their seconds
        self.prompts = self.emitted = 0.0  # tokens, of the newest requests

    def took(self, tokens: int, seconds: float) -> None:
        """A pass that only read so many tokens."""
        stays = 1 - 1 / PASSES
        self.tokens, self.taken = self.tokens * stays + tokens, self.taken * stays + seconds

    def decoded(self, tokens: int) -> None:
        """So many were emitted by steps of a kind that drafting would make faster."""
        self.emitted += tokens

    def finished(self, prompt: int) -> None:
        """A request is done whose prompt had so many tokens."""
        stays = 1 - 1 / REQUESTS
        self.prompts, self.emitted = self.prompts * stays + prompt, self.emitted * stays

    def seconds(self, tokens: float) -> float:
        """What reading so many takes."""
        return tokens * self.taken / self.tokens if self.tokens else 0.0

    def per_token(self) -> float:
        """What reading the prompts takes for each token that drafting can make faster."""
        return self.seconds(self.prompts / self.emitted) if self.emitted else 0.0
