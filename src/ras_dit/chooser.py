"""Which tokens the next evaluation computes: what is learned from guided noise, and the choice made of it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ras_dit import importance, selection
from ras_dit.config import RASConfig
from ras_dit.forecast import TokenHistory
from ras_dit.geometry import TokenGrid
from ras_dit.kernels import Operations
from ras_dit.plan import Plan, reference_cut, reference_num_skip
from ras_dit.rows import sent


class TokenChooser:
    """Chooses the active tokens of one run, step by step.

    Args:
        config: the user's choice.
        plan: says how many tokens every evaluation computes.
        grid: token grid of the latents.
        sigmas: S + 1 noise levels.
        note: called with what a user should know.
        num_first: tokens at the beginning of the grid that every step computes.
        has_own_sets: whether every image of a batch has an active set of its own.
        allowed: tokens inside a region of interest, bool [1 or images, N]; None for all.
        operations: kernels of this run; None for torch.
        score: ranks the tokens in the place of the config's importance; None for that.
    """

    def __init__(
        self,
        config: RASConfig,
        plan: Plan,
        grid: TokenGrid,
        sigmas: list[float],
        note: Callable[..., None],
        num_first: int = 0,
        has_own_sets: bool = True,
        allowed: torch.Tensor | None = None,
        operations: Operations | None = None,
        score: importance.Score | None = None,
    ) -> None:
        self.config = config
        self.plan = plan
        self.grid = grid
        self.sigmas = sigmas
        self.note = note
        self.num_first = num_first
        self.has_own_sets = has_own_sets
        self._allow(allowed)
        self.operations = operations
        self._score = score
        self.forget()

    def forget(self) -> None:
        """Free everything that was learned."""
        self.forget_noise()
        self._age: torch.Tensor | None = None  # evaluations since a token was computed [images, N]
        self._drop_count: torch.Tensor | None = None  # [images, N], reference rules

    def forget_noise(self) -> None:
        """What comes is of another text. The next evaluation to learn from has to be a dense one."""
        self._guided = TokenHistory(depth=2)

    @property
    def has_learned(self) -> bool:
        return self._age is not None

    @property
    def no_tokens(self) -> torch.Tensor:
        """A mask [images, N] without any."""
        assert self._age is not None
        return torch.zeros_like(self._age, dtype=torch.bool)

    def _allow(self, allowed: torch.Tensor | None) -> None:
        """Tokens that region steps may compute, bool [1 or images, N]; None for all."""
        self.allowed = allowed
        self._num_outside = 0 if allowed is None else int((~allowed).sum(dim=1).max())

    def learn(self, model_output: torch.Tensor, index: int, is_active: torch.Tensor | None) -> None:
        """Take in the guided noise of an evaluation.

        Args:
            model_output: in any form that `TokenGrid` knows.
            index: of the evaluation.
            is_active: tokens that it computed [images, N]; None for all.
        """
        if self._age is None:
            size = (model_output.shape[0], self.grid.num_tokens)
            self._age = torch.zeros(size, device=model_output.device)
            if num_given := self.grid.count_given(model_output):
                is_sampled = (torch.arange(self.grid.num_tokens) >= num_given)[None]
                self._allow(is_sampled if self.allowed is None else self.allowed.cpu() & is_sampled)
            self._drop_count = torch.full(size, -(len(self.plan) + 1), device=model_output.device)
        if self.config.importance == "error" or self.config.refresh_tolerance is not None or self._score is not None:
            self._guided.record(self.grid.patchify(model_output), self.sigmas[index], is_active)
        waited = self._age + 1
        self._age = torch.zeros_like(waited) if is_active is None else waited.masked_fill(is_active, 0)

    def choose(self, model_output: torch.Tensor, sample: torch.Tensor, index: int) -> torch.Tensor:
        """Active token ids of an evaluation [images, K], ascending.

        Args:
            model_output: guided noise of the evaluation before it.
            sample: the latents that were to be advanced with it.
            index: of the evaluation to choose for.
        """
        assert self._age is not None
        config, step = self.config, self.plan[index]
        if config.rules == "reference":
            return self._choose_by_reference(model_output, index)
        top_k = selection.top_k if self.operations is None else self.operations.top_k
        if self._score is not None:
            return top_k(self._settled(self._own_score(model_output, sample, step.index), step.index), step.num_active)
        if config.importance in ("std", "l2norm"):
            metric = importance.displacement_metric(model_output.float(), self.grid, config.importance)  # type: ignore[arg-type]
            score = importance.starved(metric, self._age, config.starvation_scale)
            score = -self._settled(-score, step.index)  # these rank the wanted ones low
            num_drop = self.grid.num_tokens - step.num_active
            num_high = min(num_drop, max(round(num_drop * config.high_ratio), self._num_outside))
            if num_high < num_drop:
                score = self._without_lowest(score, step.index, num_drop - num_high)
            return selection.drop_ends(score, 0, num_drop)
        if config.importance == "error":
            score = self._predicted_error(self.sigmas[step.index])
        else:
            score = self._shuffled(model_output.device, step.index)
            if config.importance == "round_robin":
                score = score + self._age
        return top_k(self._settled(score, step.index), step.num_active)

    def _own_score(self, model_output: torch.Tensor, sample: torch.Tensor, index: int) -> torch.Tensor:
        """What the user's function makes of what is known [images, N]."""
        assert self._score is not None
        assert self._age is not None
        noise = self.grid.patchify(model_output)
        given = importance.ScoreInputs(
            noise=noise,
            latents=self.grid.patchify(sample),
            values=self._guided.values,
            value_sigmas=self._guided.sigmas,
            age=self._age,
            sigma=self.sigmas[index],
            next_sigma=self.sigmas[index + 1],
            index=index,
            num_active=self.plan[index].num_active,
            grid=self.grid,
        )
        score = self._score(given)
        expected = tuple(noise.shape[:2])
        if not isinstance(score, torch.Tensor) or tuple(score.shape) != expected:
            got = f"a tensor {list(score.shape)}" if isinstance(score, torch.Tensor) else type(score).__name__
            raise ValueError(f"score: got {got}; allowed: a tensor [images, tokens], here {list(expected)}.")
        if bool(score.isnan().any()):  # it would rank highest
            raise ValueError("score: got NaN; allowed: numbers. (value_sigmas is NaN where a token was computed once.)")
        return score.to(device=noise.device, dtype=torch.float32)

    def _predicted_error(self, sigma: float) -> torch.Tensor:
        """`importance.predicted_error` of what was learned [images, N]."""
        if self.operations is None:
            return importance.predicted_error(self._guided, sigma)
        return self.operations.predicted_error(self._guided.values, self._guided.sigmas, sigma)

    def predicted_error(self, index: int, active: torch.Tensor | None) -> float:
        """How far the noise of an evaluation will be off where it is not computed, as a share of the noise: the root
        mean square over the tokens of the worst image.

        Args:
            index: of the evaluation.
            active: tokens that it would compute [images, K]; None for none.
        """
        error = self._predicted_error(self.sigmas[index])
        if active is not None:
            error = error.scatter(1, active, 0)
        noise = self._guided.values[0].norm(dim=-1)
        return float((error.square().sum(dim=1) / noise.square().sum(dim=1)).sqrt().max())

    def _settled(self, score: torch.Tensor, index: int) -> torch.Tensor:
        """The score after what user and model ask for: neighbours alike, anchors, a region, one set for all images,
        tokens that every step computes.

        Args:
            score: [images, N], high where a token is wanted.
            index: of the evaluation.
        """
        if self.config.score_filter is not None:
            score = importance.filtered(score, self.grid, self.config.score_filter)
        score = self._shared(score)
        is_anchor = self._anchors(index, score.device)
        if is_anchor is not None:
            above = score.amax(dim=1, keepdim=True) - score.amin(dim=1, keepdim=True) + 1
            score = torch.where(is_anchor, score + above, score)  # in their order, if they are too many
        if self.allowed is not None:
            score = score.masked_fill(~self._allowed_in(score), -torch.inf)
        if self.num_first:
            score = score.clone()
            score[:, : self.num_first] = torch.inf
        return score

    def _shared(self, score: torch.Tensor) -> torch.Tensor:
        """The mean score for all images [images, N] where they have one set of tokens."""
        if self.has_own_sets or score.shape[0] == 1:
            return score
        if not self.config.shared_active_set:
            self.note(
                "All images of this batch share one active set: their arguments cannot be taken apart, or layers are "
                "offloaded one by one.",
                is_warning=False,
            )
        return score.mean(dim=0, keepdim=True).expand_as(score)

    def _anchors(self, index: int, device: torch.device) -> torch.Tensor | None:
        """Tokens of an evaluation that are computed whatever they score, bool [N]; None without any."""
        stride = self.config.anchor_stride
        if stride is None:
            return None
        turn = sum(step.kind == "region" for step in self.plan.steps[:index])
        return importance.anchors(self.grid, stride, turn, device)

    def _without_lowest(self, score: torch.Tensor, index: int, num_low: int) -> torch.Tensor:
        """A score that ranks the wanted ones low, with the lowest put behind all others: but for tokens that are
        computed whatever they score."""
        ranked, is_anchor = score, self._anchors(index, score.device)
        if is_anchor is not None:
            ranked = ranked.masked_fill(is_anchor, torch.inf)
        if self.num_first:
            ranked = ranked.clone()
            ranked[:, : self.num_first] = torch.inf
        lowest = ranked.sort(dim=-1, stable=True).indices[:, :num_low]
        return score.scatter(1, lowest, torch.inf)

    def _allowed_in(self, score: torch.Tensor) -> torch.Tensor:
        """The tokens that may be computed, bool [images, N]."""
        assert self.allowed is not None
        allowed = self.allowed = sent(self.allowed, score.device)
        num_images = score.shape[0]
        return allowed.repeat(num_images // allowed.shape[0], 1) if num_images % allowed.shape[0] == 0 else allowed[:1]

    def _shuffled(self, device: torch.device, index: int) -> torch.Tensor:
        """Distinct random numbers in [0, 1) for every token [images, N]; round_robin keeps one order for the run."""
        assert self._age is not None
        is_fixed = self.config.importance == "round_robin"
        seed = self.config.seed * 1_000_003 + (0 if is_fixed else index)
        generator = torch.Generator("cpu").manual_seed(seed % 2**63)
        numbers = torch.rand(self._age.shape, generator=generator, device="cpu")
        return sent(numbers, device)

    def _choose_by_reference(self, model_output: torch.Tensor, index: int) -> torch.Tensor:
        assert self._drop_count is not None
        config, num_steps = self.config, len(self.plan)
        displacement = (self.sigmas[index] - self.sigmas[index - 1]) * model_output
        metric = importance.displacement_metric(displacement, self.grid, config.importance)  # type: ignore[arg-type]
        score = importance.reference_starved(metric, self._drop_count, config.starvation_scale)
        score = self._shared(score)
        num_skip = reference_num_skip(config, index, num_steps, self.grid.num_tokens)
        active = selection.drop_ends(score, *reference_cut(config, num_skip))
        is_dropped = ~selection.membership(active, self.grid.num_tokens)
        self._drop_count = self._drop_count + is_dropped.to(self._drop_count.dtype)
        return active
