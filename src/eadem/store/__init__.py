"""Records and checkpoints: what a model's ties are, as plain data, and its free values.

A record is a dict that is ready for JSON: the declarations, canonical, so that one plan has
one record whatever the order in which it was declared. A checkpoint is a safetensors file:
the model's own state dict (each free value once), the record in its metadata, and the arrays
that are too large for the record as tensors `eadem/<sha256>`. Both are read as data, and
checked in full before a model is touched.

>>> import eadem
>>> from torch import nn
>>> model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
>>> _ = eadem.tie(model, "*.weight")
>>> record(model)["ties"]
[[{'sites': ['0.weight', '1.weight'], 'map': {'kind': 'Same', 'args': {}}}]]
"""

from .files import load as load
from .files import metadata as metadata
from .files import read_record as read_record
from .files import save as save
from .records import PREFIX as PREFIX
from .records import apply as apply
from .records import materialize as materialize
from .records import record as record
from .records import record_and_arrays as record_and_arrays
from .schema import INLINE_BYTES as INLINE_BYTES
from .schema import VERSION as VERSION
from .schema import checked as checked
