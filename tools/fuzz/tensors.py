"""Mutations of tensors: dropped, renamed, resized, retyped, swapped, moved. See `tools.fuzz.mutations`."""

from __future__ import annotations

import numpy as np

from tools.fuzz.shards import BITS, Array, Draft, num_bytes


def _tensor(draft: Draft, at: int, *, scales: bool = False) -> tuple[str, str, Array] | None:
    places = draft.places()
    if scales:
        places = [p for p in places if any(s in p[1] for s in ("scale", "zero", "_idx", "_shape", "bias"))]
    if not places:
        return None
    file, name = places[at % len(places)]
    return file, name, draft.shards[file][name]


def drop(d: Draft, a: int, b: int, c: int) -> str | None:
    """Remove a tensor, from the index too or not."""
    if (at := _tensor(d, a, scales=bool(b % 2))) is None:
        return None
    d.put(at[0], at[1], None, follow=bool(c % 4))
    return f"drop {at[1]}{'' if c % 4 else ', not from the index'}"


def rename(d: Draft, a: int, b: int, c: int) -> str | None:
    """Give a tensor another name."""
    if (at := _tensor(d, a)) is None:
        return None
    file, name, array = at
    ways = (
        name.replace("layers.", "layer.", 1),
        name + "_",
        name.removeprefix("model."),
        "model." + name,
        name.upper(),
        name.replace("layers.1.", "layers.01.", 1),
        name.replace("layers.0.", "layers.7.", 1),
        name[:-1],
        name.replace("weight", "weight_scale", 1),
        name.replace("experts.0.", "experts.00.", 1),
        name + "\u00e9\n",
        "",
    )
    new = ways[b % len(ways)]
    if new == name:
        return None
    d.put(file, name, None, follow=bool(c % 4))
    d.put(file, new, array, follow=bool(c % 4))
    return f"rename {name} to {new!r}"


def duplicate(d: Draft, a: int, b: int, c: int) -> str | None:
    """Store a tensor twice."""
    if (at := _tensor(d, a)) is None:
        return None
    file, name, array = at
    other = sorted(d.shards)[b % len(d.shards)]
    new = name if c % 2 and other != file else name + ".copy"
    d.put(other, new, array)
    return f"duplicate {name} as {new} in {other}"


def resize(d: Draft, a: int, b: int, c: int) -> str | None:
    """Change one dim, and the bytes with it."""
    if (at := _tensor(d, a, scales=bool(c % 2))) is None:
        return None
    file, name, array = at
    shape = list(array.shape) or [1]
    dim = b % len(shape)
    n = shape[dim]
    shape[dim] = (n - 1, n + 1, n * 2, n // 2, 0, 1)[(c // 2) % 6]
    size = num_bytes(array.dtype, tuple(shape))
    if tuple(shape) == array.shape or size > 2**24:
        return None
    data = (array.data * (size // max(len(array.data), 1) + 1))[:size]
    d.put(file, name, Array(array.dtype, tuple(shape), data.ljust(size, b"\0")))
    return f"resize {name} from {list(array.shape)} to {shape}"


def retype(d: Draft, a: int, b: int, c: int) -> str | None:
    """The same values in another float format."""
    if (at := _tensor(d, a, scales=bool(c % 2))) is None:
        return None
    file, name, array = at
    dtype = ("BF16", "F16", "F32", "F8_E4M3", "F8_E8M0")[b % 5]
    made = array.converted(dtype)
    if made is None or dtype == array.dtype:
        return None
    d.put(file, name, made)
    return f"retype {name} from {array.dtype} to {dtype}"


def relabel(d: Draft, a: int, b: int, c: int) -> str | None:
    """The same bytes under another dtype of the same width."""
    if (at := _tensor(d, a, scales=bool(c % 2))) is None:
        return None
    file, name, array = at
    others = [t for t, bits in BITS.items() if bits == BITS[array.dtype] and t != array.dtype]
    dtype = others[b % len(others)]
    d.put(file, name, Array(dtype, array.shape, array.data))
    return f"relabel {name} from {array.dtype} to {dtype}"


def transpose(d: Draft, a: int, b: int, c: int) -> str | None:
    """Exchange dims, with the bytes or without."""
    if (at := _tensor(d, a)) is None or len(at[2].shape) < 2:
        return None
    file, name, array = at
    order = [int(o) for o in np.random.default_rng(b).permutation(len(array.shape))]
    shape = [array.shape[o] for o in order]
    words = array.words() if c % 4 == 0 else array.words().transpose(order)
    d.put(file, name, array.with_words(words.reshape(shape)))
    return f"{'reshape' if c % 4 == 0 else 'transpose'} {name} from {list(array.shape)} to {shape}"


def reshape(d: Draft, a: int, b: int, c: int) -> str | None:
    """The same bytes in another number of dims."""
    if (at := _tensor(d, a, scales=bool(c % 2))) is None:
        return None
    file, name, array = at
    words = array.words()
    shapes = ((words.size,), (1, *words.shape), (*words.shape, 1), (), (1,))
    shape = shapes[b % len(shapes)]
    if shape == array.shape or int(np.prod(shape, dtype=np.int64)) != words.size:
        return None
    d.put(file, name, array.with_words(words.reshape(shape)))
    return f"reshape {name} from {list(array.shape)} to {list(shape)}"


def swap(d: Draft, a: int, b: int, c: int) -> str | None:
    """Exchange the names of two tensors."""
    first, second = _tensor(d, a), _tensor(d, b, scales=bool(c % 2))
    if first is None or second is None or first[1] == second[1]:
        return None
    d.put(first[0], first[1], second[2])
    d.put(second[0], second[1], first[2])
    return f"swap the names of {first[1]} {first[2].signature} and {second[1]} {second[2].signature}"


def extra(d: Draft, a: int, b: int, c: int) -> str | None:
    """Add a tensor that nobody asked for."""
    names = (
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.layers.0.self_attn.k_scale",
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.0.mlp.gate_proj.weight_scale_inv",
        "model.layers.0.mlp.down_proj.weight_scale",
        "model.layers.0.self_attn.o_proj.input_scale",
        "model.layers.0.self_attn.o_proj.g_idx",
        "lm_head.weight",
        "lm_head.weight_scale_inv",
        "model.layers.999999.self_attn.q_proj.weight",
        "__proto__",
        "x" * 5000,
    )
    name = names[b % len(names)]
    file = sorted(d.shards)[a % len(d.shards)]
    if any(name in tensors for tensors in d.shards.values()):
        return None
    d.put(file, name, Array("F32", (c % 3,), bytes(4 * (c % 3))))
    return f"add {name[:60]} {[c % 3]}"


def reorder(d: Draft, a: int, b: int, c: int) -> str | None:
    """Another order in the file, another file, more padding, other metadata: all of no consequence."""
    if (at := _tensor(d, a)) is None:
        return None
    file, name, array = at
    d.changed.add(file)
    if c % 4 == 0:
        order = np.random.default_rng(b).permutation(len(d.shards[file]))
        pairs = list(d.shards[file].items())
        d.shards[file] = dict(pairs[i] for i in order)
        return f"reorder {file}"
    if c % 4 == 1:
        other = sorted(d.shards)[b % len(d.shards)]
        del d.shards[file][name]
        d.put(other, name, array)
        return f"move {name} to {other}"
    if c % 4 == 2:
        d.padding[file] = b % 40
        return f"pad the header of {file} by {b % 40}"
    d.metadata[file] = {"format": "pt", "note": "x" * (b % 300)}
    return f"other metadata in {file}"
