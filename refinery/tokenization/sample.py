"""Which documents the tokenizer is trained on: a draw by document key, the same for every partitioning.

Each domain gets a share of `sample_bytes`; a document is in when its keyed uniform is under its domain's threshold,
the fraction of the domain's bytes that the share asks for. The driver needs totals per domain only; a task decides its
documents from their keys alone, so parts, workers and order do not matter, and a larger `sample_bytes` keeps every
document that a smaller one drew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from refinery.errors import ConfigError
from refinery.hashing import keyed_uniform

_STAGE = "tokenizer-sample"


def sample_thresholds(
    domain_bytes: Mapping[str, int], domain_weights: Mapping[str, float], sample_bytes: int
) -> dict[str, float]:
    """Return the fraction of each domain's bytes to draw.

    What a domain is too small to give goes to the others in proportion to their weights, so that the sample is as
    large as asked while any text is left.

    Args:
        domain_bytes: UTF-8 bytes of the training documents of every domain.
        domain_weights: share of the sample per domain, summing to 1 within 1e-6; domains not named get none.
        sample_bytes: size of the sample, at least 1.
    Returns: threshold in [0, 1] for every domain of `domain_bytes`.

    Raises:
        ConfigError: a weight is negative or not finite, weights do not sum to 1, a weighted domain has no text.
    """
    if sample_bytes < 1:
        raise ConfigError(f"sample_bytes is {sample_bytes}; it must be at least 1")
    _check_weights(domain_bytes, domain_weights)
    drawn = dict.fromkeys(domain_bytes, 0.0)
    open_domains = {domain: weight for domain, weight in sorted(domain_weights.items()) if weight > 0}
    left = float(sample_bytes)
    while open_domains:
        scale = left / sum(open_domains.values())
        full = [domain for domain, weight in open_domains.items() if weight * scale >= domain_bytes[domain]]
        if not full:
            drawn.update({domain: weight * scale for domain, weight in open_domains.items()})
            break
        for domain in full:
            drawn[domain] = float(domain_bytes[domain])
            left -= domain_bytes[domain]
            del open_domains[domain]
        left = max(left, 0.0)
    return {domain: drawn[domain] / total if total else 0.0 for domain, total in sorted(domain_bytes.items())}


def sample_mask(
    doc_keys: np.ndarray, domain_codes: np.ndarray, thresholds: Sequence[float] | np.ndarray, seed: int
) -> np.ndarray:
    """Decide which documents are in the sample.

    Args:
        doc_keys: uint64, shape (docs,): first 64 bits of ``doc_key`` (`refinery.hashing.key_prefix_uint64`).
        domain_codes: integers, shape (docs,): index of each document's domain into `thresholds`.
        thresholds: float in [0, 1] per domain, from `sample_thresholds`.
        seed: the recipe's seed.
    Returns: bool, shape (docs,).

    Raises:
        ConfigError: lengths differ, or a code names no threshold.
    """
    limits = np.asarray(thresholds, dtype=np.float64)
    if doc_keys.shape != domain_codes.shape:
        raise ConfigError(
            f"{doc_keys.shape[0]} keys but {domain_codes.shape[0]} domain codes; give one of each a document"
        )
    if len(domain_codes) and (domain_codes.min() < 0 or domain_codes.max() >= len(limits)):
        raise ConfigError(
            f"domain codes run from {domain_codes.min()} to {domain_codes.max()}, there are {len(limits)} thresholds; "
            "code domains by their position in the thresholds"
        )
    # A uniform lies strictly inside (0, 1): threshold 1 takes every document, 0 none.
    return np.asarray(keyed_uniform(seed, _STAGE, doc_keys) < limits[domain_codes])


def _check_weights(domain_bytes: Mapping[str, int], domain_weights: Mapping[str, float]) -> None:
    for domain, weight in domain_weights.items():
        if not np.isfinite(weight) or weight < 0:
            raise ConfigError(
                f"sample weight of domain {domain!r} is {weight}; it must be a finite number of 0 or more"
            )
        if weight > 0 and domain_bytes.get(domain, 0) <= 0:
            raise ConfigError(
                f"domain {domain!r} has sample weight {weight} but no training text (domains with text: "
                f"{sorted(name for name, total in domain_bytes.items() if total > 0)}); drop the weight or add the text"
            )
    total = sum(domain_weights.values())
    if abs(total - 1.0) > 1e-6:
        raise ConfigError(f"sample weights sum to {total:.9g}, not 1; nothing is normalised silently: correct them")
