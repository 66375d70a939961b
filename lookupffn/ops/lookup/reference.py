"""The lookup in plain torch: hash, then gather."""

from torch import Tensor

from lookupffn.ops.gather import weighted_gather
from lookupffn.ops.hash import hash_scores


def lookup(z_MTt: Tensor, table_TSd: Tensor, num_probes: int, normaliser: str) -> Tensor:
    """See lookupffn.ops.lookup.lookup."""
    codes, scores = hash_scores(z_MTt, num_probes, normaliser)
    return weighted_gather(table_TSd, codes, scores)
