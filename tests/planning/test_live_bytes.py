import torch

from dash_exp.planning.live_bytes import LiveBytes


def test_bytes_by_kind_now_and_at_the_peak():
    with LiveBytes(vocabulary=7, share={"weights": 0.5}) as live:
        with live.creating("weights"):
            weights = torch.zeros(10)  # 40 bytes, half of which count
        hidden = torch.zeros(3, 5)  # 60
        view = hidden.view(-1)
        logits = torch.zeros(2, 7)  # 56
        assert dict(live.now) == {"weights": 20, "activations": 60, "logits": 56}
        del hidden
        assert live.now["activations"] == 60  # the view keeps the storage
        del view
        assert (live.now["activations"], live.peak["activations"]) == (0, 60)
        live.reset_peak()
        live.relabel(logits, "gradients")
        more = torch.zeros(1)
    assert dict(live.peak) == {"weights": 20, "activations": 4, "logits": 0, "gradients": 56}
    assert len(weights) == 10 and len(more) == 1
