"""One proof of a fast encoder for all preparations of a test process.

Each preparation proves its encoder on every character, which takes most of a small one's time. Here that is done
once for a tokenizer; on the sample it is proven each time.
"""

from __future__ import annotations

from typing import Any

from data_prep.tokenization import fastokens_encoder

build = fastokens_encoder.build  # with its proof
_PROVEN: set[str] = set()  # tokenizers, as JSON


def build_proven(tokenizer: Any, serialised: str | None = None) -> Any:
    """See `fastokens_encoder.build`."""
    serialised = serialised or tokenizer.to_str()
    if serialised in _PROVEN and _is_installed():
        return fastokens_encoder._encoder(fastokens_encoder.described(tokenizer, serialised))
    built = build(tokenizer, serialised)
    if not isinstance(built, str):
        _PROVEN.add(serialised)
    return built


def _is_installed() -> bool:
    try:
        import fastokens._native  # noqa: F401
    except ImportError:
        return False
    return True
