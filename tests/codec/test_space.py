"""Archs and search spaces: equality, inverses, round trips, and what a bad file says."""

import json
import multiprocessing
from dataclasses import replace
from itertools import islice
from pathlib import Path

import optuna
import pytest

from nas_kd.codec.arch import Arch, Transform, load_arch, prim
from nas_kd.codec.search_space import SearchSpace, even_step, load_space
from nas_kd.errors import SpaceError

FOLDER = Path(__file__).parents[2] / "search_spaces"
FILES = sorted(FOLDER.glob("*.toml"))
SIDE = {
    "stem": "conv",
    "widths": ["$N", "$N", "$N"],
    "depths": [0, 0, 0],
    "attention": [False, False, False],
    "block": "residual",
    "activation": "gdn",
    "kernel": 5,
}


def _toml(vary: str = "N = [16, 32]", side: dict | None = None, top: str = "") -> str:
    """A valid file, but for what the arguments change."""
    lines = "\n".join(f"{k} = {json.dumps(v)}" for k, v in (SIDE if side is None else side).items())
    top = top or 'M = 192\nhyper = "$N"\nentropy = "scale"\nshortcut = false'
    return f"[vary]\n{vary}\n[arch]\n{top}\n[arch.encoder]\n{lines}\n[arch.decoder]\n{lines}\n"


def _load(tmp_path: Path, text: str) -> SearchSpace:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return load_space(path)


@pytest.fixture(params=FILES, ids=lambda p: p.stem)
def space(request: pytest.FixtureRequest) -> SearchSpace:
    return load_space(request.param)


def test_every_shipped_space_loads_and_holds_its_extremes(space: SearchSpace):
    assert len(FILES) >= 4
    for largest in (False, True):
        arch = space.extreme(largest)
        assert space.arch(space.params_of(arch)) == arch


def test_prim_is_the_prim_space():
    space = load_space(FOLDER / "prim.toml")
    archs = [space.arch(p) for p in space.grid()]
    assert archs == [prim(N) for N in range(16, 129, 16)]
    assert space.size == 8


def test_the_valid_file_the_bad_ones_derive_from_is_valid(tmp_path: Path):
    assert _load(tmp_path, _toml()).extreme(True) == prim(32)


TOP = 'M = {}\nhyper = "$N"\nentropy = "scale"\nshortcut = false'
BAD = {
    "unknown key": (_toml(side=SIDE | {"stride": 2}), "arch.encoder.stride", "no such key"),
    "unknown table": (_toml() + "[more]\na = 1\n", "more", "the keys are"),
    "word": (_toml(side=SIDE | {"stem": "patch"}), 'encoder.stem = "patch"', "must be one of"),
    "kernel": (_toml(side=SIDE | {"kernel": 4}), "encoder.kernel = 4", "must be one of 3, 5"),
    "boolean": (_toml(top=TOP.format(192)[:-5] + "0"), "shortcut = 0", "false, true"),
    "M too large": (_toml(top=TOP.format(769)), "arch.M = 769", "from 1 to 768"),
    "M a fraction": (_toml(top=TOP.format(19.5)), "arch.M = 19.5", "whole number"),
    "M a date": (_toml(top=TOP.format("2020-01-02")), "arch.M = ", "whole number"),
    "width in vary": (_toml("N = [16, 2000]"), "widths = 2000", "from 1 to 1024"),
    "two stages": (_toml(side=SIDE | {"depths": [0, 0]}), "depths = [0, 0]", "list of 3"),
    "odd attention": (
        _toml("N = [15, 16]", SIDE | {"attention": [False, False, True]}),
        "encoder.widths = 15",
        "must be even",
    ),
    "missing key": (_toml(top="M = 192"), "arch.hyper is missing", "must be given"),
    "missing table": ("[vary]\nN = [1]\n", "space.arch is missing", "must be given"),
    "side not a table": (
        "[vary]\nN = [16]\n[arch]\nencoder = 3\ndecoder = 3\n" + TOP.format(192),
        "arch.encoder = 3",
        "must be a table",
    ),
    "vary not a table": ("vary = 3\n[arch]\nM = 192\n", "vary = 3", "must be a table"),
    "not TOML": ("N = 1 2\n", "cannot be read as TOML", "line 1"),
    "key twice": (_toml("N = [16]\nN = [32]"), "cannot be read as TOML", "line 3"),
    "unknown name": (_toml("K = [16]"), "$N", "does not list"),
    "unused name": (_toml("N = [16]\nK = [3]"), "vary.K", "used nowhere"),
    "choice twice": (_toml("N = [16, 16]"), "vary.N = [16, 16]", "twice"),
    "descending": (_toml("N = [32, 16]"), "vary.N = [32, 16]", "smallest first"),
    "two types": (_toml('N = [16, "a"]'), 'vary.N = [16, "a"]', "one type"),
    "no choice": (_toml("N = []"), "vary.N = []", "at least one"),
    "no list": (_toml("N = 16"), "vary.N = 16", "must be a list"),
    "fractions": (_toml("N = [1.5]"), "vary.N = [1.5]", "whole numbers"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_one_line_naming_file_key_value_and_rule(case: str, tmp_path: Path):
    text, what, rule = BAD[case]
    with pytest.raises(SpaceError) as caught:
        _load(tmp_path, text)
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(tmp_path / "mine.toml"), what, rule):
        assert part in message


def test_a_file_that_is_not_there_is_an_error_that_says_what_there_is(tmp_path: Path):
    with pytest.raises(SpaceError, match="none.toml: there is no such file"):
        load_space(tmp_path / "none.toml")
    with pytest.raises(SpaceError, match="search space 'none': no such file"):
        load_space("none")


def test_a_value_outside_its_list_is_refused():
    space = load_space(FOLDER / "prim.toml")
    with pytest.raises(SpaceError, match=r"prim: N = 17 is not in \[16, 32"):
        space.arch({"N": 17})
    with pytest.raises(SpaceError, match="no value for N"):
        space.arch({})


def test_entries_without_effect_change_neither_key_nor_equality():
    side = Transform(stem="unshuffle4", widths=(8, 8, 8))
    twin = replace(
        side, widths=(99, 8, 8), depths=(3, 0, 0), attention=(True, False, False), block="depthwise"
    )
    a, b = Arch(encoder=side, decoder=side), Arch(encoder=twin, decoder=twin)
    assert a.key == b.key
    assert a.canonical() == b.canonical()
    assert str(a) == str(b.canonical())


@pytest.mark.parametrize("change", [{"widths": (8, 9, 8)}, {"depths": (0, 0, 1)}, {"kernel": 3}])
def test_entries_with_effect_change_the_key(change: dict):
    side = Transform(stem="unshuffle4", widths=(8, 8, 8))
    a = Arch(encoder=side, decoder=side)
    assert a.key != replace(a, encoder=replace(side, **change)).key
    assert a.key != replace(a, decoder=replace(side, **change)).key


TRUNK16 = SIDE | {"stem": "trunk16", "widths": [0, 0, 0, 24], "depths": [0, 0, 0, 1], "kernel": 3}


@pytest.mark.parametrize(
    ("change", "what", "rule"),
    [
        ({"widths": [8, 8, 8]}, "widths = [8, 8, 8]", "list of 4 entries"),
        (
            {"stem": "trunk4-render", "widths": [0, 8, 0, 8]},
            "encoder.stem = trunk4-render",
            "form of decoders",
        ),
        ({"stem": "trunk8", "widths": [8]}, "widths = [8]", "3 entries, .* or of 4 entries"),
        (
            {"stem": "trunk8", "widths": [8] * 3, "attention": [False] * 4},
            "attention = [false, false, false, false]",
            "list of 3 entries",
        ),
        (
            {"stem": "conv", "widths": [8] * 3, "depths": [0, 0, 1], "block": "summed"},
            "summed",
            "trunks",
        ),
        (
            {"stem": "conv", "widths": [8] * 3, "depths": [0] * 3, "activation": "relu6"},
            "relu6",
            "trunks",
        ),
    ],
)
def test_what_only_some_trunks_have_is_refused_elsewhere(change: dict, what: str, rule: str):
    good = {"encoder": TRUNK16, "decoder": TRUNK16, "M": 16, "hyper": 8, "entropy": "scale"}
    assert Arch.from_json(good).encoder.own_width
    with pytest.raises(SpaceError, match=rule) as caught:
        Arch.from_json(good | {"encoder": TRUNK16 | change})
    assert what in str(caught.value)


def test_archs_of_before_keep_their_keys():
    side = Transform("trunk4", (0, 48, 96), (0, 1, 3, 2), block="depthwise", kernel=3)
    assert Arch(side, side, M=256, hyper=64).key == "49bc84457bce"


def test_block_counts_as_soon_as_there_is_one():
    side = Transform(depths=(0, 1, 0))
    arch = Arch(encoder=side, decoder=side)
    assert arch.key != replace(arch, encoder=replace(side, block="depthwise")).key


def test_a_skipped_stage_holds_anything_and_the_arch_is_the_same():
    data = prim(16).to_json()
    for side in ("encoder", "decoder"):
        data[side] |= {"stem": "unshuffle4", "widths": [0, 16, 16]}
    odd = json.loads(json.dumps(data))
    odd["encoder"]["widths"][0] = "any"
    assert Arch.from_json(odd) == Arch.from_json(data)


def _random_params(space: SearchSpace, n: int) -> list[dict]:
    """Choices that walk through every list at another pace."""
    return [
        {name: c[(k * (i + 1) + k // 3) % len(c)] for i, (name, c) in enumerate(space.vary.items())}
        for k in range(n)
    ]


def test_params_of_inverts_arch(space: SearchSpace):
    for params in [*_random_params(space, 40), *islice(space.grid(), 40)]:
        arch = space.arch(params)
        found = space.params_of(arch)
        assert found is not None
        assert space.arch(found) == arch


def test_a_draw_leans_to_the_largest_numbers_as_far_as_it_is_asked():
    space = load_space(FOLDER / "demo.toml")
    assert {space.draw(seed, largest=1.0) for seed in range(10)} == {space.extreme(True)}
    alike = [
        sum(a == b for a, b in zip(_widths(space.draw(s, largest)), _widths(top), strict=True))
        for top in [space.extreme(True)]
        for largest in (0.0, 0.5)
        for s in range(200)
    ]
    assert sum(alike[200:]) > 1.2 * sum(alike[:200])
    assert space.draw(3, largest=0.0) == space.draw(3)


def _widths(arch: Arch) -> tuple[int, ...]:
    return (arch.M, *arch.encoder.widths, *arch.decoder.widths)


def test_params_of_gives_back_the_choices_where_all_have_effect():
    space = load_space(FOLDER / "prim.toml")
    assert [space.params_of(space.arch(p)) for p in space.grid()] == list(space.grid())


def test_params_of_an_arch_outside_is_none(space: SearchSpace):
    arch = space.extreme(True)
    assert space.params_of(replace(arch, M=191)) is None
    assert space.params_of(replace(arch, hyper=7)) is None


def test_a_name_shared_by_sides_of_which_one_has_no_block_is_found(tmp_path: Path):
    side = SIDE | {"block": "$b", "depths": ["$d", 0, 0]}
    text = _toml('N = [16]\nb = ["depthwise", "residual"]\nd = [0, 1]', side)
    head, tail = text.split("[arch.decoder]")
    space = _load(tmp_path, head + "[arch.decoder]" + tail.replace('["$d", 0, 0]', "[0, 0, 0]"))
    params = {"N": 16, "b": "depthwise", "d": 1}
    assert space.params_of(space.arch(params)) == params


def test_an_optuna_trial_chooses_the_arch_of_its_params(space: SearchSpace):
    for params in _random_params(space, 3):
        trial = optuna.trial.FixedTrial(params)
        assert space.suggest(trial) == space.arch(params)
        assert trial.params == params


def test_even_steps_are_suggested_as_whole_numbers():
    assert even_step((16, 32, 48)) == 16
    assert even_step((1, 2, 4)) is None
    assert even_step((False, True)) is None
    assert even_step((3,)) is None
    trial = optuna.trial.FixedTrial({"N": 32})
    load_space(FOLDER / "prim.toml").suggest(trial)
    assert trial.distributions["N"] == optuna.distributions.IntDistribution(16, 128, step=16)


def test_json_round_trip(space: SearchSpace, tmp_path: Path):
    for params in _random_params(space, 10):
        arch = space.arch(params)
        text = json.dumps({"arch": arch.to_json()})
        assert Arch.from_json(json.loads(text)["arch"]) == arch
        path = tmp_path / "a.json"
        path.write_text(text)
        assert load_arch(path) == arch
        assert load_arch(path).key == arch.key


def test_an_arch_file_without_an_arch_is_one_line(tmp_path: Path):
    path = tmp_path / "a.json"
    for text in ("[]", "{", '{"arch": 3}'):
        path.write_text(text)
        with pytest.raises(SpaceError, match=r"a\.json") as caught:
            load_arch(path)
        assert "\n" not in str(caught.value)


def test_the_key_is_the_same_in_another_process():
    arch = load_space(FOLDER / "demo.toml").extreme(True)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_key, (arch,)) == arch.key
    assert len(arch.key) == 12


def _key(arch: Arch) -> str:
    return arch.key


def test_the_fingerprint_follows_what_may_vary(tmp_path: Path):
    a = _load(tmp_path, _toml()).fingerprint
    assert a == _load(tmp_path, "# a remark\n" + _toml()).fingerprint
    assert a != _load(tmp_path, _toml("N = [16, 48]")).fingerprint
