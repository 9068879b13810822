"""The harness of the benchmarks: variants in turn, ratios within rounds, CPU of children; no time is judged."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from cost_model.inputs import CONSTANTS, measured
from harness import Bench, Sample, count, flags, measure
from memory import watch
from scaling import as_table as scaling_table

from helpers.paths import BENCHMARKS

SPIN = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass"


def test_rounds_are_interleaved_and_ratios_taken_within_them(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    order: list[str] = []
    slow = iter([9.0, 1.0, 4.0, 2.0])  # seconds of each run of `b`; the first is the warm-up

    def a() -> Sample:
        order.append("a")
        return Sample(10, cpu_s=2.0, wall_s=1.0)

    def b() -> Sample:
        order.append("b")
        return Sample(10, cpu_s=4.0, wall_s=next(slow))

    bench = Bench("two", rounds=3, unit="clips").add("a", a).add("b", b).run()
    assert order == ["a", "b"] * 4
    ratio = bench.ratio("a", "b")
    assert (ratio.median, ratio.min, ratio.max) == (2.0, 1.0, 4.0)
    assert bench.ratio("a", "b", per="cpu").median == 2.0
    assert bench.rate("b").median == 5.0
    bench.notes["clips"] = "made up"
    bench.print()
    printed = capsys.readouterr().out
    assert "a / b, by the clock: 2 (1 .. 4)" in printed
    assert "made up" in printed
    bench.save(str(tmp_path / "two.json"))
    saved = json.loads((tmp_path / "two.json").read_text())
    assert [sample["wall_s"] for sample in saved["variants"]["b"]["rounds"]] == [1.0, 4.0, 2.0]
    assert saved["ratios"][0] == {"a": "a", "b": "b", "per": "wall", "median": 2.0, "min": 1.0, "max": 4.0}
    assert saved["machine"]["cores"] >= 1
    assert "python" in saved["machine"]["versions"]


def test_unknown_cpu_seconds_are_left_out_of_the_file(tmp_path: Path) -> None:
    bench = Bench("one", rounds=2).add("a", lambda: Sample(10, cpu_s=math.nan, wall_s=2.0)).run()
    bench.print()
    bench.save(str(tmp_path / "one.json"))

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    saved = json.loads((tmp_path / "one.json").read_text(), parse_constant=refuse)["variants"]["a"]
    assert saved["cpu"] == {}
    assert saved["rounds"] == [{"items": 10, "wall_s": 2.0}] * 2
    assert saved["wall"]["median"] == 5.0


def test_cpu_of_children_counts_ended_or_alive() -> None:
    def ended() -> int:
        subprocess.run([sys.executable, "-c", SPIN], check=True)
        return 3

    sample = measure(ended)
    assert sample.items == 3
    assert sample.cpu_s is not None
    assert sample.cpu_s >= 0.3
    waits = f"input()\n{SPIN}\nprint(1, flush=True)\ninput()"
    alive = subprocess.Popen([sys.executable, "-c", waits], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    asked, answered = alive.stdin, alive.stdout
    assert asked is not None
    assert answered is not None

    def still_alive() -> int:
        asked.write(b"\n")
        asked.flush()
        answered.readline()
        return 1

    seen = measure(still_alive).cpu_s
    alive.communicate(b"\n")
    assert seen is not None
    assert seen >= 0.25  # the kernel counts a process's time in ticks of 10 ms


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="memory is measured by Linux's /proc")
def test_peak_memory_of_a_process_and_its_children() -> None:
    holds = "held = bytearray(60 << 20); import sys, subprocess, time"
    child = "subprocess.run([sys.executable, '-c', 'held = bytearray(90 << 20); import time; time.sleep(2)'])"
    peaks = watch([sys.executable, "-c", f"{holds}; {child}"])
    assert 60 < peaks["driver, greatest resident"] < 100
    assert 150 < peaks["in all"] < 220
    with pytest.raises(SystemExit, match="ValueError: no"):
        watch([sys.executable, "-c", "raise ValueError('no')"])


def test_flags_have_rounds_json_and_quick() -> None:
    chosen = flags("a benchmark").parse_args(["--rounds", "2", "--quick"])
    assert (chosen.rounds, chosen.json, chosen.quick) == (2, "", True)


@pytest.mark.parametrize("wrong", ["0", "-8", "eight"])
def test_counts_below_one_end_in_a_line(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = flags("a benchmark")
    parser.add_argument("--ranks", type=count, nargs="+")
    with pytest.raises(SystemExit):
        parser.parse_args(["--ranks", "1", wrong])
    assert capsys.readouterr().err.endswith(f"argument --ranks: '{wrong}': use a whole number of 1 or more\n")


@pytest.mark.long
def test_train_step_benchmark_writes_constants_of_the_cost_model(tmp_path: Path) -> None:
    file = tmp_path / "step.json"
    command = [sys.executable, str(BENCHMARKS / "train_step.py"), "--quick", "--sizes", "tiny", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    for shown in ("data stall (step with the data loader / in memory)", "step with the tokenizer / with cached codes"):
        assert shown in done.stdout
    assert "online / cached" in done.stdout
    assert "a factor of 2" in done.stdout
    parts = json.loads(file.read_text())["parts"]
    tiny = parts["tiny"]
    assert set(tiny["stall"]["variants"]) == {"in memory", "with the data loader", "data loader only"}
    assert tiny["peak memory"]["online"]["peak_mib"] > tiny["peak memory"]["online"]["before_mib"] > 0
    work, step = tiny["speed"]["work"], tiny["speed"]["step"]
    assert step["gflop_per_clip"] == pytest.approx(6 * (work["encoder_macs"] + work["other_macs"]) / 1e9)
    assert step["share_of_peak"] == pytest.approx(step["gflops"] / tiny["speed"]["peak_gflops"])
    assert set(measured(CONSTANTS, [str(file)])) == set(CONSTANTS)


@pytest.mark.long
def test_rank_requests_only_its_own_row_groups(tmp_path: Path) -> None:
    file = tmp_path / "ranks.json"
    command = [sys.executable, str(BENCHMARKS / "feed.py"), "--quick", "--ranks", "1", "8", "64", "--rows", "20000"]
    done = subprocess.run([*command, "--json", str(file)], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert "Requests of a rank" in done.stdout
    found = json.loads(file.read_text())
    assert [(row["ranks"], row["epoch"]) for row in found["requests"]] == [(n, e) for n in (1, 8, 64) for e in (0, 1)]
    for row in found["requests"]:
        assert row["needed"] > 0
        assert row["MB"] > 0
        assert row["sent"] <= (row["allowed"] if row["epoch"] == 0 else 1.2 * row["needed"]), row
    assert [row["what"] for row in found["rows"]] == ["order", "captions"]


@pytest.mark.long
def test_gpu_benchmark_runs_on_a_cpu(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    flags = ["--size", "tiny", "--batches", "4", "--modes", "eager", "--threads", "1", "--quick", "--json", str(file)]
    done = subprocess.run([sys.executable, str(BENCHMARKS / "gpu.py"), *flags], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    (step,) = found["steps"]
    assert step["memory_clips_per_s"] > 0
    assert step["loader_clips_per_s"] > 0
    assert 0 < step["share_of_peak"] < 1
    assert {"forward", "backward", "optimizer", "wait"} <= step["phases_ms"].keys()
    assert found["launches"]["eager"]["operations"] > 100
    assert [row["views"] for row in found["codes"]] == [1, 4]
    assert all(row["memory_clips_per_s"] > 0 and row["jpeg_clips_per_s"] > 0 for row in found["codes"])
    assert "forward ms" in done.stdout


def test_table_of_scaling_counts_each_worker_beyond_the_first() -> None:
    def run(step_s: float, cpu_s: float, first_s: float, reduce_s: float) -> dict:
        times = {"steps_s": [step_s, step_s, 9.0], "cpu_s": cpu_s, "all_reduce_s": [reduce_s] if reduce_s else []}
        return times | {"start_s": first_s - 2, "first_step_s": first_s, "gradient_bytes": 7_000_000}

    table = scaling_table({1: [run(0.4, 1.2, 10, 0)], 4: [run(0.2, 1.8, 16, 0.03)]}, cores=2).splitlines()
    assert " ".join(table[2].split()) == "1 8.0 10.0 400 (400 .. 400) 1.00 of 1 400"
    assert " ".join(table[3].split()) == "4 (shared cores) 14.0 16.0 +2.0 200 (200 .. 200) 2.00 of 2 30.0 600 +16.7%"
    assert table[4] == "gradients: 7 MB; cores: 2"
