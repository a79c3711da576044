"""What a search says of itself before it begins, and how long it says it will take."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from nas_kd.codec.arch import load_arch
from nas_kd.codec.macs import arch_cost
from nas_kd.codec.search_space import load_space
from nas_kd.places import TEACHERS
from nas_kd.schema import keys
from nas_kd.study import forecast as forecasting
from nas_kd.study.efforts import EFFORTS, default_effort, file_of, settings_of
from nas_kd.study.forecast import forecast, in_time, middling, teacher_line
from nas_kd.study.plan import kmac_per_px, narrowness, outline, question_of
from nas_kd.study.settings import Settings, default_space, load_studies, named
from nas_kd.teachers.costs import TeacherCost, teacher_costs

SMALL = Settings("s", "demo", objectives=("bd_rate", "flops"), batch=1, crop_size=64, crops=16)


def test_the_costs_between_which_archs_lie_hold_for_any_arch():
    asked = question_of(SMALL, None)
    ends = [kmac_per_px(arch_cost(arch), "total") for arch in asked.bounds]
    for seed in range(50):
        cost = kmac_per_px(arch_cost(asked.space.draw(seed)), "total")
        assert min(ends) <= cost <= max(ends)
    assert (asked.size, asked.trials) == (load_space("demo").size, 20)


def test_a_grid_has_its_own_archs_and_trials():
    asked = question_of(replace(SMALL, space="prim", grid={"N": [16, 32]}), None)
    assert (asked.size, asked.trials, len(asked.bounds)) == (2, 2, 2)
    assert question_of(replace(SMALL, space="prim", grid={"N": [16, 32]}), 1).trials == 1


def test_the_outline_says_space_trials_and_stages():
    asked = replace(SMALL, warmup=7, rank=9, polish=5, objectives=("bd_rate", "energy"), max_gmac=2)
    space, trials, stages = outline(asked, 3)
    assert "kMAC/px (encoder " in space
    assert "max_gmac = 2" in space
    assert trials.startswith(
        "trials: 3 of 2000 steps on 1 crops of 64 px, scored by bd_rate, energy"
    )
    for part in ("7 steps", "9 archs ranked", "1 energy reading each", "trained on by 5 steps"):
        assert part in stages


def test_the_outline_imports_nothing_heavy():
    code = (
        "import sys; from nas_kd.study.plan import outline; from nas_kd.study.settings import Settings;"
        "outline(Settings('s', 'demo'), None); print({'torch', 'optuna', 'ray'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_built_in_teacher_costs_what_its_arch_costs():
    (cost,) = teacher_costs("mini")
    arch = load_arch(TEACHERS / "mini" / "arch.json")
    assert cost.encoder == pytest.approx(kmac_per_px(arch_cost(arch), "encoder"))
    assert (cost.M, cost.N, cost.levels, cost.kept) == (arch.M, arch.hyper, 6, 1)


def test_a_zoo_teacher_costs_what_is_counted_by_hand_without_its_weights():
    """bmshj2018-hyperprior of quality 5: four 5x5 convolutions and three GDNs on either side of N = 128, M = 192."""
    convolutions = 25 * (3 * 128 / 4 + 128**2 / 16 + 128**2 / 64 + 128 * 192 / 256)
    gdn = 128**2 * (1 / 4 + 1 / 16 + 1 / 64)
    hyper = 9 * 192 * 128 / 16**2 + 25 * 128**2 * (1 / 32**2 + 1 / 64**2)
    side = (convolutions + gdn + hyper) / 1e3
    (cost,) = teacher_costs("bmshj2018-hyperprior:5")
    assert cost.decoder == pytest.approx(side)
    assert cost.encoder == pytest.approx(side + hyper / 1e3)  # it runs h_s as well
    assert (cost.M, cost.N, cost.levels, cost.kept) == (192, 128, 1, 1)


TAUGHT = [TeacherCost(10.0, 20.0, 256, 64, 6, 1)]


@pytest.fixture
def step_s(monkeypatch):
    """A machine that takes 0.1 s a step."""
    monkeypatch.setattr(forecasting, "measured_step_s", lambda *given: 0.1)
    monkeypatch.setattr(forecasting, "best_device", lambda: "cpu")
    return 0.1


def test_trials_and_polish_take_their_steps_and_workers_share_them(step_s):
    asked = replace(SMALL, init="scratch", polish=100, steps=50)
    alone, four = (forecast(asked, 8, n, TAUGHT).seconds for n in (1, 4))
    assert alone["trials"] > 8 * 50 * step_s
    assert four["trials"] == pytest.approx(alone["trials"] / 4)
    assert alone["polish of 2"] == pytest.approx(2 * 100 * step_s)
    assert alone["shared weights"] == alone["ranking"] == alone["energy"] == 0


def test_on_a_gpu_trials_are_not_taken_to_be_as_fast_together_as_alone(step_s, monkeypatch):
    monkeypatch.setattr(forecasting, "best_device", lambda: "cuda")
    asked = replace(SMALL, init="scratch")
    alone, four = (forecast(asked, 8, n, TAUGHT).seconds["trials"] for n in (1, 4))
    assert four == alone


def test_on_a_gpu_the_teacher_works_in_every_step_and_nothing_of_it_is_stored(step_s, monkeypatch):
    asked = replace(SMALL, init="scratch", steps=50)
    stored = forecast(asked, 8, 1, TAUGHT)
    monkeypatch.setattr(forecasting, "best_device", lambda: "cuda")
    taught, alone = (forecast(replace(asked, kd_y=y), 8, 1, TAUGHT) for y in (0.05, 0.0))
    assert stored.seconds["teacher's outputs"] > taught.seconds["teacher's outputs"] == 0
    # A forward pass of its encoder, beside three times the student's own.
    arch = middling(question_of(asked, 8), asked)
    own = kmac_per_px(arch_cost(arch), "total")
    more = taught.seconds["trials"] - alone.seconds["trials"]
    assert more == pytest.approx(8 * 50 * step_s * 10 / (3 * own))
    with_more = forecast(replace(asked, crops=10_000), 8, 1, TAUGHT)
    assert with_more.disk_bytes - taught.disk_bytes == (600 - asked.crops) * 3 * asked.crop_size**2


def test_shared_weights_cost_nothing_where_the_teacher_is_the_spaces_family(step_s):
    assert forecast(SMALL, 8, 1, TAUGHT).seconds["shared weights"] == 0
    assert forecast(replace(SMALL, warmup=10), 8, 1, TAUGHT).seconds["shared weights"] > 0
    assert forecast(replace(SMALL, space="asymmetric"), 8, 1, TAUGHT).seconds["shared weights"] > 0


def test_every_reading_of_energy_counts(step_s):
    asked = replace(SMALL, objectives=("bd_rate", "energy:encoder", "energy:decoder"))
    assert forecast(asked, 8, 4, TAUGHT).seconds["energy"] == 16 * forecasting.READING_S


def test_the_disk_holds_crops_outputs_and_students(step_s):
    few, many = (forecast(replace(SMALL, crops=n), 1, 1, TAUGHT).disk_bytes for n in (16, 116))
    assert many - few == 100 * (3 * 64**2 + 2 * (256 * 4**2 + 64 * 1**2))


def test_every_student_is_on_disk_twice_and_a_polished_one_once_more(step_s):
    asked = replace(SMALL, init="scratch")
    middle = forecasting.middling(question_of(asked, 1), asked)
    student = 4 * arch_cost(middle).total.parameters
    few, many = (forecast(asked, n, 1, TAUGHT).disk_bytes for n in (4, 8))
    assert many - few == 2 * 4 * student
    polished = forecast(replace(asked, polish=4), 8, 1, TAUGHT).disk_bytes
    assert polished - many == 2 * student


def test_a_real_step_is_measured(monkeypatch):
    monkeypatch.setattr(forecasting, "SECONDS", 0.01)
    told = forecast(SMALL, 2, 1)
    assert told.in_lines[0].startswith("measured: ")
    assert told.seconds["trials"] > 0


def test_the_teacher_stands_beside_the_space_with_a_remedy_where_it_is_wider():
    assert "M up to 256" in teacher_line(SMALL, TAUGHT)
    assert "take a space" not in teacher_line(SMALL, TAUGHT)
    wide = [TeacherCost(10.0, 20.0, 320, 192, 1, 1)]
    assert "no arch has latents of more than M = 256" in teacher_line(SMALL, wide)
    assert narrowness([load_space("demo").extreme(True)], 256) is None


@pytest.mark.parametrize(
    ("seconds", "says"), [(5, "5 s"), (600, "10 min"), (36000, "10.0 h"), (89, "89 s")]
)
def test_times_are_said_in_their_unit(seconds, says):
    assert in_time(seconds) == says


@pytest.mark.parametrize("effort", EFFORTS)
def test_every_effort_is_a_file_of_settings(effort):
    asked = settings_of(effort)
    assert set(asked) <= {one.name for one in keys(Settings)}
    assert named(None, {"teacher": "cheng2020"}, asked).settings.steps == asked["steps"]
    assert file_of(effort).read_text().startswith("# ")


def test_more_effort_is_more_of_everything():
    quick, hour, night = (settings_of(effort) for effort in EFFORTS)
    for key in quick:
        assert quick[key] < hour[key] < night[key]


def test_what_is_said_wins_over_an_effort(tmp_path: Path):
    quick = settings_of("quick")
    assert named(None, {"steps": 9}, quick).settings.steps == 9
    (tmp_path / "f.toml").write_text('space = "demo"\nsteps = 8\n[[each]]\nname="a"\nrank = 3\n')
    (study,) = load_studies(tmp_path / "f.toml", None, {"polish": 1}, quick)
    assert (study.steps, study.rank, study.polish) == (8, 3, 1)
    assert study.crops == quick["crops"]


def test_no_effort_warms_up_what_the_teacher_has_trained_already(tmp_path: Path):
    quick = settings_of("quick")
    assert named(None, {}, quick).settings.warmup is None  # mini is the family of demo
    assert named(None, {"warmup": 7}, quick).settings.warmup == 7
    assert named(None, {"space": "asymmetric"}, quick).settings.warmup == quick["warmup"]
    assert named(None, {"teacher": "cheng2020"}, quick).settings.warmup == quick["warmup"]
    (tmp_path / "f.toml").write_text('space = "demo"\n')
    assert load_studies(tmp_path / "f.toml", None, {}, quick)[0].warmup is None
    (other,) = load_studies(tmp_path / "f.toml", None, {"teacher": "cheng2020"}, quick)
    assert other.warmup == quick["warmup"]


def test_only_a_zoo_teacher_has_an_effort_and_the_large_space_by_default(monkeypatch):
    monkeypatch.setattr("nas_kd.study.efforts.likely_device", lambda: "cpu")
    assert (default_effort("mini"), default_space("mini")) == (None, "demo")
    assert (default_effort("cheng2020"), default_space("cheng2020:3")) == ("quick", "frontier")
    monkeypatch.setattr("nas_kd.study.efforts.likely_device", lambda: "cuda")
    assert default_effort("mbt2018") == "night"
    assert named(None, {"teacher": "cheng2020"}).settings.name == "frontier-cheng2020"


CHENG2020 = [TeacherCost(175, 260, 128, 128, 3, 3), TeacherCost(392, 583, 192, 192, 3, 3)]
H200_STEP_S = 0.0048
"""Recorded once: a step of `mini` on 8 crops of 256 px, as CUDA graphs. Students of `frontier` are not measured."""


def test_by_the_step_recorded_of_a_gpu_a_night_takes_a_night_and_an_hour_an_hour(monkeypatch):
    monkeypatch.setattr(forecasting, "measured_step_s", lambda *given: H200_STEP_S)
    monkeypatch.setattr(forecasting, "best_device", lambda: "cuda")
    given = {"teacher": "cheng2020", "data": "clic-train", "eval_data": "kodak"}
    hours = {}
    for effort in ("hour", "night"):
        told = forecast(named(None, given, settings_of(effort)).settings, 200, 4, CHENG2020)
        hours[effort] = sum(told.seconds.values()) / 3600
        assert " on cuda" in told.in_lines[0]
    assert 0.5 < hours["hour"] < 1.5
    assert 6 < hours["night"] < 12
