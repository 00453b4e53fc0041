"""The rows of a packed text as what a model reads.

Shape letters: N rows, S tokens per row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset, default_collate


class Rows(Dataset):
    """`needed` rows in their order, from the start again where there are fewer; each says which one it is.

    positions_NS: place of each token in its document, -1 on filler: attention then stays within documents, because
        transformers takes positions that begin anew, without a mask, for documents of their own.
    """

    def __init__(
        self,
        tokens_NS: np.ndarray,
        labels_NS: np.ndarray | None,
        pad_id: int | None,
        needed: int,
        positions_NS: np.ndarray | None = None,
    ):
        self.tokens_NS, self.labels_NS, self.pad_id, self.needed = tokens_NS, labels_NS, pad_id, needed
        self.positions_NS = positions_NS

    def __len__(self) -> int:
        return self.needed

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        i %= len(self.tokens_NS)
        ids, row = torch.from_numpy(self.tokens_NS[i].astype(np.int64)), torch.tensor(i)
        if self.labels_NS is None:
            return {"input_ids": ids, "labels": ids, "row": row}
        labels = torch.from_numpy(self.labels_NS[i])
        if self.positions_NS is not None:
            place = torch.from_numpy(self.positions_NS[i].astype(np.int64))
            labels = labels.masked_fill(place <= 0, -100)  # nothing before it tells the first token of a document
            real, place = (place >= 0).long(), place.clamp(min=0)
            return {"input_ids": ids, "labels": labels, "attention_mask": real, "position_ids": place, "row": row}
        # Filler stands at the end of a row, so a causal model's labels are out of its reach without a mask.
        # It is what follows the last other token or label: the pad token may be the end token, which is learnt.
        other = torch.ones_like(ids) if self.pad_id is None else ((ids != self.pad_id) | (labels != -100)).long()
        real = (other.flip(0).cumsum(0).flip(0) > 0).long()
        return {"input_ids": ids, "labels": labels, "attention_mask": real, "row": row}


def without_needless_mask(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What a model is given of these: beside positions no mask, with which documents would not be kept apart."""
    return {name: x for name, x in inputs.items() if name != "attention_mask" or "position_ids" not in inputs}


def cut_to_need(rows: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The rows of a pass, as long as the longest of them without the filler at its end, and `labelled`: where the next
    token has a label, as places in the flattened rows. Of the rest nothing comes: it need not be computed.
    """
    found = default_collate(list(rows))
    if "attention_mask" not in found:
        return found
    longest = int(found["attention_mask"].cumsum(1).argmax(1).max()) + 1
    found = {name: x[:, :longest] if x.ndim == 2 else x for name, x in found.items()}
    labelled_BS = torch.nn.functional.pad(found["labels"][:, 1:] != -100, (0, 1))
    return found | {"labelled": labelled_BS.flatten().nonzero().flatten()}
