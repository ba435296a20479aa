"""The metrics as modules of `evaluate`, by path, offline, alone, combined and in two processes."""

import http.server
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import ClassVar

import evaluate
import pytest

from hf_ava_bench import ABILITIES, compute_score, export_space, list_metrics, metric_path

EXAMPLES = {
    "counting_error": (["5"], ["4"], "mae_gt", 0.25),
    "depth_error": (["5 m"], ["4 meters"], "mae_gt", 0.25),
    "giou": (["[0, 0, 1, 1]"], ["[0, 0, 1, 0.5]"], "giou", 0.5),
    "ciede2000": (["red"], ["[255, 0, 0]"], "ciede2000", 0.0),
    "anls": (["Oberon"], ["oberon"], "anls", 1.0),
}


def test_every_metric_has_script_card_and_front_matter():
    for name in list_metrics():
        folder = Path(metric_path(name))
        assert (folder / f"{name}.py").is_file()
        card = (folder / "README.md").read_text(encoding="utf-8")
        assert card.startswith("---\n")
        assert f'metric_path("{name}")' in card
    with pytest.raises(ValueError, match=r"ability_accuracy, anls.*got 'iou'"):
        metric_path("iou")


@pytest.mark.parametrize("name", EXAMPLES)
def test_metrics_load_by_path(name):
    predictions, references, key, value = EXAMPLES[name]
    metric = evaluate.load(metric_path(name))
    result = metric.compute(predictions=predictions, references=references)
    assert result[key] == pytest.approx(value)
    assert {"n", "n_unparsable", "coverage", "policy"} <= result.keys()
    assert "2506.09082" in metric.citation


@pytest.mark.parametrize("ability", [name for name, ability in ABILITIES.items() if ability.answer == "class"])
def test_accuracy_has_a_config_for_each_class_ability(ability):
    metric = evaluate.load(metric_path("ability_accuracy"), ability)
    assert metric.compute(predictions=["left", "x"], references=["left", "right"])["accuracy"] == 0.5


def test_dispatch_equals_the_function_and_passes_options():
    metric = evaluate.load(metric_path("ava_bench"), "Counting")
    predictions, references = ["5", "many"], ["4", "7"]
    for policy in ("worst", "skip"):
        result = metric.compute(predictions=predictions, references=references, unparsable=policy)
        assert result["mae_gt"] == compute_score("counting", predictions, references, unparsable=policy).value


@pytest.mark.parametrize("name", ["ability_accuracy", "ava_bench"])
def test_a_metric_of_several_abilities_wants_to_know_which(name):
    with pytest.raises(ValueError, match=r"as `config_name`, got 'default'|config_name"):
        evaluate.load(metric_path(name))


def test_missing_predictions_arrive_and_batches_add_up():
    metric = evaluate.load(metric_path("counting_error"))
    metric.add_batch(predictions=["5", None], references=["4", "7"])
    metric.add(prediction="12", reference="12")
    result = metric.compute()
    assert (result["n"], result["n_missing"], result["mae_gt"]) == (3, 1, pytest.approx(1.25 / 3))


def test_metrics_combine():
    both = evaluate.combine(
        [evaluate.load(metric_path("giou")), evaluate.load(metric_path("anls"))], force_prefix=True
    )
    result = both.compute(predictions=["[0, 0, 1, 1]"], references=["[0, 0, 1, 1]"])
    assert [value for key, value in result.items() if key.endswith(("_giou", "_anls"))] == [1.0, 1.0]


# As if torch and transformers were not installed: `evaluate` and `datasets` import them where they are.
WITHOUT_TORCH = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""

FRESH = (
    WITHOUT_TORCH
    + """
import socket
def refuse(*args, **kwargs):
    raise AssertionError("a connection was opened")
socket.socket.connect = refuse
socket.getaddrinfo = refuse
import evaluate, hf_ava_bench
for name in hf_ava_bench.list_metrics():
    config = "counting" if name == "ava_bench" else "scene" if name == "ability_accuracy" else None
    evaluate.load(hf_ava_bench.metric_path(name), config)
print(len(hf_ava_bench.list_metrics()))
"""
)


def test_fresh_home_needs_no_connection_and_no_torch(tmp_path):
    env = {**os.environ, "HF_HOME": str(tmp_path), "USE_TORCH": "0"}
    env.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run([sys.executable, "-c", FRESH], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "7"


def test_scoring_loads_no_model_library(tmp_path):
    (tmp_path / "p.json").write_text('[{"id": 1, "text": "5", "answer": "4"}]', encoding="utf-8")
    code = (
        "import sys; from hf_ava_bench.cli import main; "
        f"assert main(['score', {str(tmp_path / 'p.json')!r}, '--ability', 'counting']) == 0; "
        "print(sorted({'evaluate', 'matplotlib', 'torch', 'transformers', 'peft'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


class _Hub(http.server.BaseHTTPRequestHandler):
    """The two requests that `evaluate.load("acme/giou")` makes to the Hub."""

    folder = ""
    asked: ClassVar[list[str]] = []

    def do_GET(self):
        self.asked.append(self.path)
        name = self.path.rpartition("/")[2]
        path = Path(self.folder) / name
        found = self.path.startswith("/spaces/acme/giou/resolve/main/") and path.is_file()
        self.send_response(200 if found else 404)
        self.end_headers()
        if found and self.command == "GET":
            self.wfile.write(path.read_bytes())

    do_HEAD = do_GET

    def log_message(self, *args):
        pass


@pytest.mark.loopback
def test_exported_space_is_loaded_as_from_the_hub(tmp_path):
    _Hub.folder = str(export_space("giou", tmp_path / "giou"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    code = (
        "import evaluate; giou = evaluate.load('acme/giou'); "
        "print(giou.compute(predictions=['[0, 0, 1, 1]'], references=['[0, 0, 1, 0.5]'])['giou'])"
    )
    env = {
        **os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0", "USE_TORCH": "0", "HF_HUB_DISABLE_TELEMETRY": "1",
    }  # fmt: skip
    for name in ("HF_EVALUATE_OFFLINE", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        env.pop(name, None)
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env, timeout=240
        )
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "0.5"
    assert "/spaces/acme/giou/resolve/main/giou.py" in _Hub.asked


WORKER = (
    WITHOUT_TORCH
    + """
import evaluate, hf_ava_bench
rank, cache = int(sys.argv[1]), sys.argv[2]
metric = evaluate.load(
    hf_ava_bench.metric_path("counting_error"), num_process=2, process_id=rank, experiment_id="two", cache_dir=cache
)
rows = [("5", "4"), ("many", "7"), ("12", "12"), ("3", "2")][rank::2]
result = metric.compute(predictions=[p for p, _ in rows], references=[g for _, g in rows])
print("none" if result is None else (result["n"], result["mae_gt"], result["n_unparsable"]))
"""
)


def test_two_processes_share_one_metric(tmp_path):
    command = [sys.executable, "-c", WORKER]
    env = {**os.environ, "USE_TORCH": "0"}
    workers = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
        )
        for rank in (0, 1)
    ]
    outputs = [worker.communicate(timeout=120) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    assert outputs[0][0].strip() == "(4, 0.4375, 1)"
    assert outputs[1][0].strip() == "none"
