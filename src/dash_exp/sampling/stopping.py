"""Stop strings, for a sampler that chooses the tokens itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

BROKEN = "\ufffd"  # what a part of a character is decoded to


class StopStrings:
    """Finds the completions whose last token completes one of the texts `stop`, which may begin in an earlier token.

    It decodes only the last tokens of a completion, and only where its last token can be the end of such a text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        self.stop = stop
        self.last = {text[-1] for text in stop}
        # a token is at least one byte; four more, so that a character that the window cuts apart is before the text
        self.window = max((len(text.encode()) for text in stop), default=0) + 4
        self._may_end: dict[int, bool] = {}

    def completed(self, ids_BT: Tensor) -> Tensor:
        """Which rows of completions, without padding on the right, end with a stop string. Shape (B,), on the same device."""
        found_B = torch.zeros(len(ids_BT), dtype=torch.bool)
        rows = [row for row, token in enumerate(ids_BT[:, -1].tolist()) if self._can_end(token)]
        if rows:
            tails = ids_BT[rows, -self.window :].tolist()
            found_B[rows] = torch.tensor([any(text in self._text(tail) for text in self.stop) for tail in tails])
        return found_B.to(ids_BT.device)

    def completed_by_each(self, ids_BT: Tensor, count: int) -> Tensor:
        """Which of the last `count` tokens of each row complete a stop string. Shape (B, count), on the same device.

        `ids_BT` has `window` - 1 tokens before these, or all there are. It is read from its device once.
        """
        read_BT = ids_BT.cpu()
        ends = range(read_BT.shape[1] - count + 1, read_BT.shape[1] + 1)
        return torch.stack([self.completed(read_BT[:, :end]) for end in ends], dim=1).to(ids_BT.device)

    def _can_end(self, token: int) -> bool:
        """Whether a stop string may end in this token: it has the last character of one, or a part of a character. White space
        may be written between two tokens.
        """
        if token not in self._may_end:
            text = self._text([token])
            self._may_end[token] = BROKEN in text or any(c in text or c.isspace() for c in self.last)
        return self._may_end[token]

    def _text(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
