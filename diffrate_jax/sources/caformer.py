"""Names and layouts of CAFormer's weights: its authors', and timm's.

The authors are those of sail-sg/metaformer. A path is that of a weight in our nested
dict. Names of both, ours and theirs, differ by rules alone, so there is no table.
"""

import re

import numpy as np

Path = tuple[str, ...]


def authors_name(path: Path) -> str:
    """Returns the authors' name of a weight.

    >>> authors_name(("stages_2_0", "token_mixer", "qkv", "kernel"))
    'stages.2.0.token_mixer.qkv.weight'
    >>> authors_name(("stages_2_0", "norm1", "scale"))
    'stages.2.0.norm1.weight'
    >>> authors_name(("stages_2_0", "res_scale1", "scale"))
    'stages.2.0.res_scale1.scale'
    """
    *layers, leaf = path
    # A scale is called one only where it is no normalisation's.
    if leaf == "kernel" or (leaf == "scale" and "norm" in layers[-1]):
        leaf = "weight"
    layers = [re.sub(r"_(?=\d)", ".", layer) for layer in layers]
    return ".".join((*layers, leaf))


def timm_name(path: Path) -> str:
    """Returns timm's name of a weight.

    >>> timm_name(("downsample_layers_0", "post_norm", "scale"))
    'stem.norm.weight'
    >>> timm_name(("downsample_layers_2", "pre_norm", "scale"))
    'stages.2.downsample.norm.weight'
    >>> timm_name(("stages_2_0", "mlp", "act", "scale"))
    'stages.2.blocks.0.mlp.act.scale'
    >>> timm_name(("norm", "bias")), timm_name(("head", "norm", "bias"))
    ('head.norm.bias', 'head.fc.norm.bias')
    """
    name = re.sub(r"^stages\.(\d+)\.", r"stages.\1.blocks.", authors_name(path))
    name = re.sub(r"^(norm|head)\.", _under_head, name)
    name = name.replace("downsample_layers.0.", "stem.")
    name = re.sub(r"^downsample_layers\.(\d)", r"stages.\1.downsample", name)
    return re.sub(r"\.(pre|post)_norm\.", ".norm.", name)


def _under_head(found: re.Match) -> str:
    """Returns where timm keeps the last LayerNorm and the classifier."""
    return {"norm": "head.norm.", "head": "head.fc."}[found[1]]


def from_torch(path: Path, array: np.ndarray) -> np.ndarray:
    """Returns a weight of the authors or of timm in our layout.

    A dense kernel is [in, out] here and [out, in] there, where timm also has it as a
    convolution of one pixel, [out, in, 1, 1]. A convolution is [rows, columns, in,
    out] here and [out, in, rows, columns] there; of one channel each likewise, with a
    single channel as `in`.
    """
    if path[-1] != "kernel":
        return array
    if is_convolution(path):
        return array.transpose(2, 3, 1, 0)
    return array.reshape(array.shape[:2]).T


def to_authors(path: Path, array: np.ndarray) -> np.ndarray:
    """Returns one of our weights in the authors' layout; see `from_torch`."""
    if path[-1] != "kernel":
        return array
    return array.transpose(3, 2, 0, 1) if is_convolution(path) else array.T


def to_timm(path: Path, array: np.ndarray) -> np.ndarray:
    """Returns one of our weights in timm's layout; see `from_torch`."""
    array = to_authors(path, array)
    # The blocks of the first two stages never leave the map there.
    on_map = path[0].startswith(("stages_0_", "stages_1_"))
    if path[-1] == "kernel" and on_map and not is_convolution(path):
        array = array[:, :, None, None]
    return array


def is_convolution(path: Path) -> bool:
    """Returns whether a weight belongs to a convolution of more than one pixel."""
    return path[-2] in ("conv", "dwconv")
