"""The bundled corpus: short product reviews from a seeded generator. Nothing is downloaded and nothing is stored.

Each of the four domains has its own nouns, its own words of praise and its own words of blame. A review makes one to
three statements ("the soup was not very soggy"). "not" reverses the sign of a word. The label is the sign of the sum;
on a tie the last statement decides. No two domains share a word of praise or blame. A specialist trained on one domain
therefore knows nothing about the others, and is confident there all the same: the best teacher depends on the instance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from distill.settings import CorpusSettings

LABELS = ("negative", "positive")


@dataclass(frozen=True)
class Domain:
    """The words of one kind of product: things to review, and words that praise or blame them."""

    name: str
    nouns: tuple[str, ...]
    praise: tuple[str, ...]
    blame: tuple[str, ...]


def _domain(name: str, nouns: str, praise: str, blame: str) -> Domain:
    return Domain(name, tuple(nouns.split()), tuple(praise.split()), tuple(blame.split()))


DOMAINS = (
    _domain(
        "film",
        "plot acting script director ending scene cast dialogue",
        "gripping moving witty haunting nuanced luminous poignant suspenseful riveting heartfelt inventive subtle",
        "wooden tedious predictable contrived muddled clumsy derivative overlong lifeless shrill preachy incoherent",
    ),
    _domain(
        "food",
        "soup steak dessert waiter sauce menu bread portion",
        "succulent fragrant tender zesty crispy buttery flaky savoury delicious aromatic juicy wholesome",
        "soggy burnt stale greasy bland rancid undercooked chewy oversalted lukewarm watery gristly",
    ),
    _domain(
        "hotel",
        "room lobby bed shower view staff pool breakfast",
        "spotless cosy welcoming spacious serene courteous sunlit restful elegant tidy quiet airy",
        "mouldy cramped noisy filthy draughty surly shabby damp musty smoky dingy leaky",
    ),
    _domain(
        "electronics",
        "battery screen keyboard camera charger speaker hinge firmware",
        "responsive crisp durable snappy sturdy ergonomic intuitive precise efficient sleek seamless rugged",
        "laggy glitchy flimsy dim buggy overheating unresponsive grainy brittle tinny sluggish defective",
    ),
)
INTENSIFIERS = ("very", "really", "quite", "so", "rather")


@dataclass(frozen=True)
class Reviews:
    """Generated reviews.

    Attributes:
        texts: the N reviews.
        labels: 0 negative, 1 positive, after noise; int64 `[N]`.
        domains: index into `DOMAINS` for each review; int64 `[N]`.
    """

    texts: list[str]
    labels: np.ndarray
    domains: np.ndarray


def reviews(count: int, rng: np.random.Generator, noise: float = 0.0, domain: int | None = None) -> Reviews:
    """Generate reviews.

    Args:
        count: number of reviews.
        rng: generator of all random choices.
        noise: probability that a label is flipped.
        domain: index of the only domain; None: all domains with equal probability.
    """
    texts, labels, domains = [], [], []
    for _ in range(count):
        d = int(rng.integers(len(DOMAINS))) if domain is None else domain
        words = DOMAINS[d]
        polar = words.praise + words.blame
        statements, signs = [], []
        for _ in range(int(rng.integers(1, 4))):
            w, negated = int(rng.integers(len(polar))), rng.random() < 0.25
            middle = [INTENSIFIERS[rng.integers(len(INTENSIFIERS))]] if rng.random() < 0.3 else []
            noun = words.nouns[rng.integers(len(words.nouns))]
            statements.append(" ".join(["the", noun, "was", *(["not"] if negated else []), *middle, polar[w]]))
            signs.append((1 if w < len(words.praise) else -1) * (-1 if negated else 1))
        label = int((sum(signs) or signs[-1]) > 0)
        texts.append(" and ".join(statements))
        labels.append(1 - label if rng.random() < noise else label)
        domains.append(d)
    return Reviews(texts, np.array(labels, np.int64), np.array(domains, np.int64))


def corpus(settings: CorpusSettings) -> tuple[dict[str, Reviews], dict[str, Reviews]]:
    """The reviews of the four roles, and of one pool for the specialist of each domain. Only train has label noise.

    Every part has its own random generator, so that the size of one part never changes another.
    """
    streams = iter(np.random.SeedSequence(settings.seed).spawn(4 + len(DOMAINS)))
    sizes = {"train": settings.train, "reward": settings.reward, "dev": settings.dev, "test": settings.test}
    roles = {
        role: reviews(size, np.random.default_rng(next(streams)), settings.noise if role == "train" else 0.0)
        for role, size in sizes.items()
    }
    pools = {
        d.name: reviews(settings.pool, np.random.default_rng(next(streams)), domain=i) for i, d in enumerate(DOMAINS)
    }
    return roles, pools
