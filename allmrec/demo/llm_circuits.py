"""The circuits of a stand-in LLM, written into an OPT's weights by hand.

Steering by soft tokens needs three circuits that no minutes of training find from random weights: every slot gathers
the title before it, the position that decides gathers the user's and the history's vectors, and it attends to the
candidates' slots by how well they match and copies their titles' tokens. The residual stream is divided into
subspaces for them. Knows OPT's weights; of tasks it knows nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

# H residual stream, P embedding, V vocabulary, W head width, R rows of a projection

HEAD = 80  # W
MATCHED = 48  # soft tokens are read in this many dimensions
NUM_HEADS = 7
HIDDEN = NUM_HEADS * HEAD
NUM_LAYERS = 3
FFN = 32
GATHERED = 3  # tokens of a title that its slot gathers

CODE = slice(0, 160)  # what token is here, or should come next; at a slot: its title's first token
SOFT = slice(160, 160 + MATCHED)  # at slots: the soft token; elsewhere: the user's and the history's
NEAR = slice(SOFT.stop, SOFT.stop + 80)  # the code of the token before, projected
SECOND = slice(NEAR.stop, NEAR.stop + 80)  # at a slot: the code of its title's second token, projected
THIRD = slice(SECOND.stop, SECOND.stop + 80)  # and of the third
PLACE = slice(THIRD.stop, THIRD.stop + 32)  # position, as sines and cosines
FLAGS = PLACE.stop

_OF_TOKENS = ["real", "comma", "lead", "intro", "ending", "recommend", "end"]
_OF_POSITIONS = ["first", "user"]
_COMPUTED = ["word", "after", "before", "decide", "rest1", "rest2", "rest3"]
_NAMES = _OF_TOKENS + _OF_POSITIONS + _COMPUTED
_LOOKED_BACK = _OF_TOKENS[:5]  # known of the tokens 1 ... GATHERED + 1 places before, too
_FLAG = {name: FLAGS + i for i, name in enumerate(_NAMES)}
_FLAG |= {
    f"{name}-{back}": FLAGS + len(_NAMES) + i * (GATHERED + 1) + back - 1
    for i, name in enumerate(_LOOKED_BACK)
    for back in range(1, GATHERED + 2)
}
# A constant that outweighs what varies: LayerNorm then scales every position alike.
STEADY = slice(max(_FLAG.values()) + 1, max(_FLAG.values()) + 3)
LEVEL = 20.0
# LayerNorm takes the mean away: what is written is balanced to a mean of zero here,
BALANCE = slice(HIDDEN - 12, HIDDEN)
# and flags are read against these, which hold nothing.
BLANK = slice(STEADY.stop, BALANCE.start)
assert BLANK.start < BLANK.stop

LOUD = dict.fromkeys(["real", "first", "user", "after", "before", "word"], 3.0)  # flags that soft tokens must not drown
CODE_NORM = 4.0
COPY = 34.0  # gain of what is copied to the output, where the code of the token here is present as well
# Attention to candidates leans by their match, but little: what is copied is then nearly in proportion to it, and of
# titles that begin alike the better one counts for more. A second attention that leans the other way is taken off, and
# with it most of what all candidates have in common.
TILTS = (0.3, -0.1)
TAKEN_OFF = 0.7
# The beginning of the prompt, where nothing is, takes most of that attention: what a candidate gets then hardly depends
# on how many others there are.
SINK = 1.86
DUE = 9.5  # what a token that begins titles is raised by
LOGITS = 0.16  # of the last LayerNorm: makes log P one for one with the match among 20 candidates
# What a soft token says is amplified on its way into the stream: a projector writes into all dimensions of the
# embedding alike, and at this volume what it says is heard while the rest of it drowns nothing.
GAIN = 18.0
EMBEDDED = SOFT.stop + 8  # P, the embedding: code, soft token, the tokens' flags
_FLAGS_IN = slice(SOFT.stop, SOFT.stop + len(_OF_TOKENS))  # of the embedding
_FLAGS_OUT = slice(FLAGS, FLAGS + len(_OF_TOKENS))  # of the stream
_BEGINS = _FLAGS_IN.stop  # of the embedding, on its way out: tokens that begin titles
assert _BEGINS < EMBEDDED
STREAM = (28.9, 29.3, 29.7)  # expected norm of the residual stream, by layer


@dataclass(frozen=True)
class Wording:
    """Tokens of the template that the circuits hold on to."""

    comma: int
    intro: Sequence[int]  # tokens that are the last one before the history
    lead: int  # last token before the comma that opens the candidates
    recommend: int  # a token that only comes after the history
    ending: int  # the last two tokens of the prompt
    end: int
    eos: int  # what ends a title
    silent: Sequence[int]  # beginning of a prompt, padding


def write_circuits(
    llm: Any, wording: Wording, frequent: torch.Tensor, begins: torch.Tensor, generator: torch.Generator
) -> None:
    """Write the circuits into an `OPTForCausalLM` of this module's sizes.

    Args:
        frequent: int64 (V,), tokens by how often titles begin with them; codes of the first ones are orthogonal.
        begins: bool (V,), tokens that begin a title.
    """
    decoder = llm.model.decoder
    with torch.no_grad():
        table = _token_embeddings(wording, frequent, generator)
        decoder.embed_tokens.weight.zero_()
        decoder.embed_tokens.weight[:, : SOFT.stop] = table[:, : SOFT.stop]
        decoder.embed_tokens.weight[:, _FLAGS_IN] = table[:, _FLAGS_OUT]
        decoder.project_in.weight.copy_(_entrance())
        decoder.project_out.weight.zero_()
        decoder.project_out.weight[CODE, CODE] = torch.eye(CODE.stop)
        decoder.embed_positions.weight.copy_(_positions(decoder.embed_positions.weight.shape[0]))
        for layer, stream in zip(decoder.layers, STREAM, strict=True):
            for norm in (layer.self_attn_layer_norm, layer.final_layer_norm):
                norm.weight.fill_(stream / math.sqrt(HIDDEN))
                norm.bias.zero_()
            for linear in _linears(layer):
                linear.weight.zero_()
                linear.bias.zero_()
        near_RC = _projection(NEAR.stop - NEAR.start, generator)
        _look_back(decoder.layers[0], near_RC)
        _gather(decoder.layers[1], near_RC)
        _decide(decoder.layers[2], near_RC, table[wording.eos, CODE])
        # The token that decides does not follow itself.
        decoder.layers[2].fc1.weight[0] = _reads({"decide": 1})
        decoder.layers[2].fc2.weight[CODE, 0] = -table[wording.end, CODE]
        final = decoder.final_layer_norm
        final.weight.zero_()
        final.weight[CODE] = LOGITS
        final.bias.zero_()
        # What is gathered of soft tokens is in the last hidden state, for what reads that (LLM-SRec), and in no logit:
        # tokens are zero there.
        final.weight[SOFT] = 1
        decoder.project_out.weight[SOFT, SOFT] = torch.eye(MATCHED)
        # Where a title is due, tokens that begin one: else Stage-2's loss is mostly about all the others.
        decoder.embed_tokens.weight[:, _BEGINS] = begins.float()
        final.weight[_FLAG["decide"]] = 1
        decoder.project_out.weight[_BEGINS, _FLAG["decide"]] = DUE


def _projection(rows: int, generator: torch.Generator) -> torch.Tensor:
    """A random projection (R, C) of codes that keeps their products, nearly."""
    return torch.randn(rows, CODE.stop, generator=generator) / math.sqrt(rows)


def _linears(layer: Any) -> list[Any]:
    attention = layer.self_attn
    return [attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj, layer.fc1, layer.fc2]


def _token_embeddings(wording: Wording, frequent: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    width = CODE.stop
    codes = torch.randn(len(frequent), width, generator=generator)
    orthogonal = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
    codes[frequent[:width]] = orthogonal
    codes -= codes.mean(dim=1, keepdim=True)
    codes = CODE_NORM * torch.nn.functional.normalize(codes, dim=1)
    table = torch.zeros(len(frequent), HIDDEN)
    table[:, CODE] = codes
    table[:, _FLAG["real"]] = LOUD["real"]
    for name in _OF_TOKENS[1:]:
        table[getattr(wording, name), _FLAG[name]] = 1
    table[list(wording.silent), CODE] = 0
    return table


def _entrance() -> torch.Tensor:
    """(H, P): every dimension of the embedding to its place in the stream, balanced."""
    table = torch.zeros(EMBEDDED, HIDDEN)
    table[: SOFT.stop, : SOFT.stop] = torch.eye(SOFT.stop)
    table[SOFT, SOFT] *= GAIN
    table[_FLAGS_IN, _FLAGS_OUT] = torch.eye(len(_OF_TOKENS))
    return _balanced(table, BALANCE).T


def _frequencies() -> torch.Tensor:
    return math.pi / 2 * 2 ** (-torch.arange(16) / 2)


def _positions(count: int) -> torch.Tensor:
    """Sines and cosines, and a mark on the first two positions. OPT's table begins at position -2."""
    place = torch.arange(count)[:, None] - 2
    table = torch.zeros(count, HIDDEN)
    angles = place * _frequencies()
    table[:, PLACE] = torch.cat([angles.cos(), angles.sin()], dim=1)
    table[:, STEADY] = LEVEL * torch.tensor([1.0, -1.0])
    table[2, _FLAG["first"]] = LOUD["first"]
    table[3, _FLAG["user"]] = LOUD["user"]
    return _balanced(table, BALANCE)


def _balanced(table: torch.Tensor, where: slice) -> torch.Tensor:
    table[:, where] = -table.sum(dim=1, keepdim=True) / (where.stop - where.start)
    return table


class _Head:
    """One attention head, dimension by dimension: score = sum of q_d * k_d, and what is moved from where to where."""

    def __init__(self, layer: Any, number: int):
        self.attention, self.rows = layer.self_attn, slice(number * HEAD, (number + 1) * HEAD)
        self.used = self.moved = 0

    def match(self, query_RH: torch.Tensor, key_RH: torch.Tensor, scale: float = 1.0) -> None:
        """Score the agreement of two projections."""
        rows = self._take(len(query_RH))
        self.attention.q_proj.weight[rows] = query_RH * math.sqrt(HEAD) * scale
        self.attention.k_proj.weight[rows] = key_RH

    def prefer(self, score: float, keys: dict[str, float], queries: dict[str, float] | None = None) -> None:
        """Score keys by their flags, for every query, or in proportion to the asking position's flags."""
        rows = self._take(1)
        if queries is None:
            self.attention.q_proj.bias[rows] = math.sqrt(HEAD) * score
        else:
            self.attention.q_proj.weight[rows] = _reads(queries) * math.sqrt(HEAD) * score
        self.attention.k_proj.weight[rows] = _reads(keys)

    def move(self, value_RH: torch.Tensor, target_RH: torch.Tensor, gain: float = 1.0, offset: float = 0.0) -> None:
        rows = slice(self.rows.start + self.moved, self.rows.start + self.moved + len(value_RH))
        self.moved += len(value_RH)
        assert self.moved <= HEAD
        self.attention.v_proj.weight[rows] = value_RH
        self.attention.v_proj.bias[rows] = offset
        self.attention.out_proj.weight[:, rows] = gain * target_RH.T

    def _take(self, count: int) -> slice:
        self.used += count
        assert self.used <= HEAD
        return slice(self.rows.start + self.used - count, self.rows.start + self.used)


def _axes(dims: slice) -> torch.Tensor:
    """The projection (R, H) to a subspace."""
    return torch.eye(HIDDEN)[dims]


def _flags(weights: dict[str, float]) -> torch.Tensor:
    row = torch.zeros(1, HIDDEN)
    for name, weight in weights.items():
        row[0, _FLAG[name]] = weight
    return row


def _reads(weights: dict[str, float]) -> torch.Tensor:
    return _balanced(_flags({name: weight / LOUD.get(name, 1) for name, weight in weights.items()}), BLANK)


def _writes(weights: dict[str, float]) -> torch.Tensor:
    return _balanced(_flags({name: weight * LOUD.get(name, 1) for name, weight in weights.items()}), BALANCE)


def _on_code(matrix: torch.Tensor) -> torch.Tensor:
    """A projection of the code subspace as one of the stream."""
    row = torch.zeros(len(matrix), HIDDEN)
    row[:, CODE] = matrix
    return row


def _slice_of_code(part: int) -> torch.Tensor:
    return _axes(slice(part * HEAD, (part + 1) * HEAD))


def _shifted(weights: torch.Tensor, phases: torch.Tensor) -> torch.Tensor:
    """The query (32, H) whose score with a place d back is the sum of weights_i * cos(frequency_i * d - phase_i)."""
    cos, sin = weights * phases.cos(), weights * phases.sin()
    query = torch.zeros(32, HIDDEN)
    at = PLACE.start
    index = torch.arange(16)
    query[index, at + index], query[index, at + 16 + index] = cos, sin
    query[16 + index, at + 16 + index], query[16 + index, at + index] = cos, -sin
    return query


def _recency(slope: float, reach: int) -> torch.Tensor:
    """A query whose score falls by `slope` for each token back, up to `reach` tokens, and not again beyond."""
    back = torch.arange(1024, dtype=torch.float64)
    angles = back[:, None] * _frequencies().double()
    basis = torch.cat([angles.cos(), angles.sin()], dim=1)
    target = -slope * back.clamp(max=reach)
    weight = torch.where(back <= reach, 20.0, 1.0).double()
    offset = torch.ones(len(back), 1, dtype=torch.float64)
    system = torch.cat([basis, offset], dim=1) * weight[:, None]
    ridge = 0.1 * torch.eye(33, dtype=torch.float64)
    ridge[32, 32] = 0
    solution = torch.linalg.lstsq(
        torch.cat([system, ridge]), torch.cat([target * weight, torch.zeros(33, dtype=torch.float64)])[:, None]
    ).solution[:32, 0]
    cos, sin = solution[:16].float(), solution[16:].float()
    return _shifted(torch.hypot(cos, sin), torch.atan2(sin, cos))


def _look_back(layer: Any, near_RC: torch.Tensor) -> None:
    """Layer 1: flags of the tokens just before, the code of the one before, and whether the history is over.

    The MLP marks the first tokens of titles: a title begins behind a slot and a comma.
    """
    # The weights of the waves whose sum is lowest at every other distance up to 900, its neighbours' included (a linear
    # program): what is at slots is quieter, and so louder behind LayerNorm, by a quarter.
    sharp = torch.tensor([14, 10, 3, 1, 1, 1, 1.5, 3, 3.5, 2, 0, 1.5, 2.5, 3, 2.5, 1])
    for back in range(1, GATHERED + 2):
        head = _Head(layer, back - 1)
        head.match(_shifted(sharp, back * _frequencies()), _axes(PLACE))
        for name in _LOOKED_BACK:
            head.move(_reads({name: 1}), _writes({f"{name}-{back}": 1}))
    head = _Head(layer, GATHERED + 1)
    head.match(_shifted(sharp, _frequencies()), _axes(PLACE))
    head.move(_on_code(near_RC), _axes(NEAR), 0.5)
    head = _Head(layer, GATHERED + 2)
    head.prefer(15, {"first": 1})
    head.prefer(35, {"recommend": 1})
    head.move(_reads({"recommend": 1}), _writes({"after": 1}))

    slot_and_comma = [
        [{f"comma-{k}": 1.0, f"real-{k + 1}": -1.0, f"lead-{k + 1}": 1.0} for k in range(1, GATHERED + 1)],
        [{f"intro-{k}": 1.0} for k in range(1, GATHERED + 1)],
    ]
    # Marks of what is *not* there: an exact zero, whatever LayerNorm's scale, for what a head should see.
    layer.fc2.bias += _writes({"rest1": 1, "rest2": 1, "rest3": 1})[0]
    found = {k: {f"rest{k}": -1.0} for k in range(1, GATHERED + 1)}
    steps = [(reads, found[k]) for way in slot_and_comma for k, reads in enumerate(way, 1)]
    steps.append(({"end": 1.0, "ending-1": 1.0, "real": -1.0}, {"decide": 1.0}))
    # A soft token writes a little into every flag: "real" would bias attention to its slot, "word" is exactly zero.
    steps.append(({"real": 1.0}, {"word": 1.0}))
    for number, (reads, writes) in enumerate(steps):  # 0 up to a quarter, 1 from a half on
        for neuron, bias, sign in ((2 * number, -1, 1), (2 * number + 1, -2, -1)):
            layer.fc1.weight[neuron] = 4 * _reads(reads)
            layer.fc1.bias[neuron] = bias
            layer.fc2.weight[:, neuron] = sign * _writes(writes)[0]
    before = 2 * len(steps)
    layer.fc1.weight[before] = _reads({"after": -1.0})
    layer.fc1.bias[before] = 0.5
    layer.fc2.weight[:, before] = 2 * _writes({"before": 1})[0]


def _gather(layer: Any, near_RC: torch.Tensor) -> None:
    """Layer 2: slots gather their titles' tokens, tokens gather the vectors of the user and of the history."""
    recency = _recency(slope=0.8, reach=40)
    for part in range(2):
        head = _Head(layer, part)
        head.match(recency, _axes(PLACE))
        head.prefer(-45, {"rest1": 1})
        head.prefer(150, {"first": 1}, {"word": 1})
        head.move(_slice_of_code(part), _slice_of_code(part), 1.0)
    for number, (rest, target) in enumerate({"rest2": SECOND, "rest3": THIRD}.items(), 2):
        head = _Head(layer, number)
        head.match(recency, _axes(PLACE))
        head.prefer(-45, {rest: 1})
        head.prefer(150, {"first": 1}, {"word": 1})
        head.move(_on_code(near_RC), _axes(target), 1.0)
    head = _Head(layer, 4)
    head.prefer(40, {"user": 1}, {"word": 1})
    head.prefer(15, {"first": 1})
    head.move(_axes(SOFT), _axes(SOFT), 1.0)
    head = _Head(layer, 5)
    head.prefer(-20, {"word": 1, "after": 1, "user": 1}, {"word": 1})
    head.prefer(15, {"first": 1})
    head.move(_axes(SOFT), _axes(SOFT), 1.0)


def _decide(layer: Any, near_RC: torch.Tensor, eos_C: torch.Tensor) -> None:
    """Layer 3: candidates' first tokens in proportion to their match; further down a title, what continues it."""
    for number, (tilt, part) in enumerate((tilt, part) for tilt in TILTS for part in range(2)):
        head = _Head(layer, number)
        head.match(_axes(SOFT), _axes(SOFT), tilt)
        head.prefer(-80, {"word": 1, "before": 1, "first": -SINK}, {"decide": 1})
        head.prefer(15, {"first": 1})
        head.move(_slice_of_code(part), _slice_of_code(part), COPY if tilt > 0 else -TAKEN_OFF * COPY)
    # Candidates that hold the token here propose their next one, by match.
    rows = slice(HEAD - MATCHED - 2)  # of the projection: what one head has room for
    for number, (held, then) in enumerate(((_on_code(near_RC), SECOND), (_axes(SECOND), THIRD)), 4):
        head = _Head(layer, number)
        head.match(_axes(SOFT), _axes(SOFT), 0.8)
        head.match(_on_code(near_RC)[rows], held[rows], 2.9)
        head.prefer(-70, {"word": 1, "before": 1, "first": -2.15}, {"word": 1, "decide": -1})
        head.prefer(40, {"first": 1}, {"decide": 1})
        head.move(_axes(then), _on_code(near_RC), 2.0)
    # What followed the token here among the candidates; after the last of a title comes its slot: that is the end.
    head = _Head(layer, 6)
    rows = slice(HEAD - 5)
    head.match(_on_code(near_RC)[rows], _axes(NEAR)[rows], 1.0)
    head.prefer(-35, {"before": 1}, {"word": 1, "decide": -1})
    head.prefer(4, {"first": 1})
    head.prefer(40, {"first": 1}, {"decide": 1})
    head.move(_on_code(near_RC)[rows], _on_code(near_RC)[rows], 4.0)
    head.move(_reads({"word": -1}), _on_code(eos_C[None]), 10.0, offset=1.0)
