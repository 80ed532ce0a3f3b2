"""The parts' indices as one: numpy's own arrays; a damaged part is named with what to do."""

from __future__ import annotations

import numpy as np
import pytest

from data_prep.arrow_columns import list_column
from data_prep.sources.slices import Slice
from data_prep.stages.document_index import read_index
from data_prep.stages.pack_stage import _open_part
from data_prep.stages.parts import Part

ARRAYS = {
    "row": np.arange(3, dtype=np.int64),
    "length": np.array([], dtype=np.int32),
    "signature": np.arange(256, dtype=np.uint8).reshape(2, 128),
}


@pytest.fixture
def part(tmp_path) -> Part:
    """A part with a marker, an index and ids."""
    import pyarrow as pa

    fields = dict.fromkeys(Slice.__dataclass_fields__, 0)
    made = Part(tmp_path, Slice(**{**fields, "source": "qa", "path": None}))
    made.file(".json").write_text('{"rows": 3, "documents": 3}')
    np.savez(made.file(".npz"), **ARRAYS)
    column = list_column([np.arange(100)] * 9)
    batch = pa.record_batch([column, column], names=["input_ids", "labels"])
    with pa.ipc.new_stream(str(made.file(".arrow")), batch.schema) as writer:
        writer.write_batch(batch)
    return made


def test_what_is_read_is_what_numpy_wrote(part):
    found = read_index(part, ARRAYS)
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        assert (found[name] == array).all()


READERS = {".json": Part.counts, ".npz": lambda part: read_index(part, ARRAYS), ".arrow": _open_part}


@pytest.mark.parametrize("suffix", READERS)
@pytest.mark.parametrize("keep", [0, 0.3, 0.9])
def test_a_part_that_is_cut_off_is_named_with_what_to_do(suffix, keep, part):
    path = part.file(suffix)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(ValueError, match=r"is damaged \(") as raised:
        READERS[suffix](part)
    assert str(raised.value).startswith(str(path)) and f"delete {part.file('.json')}, and run" in str(raised.value)


@pytest.mark.parametrize("place", range(8))
def test_a_changed_byte_of_an_index_is_found(place, part):
    data = bytearray(part.file(".npz").read_bytes())
    at = data.index(ARRAYS["signature"].tobytes()) + 32 * place
    data[at] ^= 1
    part.file(".npz").write_bytes(data)
    with pytest.raises(ValueError, match=r"qa-00000.npz is damaged \(signature.npy is not what was written\)"):
        read_index(part, ARRAYS)


def test_a_file_that_is_not_there_is_the_systems_error(part):
    part.file(".npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"qa-00000\.npz"):
        read_index(part, ARRAYS)
