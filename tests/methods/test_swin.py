"""Swin Transformer's own pieces on inputs made by hand: what a numeric case does not show."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detcore.backbones import swin
from detcore.backbones.swin import ShiftedWindows, Size, Swin, WindowAttention, pad_to, window_partition, window_reverse
from detcore.layers.transformer import Attention
from detcore.weights import load_backbone

SMALL = Size(16, (1, 2), (2, 4), 4)


def test_windows_come_apart_and_together():
    x = torch.arange(2 * 8 * 12 * 3.0).view(2, 8, 12, 3)
    parts = window_partition(x, 4)
    assert parts.shape == (2 * 2 * 3, 16, 3)
    assert torch.equal(parts[1].view(4, 4, 3), x[0, :4, 4:8])
    assert torch.equal(parts[6].view(4, 4, 3), x[1, :4, :4])
    assert torch.equal(window_reverse(parts, 8, 12, 4), x)
    padded = pad_to(x[:, :7, :9], 4)
    assert padded.shape == (2, 8, 12, 3) and not padded[:, 7:].any() and not padded[:, :, 9:].any()


def test_the_bias_of_two_cells_is_their_distances():
    attention = WindowAttention(8, 2, 3)
    index = attention.relative_position_index
    assert index.shape == (9, 9) and index.min() == 0 and index.max() == 24
    same = [[a, b] for a in range(9) for b in range(9)
            if (a // 3 - b // 3, a % 3 - b % 3) == (1, 0)]  # one above the other
    assert len({index[a, b].item() for a, b in same}) == 1
    assert index.diagonal().tolist() == [12] * 9


def test_shifted_windows_are_plain_attention_of_the_cells_that_belong_together():
    torch.manual_seed(0)
    layer = ShiftedWindows(8, 2, 4, 2)
    nn.init.normal_(layer.w_msa.relative_position_bias_table)
    x = torch.randn(1, 8, 8, 8)
    out = layer(x)
    # A window in the middle, and the corner of two by two cells that lies before the first window.
    middle = layer.w_msa(window_partition(x[:, 2:6, 2:6], 4), None).view(1, 4, 4, 8)
    assert torch.allclose(out[:, 2:6, 2:6], middle, atol=1e-6)
    moved = x.clone()
    moved[:, 2:] += 1  # what no cell of the corner may see
    moved[:, :, 2:] += 1
    assert torch.allclose(layer(moved)[:, :2, :2], out[:, :2, :2], atol=1e-6)
    assert not torch.allclose(layer(moved)[:, 2:, 2:], out[:, 2:, 2:], atol=1e-2)


def test_maps_of_any_size():
    model = Swin(SMALL).eval()
    first, second = model(torch.randn(1, 3, 37, 50))
    assert first.shape == (1, 16, 10, 13) and second.shape == (1, 32, 5, 7)
    assert model.channels == (16, 32)


def theirs(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A backbone's weights as Swin's authors name and lay them out."""
    renames = {"stages.": "layers.", ".attn.w_msa.": ".attn.", ".ffn.layers.0.0.": ".mlp.fc1.",
               ".ffn.layers.1.": ".mlp.fc2.", "patch_embed.projection.": "patch_embed.proj."}
    out = {}
    for name, value in state.items():
        if "downsample" in name:  # from [channel, y, x] to [x, y, channel]
            value = value.unflatten(-1, (-1, 2, 2)).transpose(-1, -3).flatten(-3)
        for ours, other in renames.items():
            name = name.replace(ours, other)
        if name[:5] not in ("norm0", "norm1"):
            out[name] = value
    return out | {"layers.0.blocks.1.attn_mask": torch.zeros(4, 16, 16), "norm.weight": torch.ones(32),
                  "head.weight": torch.zeros(10, 32)}


def test_files_of_the_authors_fit(tmp_path):
    torch.manual_seed(0)
    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = Swin(SMALL)

    source, model = Detector(), Detector()
    torch.save({"model": theirs(source.backbone.state_dict())}, tmp_path / "swin.pth")
    load_backbone(model, str(tmp_path / "swin.pth"))
    x = torch.randn(1, 3, 32, 32)
    for a, b in zip(source.eval().backbone(x), model.eval().backbone(x)):
        assert torch.allclose(a, b, atol=1e-6)
    # Four cells become one in the order of the published detectors: the four values of a channel side by side.
    merged = swin.PatchMerging(3)
    cells = torch.randn(1, 4, 4, 3)
    unfolded = F.unfold(cells.permute(0, 3, 1, 2), 2, stride=2).transpose(1, 2)
    assert torch.allclose(merged(cells).flatten(1, 2), merged.reduction(merged.norm(unfolded)), atol=1e-6)


def test_attention_is_pytorchs():
    torch.manual_seed(0)
    layer = Attention(16, 4).eval()
    x, memory, position = torch.randn(2, 5, 16), torch.randn(2, 7, 16), torch.randn(2, 7, 16)
    mask = torch.rand(2, 1, 5, 7) > 0.3
    expected, _ = layer.attn(x.transpose(0, 1), (memory + position).transpose(0, 1), memory.transpose(0, 1),
                           attn_mask=~mask.repeat(1, 4, 1, 1).flatten(0, 1))
    out = layer(x, memory, key_pos=position, mask=mask)
    assert torch.allclose(out, expected.transpose(0, 1), atol=1e-6)
