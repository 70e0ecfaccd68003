"""How to learn a schedule: every choice of a search, with the defaults that win."""

import dataclasses
from typing import Any, Self

from diffrate_jax.data.augment import IMAGENET, Augment
from diffrate_jax.errors import UserError, did_you_mean
from diffrate_jax.rules import rule_of
from diffrate_jax.schedule import Schedule

CHOICES = {
    "method": ("projected", "penalised"),
    "objective": ("match_logits", "match_dense", "cross_entropy"),
    "blocks": ("all", "model"),
    "penalty_unit": ("relative", "gmacs"),
}


def imagenet_colours() -> Augment:
    """Returns ImageNet's mean and standard deviation, and no augmentation."""
    return Augment(**IMAGENET)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to learn a schedule; `Recipe.published()` has DiffRate's choices.

    Attributes:
        steps: gradient steps for each target.
        rule: name of the rule that chooses the tokens (`rules`).
        method: "projected" moves one expected count per block along the budget
            (`learning.projected`); "penalised" moves logits over all candidates with a
            penalty on the cost (`learning.penalised`, the published method).
        objective: the distance from the dense model's logits, "match_logits", or the
            divergence from its probabilities, "match_dense", which need no labels; or
            "cross_entropy", the loss with labels (`learning.objective`).
        start: "uniform", "dense", or a schedule.
        blocks: which may compress: "all" of a model that does not say itself, or just
            those of the "model" (`ViT.compress`; by default not the first).
        learning_rate: at the start; of AdamW on logits, or the share of a model's
            patches by which a projected count moves in a step.
        final_learning_rate: at the end of the cosine.
        tighten: share of the steps in which the budget goes from the start's cost to
            the target (projected).
        spread: scale of the distribution over counts at the start, in tokens
            (projected).
        final_spread: at the end of a geometric line.
        granularity: step between candidate counts, in tokens (penalised).
        penalty: weight of the squared distance between cost and target (penalised).
        penalty_unit: what cost is measured in there: "relative" scales the model's
            dense cost to DeiT-S's 4.6, "gmacs" is the published absolute unit.
        reference: reproduce the published search path (see `Masked`).
        refine_images: held-out images by which counts are refined, by the first 1,024
            alone and then by all; 0: none.
        drop_path: largest rate of stochastic depth.
        remat: compute each block again for its gradient, instead of keeping it.
        augment: what happens to uint8 images and to integer labels on the device.
        seed: of everything random in a step.

    Raises:
        UserError: a value that no search can use.
    """

    steps: int = 500
    rule: str = "redundancy"
    method: str = "projected"
    objective: str = "match_logits"
    start: str | Schedule = "uniform"
    blocks: str = "all"
    learning_rate: float = 0.01
    final_learning_rate: float = 0.0
    tighten: float = 0.25
    spread: float = 2.0
    final_spread: float = 0.5
    granularity: int = 1
    penalty: float = 5.0
    penalty_unit: str = "relative"
    reference: bool = False
    refine_images: int = 4096
    drop_path: float = 0.0
    remat: bool = False
    augment: Augment = dataclasses.field(default_factory=imagenet_colours)
    seed: int = 0

    @classmethod
    def published(cls, **changes: Any) -> Self:
        """Returns DiffRate's rule, method, objective, start and rates (section 4.1)."""
        published = {
            "rule": "diffrate",
            "method": "penalised",
            "objective": "cross_entropy",
            "blocks": "model",
            "final_learning_rate": 0.001,
            "refine_images": 0,
        }
        return cls(**(published | changes))

    def __post_init__(self) -> None:
        for field, choices in CHOICES.items():
            value = getattr(self, field)
            if value not in choices:
                hint = did_you_mean(str(value), choices)
                raise UserError(f"{field} cannot be {value!r}; {hint}")
        if isinstance(self.start, str) and self.start not in ("uniform", "dense"):
            raise UserError(
                f"start is 'uniform', 'dense' or a schedule, got {self.start!r}"
            )
        if self.reference and (self.rule, self.method) != ("diffrate", "penalised"):
            raise UserError(
                "reference=True is the published search, which has rule 'diffrate' and "
                f"method 'penalised', got {self.rule!r} and {self.method!r}"
            )
        rule_of(self.rule)
        self._check_numbers()

    def _check_numbers(self) -> None:
        if self.steps < 1:
            raise UserError(f"steps must be at least 1, got {self.steps}")
        for field in ("learning_rate", "spread", "final_spread"):
            if not getattr(self, field) > 0:
                raise UserError(f"{field} must be above 0, got {getattr(self, field)}")
        for field in ("final_learning_rate", "penalty", "refine_images"):
            if not getattr(self, field) >= 0:
                raise UserError(
                    f"{field} must not be negative, got {getattr(self, field)}"
                )
        for field in ("tighten", "drop_path"):
            if not 0 <= getattr(self, field) < 1:
                raise UserError(
                    f"{field} must lie from 0 to below 1, got {getattr(self, field)}"
                )
