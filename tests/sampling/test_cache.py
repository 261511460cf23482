import torch
from conftest import NANO
from transformers import AutoConfig

from dash_exp.sampling.cache import RoomyCache


def test_the_last_rows_move_into_the_gaps():
    """Rows 0 and 2 of five have ended: three stay, the first gap gets row 3 and the second row 4."""
    cache = RoomyCache(AutoConfig.for_model(**NANO))
    row_BHLS = torch.arange(5.0)[:, None, None, None].expand(5, 1, 2, 16)
    for layer in range(2):
        cache.update(row_BHLS + 10 * layer, -row_BHLS, layer)
    order = cache.leave([True, False, True, False, False], torch.device("cpu"))
    assert order.tolist() == [3, 1, 4]
    for number, layer in enumerate(cache.layers):
        assert layer.keys[:, 0, 1, 0].tolist() == [x + 10 * number for x in (3, 1, 4)]
        assert layer.values[:, 0, 0, 5].tolist() == [-3, -1, -4]
    assert cache.leave([False, False, True], torch.device("cpu")).tolist() == [0, 1]  # nothing to move
    assert cache.layers[0].keys[:, 0, 0, 0].tolist() == [3, 1]
