"""Data sets of the hub, loaded once per process, or a message that says what to do."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from data_prep.recipe import Source


def hub_data_set(source: Source) -> Any:
    """The source's data set, from the hub or its cache.

    Raises:
        ValueError: it cannot be loaded.
    """
    try:
        return _load(source.dataset or "", source.subset, source.split, source.revision)
    except Exception as error:  # the libraries below raise a dozen unrelated types
        asked = {"subset": source.subset, "split": source.split, "revision": source.revision}
        raise ValueError(
            f"source {source.name!r}: cannot load data set {source.dataset!r} with {asked}: "
            f"{type(error).__name__}: {error}\n  {_remedy(error)}"
        ) from error


@lru_cache(maxsize=8)
def _load(dataset: str, subset: str | None, split: str, revision: str | None) -> Any:
    """The data set, loaded once per process. The hub's token comes from its own login or environment."""
    from datasets import load_dataset

    return load_dataset(dataset, subset, split=split, revision=revision)


def _remedy(error: Exception) -> str:
    text = f"{type(error).__name__} {error}".lower()
    if any(sign in text for sign in ("gated", "authenticat", "401 client", "403 client")):
        return "Accept its terms on its page, then log in with `hf auth login` or put HF_TOKEN into the environment."
    if "offline" in text:
        return (
            "HF_HUB_OFFLINE is set and the set is not cached: unset it, or load it once where there is a network, with "
            "`packhaul prepare --recipe FILE --output DIR --stage check`."
        )
    if isinstance(error, ConnectionError):
        return "The hub cannot be reached: check the network, or load the data set once where there is one."
    return (
        "Check `dataset`, `subset`, `split` and `revision`; for a private or gated data set, log in with "
        "`hf auth login` or put HF_TOKEN into the environment."
    )
