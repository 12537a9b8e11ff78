"""Every unlearning method: one function each, and the table that names them.

A loss maps scored answer tokens to one term a sequence ([S]) or one a token ([T]); the training step sums the
terms, divides by the number of sequences or tokens in the *whole* batch (all workers, all micro-batches), and
adds `retain_weight` times the retain loss. A function's keyword-only arguments are its hyperparameters, its
defaults the paper's. Signs are such that every loss is minimised. What a method reads beyond log-probs it
declares in its line, and only that is computed.

Shapes: T answer tokens, S sequences, V vocabulary, H hidden size.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import get_type_hints

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ray_unlearn.config import METHOD_TITLES, Range, TrialConfig, UserError
from ray_unlearn.models.logprobs import DISTRIBUTION, HIDDEN, LOGPROBS
from ray_unlearn.plugins import METHOD, installed, load_installed

SEQUENCE, TOKEN = "sequence", "token"
FORGET, ALTERNATE = "forget", "alternate"
EACH_STEP = "dual_each_step"
"""A retain rule's parameter: whether it is applied after every step in place of every epoch."""


@dataclass(frozen=True)
class ScoredTokens:
    """The answer tokens of one set in one micro-batch, under the model that is trained.

    logprobs: [T] log p(y_t | x, y_<t), natural log, at least fp32; sequence: int64 [T], the sequence of each
    token, in 0..S-1; lengths: int64 [S], answer tokens of each sequence (0 where all are masked); targets:
    int64 [T], the tokens themselves; reference: [T], their log-probs under the starting model;
    log_distribution, reference_distribution: [T, V] log-softmax; hidden, reference_hidden: [T, H], the
    output of one layer at the positions that predict the tokens. What was not asked for is None.
    """

    logprobs: Tensor
    sequence: Tensor
    lengths: Tensor
    targets: Tensor | None = None
    reference: Tensor | None = None
    log_distribution: Tensor | None = None
    reference_distribution: Tensor | None = None
    hidden: Tensor | None = None
    reference_hidden: Tensor | None = None

    def sum(self, values: Tensor) -> Tensor:
        """Sum token values [T] by sequence -> [S]."""
        return values.new_zeros(len(self.lengths)).index_add(0, self.sequence, values)

    def mean(self, values: Tensor) -> Tensor:
        """Mean of token values [T] by sequence -> [S]; 0 for a sequence without answer tokens."""
        return self.sum(values) / self.lengths.clamp(min=1)

    @property
    def present(self) -> Tensor:
        """1 for sequences with answer tokens, 0 for those without, [S]."""
        return (self.lengths > 0).to(self.logprobs.dtype)

    def log_ratio(self) -> Tensor:
        """log p(y|x) - log p_ref(y|x), summed over the answer, [S]."""
        return self.sum(self.logprobs - given(self.reference, "reference log-probs"))


def given(value: Tensor | None, what: str) -> Tensor:
    """Raises ValueError where a method reads what its line in the table does not declare."""
    if value is None:
        raise ValueError(f"the {what} were not computed: declare them in the method's line of the table")
    return value


def at_least_fp32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def expectation(probabilities: Tensor, values: Tensor) -> Tensor:
    """Sum of p times value over the vocabulary, [T, V] -> [T]; what has probability 0 counts 0, even at -inf."""
    return (probabilities * values.masked_fill(probabilities == 0.0, 0.0)).sum(-1)


def simnpo(forget: ScoredTokens, *, beta: float = 2.5, gamma: float = 0.0) -> Tensor:
    """SimNPO, [S]: -(2/beta) log sigmoid((beta/|y|) NLL - gamma).

    The margin is outside beta, as in the paper (arXiv:2410.07163, equation 4); code that places it inside
    takes gamma / beta. |y| counts predicted tokens.
    """
    return -2.0 / beta * logsigmoid(-beta * forget.mean(forget.logprobs) - gamma) * forget.present


def simnpo_token(forget: ScoredTokens, *, beta: float = 2.5, gamma: float = 0.0) -> Tensor:
    """SimNPO with every token its own sequence of length 1, [T]."""
    return -2.0 / beta * logsigmoid(-beta * forget.logprobs - gamma)


def npo(forget: ScoredTokens, *, beta: float = 0.1) -> Tensor:
    """NPO, [S]: -(2/beta) log sigmoid(beta (NLL - NLL_ref)), NLL summed over the answer.

    arXiv:2404.05868, equation 3. At the starting model it is 2 ln 2 / beta.
    """
    return -2.0 / beta * logsigmoid(-beta * forget.log_ratio()) * forget.present


def npo_token(forget: ScoredTokens, *, beta: float = 0.1) -> Tensor:
    """NPO with the log-ratio of every token by itself, [T] (TNPO)."""
    return -2.0 / beta * logsigmoid(-beta * (forget.logprobs - given(forget.reference, "reference log-probs")))


def ga(forget: ScoredTokens) -> Tensor:
    """Gradient ascent, [T]: minus the cross-entropy. Unbounded: the baseline that collapses."""
    return forget.logprobs


def nll(tokens: ScoredTokens) -> Tensor:
    """Cross-entropy, [T]: the usual retain loss, IdkNLL on the refusals, and plain fine-tuning."""
    return -tokens.logprobs


def dpo(forget: ScoredTokens, alternate: ScoredTokens, *, beta: float = 0.1) -> Tensor:
    """DPO, [S]: -(2/beta) log sigmoid(beta (log-ratio of the alternate answer - log-ratio of the true one)).

    arXiv:2305.18290 with the factor 2/beta of NPO, so that the two are comparable; sums over the answers.
    """
    margin = alternate.log_ratio() - forget.log_ratio()
    return -2.0 / beta * logsigmoid(beta * margin) * forget.present


def wga(forget: ScoredTokens, *, beta: float = 1.0) -> Tensor:
    """Weighted gradient ascent, [T]: -p^beta CE with the weight detached (arXiv:2502.19301).

    p^beta is exp(-beta CE), so tokens that are already unlikely weigh little and ascent is bounded.
    """
    return (beta * forget.logprobs).exp().detach() * forget.logprobs


def satimp(forget: ScoredTokens, *, beta1: float = 5.0, beta2: float = 1.0) -> Tensor:
    """SatImp, [T]: -p^beta1 (1 - p)^beta2 CE with the weight detached (arXiv:2505.11953)."""
    p = forget.logprobs.exp()
    return (p**beta1 * (1.0 - p).clamp(min=0.0) ** beta2).detach() * forget.logprobs


def undial(forget: ScoredTokens, *, beta: float = 10.0) -> Tensor:
    """UNDIAL, [T]: cross-entropy to the starting model's distribution with the true token's logit lowered by beta.

    arXiv:2402.10052, equation 3. Only answer tokens count; code that averages over prompts and padding
    computes something else.
    """
    reference = given(forget.reference_distribution, "reference distributions")
    lowered = torch.zeros_like(reference).scatter(1, given(forget.targets, "targets")[:, None], beta)
    teacher = (reference - lowered).softmax(-1)
    return -expectation(teacher, given(forget.log_distribution, "distributions"))


def ceu(forget: ScoredTokens) -> Tensor:
    """CE-U, [T]: cross-entropy to the model's own softmax without the true token (arXiv:2503.01224).

    The teacher is detached. Its gradient vanishes where the true token's probability does.
    """
    log_distribution = given(forget.log_distribution, "distributions")
    masked = log_distribution.detach().scatter(1, given(forget.targets, "targets")[:, None], float("-inf"))
    return -expectation(masked.softmax(-1), log_distribution)


def pdu(forget: ScoredTokens) -> Tensor:
    """PDU's logit-margin flattening, [T]: (largest logit - mean logit)^2 over the vocabulary (arXiv:2506.05314).

    It is 0 where the distribution is uniform, whatever the true token. Only answer tokens count; code that averages
    over prompts and padding computes something else.
    """
    logits = given(forget.log_distribution, "distributions")  # but for a constant, which the difference does without
    return (logits.amax(-1) - logits.mean(-1)).square()


def rmu(forget: ScoredTokens, *, steering: float = 20.0) -> Tensor:
    """RMU's forget term, [S]: mean squared distance of a layer's output to `steering` times a fixed direction.

    arXiv:2403.03218, equation 1: the mean over a sequence's tokens, then over sequences; u is a unit vector drawn once
    from the uniform distribution on [0, 1)^H with a fixed seed. The mean is also over the H components, as in the
    authors' code. The coefficient c is `steering`.
    """
    hidden = at_least_fp32(given(forget.hidden, "hidden states"))
    goal = steering * rmu_direction(hidden.shape[-1]).to(hidden)
    return forget.mean((hidden - goal).square().mean(-1)) * forget.present


def rmu_direction(size: int) -> Tensor:
    """RMU's u, [size], of length 1: the same in every trial and on every worker."""
    direction = torch.rand(size, generator=torch.Generator().manual_seed(0))
    return direction / direction.norm()


def retain_kl(retain: ScoredTokens) -> Tensor:
    """KL(starting model || model) at every answer token of the retain batch, [T]; never at prompts or padding."""
    reference = given(retain.reference_distribution, "reference distributions")
    return expectation(reference.exp(), reference - given(retain.log_distribution, "distributions"))


def retain_hidden(retain: ScoredTokens) -> Tensor:
    """RMU's retain term, [S]: mean squared distance of a layer's output to the starting model's (equation 2)."""
    reference = at_least_fp32(given(retain.reference_hidden, "reference hidden states"))
    distance = (at_least_fp32(given(retain.hidden, "hidden states")) - reference).square().mean(-1)
    return retain.mean(distance) * retain.present


def primal_dual(
    weight: float, retain_loss: float, *, dual_step: float = 1.0, retain_limit: float = 1.0, dual_each_step: float = 0.0
) -> float:
    """PDU's rule for the retain weight: max(0, weight + dual_step (retain loss - retain_limit)).

    The retain loss is a constraint, its weight the multiplier: it grows while the loss is above `retain_limit` (nats a
    token) and falls below it. It is renewed after every epoch, from the epoch's mean loss, or, where `dual_each_step`
    is not 0, after every optimizer step, from the batch's.
    """
    return max(0.0, weight + dual_step * (retain_loss - retain_limit))


@dataclass(frozen=True)
class RetainLoss:
    """One way to keep the retain set: the function, and what of the model it reads."""

    name: str
    loss: Callable[[ScoredTokens], Tensor]
    reads: str = LOGPROBS
    reduction: str = TOKEN
    """As a method's."""


RETAIN_LOSSES = {
    retain.name: retain
    for retain in (
        RetainLoss("nll", nll),
        RetainLoss("kl", retain_kl, reads=DISTRIBUTION),
        RetainLoss("hidden", retain_hidden, reads=HIDDEN, reduction=SEQUENCE),
    )
}


@dataclass(frozen=True)
class Method:
    """One line of the table: what a method computes and what must be computed for it."""

    name: str
    formula: str
    loss: Callable[..., Tensor]
    reduction: str
    """Whether `loss` gives one term a sequence or one a token; the batch loss is their mean."""
    paper: str
    sets: tuple[str, ...] = (FORGET,)
    """The sets whose scored tokens are `loss`'s arguments, in order."""
    alternates: str = ""
    """Where alternate answers come from: "refusal" ("I don't know"-like) or "other" (another item's answer)."""
    needs_reference: bool = False
    """Log-probs of those sets under the starting model."""
    reads: str = LOGPROBS
    """What of the model it reads: log-probs of the answer tokens, whole distributions, or hidden states."""
    reads_reference: bool = False
    """Whether it reads the same of the starting model."""
    uses_retain: bool = True
    retain_losses: tuple[str, ...] = ("nll", "kl")
    """The retain losses that go with it, its own first."""
    retain_rule: Callable[..., float] | None = None
    """How the retain weight follows the retain loss; None: it stays."""
    ranges: str = ""
    """What is known of good values."""
    elsewhere: str = ""
    """How other code bases name and place the same parameters."""

    @property
    def title(self) -> str:
        """Its name as papers print it, where that is another one."""
        return METHOD_TITLES.get(self.name, self.name)

    @property
    def parameters(self) -> dict[str, float]:
        """The keyword-only arguments of loss and rule with their defaults: the method's hyperparameters."""
        return keyword_arguments(self.loss) | self.rule_parameters

    @property
    def rule_parameters(self) -> dict[str, float]:
        return keyword_arguments(self.retain_rule) if self.retain_rule else {}

    def follows_each_step(self, trial: TrialConfig) -> bool:
        """Whether the trial's retain weight follows the retain loss after every optimizer step."""
        return EACH_STEP in self.rule_parameters and bool(trial.parameters.get(EACH_STEP))


def keyword_arguments(function: Callable[..., object]) -> dict[str, float]:
    """Its keyword-only arguments with their defaults."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def keyword_ranges(function: Callable[..., object]) -> dict[str, Range]:
    """The Range in the annotation of each keyword-only argument that has one. Raises UserError where such an annotation
    names what its file has not imported."""
    written = inspect.get_annotations(function)
    searched = {name: written[name] for name in keyword_arguments(function) if name in written}
    names = getattr(inspect.unwrap(function), "__globals__", {})
    try:
        hints = get_type_hints(SimpleNamespace(__annotations__=searched), names, include_extras=True)
    except NameError as error:
        raise UserError(f"{function.__name__}: an annotation cannot be read ({error}). Import what it names") from None
    parts = [(name, part) for name, hint in hints.items() for part in getattr(hint, "__metadata__", ())]
    return {name: part for name, part in parts if isinstance(part, Range)}


SAME_AS_GRADDIFF = "forget weight fixed at 1; where a code base weights the forget term w, retain_weight = alpha / w"
METHODS = {
    method.name: method
    for method in (
        Method(
            "simnpo",
            "-(2/beta) log sigmoid((beta/|y|) NLL - gamma)",
            simnpo,
            SEQUENCE,
            "arXiv:2410.07163",
            ranges="beta 1.5-5.5 (TOFU), 0.5-1 (MUSE), 0.05-7.5 (WMDP); gamma 0; retain_weight 4-20 (TOFU), 1-5 (WMDP)",
            elsewhere=(
                "Unlearn-Simple (TOFU): beta; gamma inside beta (ours = beta x theirs); npo_coeff = forget weight, so "
                "npo_coeff 0.1375 with grad_diff_coeff 1 is retain_weight 7.27. Unlearn-Simple (WMDP): `gamma` is the "
                "retain weight. OpenUnlearning: delta = gamma / beta, gamma = forget weight, alpha = retain weight"
            ),
        ),
        Method(
            "npo",
            "-(2/beta) log sigmoid(beta (NLL - NLL_ref))",
            npo,
            SEQUENCE,
            "arXiv:2404.05868",
            needs_reference=True,
            ranges="beta 0.05-0.5; depends on answer length, because the log-ratio is a sum",
            elsewhere="beta everywhere; OpenUnlearning: gamma = forget weight, alpha = retain weight",
        ),
        Method(
            "ga",
            "-CE",
            ga,
            TOKEN,
            "arXiv:2401.06121",
            uses_retain=False,
            ranges="learning rate only; diverges early",
            elsewhere="grad_ascent, GradAscent",
        ),
        Method("graddiff", "-CE + retain", ga, TOKEN, "arXiv:2203.12817", elsewhere=SAME_AS_GRADDIFF),
        Method(
            "idknll",
            "CE of a refusal",
            nll,
            TOKEN,
            "arXiv:2401.06121",
            sets=(ALTERNATE,),
            alternates="refusal",
            elsewhere="TOFU: idk; the plain-text form (a refusal after the first quarter) is ours",
        ),
        Method(
            "dpo",
            "-(2/beta) log sigmoid(beta (log-ratio(refusal) - log-ratio(answer)))",
            dpo,
            SEQUENCE,
            "arXiv:2305.18290, arXiv:2404.05868",
            sets=(FORGET, ALTERNATE),
            alternates="refusal",
            needs_reference=True,
            ranges="beta 0.05-0.5",
            elsewhere="beta everywhere; code without the factor 2/beta needs retain_weight x beta / 2",
        ),
        Method(
            "altpo",
            "DPO with plausible alternate answers",
            dpo,
            SEQUENCE,
            "arXiv:2409.13474",
            sets=(FORGET, ALTERNATE),
            alternates="other",
            needs_reference=True,
            ranges="beta 0.1",
            elsewhere="the paper has the model write 5 alternates a question; here they are other items' answers",
        ),
        Method(
            "rmu",
            "||h - c u||^2 / H, at one layer",
            rmu,
            SEQUENCE,
            "arXiv:2403.03218",
            reads=HIDDEN,
            retain_losses=("hidden",),
            ranges="steering 5-300 by model; retain_weight 100-1200; three layers' down_proj are trained",
            elsewhere=(
                "authors: steering_coeffs, alpha = retain weight, layer_id = hidden_layer. OpenUnlearning: "
                "steering_coeff, module_regex; it divides every sequence's sum by every sequence's length"
            ),
        ),
        Method(
            "wga",
            "-p^beta CE, weight detached",
            wga,
            TOKEN,
            "arXiv:2502.19301",
            ranges="beta 0.1-5",
            elsewhere="beta; " + SAME_AS_GRADDIFF,
        ),
        Method(
            "satimp",
            "-p^beta1 (1 - p)^beta2 CE, weight detached",
            satimp,
            TOKEN,
            "arXiv:2505.11953",
            ranges="beta1 5, beta2 0.1-1",
            elsewhere="beta1, beta2; " + SAME_AS_GRADDIFF,
        ),
        Method(
            "undial",
            "CE to softmax(z_ref - beta onehot(y))",
            undial,
            TOKEN,
            "arXiv:2402.10052",
            reads=DISTRIBUTION,
            reads_reference=True,
            ranges="beta 3-30",
            elsewhere="beta (strength in the authors' code)",
        ),
        Method(
            "ceu",
            "CE to softmax(z without the true token)",
            ceu,
            TOKEN,
            "arXiv:2503.01224",
            reads=DISTRIBUTION,
        ),
        Method(
            "pdu",
            "(max logit - mean logit)^2, retain weight += dual_step (retain loss - retain_limit) each epoch or step",
            pdu,
            TOKEN,
            "arXiv:2506.05314",
            reads=DISTRIBUTION,
            retain_rule=primal_dual,
            ranges="retain_limit slightly above the starting model's retain loss",
            elsewhere=(
                "OpenUnlearning: dual_step_size, retain_loss_eps, dual_update_upon; alpha / gamma is the first "
                "multiplier (retain_weight), and its forget loss averages over prompts and padding, too"
            ),
        ),
        Method(
            "simnpo_token",
            "-(2/beta) log sigmoid(beta CE - gamma), token by token",
            simnpo_token,
            TOKEN,
            "variant of arXiv:2410.07163",
        ),
        Method(
            "npo_token",
            "-(2/beta) log sigmoid(beta (CE - CE_ref)), token by token",
            npo_token,
            TOKEN,
            "arXiv:2502.19301",
            needs_reference=True,
        ),
    )
}
"""The methods that can be searched."""
FINETUNE = Method("finetune", "CE", nll, TOKEN, "", uses_retain=False)
"""Not an unlearning method: how target and retrained models are made."""


OWN: dict[str, Method] = {}
"""Of files, see own_losses.py."""


def find_method(name: str) -> Method:
    if name == FINETUNE.name:
        return FINETUNE
    method = METHODS.get(name) or OWN.get(name) or load_installed(METHOD, name, Method)
    if method is None:
        raise UserError(f"method {name}: unknown. Choose from: {', '.join([*METHODS, *installed(METHOD)])}")
    return method


def zero(scored: Tensor) -> Tensor:
    """A zero that hangs on the graph, so that a worker with nothing to learn still runs backward."""
    return scored.sum() * 0.0
