"""What docs/benchmarks.md sets side by side: for each package its peers, and the columns of the results that say so.

No number stands here: `page.py` takes them all from results/*.json.
"""

from dataclasses import dataclass, field
from typing import Any

CLOCK = ("ratio", "ratio_q1", "ratio_q3")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Rows of one result file that compare ours with a peer.

    Args:
        case: the result file.
        what: what is compared.
        peer: the other way, in words.
        columns: median of the ratio and, if the file has them, its quartiles.
        inverse: whether the columns have ours / peer. The page shows peer / ours: above 1 is for ours.
        points: columns that tell the rows of this comparison apart.
        where: values that a row must have to be one of them.
        against: values of the peer's row at the same point, where each has a row of its own: its column over ours.
    """

    case: str
    what: str
    peer: str
    columns: tuple[str, ...] = CLOCK
    inverse: bool = False
    points: tuple[str, ...] = ()
    where: dict[str, Any] = field(default_factory=dict)
    against: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Side:
    """A package: its comparisons, and peers that were not run, with the reason."""

    dist: str
    comparisons: tuple[Comparison, ...]
    not_run: str


def _finer(what: str, peer: str, name: str, **options: Any) -> Comparison:
    where = {"what": name}
    columns, points = ("ratio", "q1", "q3"), ("model", "batch_size")
    return Comparison(
        case="finer_cam_speed", what=what, peer=peer, columns=columns, points=points, where=where, **options
    )


def _meda(preset: str) -> Comparison:
    return Comparison(
        case="meda_compress",
        what=f"reading and compressing a prompt, `{preset}`, time",
        peer="transformers' `DynamicCache`, which compresses nothing",
        columns=("slowdown", "slowdown_q1", "slowdown_q3"),
        inverse=True,
        points=("context",),
        where={"formulation": preset},
    )


def _kvpress(method: str) -> Comparison:
    return Comparison(
        case="meda_kvpress",
        what=f"reading and compressing a prompt by {method}, slowdown",
        peer="the package `kvpress`",
        columns=("slowdown",),
        points=("context",),
        where={"method": method, "side": "ours"},
        against={"method": method, "side": "kvpress"},
    )


SIDES = (
    Side(
        dist="finer-cam",
        comparisons=(
            _finer("a map, time", "the package `grad-cam`", "grad-cam / ours"),
            _finer("maps of five strengths, time", "the package `grad-cam`", "grad-cam / ours, five gammas"),
            _finer("a map, time", "a backward through the whole model", "full backward / ours"),
            _finer("a map, time", "the same with frozen weights", "frozen backward / ours"),
            _finer("a map, time", "a forward alone: the floor", "ours / forward", inverse=True),
            _finer("a map, memory", "a forward alone: the floor", "memory, ours / forward", inverse=True),
        ),
        not_run="`torchcam` was not run.",
    ),
    Side(
        dist="hf-ava-bench",
        comparisons=(
            Comparison(
                case="ava_build",
                what="a checked data set from a folder, time",
                peer="what the released builder does, restated: decode, save as JPEG anew, check nothing",
                points=("image_size",),
            ),
        ),
        not_run="The released evaluators are restated in `parity`, for their results, and not timed. `lmms-eval` and "
        "`VLMEvalKit` were not run: they need data of the Hub.",
    ),
    Side(
        dist="hf-compbench",
        comparisons=(
            Comparison(
                case="compbench_embed",
                what="embedding a pool for pair mining, time",
                peer="both images of each candidate pair, as in the released scripts",
                points=("pairs",),
            ),
            Comparison(
                case="compbench_options",
                what="scoring answer options, time",
                peer="a forward for each option",
                points=("options",),
            ),
        ),
        not_run="`lmms-eval` and `VLMEvalKit` were not run: they need data of the Hub.",
    ),
    Side(dist="hf-diorama", comparisons=(), not_run="Rendered worlds of this kind have no peer that was found."),
    Side(
        dist="meda-cache",
        comparisons=(
            Comparison(
                case="meda_decode",
                what="decoding a token, time",
                peer="transformers' `DynamicCache`",
                columns=("speedup", "speedup_q1", "speedup_q3"),
                points=("context", "keep_ratio"),
            ),
            _meda("balanced"),
            _meda("meda"),
            Comparison(
                case="meda_compress",
                what="reading and compressing a prompt, `meda`, time",
                peer="attention matrices, as in the released code, restated",
                columns=("cpu_seconds",),
                points=("context",),
                where={"formulation": "meda"},
                against={"formulation": "naive"},
            ),
            Comparison(
                case="meda_compress",
                what="reading and compressing a prompt, `meda`, peak memory",
                peer="attention matrices, as in the released code, restated",
                columns=("peak_mib",),
                points=("context",),
                where={"formulation": "meda"},
                against={"formulation": "naive"},
            ),
            *(_kvpress(method) for method in ("SnapKV", "accumulated attention")),
        ),
        not_run="`kvpress` 0.5.5 wants transformers below 5.3, ours is 5.17 or later: each runs in an environment of "
        "its own, and its slowdown is over the `DynamicCache` there. PyramidKV, LOOK-M and StreamingLLM are presets "
        "of ours, compared in quality in [`meda_quality`](../benchmarks-hf/results/meda_quality.json).",
    ),
    Side(
        dist="partial-tune",
        comparisons=(
            Comparison(
                case="partial_tune_sweep",
                what="the curve of seen against absent accuracy, time",
                peer="the loop of the released code, restated",
                points=("samples", "classes"),
            ),
            Comparison(
                case="partial_tune_inference",
                what="calibrated inference, time",
                peer="the model without calibration: the floor",
                columns=("slowdown", "slowdown_q1", "slowdown_q3"),
                inverse=True,
                points=("how", "batch_size"),
            ),
        ),
        not_run="No other package does this, as far as was found.",
    ),
    Side(
        dist="peft-ensemble",
        comparisons=(),
        not_run="Semi-supervised packages (`TorchSSL`, `USB`) were not run; the methods are restated in `SSLTrainer`.",
    ),
    Side(
        dist="prompt-cam",
        comparisons=(
            Comparison(
                case="prompt_cam_ranking",
                what="ranking the heads of an image, time",
                peer="a forward for each candidate, as published",
                columns=("ratio",),
                points=("model",),
            ),
            Comparison(
                case="prompt_cam_agnostic",
                what="a training step, time",
                peer="a prompt for each class in every layer",
                points=("classes",),
            ),
            Comparison(
                case="prompt_cam_late",
                what="epochs of the late variant, time",
                peer="as many of the deep variant",
                points=("classes", "epochs"),
            ),
            Comparison(
                case="prompt_cam_size",
                what="a saved model, bytes",
                peer="a checkpoint with the backbone",
                columns=("ratio",),
                points=("classes",),
            ),
        ),
        not_run="The released code was run for golden files (results equal), and not timed.",
    ),
    Side(
        dist="taxaclip",
        comparisons=(
            Comparison(
                case="taxaclip_images",
                what="files to taxa, time",
                peer="a plain loop with transformers",
                points=("batch_size",),
            ),
            Comparison(
                case="taxaclip_ranks",
                what="probabilities of a rank, time",
                peer="the loop of `pybioclip`, restated",
                points=("groups", "batch_size"),
            ),
            Comparison(
                case="taxaclip_pybioclip",
                what="embeddings to the likeliest genera, time",
                peer="the package `pybioclip`",
                points=("num_taxa",),
            ),
            Comparison(
                case="taxaclip_index",
                what="opening an index and the first image, time",
                peer="the array read whole, as `pybioclip` does",
                columns=("first_image_ratio",),
                points=("num_taxa", "index"),
            ),
            Comparison(
                case="taxaclip_index",
                what="an open index, memory of its own",
                peer="the array read whole, as `pybioclip` does",
                columns=("own_memory_ratio",),
                points=("num_taxa", "index"),
            ),
            Comparison(
                case="taxaclip_loss",
                what="the contrastive loss, peak memory",
                peer="all logits at once",
                columns=("memory_ratio",),
                points=("batch_size",),
                where={"loss": "tiles"},
            ),
        ),
        not_run="`pybioclip` runs from embeddings on: without the weights that it takes from the Hub when it starts, "
        "and with a stand-in for torchvision, which it imports for images.",
    ),
)
