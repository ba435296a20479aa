"""`evaluate` metric: accuracy of MLLM-CompBench by column and kind of comparison, with Wilson intervals."""

from typing import Any

import datasets
import evaluate

from hf_compbench.extraction import extract_answer
from hf_compbench.functional import compute_macro_means
from hf_compbench.intervals import wilson_interval

_DESCRIPTION = """Accuracy of answers to two-image comparisons for each reporting column, the mean over columns, over
kinds of comparison and over all questions. A reply that names none or several options is wrong."""

_CITATION = """@inproceedings{NEURIPS2024_32923dff,
  title={MLLM-CompBench: A Comparative Reasoning Benchmark for Multimodal LLMs},
  author={Kil, Jihyung and Mai, Zheda and Lee, Justin and Chowdhury, Arpita and Wang, Zihe and Cheng, Kerrie and
    Wang, Lemeng and Liu, Ye and Chao, Wei-Lun},
  booktitle={Advances in Neural Information Processing Systems}, volume={37}, pages={28798--28827}, year={2024}}"""

_INPUTS = """
Args:
    predictions (list of str): replies of the model, raw.
    references (list of str): texts of the right options.
    options (list of list of str): options of each question.
    columns (list of str): column code of each question, e.g. "ST-a".
    relativities (list of str, optional): kind of comparison of each question, for `acc/<relativity>` and `macro8`.
    questions (list of str, optional): texts of the questions; with them "it is darker than the left one" is no answer
        to which image is brighter.
Returns:
    dict: `columns` (accuracy, low, high, n, coverage by column) and the flat `acc/<column>`, `acc/<relativity>`,
    `macro`, `macro8`, `micro`, `coverage`; fractions.
"""


class CompbenchAccuracy(evaluate.Metric):  # type: ignore[misc]
    """Accuracy by column, over columns, over kinds of comparison and over all questions."""

    def _info(self) -> evaluate.MetricInfo:
        string = datasets.Value("string")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": string, "references": string}),
        )

    def _compute(
        self,
        predictions: list[str],
        references: list[str],
        options: list[list[str]],
        columns: list[str],
        relativities: list[str] | None = None,
        questions: list[str] | None = None,
    ) -> dict[str, Any]:
        given: dict[str, list[Any] | None] = {
            "options": options,
            "columns": columns,
            "relativities": relativities,
            "questions": questions,
        }
        for name, values in given.items():
            if values is not None and len(values) != len(predictions):
                raise ValueError(f"Expected {len(predictions)} `{name}`, one for each prediction, got {len(values)}.")
        right: dict[str, list[tuple[bool, bool]]] = {}
        groups: dict[str, str] = {}
        for i, reply in enumerate(predictions):
            if references[i] not in options[i]:
                raise ValueError(f"Expected the reference {references[i]!r} to be one of its options {options[i]}.")
            index = extract_answer(reply, options[i], questions[i] if questions else "").index
            is_right = index >= 0 and options[i][index] == references[i]
            right.setdefault(columns[i], []).append((is_right, index >= 0))
            groups[columns[i]] = relativities[i] if relativities else ""
        table = {}
        for column, found in right.items():
            hits, n = sum(is_right for is_right, _ in found), len(found)
            low, high = wilson_interval(hits, n)
            coverage = sum(is_parsed for _, is_parsed in found) / n
            table[column] = {"accuracy": hits / n, "low": low, "high": high, "n": n, "coverage": coverage}
        accuracies = {column: numbers["accuracy"] for column, numbers in table.items()}
        result: dict[str, Any] = {"columns": table, **{f"acc/{column}": value for column, value in accuracies.items()}}
        if relativities:
            means = compute_macro_means(accuracies, groups)
            result |= {f"acc/{name}": value for name, value in means.items()}
            result["macro8"] = sum(means.values()) / len(means)
        everything = [pair for found in right.values() for pair in found]
        result["macro"] = sum(accuracies.values()) / len(accuracies)
        result["micro"] = sum(is_right for is_right, _ in everything) / len(everything)
        result["coverage"] = sum(is_parsed for _, is_parsed in everything) / len(everything)
        return result
